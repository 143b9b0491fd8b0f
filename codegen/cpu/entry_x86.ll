; Whether this processor and its operating system have what an x86-64 program needs. '$' as in entry.ll.

; Bits that must be set: in ECX of leaf 1, EBX of leaf 7, ECX of leaf 0x80000001, XCR0 (saved registers), and EDX of leaf
; 7. The last ones are those of tile registers, for which a program on Linux has to ask.
@$_needs = internal constant { i32, i32, i32, i32, i32 } zeroinitializer

define internal { i32, i32, i32, i32 } @$_cpuid(i32 %leaf, i32 %part) {
  %registers = call { i32, i32, i32, i32 } asm sideeffect "cpuid",
    "={ax},={bx},={cx},={dx},0,2,~{dirflag},~{fpsr},~{flags}"(i32 %leaf, i32 %part)
  ret { i32, i32, i32, i32 } %registers
}

define i32 @$_check() {
entry:
  %needs = load { i32, i32, i32, i32, i32 }, ptr @$_needs
  %need.1 = extractvalue { i32, i32, i32, i32, i32 } %needs, 0
  %need.7 = extractvalue { i32, i32, i32, i32, i32 } %needs, 1
  %need.extended = extractvalue { i32, i32, i32, i32, i32 } %needs, 2
  %need.saved = extractvalue { i32, i32, i32, i32, i32 } %needs, 3
  %need.tiles = extractvalue { i32, i32, i32, i32, i32 } %needs, 4
  %leaf.0 = call { i32, i32, i32, i32 } @$_cpuid(i32 0, i32 0)
  %last_leaf = extractvalue { i32, i32, i32, i32 } %leaf.0, 0
  %leaf.1 = call { i32, i32, i32, i32 } @$_cpuid(i32 1, i32 0)
  %have.1 = extractvalue { i32, i32, i32, i32 } %leaf.1, 2
  %leaf.extended = call { i32, i32, i32, i32 } @$_cpuid(i32 u0x80000001, i32 0)
  %have.extended = extractvalue { i32, i32, i32, i32 } %leaf.extended, 2
  %has.7 = icmp uge i32 %last_leaf, 7
  br i1 %has.7, label %read.7, label %after.7

read.7:
  %leaf.7 = call { i32, i32, i32, i32 } @$_cpuid(i32 7, i32 0)
  %read.7.bits = extractvalue { i32, i32, i32, i32 } %leaf.7, 1
  %read.tiles = extractvalue { i32, i32, i32, i32 } %leaf.7, 3
  br label %after.7

after.7:
  %have.7 = phi i32 [ 0, %entry ], [ %read.7.bits, %read.7 ]
  %have.tiles = phi i32 [ 0, %entry ], [ %read.tiles, %read.7 ]
  %osxsave = and i32 %have.1, 134217728             ; bit 27: the system lets programs read XCR0
  %readable = icmp ne i32 %osxsave, 0
  br i1 %readable, label %read.saved, label %after.saved

read.saved:
  ; xgetbv, spelled in bytes because the baseline assembler does not know it
  %control = call { i32, i32 } asm sideeffect ".byte 15, 1, 208", "={ax},={dx},{cx},~{dirflag},~{fpsr},~{flags}"(i32 0)
  %read.saved.bits = extractvalue { i32, i32 } %control, 0
  br label %after.saved

after.saved:
  %have.saved = phi i32 [ 0, %after.7 ], [ %read.saved.bits, %read.saved ]
  %absent.1 = xor i32 %have.1, -1
  %lack.1 = and i32 %need.1, %absent.1
  %absent.7 = xor i32 %have.7, -1
  %lack.7 = and i32 %need.7, %absent.7
  %absent.extended = xor i32 %have.extended, -1
  %lack.extended = and i32 %need.extended, %absent.extended
  %absent.saved = xor i32 %have.saved, -1
  %lack.saved = and i32 %need.saved, %absent.saved
  %lack.a = or i32 %lack.1, %lack.7
  %lack.b = or i32 %lack.extended, %lack.saved
  %absent.tiles = xor i32 %have.tiles, -1
  %lack.tiles = and i32 %need.tiles, %absent.tiles
  %lack.ab = or i32 %lack.a, %lack.b
  %lack = or i32 %lack.ab, %lack.tiles
  %complete = icmp eq i32 %lack, 0
  br i1 %complete, label %instructions, label %unfit

instructions:
  %uses_tiles = icmp ne i32 %need.tiles, 0
  br i1 %uses_tiles, label %halves, label %fit

halves:
  %leaf.7.1 = call { i32, i32, i32, i32 } @$_cpuid(i32 7, i32 1)
  %conversions = extractvalue { i32, i32, i32, i32 } %leaf.7.1, 0
  %avx512_bf16 = and i32 %conversions, 32           ; bit 5
  %converts = icmp ne i32 %avx512_bf16, 0
  br i1 %converts, label %ask, label %unfit

ask:
  ; arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); asking again does no harm
  %refused = call i64 asm sideeffect "syscall",
    "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory},~{dirflag},~{fpsr},~{flags}"(i64 158, i64 4131, i64 18)
  %granted = icmp eq i64 %refused, 0
  br i1 %granted, label %fit, label %unfit

fit:
  ret i32 0

unfit:
  ret i32 5                                         ; KILN_ERROR_CPU
}
