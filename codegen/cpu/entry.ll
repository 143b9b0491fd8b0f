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
  ptr, i32, i32,                                    ; 32 slots and their count, groups
  i32, i32, i32, i32                                ; 35 chunk, batch_unit, stretch_images, reserved
}
; A step on its way through the host's parallel_for.
%kiln_job = type { ptr, %kiln_call }
; Steps of a stretch on their way there: jobs, the steps' items of an image, how many they are, images at a time.
%kiln_stretch = type { [8 x %kiln_job], [8 x i64], i32, i64 }
; A batch on its way there, some images at a time: bases, images of the batch and of a chunk, by how many the workspace's
; offsets grow, bytes from a thread's workspace to the next one's, scratch of thread 0, what went wrong.
%kiln_chunks = type { ptr, i64, i64, i64, i64, ptr, i32 }

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

; Parts [begin, end) of the batch, each through all steps of a stretch.
define internal void @$_stretch_task(ptr %stretch, i32 %thread, i64 %begin, i64 %end) {
entry:
  %count.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 2
  %count = load i32, ptr %count.at
  %images.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 3
  %images = load i64, ptr %images.at
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %part, label %finished

part:
  %p = phi i64 [ %begin, %entry ], [ %p.next, %part.end ]
  %from = mul i64 %p, %images
  %to = add i64 %from, %images
  br label %step

step:
  %s = phi i32 [ 0, %part ], [ %s.next, %step ]
  %job = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 0, i32 %s
  %kernel = load ptr, ptr %job
  %call = getelementptr %kiln_job, ptr %job, i32 0, i32 1
  %items.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 1, i32 %s
  %items = load i64, ptr %items.at
  %first = mul i64 %from, %items
  %last = mul i64 %to, %items
  call void %kernel(ptr %call, i32 %thread, i64 %first, i64 %last)
  %s.next = add i32 %s, 1
  %more = icmp ult i32 %s.next, %count
  br i1 %more, label %step, label %part.end

part.end:
  %p.next = add i64 %p, 1
  %parts.more = icmp slt i64 %p.next, %end
  br i1 %parts.more, label %part, label %finished

finished:
  ret void
}

; How many steps from %step on run together: those of a stretch, when its images divide the batch and are not all of it.
define internal i32 @$_together(ptr %step, i64 %batch) {
entry:
  %length.at = getelementptr %kiln_step, ptr %step, i32 0, i32 5
  %length = load i32, ptr %length.at
  %long = icmp ugt i32 %length, 1
  br i1 %long, label %look, label %one

look:
  %images.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 37
  %images.narrow = load i32, ptr %images.at
  %images = zext i32 %images.narrow to i64
  %some = icmp ne i64 %images, 0
  %fewer = icmp ult i64 %images, %batch
  %useful = and i1 %some, %fewer
  br i1 %useful, label %divide, label %one

divide:
  %left = urem i64 %batch, %images
  %even = icmp eq i64 %left, 0
  %result = select i1 %even, i32 %length, i32 1
  ret i32 %result

one:
  ret i32 1
}

; How far image %first of an input (%space 4) or output (5) lies from the caller's pointer; parameters (3) have no images.
define internal i64 @$_image_distance(i32 %space, i32 %index, i64 %first) {
entry:
  %is_port = icmp ugt i32 %space, 3
  br i1 %is_port, label %look, label %none

look:
  %is_input = icmp eq i32 %space, 4
  %inputs.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 7
  %outputs.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 8
  %ports.at = select i1 %is_input, ptr %inputs.at, ptr %outputs.at
  %ports = load ptr, ptr %ports.at
  %bytes.at = getelementptr %kiln_port, ptr %ports, i32 %index, i32 4
  %bytes = load i64, ptr %bytes.at
  %batched.at = getelementptr %kiln_port, ptr %ports, i32 %index, i32 5
  %batched = load i32, ptr %batched.at
  %is_batched = icmp ne i32 %batched, 0
  %image = select i1 %is_batched, i64 %bytes, i64 0
  %distance = mul i64 %image, %first
  ret i64 %distance

none:
  ret i64 0
}

