; The entry points of a compiled program, the same for all programs. '$' stands for the program's symbol prefix. The
; compiler appends the definition of $_check, parses the text, gives $_program its value and translates the module for
; the baseline processor of its target, so that $_check can run anywhere. Types mirror include/kiln_abi.h.

%kiln_call = type { ptr, i64, ptr, i64 }
%kiln_operand = type { i32, i32, i64, i64 }
%kiln_view = type { i32, i32, [6 x i64], [6 x i64], i64, i64, i32, i32 }
%kiln_step = type { ptr, ptr, ptr, ptr, i32, i32, i64, i64, i64, double, double, double, double, %kiln_view }
%kiln_port = type { ptr, i32, i32, [6 x i64], i64, i32, i32 }
%kiln_slot = type { ptr, i32, i32, [6 x i64], i64, i32, i32 }
%kiln_io = type { i64, ptr, ptr, i32, i32 }
%kiln_weights = type { ptr, ptr, ptr }
%kiln_weights_head = type { [8 x i8], i64, i64, i64, [32 x i8] }
%kiln_program = type {
  i32, i32, ptr, ptr, ptr, ptr, i64,                ; 0 versions, name, kiln version, isa, triple, identity
  ptr, ptr, ptr, ptr, i32, i32, i32, i32,           ; 7 inputs, outputs, parameters, hooks and their counts
  ptr, ptr, i32, i32,                               ; 15 prepare steps, run steps and their counts
  i64, i32, i32,                                    ; 19 max_batch, max_threads, reserved
  i64, i64, i64,                                    ; 22 workspace fixed and per batch, scratch of a thread
  i64, i64,                                         ; 25 prepared_bytes, prepare_scratch
  ptr, ptr, ptr, ptr, ptr,                          ; 27 check, embedded, prepare, run, metadata
  ptr, i32, i32                                     ; 32 slots and their count, groups
}
; A step on its way through the host's parallel_for.
%kiln_job = type { ptr, %kiln_call }

@$_program = internal constant %kiln_program zeroinitializer, align 64

define ptr @$_describe() {
  ret ptr @$_program
}

define internal void @$_task(ptr %job, i32 %thread, i64 %begin, i64 %end) {
  %kernel = load ptr, ptr %job
  %call = getelementptr %kiln_job, ptr %job, i32 0, i32 1
  call void %kernel(ptr %call, i32 %thread, i64 %begin, i64 %end)
  ret void
}

