; Whether this processor and its operating system have what an x86-64 program needs. '$' as in entry.ll.

; Bits that must be set: in ECX of leaf 1, EBX of leaf 7, ECX of leaf 0x80000001, and XCR0 (saved registers).
@$_needs = internal constant { i32, i32, i32, i32 } zeroinitializer

define internal { i32, i32, i32, i32 } @$_cpuid(i32 %leaf) {
  %registers = call { i32, i32, i32, i32 } asm sideeffect "cpuid",
    "={ax},={bx},={cx},={dx},0,2,~{dirflag},~{fpsr},~{flags}"(i32 %leaf, i32 0)
  ret { i32, i32, i32, i32 } %registers
}

define i32 @$_check() {
entry:
  %needs = load { i32, i32, i32, i32 }, ptr @$_needs
  %need.1 = extractvalue { i32, i32, i32, i32 } %needs, 0
  %need.7 = extractvalue { i32, i32, i32, i32 } %needs, 1
  %need.extended = extractvalue { i32, i32, i32, i32 } %needs, 2
  %need.saved = extractvalue { i32, i32, i32, i32 } %needs, 3
  %leaf.0 = call { i32, i32, i32, i32 } @$_cpuid(i32 0)
  %last_leaf = extractvalue { i32, i32, i32, i32 } %leaf.0, 0
  %leaf.1 = call { i32, i32, i32, i32 } @$_cpuid(i32 1)
  %have.1 = extractvalue { i32, i32, i32, i32 } %leaf.1, 2
  %leaf.extended = call { i32, i32, i32, i32 } @$_cpuid(i32 u0x80000001)
  %have.extended = extractvalue { i32, i32, i32, i32 } %leaf.extended, 2
  %has.7 = icmp uge i32 %last_leaf, 7
  br i1 %has.7, label %read.7, label %after.7

read.7:
  %leaf.7 = call { i32, i32, i32, i32 } @$_cpuid(i32 7)
  %read.7.bits = extractvalue { i32, i32, i32, i32 } %leaf.7, 1
  br label %after.7

after.7:
  %have.7 = phi i32 [ 0, %entry ], [ %read.7.bits, %read.7 ]
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
  %lack = or i32 %lack.a, %lack.b
  %complete = icmp eq i32 %lack, 0
  %status = select i1 %complete, i32 0, i32 5       ; KILN_ERROR_CPU
  ret i32 %status
}