; Walks `count` steps for %batch images, the caller's from number %first on. %bases holds an address per kiln_space: of the
; memory itself, or from KILN_SPACE_PARAMETER on of the array of the caller's pointers. Offsets in the workspace grow by
; %span images. %scratch: of thread 0.
define internal i32 @$_walk(ptr %steps, i32 %count, ptr %bases, i64 %batch, i64 %span, i64 %first, ptr %scratch,
                            ptr %parallel_for, ptr %pool) {
entry:
  %all_operands = alloca [8 x [16 x ptr]], align 16
  %stretch = alloca %kiln_stretch, align 16
  %any = icmp ne i32 %count, 0
  %serial = icmp eq ptr %parallel_for, null
  %stride.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 24
  %stride = load i64, ptr %stride.at
  br i1 %any, label %step, label %finished

; %waiting steps of a stretch have been made jobs; %wanted run together
step:
  %s = phi i32 [ 0, %entry ], [ %s.next, %step.end ]
  %waiting = phi i32 [ 0, %entry ], [ %waiting.next, %step.end ]
  %wanted.before = phi i32 [ 1, %entry ], [ %wanted, %step.end ]
  %step.at = getelementptr %kiln_step, ptr %steps, i32 %s
  %begins = icmp eq i32 %waiting, 0
  %length = call i32 @$_together(ptr %step.at, i64 %batch)
  %wanted = select i1 %begins, i32 %length, i32 %wanted.before
  %operands = getelementptr [8 x [16 x ptr]], ptr %all_operands, i32 0, i32 %waiting
  %job = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 0, i32 %waiting
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
  br i1 %absent, label %no_memory, label %find_image

find_image:
  %from_begin = icmp eq i64 %first, 0
  br i1 %from_begin, label %resolve, label %skip_images

skip_images:
  %skipped = call i64 @$_image_distance(i32 %space, i32 %index, i64 %first)
  %of_image = getelementptr i8, ptr %given, i64 %skipped
  br label %resolve

resolve:
  %memory = phi ptr [ %base, %present ], [ %given, %find_image ], [ %of_image, %skip_images ]
  %offset.at = getelementptr %kiln_operand, ptr %operand.at, i32 0, i32 2
  %offset = load i64, ptr %offset.at
  %per_batch.at = getelementptr %kiln_operand, ptr %operand.at, i32 0, i32 3
  %per_batch = load i64, ptr %per_batch.at
  %of_batch = mul i64 %per_batch, %span
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
  %own_items.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 1, i32 %waiting
  store i64 %items_per_batch, ptr %own_items.at
  %ready = add i32 %waiting, 1
  %lonely = icmp eq i32 %wanted, 1
  br i1 %lonely, label %single, label %of_stretch

of_stretch:
  %complete = icmp eq i32 %ready, %wanted
  br i1 %complete, label %run_stretch, label %step.end

run_stretch:
  %jobs.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 2
  store i32 %ready, ptr %jobs.at
  %part.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 37
  %part.narrow = load i32, ptr %part.at
  %part = zext i32 %part.narrow to i64
  %images.at = getelementptr %kiln_stretch, ptr %stretch, i32 0, i32 3
  store i64 %part, ptr %images.at
  %parts = udiv i64 %batch, %part
  br i1 %serial, label %stretch.alone, label %stretch.together

stretch.alone:
  call void @$_stretch_task(ptr %stretch, i32 0, i64 0, i64 %parts)
  br label %step.end

stretch.together:
  %stretch.outcome = call i32 %parallel_for(ptr %pool, ptr @$_stretch_task, ptr %stretch, i64 %parts)
  %stretch.stopped = icmp ne i32 %stretch.outcome, 0
  br i1 %stretch.stopped, label %callback_failed, label %step.end

single:
  br i1 %serial, label %alone, label %together

alone:
  call void %kernel(ptr %call, i32 0, i64 0, i64 %items)
  br label %step.end

together:
  %outcome = call i32 %parallel_for(ptr %pool, ptr @$_task, ptr %job, i64 %items)
  %stopped = icmp ne i32 %outcome, 0
  br i1 %stopped, label %callback_failed, label %step.end

step.end:
  %waiting.next = phi i32 [ %ready, %of_stretch ], [ 0, %stretch.alone ], [ 0, %stretch.together ], [ 0, %alone ],
                          [ 0, %together ]
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

; Chunks [begin, end): all steps of one, then of the next, in the thread's part of the workspace.
define internal void @$_chunk_task(ptr %chunks, i32 %thread, i64 %begin, i64 %end) {
entry:
  %bases = alloca [6 x ptr], align 16
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %prepare, label %finished

prepare:
  %common = load ptr, ptr %chunks
  %batch.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 1
  %batch = load i64, ptr %batch.at
  %size.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 2
  %size = load i64, ptr %size.at
  %span.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 3
  %span = load i64, ptr %span.at
  %bytes.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 4
  %bytes = load i64, ptr %bytes.at
  %scratch.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 5
  %scratch = load ptr, ptr %scratch.at
  %stride.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 24
  %stride = load i64, ptr %stride.at
  %thread.wide = zext i32 %thread to i64
  %scratch.distance = mul i64 %stride, %thread.wide
  %own_scratch = getelementptr i8, ptr %scratch, i64 %scratch.distance
  %copy = load [6 x ptr], ptr %common
  store [6 x ptr] %copy, ptr %bases
  %workspace = load ptr, ptr %common
  %distance = mul i64 %bytes, %thread.wide
  %own_workspace = getelementptr i8, ptr %workspace, i64 %distance
  store ptr %own_workspace, ptr %bases
  %steps.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 16
  %steps = load ptr, ptr %steps.at
  %step_count.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 18
  %step_count = load i32, ptr %step_count.at
  br label %chunk

chunk:
  %c = phi i64 [ %begin, %prepare ], [ %c.next, %chunk.end ]
  %first = mul i64 %c, %size
  %left = sub i64 %batch, %first
  %last = icmp slt i64 %left, %size
  %images = select i1 %last, i64 %left, i64 %size
  %status = call i32 @$_walk(ptr %steps, i32 %step_count, ptr %bases, i64 %images, i64 %span, i64 %first,
                             ptr %own_scratch, ptr null, ptr null)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %note, label %chunk.end

chunk.end:
  %c.next = add i64 %c, 1
  %more = icmp slt i64 %c.next, %end
  br i1 %more, label %chunk, label %finished

note:                                               ; the same for every chunk: memory that is missing
  %status.at = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 6
  store atomic i32 %status, ptr %status.at monotonic, align 8
  ret void

finished:
  ret void
}

; Images of a chunk when a batch goes through all steps chunk by chunk, or 0 when it does not: when the program does not
; allow it, there is only one chunk, threads would wait for each other for more than a ninth of the time, or their
; workspaces would exceed the batch's.
define internal i64 @$_chunk_size(i64 %batch, i64 %threads) {
entry:
  %chunk.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 35
  %chunk = load i32, ptr %chunk.at
  %allowed = icmp ne i32 %chunk, 0
  br i1 %allowed, label %divide, label %whole

divide:                                             ; as many chunks for each thread, as large as they may be
  %most = zext i32 %chunk to i64
  %unit.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 36
  %unit.narrow = load i32, ptr %unit.at
  %unit = zext i32 %unit.narrow to i64
  %unit.less = sub i64 %unit, 1
  %of_thread = mul i64 %most, %threads
  %rounds = call i64 @$_divide_up(i64 %batch, i64 %of_thread)
  %pieces = mul i64 %rounds, %threads
  %images = call i64 @$_divide_up(i64 %batch, i64 %pieces)
  %units = call i64 @$_divide_up(i64 %images, i64 %unit)
  %size = mul i64 %units, %unit
  %several = icmp slt i64 %size, %batch
  %count = call i64 @$_divide_up(i64 %batch, i64 %size)
  %rounds.made = call i64 @$_divide_up(i64 %count, i64 %threads)
  %at_once = mul i64 %threads, %size
  %room = add i64 %batch, %unit.less
  %fits = icmp sle i64 %at_once, %room
  %longest = mul i64 %at_once, %rounds.made
  %batch.units = udiv i64 %room, %unit
  %computed = mul i64 %batch.units, %unit
  %eighth = lshr i64 %computed, 3
  %bound = add i64 %computed, %eighth
  %even = icmp sle i64 %longest, %bound
  %alone = icmp eq i64 %threads, 1
  %balanced = or i1 %even, %alone
  %possible = and i1 %several, %fits
  %good = and i1 %possible, %balanced
  %result = select i1 %good, i64 %size, i64 0
  ret i64 %result

whole:
  ret i64 0
}

define internal i64 @$_divide_up(i64 %count, i64 %size) {
  %less = sub i64 %size, 1
  %more = add i64 %count, %less
  %result = udiv i64 %more, %size
  ret i64 %result
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
  %chunks = alloca %kiln_chunks, align 16
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
  %alone = icmp eq ptr %parallel_for, null
  %workers = select i1 %alone, i64 1, i64 %threads.wide
  %size.chunk = call i64 @$_chunk_size(i64 %batch, i64 %workers)
  %chunked = icmp ne i64 %size.chunk, 0
  br i1 %chunked, label %by_chunk, label %by_step

by_step:
  %steps.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 16
  %steps = load ptr, ptr %steps.at
  %step_count.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 18
  %step_count = load i32, ptr %step_count.at
  %status = call i32 @$_walk(ptr %steps, i32 %step_count, ptr %bases, i64 %batch, i64 %batch, i64 0, ptr %scratch,
                             ptr %parallel_for, ptr %pool)
  ret i32 %status

by_chunk:                                           ; workspaces are as large as a chunk's values: the unit's room is in them
  %unit.at = getelementptr %kiln_program, ptr @$_program, i32 0, i32 36
  %unit = load i32, ptr %unit.at
  %unit.wide = zext i32 %unit to i64
  %unit.less = sub i64 %unit.wide, 1
  %span = sub i64 %size.chunk, %unit.less
  %bytes = mul i64 %size.chunk, %per_batch
  store ptr %bases, ptr %chunks
  %chunks.batch = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 1
  store i64 %batch, ptr %chunks.batch
  %chunks.size = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 2
  store i64 %size.chunk, ptr %chunks.size
  %chunks.span = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 3
  store i64 %span, ptr %chunks.span
  %chunks.bytes = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 4
  store i64 %bytes, ptr %chunks.bytes
  %chunks.scratch = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 5
  store ptr %scratch, ptr %chunks.scratch
  %chunks.status = getelementptr %kiln_chunks, ptr %chunks, i32 0, i32 6
  store i32 0, ptr %chunks.status
  %count = call i64 @$_divide_up(i64 %batch, i64 %size.chunk)
  br i1 %alone, label %serial, label %together

serial:
  call void @$_chunk_task(ptr %chunks, i32 0, i64 0, i64 %count)
  br label %chunks.done

together:
  %outcome = call i32 %parallel_for(ptr %pool, ptr @$_chunk_task, ptr %chunks, i64 %count)
  %stopped = icmp ne i32 %outcome, 0
  br i1 %stopped, label %callback_failed, label %chunks.done

chunks.done:
  %noted = load atomic i32, ptr %chunks.status monotonic, align 8
  ret i32 %noted

callback_failed:
  ret i32 9                                         ; KILN_ERROR_CALLBACK
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
  %status = call i32 @$_walk(ptr %steps, i32 %step_count, ptr %bases, i64 1, i64 1, i64 0, ptr %own_scratch,
                             ptr %parallel_for, ptr %pool)
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