; Walks `count` steps. %bases holds an address per kiln_space: of the memory itself, or from KILN_SPACE_PARAMETER on
; of the array of the caller's pointers. %scratch: of thread 0.
define internal i32 @$_walk(ptr %steps, i32 %count, ptr %bases, i64 %batch, ptr %scratch, ptr %parallel_for, ptr %pool) {
entry:
  %operands = alloca [16 x ptr], align 16
  %job = alloca %kiln_job, align 16
  %any = icmp ne i32 %count, 0
  %serial = icmp eq ptr %parallel_for, null
  %stride.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 24
  %stride = load i64, ptr %stride.at
  br i1 %any, label %step, label %finished

step:
  %s = phi i32 [ 0, %entry ], [ %s.next, %step.end ]
  %step.at = getelementptr %kiln_step, ptr %steps, i32 %s
  %list.at = getelementptr %kiln_step, ptr %step.at, i32 0, i32 3
  %list = load ptr, ptr %list.at
  %operand_count.at = getelementptr %kiln_step, ptr %step.at, i32 0, i32 4
  %operand_count = load i32, ptr %operand_count.at
  br label %operand

operand:
  %i = phi i32 [ 0, %step ], [ %i.next, %resolved ]
  %operand.at = getelementptr %kiln_operand, ptr %list, i32 %i
  %space = load i32, ptr %operand.at
  %base.at = getelementptr ptr, ptr %bases, i32 %space
  %base = load ptr, ptr %base.at
  %missing = icmp eq ptr %base, null
  br i1 %missing, label %no_memory, label %present

present:
  %direct = icmp ult i32 %space, 3
  br i1 %direct, label %resolve, label %pointer

pointer:
  %index.at = getelementptr %kiln_operand, ptr %operand.at, i32 0, i32 1
  %index = load i32, ptr %index.at
  %pointer.at = getelementptr ptr, ptr %base, i32 %index
  %given = load ptr, ptr %pointer.at
  %absent = icmp eq ptr %given, null
  br i1 %absent, label %no_memory, label %resolve

resolve:
  %memory = phi ptr [ %base, %present ], [ %given, %pointer ]
  %offset.at = getelementptr %kiln_operand, ptr %operand.at, i32 0, i32 2
  %offset = load i64, ptr %offset.at
  %per_batch.at = getelementptr %kiln_operand, ptr %operand.at, i32 0, i32 3
  %per_batch = load i64, ptr %per_batch.at
  %of_batch = mul i64 %per_batch, %batch
  %distance = add i64 %offset, %of_batch
  %address = getelementptr i8, ptr %memory, i64 %distance
  %slot = getelementptr [16 x ptr], ptr %operands, i32 0, i32 %i
  store ptr %address, ptr %slot
  br label %resolved

resolved:
  %i.next = add i32 %i, 1
  %more = icmp ult i32 %i.next, %operand_count
  br i1 %more, label %operand, label %launch

launch:
  %kernel = load ptr, ptr %step.at
  store ptr %kernel, ptr %job
  %call = getelementptr %kiln_job, ptr %job, i32 0, i32 1
  store ptr %operands, ptr %call
  %call.batch = getelementptr %kiln_call, ptr %call, i32 0, i32 1
  store i64 %batch, ptr %call.batch
  %needed.at = getelementptr %kiln_step, ptr %step.at, i32 0, i32 8
  %needed = load i64, ptr %needed.at
  %needs = icmp ne i64 %needed, 0
  %own_scratch = select i1 %needs, ptr %scratch, ptr null
  %call.scratch = getelementptr %kiln_call, ptr %call, i32 0, i32 2
  store ptr %own_scratch, ptr %call.scratch
  %call.stride = getelementptr %kiln_call, ptr %call, i32 0, i32 3
  store i64 %stride, ptr %call.stride
  %items.at = getelementptr %kiln_step, ptr %step.at, i32 0, i32 6
  %items.fixed = load i64, ptr %items.at
  %items_per_batch.at = getelementptr %kiln_step, ptr %step.at, i32 0, i32 7
  %items_per_batch = load i64, ptr %items_per_batch.at
  %items.of_batch = mul i64 %items_per_batch, %batch
  %items = add i64 %items.fixed, %items.of_batch
  br i1 %serial, label %alone, label %together

alone:
  call void %kernel(ptr %call, i32 0, i64 0, i64 %items)
  br label %step.end

together:
  %outcome = call i32 %parallel_for(ptr %pool, ptr @$_task, ptr %job, i64 %items)
  %stopped = icmp ne i32 %outcome, 0
  br i1 %stopped, label %callback_failed, label %step.end

step.end:
  %s.next = add i32 %s, 1
  %steps.more = icmp ult i32 %s.next, %count
  br i1 %steps.more, label %step, label %finished

finished:
  ret i32 0

callback_failed:
  ret i32 9                                         ; KILN_ERROR_CALLBACK

no_memory:
  %is_prepared = icmp eq i32 %space, 1
  %is_parameter = icmp eq i32 %space, 3
  %is_weight = or i1 %is_prepared, %is_parameter
  %status = select i1 %is_weight, i32 7, i32 1      ; KILN_ERROR_WEIGHTS, KILN_ERROR_ARGUMENT
  ret i32 %status
}

; What stands in *io about threads: 0 when there are more than the workspace is sized for.
define internal i32 @$_threads(ptr %io) {
  %threads.at = getelementptr %kiln_io, ptr %io, i32 0, i32 3
  %threads = load i32, ptr %threads.at
  %unset = icmp eq i32 %threads, 0
  %count = select i1 %unset, i32 1, i32 %threads
  %limit.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 20
  %limit = load i32, ptr %limit.at
  %too_many = icmp ugt i32 %count, %limit
  %result = select i1 %too_many, i32 0, i32 %count
  ret i32 %result
}

; The host's parallel_for, or NULL when one thread does all.
define internal ptr @$_parallel_for(ptr %io, i32 %threads) {
  %parallel_for.at = getelementptr %kiln_io, ptr %io, i32 0, i32 1
  %parallel_for = load ptr, ptr %parallel_for.at
  %several = icmp ugt i32 %threads, 1
  %result = select i1 %several, ptr %parallel_for, ptr null
  ret ptr %result
}

; Memory of %size bytes that may be NULL only when nothing is needed, and is aligned.
define internal i1 @$_usable(ptr %memory, i64 %size) {
  %address = ptrtoint ptr %memory to i64
  %low = and i64 %address, 63
  %aligned = icmp eq i64 %low, 0
  %given = icmp ne ptr %memory, null
  %none = icmp eq i64 %size, 0
  %enough = or i1 %given, %none
  %result = and i1 %aligned, %enough
  ret i1 %result
}

define i32 @$_run(ptr %weights, ptr %workspace, ptr %io) {
entry:
  %bases = alloca [6 x ptr], align 16
  %no_weights = icmp eq ptr %weights, null
  %no_io = icmp eq ptr %io, null
  %no_argument = or i1 %no_weights, %no_io
  br i1 %no_argument, label %argument, label %have_arguments

have_arguments:
  %owner = load ptr, ptr %weights
  %own = icmp eq ptr %owner, @$_program
  br i1 %own, label %own_weights, label %wrong_weights

own_weights:
  %batch = load i64, ptr %io
  %max_batch.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 19
  %max_batch = load i64, ptr %max_batch.at
  %too_large = icmp ugt i64 %batch, %max_batch      ; unsigned: negative ones too
  br i1 %too_large, label %wrong_batch, label %batch_fits

batch_fits:
  %empty = icmp eq i64 %batch, 0
  br i1 %empty, label %nothing, label %measure

measure:
  %threads = call i32 @$_threads(ptr %io)
  %threads.none = icmp eq i32 %threads, 0
  %threads.wide = zext i32 %threads to i64
  %fixed.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 22
  %fixed = load i64, ptr %fixed.at
  %per_batch.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 23
  %per_batch = load i64, ptr %per_batch.at
  %scratch_bytes.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 24
  %scratch_bytes = load i64, ptr %scratch_bytes.at
  %of_batch = mul i64 %per_batch, %batch
  %tensors = add i64 %fixed, %of_batch
  %scratches = mul i64 %scratch_bytes, %threads.wide
  %size = add i64 %tensors, %scratches
  %usable = call i1 @$_usable(ptr %workspace, i64 %size)
  %unusable = xor i1 %usable, true
  %refused = or i1 %threads.none, %unusable
  br i1 %refused, label %argument, label %ready

ready:
  %scratch = getelementptr i8, ptr %workspace, i64 %tensors
  %prepared.at = getelementptr %kiln_weights, ptr %weights, i32 0, i32 1
  %prepared = load ptr, ptr %prepared.at
  %parameters.at = getelementptr %kiln_weights, ptr %weights, i32 0, i32 2
  %parameters = load ptr, ptr %parameters.at
  %inputs = getelementptr %kiln_io, ptr %io, i32 1
  %input_count.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 11
  %input_count = load i32, ptr %input_count.at
  %outputs = getelementptr ptr, ptr %inputs, i32 %input_count
  %bases.prepared = getelementptr [6 x ptr], ptr %bases, i32 0, i32 1
  %bases.scratch = getelementptr [6 x ptr], ptr %bases, i32 0, i32 2
  %bases.parameters = getelementptr [6 x ptr], ptr %bases, i32 0, i32 3
  %bases.inputs = getelementptr [6 x ptr], ptr %bases, i32 0, i32 4
  %bases.outputs = getelementptr [6 x ptr], ptr %bases, i32 0, i32 5
  store ptr %workspace, ptr %bases
  store ptr %prepared, ptr %bases.prepared
  store ptr null, ptr %bases.scratch
  store ptr %parameters, ptr %bases.parameters
  store ptr %inputs, ptr %bases.inputs
  store ptr %outputs, ptr %bases.outputs
  %parallel_for = call ptr @$_parallel_for(ptr %io, i32 %threads)
  %pool.at = getelementptr %kiln_io, ptr %io, i32 0, i32 2
  %pool = load ptr, ptr %pool.at
  %steps.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 16
  %steps = load ptr, ptr %steps.at
  %step_count.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 18
  %step_count = load i32, ptr %step_count.at
  %status = call i32 @$_walk(ptr %steps, i32 %step_count, ptr %bases, i64 %batch, ptr %scratch, ptr %parallel_for,
                             ptr %pool)
  ret i32 %status

nothing:
  ret i32 0
argument:
  ret i32 1                                         ; KILN_ERROR_ARGUMENT
wrong_weights:
  ret i32 7                                         ; KILN_ERROR_WEIGHTS
wrong_batch:
  ret i32 8                                         ; KILN_ERROR_BATCH
}

define i32 @$_prepare(ptr %parameters, ptr %prepared, ptr %scratch, ptr %io) {
entry:
  %bases = alloca [6 x ptr], align 16
  %single = alloca %kiln_io, align 16
  store %kiln_io zeroinitializer, ptr %single
  %no_io = icmp eq ptr %io, null
  %own_io = select i1 %no_io, ptr %single, ptr %io
  %threads = call i32 @$_threads(ptr %own_io)
  %threads.none = icmp eq i32 %threads, 0
  %threads.wide = zext i32 %threads to i64
  %scratch_bytes.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 24
  %scratch_bytes = load i64, ptr %scratch_bytes.at
  %prepared_bytes.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 25
  %prepared_bytes = load i64, ptr %prepared_bytes.at
  %temporary.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 26
  %temporary = load i64, ptr %temporary.at
  %scratches = mul i64 %scratch_bytes, %threads.wide
  %size = add i64 %temporary, %scratches
  %prepared.usable = call i1 @$_usable(ptr %prepared, i64 %prepared_bytes)
  %scratch.usable = call i1 @$_usable(ptr %scratch, i64 %size)
  %usable = and i1 %prepared.usable, %scratch.usable
  %unusable = xor i1 %usable, true
  %refused = or i1 %threads.none, %unusable
  br i1 %refused, label %argument, label %ready

ready:
  %own_scratch = getelementptr i8, ptr %scratch, i64 %temporary
  %bases.prepared = getelementptr [6 x ptr], ptr %bases, i32 0, i32 1
  %bases.scratch = getelementptr [6 x ptr], ptr %bases, i32 0, i32 2
  %bases.parameters = getelementptr [6 x ptr], ptr %bases, i32 0, i32 3
  %bases.inputs = getelementptr [6 x ptr], ptr %bases, i32 0, i32 4
  %bases.outputs = getelementptr [6 x ptr], ptr %bases, i32 0, i32 5
  store ptr null, ptr %bases
  store ptr %prepared, ptr %bases.prepared
  store ptr %scratch, ptr %bases.scratch
  store ptr %parameters, ptr %bases.parameters
  store ptr null, ptr %bases.inputs
  store ptr null, ptr %bases.outputs
  %parallel_for = call ptr @$_parallel_for(ptr %own_io, i32 %threads)
  %pool.at = getelementptr %kiln_io, ptr %own_io, i32 0, i32 2
  %pool = load ptr, ptr %pool.at
  %steps.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 15
  %steps = load ptr, ptr %steps.at
  %step_count.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 17
  %step_count = load i32, ptr %step_count.at
  %status = call i32 @$_walk(ptr %steps, i32 %step_count, ptr %bases, i64 1, ptr %own_scratch, ptr %parallel_for,
                             ptr %pool)
  ret i32 %status

argument:
  ret i32 1                                         ; KILN_ERROR_ARGUMENT
}

; Fills *weights after everything has been checked.
define internal i32 @$_bind(ptr %weights, ptr %prepared, ptr %parameters) {
  store ptr @$_program, ptr %weights
  %prepared.at = getelementptr %kiln_weights, ptr %weights, i32 0, i32 1
  store ptr %prepared, ptr %prepared.at
  %parameters.at = getelementptr %kiln_weights, ptr %weights, i32 0, i32 2
  store ptr %parameters, ptr %parameters.at
  ret i32 0
}

define i32 @$_weights_embedded(ptr %weights) {
entry:
  %none = icmp eq ptr %weights, null
  br i1 %none, label %argument, label %look

look:
  %embedded.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 28
  %embedded = load ptr, ptr %embedded.at
  %missing = icmp eq ptr %embedded, null
  br i1 %missing, label %no_weights, label %check

check:
  %runnable = call i32 @$_check()
  %refused = icmp ne i32 %runnable, 0
  br i1 %refused, label %wrong_cpu, label %bind

bind:
  %status = call i32 @$_bind(ptr %weights, ptr %embedded, ptr null)
  ret i32 %status
argument:
  ret i32 1                                         ; KILN_ERROR_ARGUMENT
no_weights:
  ret i32 7                                         ; KILN_ERROR_WEIGHTS
wrong_cpu:
  ret i32 %runnable
}

define i32 @$_weights_prepare(ptr %weights, ptr %parameters, ptr %prepared, ptr %scratch, ptr %io) {
entry:
  %none = icmp eq ptr %weights, null
  br i1 %none, label %argument, label %check

check:
  %runnable = call i32 @$_check()
  %refused = icmp ne i32 %runnable, 0
  br i1 %refused, label %wrong_cpu, label %prepare

prepare:
  %outcome = call i32 @$_prepare(ptr %parameters, ptr %prepared, ptr %scratch, ptr %io)
  %failed = icmp ne i32 %outcome, 0
  br i1 %failed, label %not_prepared, label %bind

bind:
  %status = call i32 @$_bind(ptr %weights, ptr %prepared, ptr %parameters)
  ret i32 %status
argument:
  ret i32 1                                         ; KILN_ERROR_ARGUMENT
wrong_cpu:
  ret i32 %runnable
not_prepared:
  ret i32 %outcome
}

; FNV-1a, 64 bits.
define internal i64 @$_checksum(ptr %data, i64 %size) {
entry:
  %none = icmp eq i64 %size, 0
  br i1 %none, label %done, label %byte
byte:
  %i = phi i64 [ 0, %entry ], [ %i.next, %byte ]
  %hash = phi i64 [ -3750763034362895579, %entry ], [ %hash.next, %byte ]
  %at = getelementptr i8, ptr %data, i64 %i
  %value = load i8, ptr %at
  %wide = zext i8 %value to i64
  %mixed = xor i64 %hash, %wide
  %hash.next = mul i64 %mixed, 1099511628211
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %size
  br i1 %more, label %byte, label %done
done:
  %result = phi i64 [ -3750763034362895579, %entry ], [ %hash.next, %byte ]
  ret i64 %result
}

define i32 @$_weights_open(ptr %weights, ptr %file, i64 %size) {
entry:
  %no_weights = icmp eq ptr %weights, null
  %no_file = icmp eq ptr %file, null
  %address = ptrtoint ptr %file to i64
  %low = and i64 %address, 63
  %misaligned = icmp ne i64 %low, 0
  %missing = or i1 %no_weights, %no_file
  %refused = or i1 %missing, %misaligned
  br i1 %refused, label %argument, label %check

check:
  %runnable = call i32 @$_check()
  %wrong = icmp ne i32 %runnable, 0
  br i1 %wrong, label %wrong_cpu, label %measure

measure:
  %prepared_bytes.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 25
  %prepared_bytes = load i64, ptr %prepared_bytes.at
  %expected = add i64 %prepared_bytes, 64
  %fits = icmp eq i64 %size, %expected
  br i1 %fits, label %read_head, label %wrong_weights

read_head:
  %magic = load i64, ptr %file
  %known = icmp eq i64 %magic, 3554277264877963595  ; "KILNWTS1"
  %identity.file = getelementptr %kiln_weights_head, ptr %file, i32 0, i32 1
  %identity = load i64, ptr %identity.file
  %own_identity.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 6
  %own_identity = load i64, ptr %own_identity.at
  %same = icmp eq i64 %identity, %own_identity
  %bytes.file = getelementptr %kiln_weights_head, ptr %file, i32 0, i32 2
  %bytes = load i64, ptr %bytes.file
  %same_size = icmp eq i64 %bytes, %prepared_bytes
  %right_plan = and i1 %same, %same_size
  %right = and i1 %known, %right_plan
  br i1 %right, label %read_blob, label %wrong_weights

read_blob:
  %blob = getelementptr %kiln_weights_head, ptr %file, i32 1
  %sum = call i64 @$_checksum(ptr %blob, i64 %prepared_bytes)
  %sum.file = getelementptr %kiln_weights_head, ptr %file, i32 0, i32 3
  %sum.expected = load i64, ptr %sum.file
  %intact = icmp eq i64 %sum, %sum.expected
  br i1 %intact, label %bind, label %wrong_weights

bind:
  %status = call i32 @$_bind(ptr %weights, ptr %blob, ptr null)
  ret i32 %status
argument:
  ret i32 1                                         ; KILN_ERROR_ARGUMENT
wrong_cpu:
  ret i32 %runnable
wrong_weights:
  ret i32 7                                         ; KILN_ERROR_WEIGHTS
}
