#!/usr/bin/env bash
# The kiln program on the emulated GPU: verbs, messages, libraries. Usage: command_line_cuda.sh BUILD_DIR
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
kiln=$build/kiln
examples=$source/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset KILN_CACHE
export KILN_CACHE_DIR=$work/cache KILN_NVRTC=$build/libfake_nvrtc.so KILN_CUDA_DRIVER=$build/libfake_cuda.so
count=0

fail() { printf 'FAILED: %s\n' "$*"; [ -s output ] && cat output; exit 1; }
# expect CODE PATTERN COMMAND…: runs it, checks the exit code and that its output (both streams) matches
expect() {
  local code=$1 pattern=$2 found=0
  shift 2
  "$@" >output 2>&1 || found=$?
  [ "$found" -eq "$code" ] || fail "exit code $found, expected $code: $*"
  [ -z "$pattern" ] || grep -Eq -- "$pattern" output || fail "no '$pattern' in the output of: $*"
  count=$((count + 1))
}

small=$examples/simple_cnn10_bn.json
$kiln init "$small" --seed 3 -o w.safetensors >/dev/null

# --- what there is, and what is missing
expect 0 '^cuda +Emulated GPU 0, compute capability 9\.0' $kiln devices
expect 0 '^NVRTC +13\.' $kiln devices
expect 0 'no CUDA driver: /nowhere\.so cannot be opened' env KILN_CUDA_DRIVER=/nowhere.so $kiln devices
expect 0 'no NVRTC: KILN_NVRTC=/nowhere\.so cannot be opened' env KILN_NVRTC=/nowhere.so $kiln devices
expect 0 'finds no GPU: no CUDA-capable device' env KILN_EMULATOR_DEVICES=0 $kiln devices
expect 1 'error: no CUDA driver: /nowhere\.so' env KILN_CUDA_DRIVER=/nowhere.so $kiln bench "$small" --device cuda
[ "$(wc -l <output)" -eq 1 ] || fail "said more than once"
expect 1 'error: no NVRTC: ' env KILN_NVRTC=/nowhere.so $kiln bench "$small" --device cuda
expect 1 'finds no GPU' env KILN_EMULATOR_DEVICES=0 $kiln bench "$small" --device cuda
expect 1 'has no function cuInit' env KILN_CUDA_DRIVER="$build/libfake_nvrtc.so" $kiln bench "$small" --device cuda
expect 1 'there is no GPU 3: the driver finds 1' $kiln bench "$small" --device cuda:3
expect 2 "--device: expected cpu, cuda or cuda:N, found 'gpu'" $kiln bench "$small" --device gpu
expect 2 '--math: expected fp32, 3xtf32' $kiln bench "$small" --device cuda --math fp8
expect 2 '--math is for GPUs' $kiln bench "$small" --math bf16
expect 1 'sm_70 does not compute in bf16' env KILN_EMULATOR_ARCH=70 $kiln bench "$small" --device cuda --math bf16

# --- against the interpreter
for model in simple_cnn10_bn simple_cnn2 simple_net; do
  $kiln init "$examples/$model.json" --seed 3 -o $model.safetensors >/dev/null
  expect 0 'kernels compared with the interpreter' $kiln verify "$examples/$model.json" --weights $model.safetensors \
    --device cuda --batch 3
done
expect 0 'kernels compared' env KILN_EMULATOR_ORDER=reverse $kiln verify "$small" --weights w.safetensors --device cuda --batch 2
expect 0 'kernels compared' env KILN_EMULATOR_ARCH=75 $kiln verify "$small" --weights w.safetensors --device cuda --batch 2
expect 1 'differs from the interpreter' $kiln verify "$small" --weights w.safetensors --device cuda --math bf16
expect 0 'kernels compared' $kiln verify "$small" --weights w.safetensors --device cuda --math bf16 --tolerance 0.03
expect 0 'kernels compared' $kiln verify "$small" --weights w.safetensors --device cuda --batch 2 --hook '*:activation:stats'

# --- running and timing
python3 -c 'import struct,sys
sys.stdout.buffer.write(b"\x93NUMPY\x01\x00v\x00"+(("{\x27descr\x27: \x27<f4\x27, \x27fortran_order\x27: False, \x27shape\x27: (2, 1, 28, 28), }").ljust(117)+"\n").encode()+b"".join(struct.pack("<f",(i*37%255)/255) for i in range(2*784)))' >image.npy
expect 0 '' $kiln run "$small" --weights w.safetensors --input image=image.npy --precision strict --output logits=cpu.npy
expect 0 '' $kiln run "$small" --weights w.safetensors --input image=image.npy --device cuda --precision strict --output logits=gpu.npy
cat >compare.py <<'END'
import struct, sys
a, b = (struct.unpack("<20f", open(p, "rb").read()[-80:]) for p in sys.argv[1:3])
worst = max(abs(x - y) for x, y in zip(a, b)) / max(abs(x) for x in a)
sys.exit(0 if worst < 1e-5 else f"outputs differ by {worst}")
END
expect 0 '' python3 compare.py cpu.npy gpu.npy
expect 0 'with inputs and outputs in the host.s memory' $kiln bench "$small" --device cuda --batch 1,2 --kernels --seconds 0.1
grep -Eq '^head +conv2d|conv2d.* %' output || fail "no table of kernels"
grep -Eq '^peaks of Emulated GPU 0: f32 [0-9.]+ GFLOP/s   3xtf32 [0-9.]+   tf32 [0-9.]+   bf16 [0-9.]+   fp16 [0-9.]+ .*memory [0-9.]+ GB/s$' output ||
  fail "no peaks"
grep -Eq '^0\.2 +conv2d +[0-9.]+ +[0-9.]+ % +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9]+ %$' output || fail "no share of the roof"
expect 0 '' $kiln bench "$small" --device cuda --batch 1 --seconds 0.1 --kernels --csv --roofline roofline.svg
awk -F, 'NR > 1 { if (NF != 11 || $2 == "conv2d" && !($10 > 0 && $11 > 0)) exit 1 } END { exit NR < 6 }' output || fail "no roofs"
grep -q '<svg' roofline.svg || fail "no roofline plot"
expect 0 '"isa":"sm_90".*"with_copies_ms":' $kiln bench "$small" --device cuda --batch 1 --seconds 0.1 --json

expect 0 'sum of the kernels .* of the best ones' $kiln bench "$examples/simple_net.json" --device cuda --batch 1 --seconds 0.1 --variants
grep -Eq 'as modelled' output || fail "no candidates"
expect 0 'different kernels of simple_net measured' $kiln tune "$examples/simple_net.json" --device cuda --batch 1 --rounds 1 -o gpu.tuning
expect 0 'select: measured: ' $kiln explain "$examples/simple_net.json" --device cuda --batch 1 --tuning gpu.tuning --locked
sed -i 's/"tile 7":[0-9.]*/"tile 7":0.001/' gpu.tuning
expect 0 'select: measured: tile 7, 0.001 us' $kiln explain "$examples/simple_net.json" --device cuda --batch 1 --tuning gpu.tuning --locked
expect 0 'kernels compared' $kiln verify "$examples/simple_net.json" --weights simple_net.safetensors --device cuda --batch 1 --tuning gpu.tuning

# --- text and code
expect 0 'k[0-9]+_conv2d' $kiln compile "$small" --target cuda --arch sm_80 --emit cuda
expect 0 '' $kiln compile "$small" --target cuda --arch sm_80 --emit ptx -o net.ptx
grep -q '^// fake PTX' net.ptx || fail "no PTX"
expect 0 '' $kiln compile "$small" --target cuda --arch sm_90 --emit cubin -o cubins
ls cubins/*_conv2d.cubin >/dev/null || fail "no machine code"
expect 2 '-o FILE is missing' $kiln compile "$small" --target cuda --arch sm_90 --emit cubin
expect 1 'give --target cuda' $kiln compile "$small" --emit ptx
expect 1 "unknown GPU architecture 'sm_1'" $kiln compile "$small" --target cuda --arch sm_1 --emit cuda

# --- what was chosen
expect 0 '^0\.2 +conv2d +3xtf32 +[0-9]+ x [0-9]+ x [0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$' $kiln explain "$small" --device cuda
expect 0 '^sm_80, batch 4: 5 matrix products$' $kiln explain "$small" --target cuda --arch sm_80 --math bf16 --batch 4
[ "$(grep -c ' conv2d \+bf16 .* x ' output)" -eq 5 ] || fail "not five convolutions in bf16"
expect 0 'conv2d +fp32 +no tiles' $kiln explain "$examples/mobilenet_v2.json" --target cuda --arch sm_90
expect 0 'conv2d_grad_weight +fp32 ' $kiln explain "$small" --target cuda --arch sm_75 --train --optimizer adam --math fp32
expect 1 "unknown GPU architecture 'sm_1'" $kiln explain "$small" --target cuda --arch sm_1

# --- a library: a host for processors runs it unchanged, with nothing of Kiln in sight
mkdir gpu cpu
expect 0 'kernels' $kiln compile "$small" --weights w.safetensors --batch 2 --precision strict --target cuda --arch sm_90 -o gpu/libsimple_cnn10_bn.so
expect 0 'kernels' $kiln compile "$small" --weights w.safetensors --batch 2 --precision strict -o cpu/libsimple_cnn10_bn.so
cp gpu/libsimple_cnn10_bn.so first.so
expect 0 'kernels' $kiln compile "$small" --weights w.safetensors --batch 2 --precision strict --target cuda --arch sm_90 -o gpu/libsimple_cnn10_bn.so
cmp first.so gpu/libsimple_cnn10_bn.so || fail "the same input gave another library"
for kind in cpu gpu; do
  cc -std=c11 -Wall -Wextra -Werror -D_POSIX_C_SOURCE=200809L "$source/examples/host/compiled.c" -I$kind -L$kind -lsimple_cnn10_bn \
    -pthread -o $kind/host
  LD_LIBRARY_PATH=$kind $kind/host >$kind.txt || fail "the host of the library for a $kind fails"
done
paste cpu.txt gpu.txt | awk '{ half = NF / 2; for (i = 1; i <= half; i++) if ($i != $(i + half) && ($i - $(i + half)) ^ 2 > 1e-8) exit 1 }' ||
  fail "the libraries for GPU and processor differ: $(paste cpu.txt gpu.txt)"
expect 1 '' env KILN_CUDA_DRIVER=/nowhere.so LD_LIBRARY_PATH=gpu gpu/host
expect 0 '^0\.2 +conv2d .* -$' $kiln bench gpu/libsimple_cnn10_bn.so --seconds 0.1 --kernels
expect 0 '' $kiln run gpu/libsimple_cnn10_bn.so --input image=image.npy --output logits=library.npy
cmp gpu.npy library.npy || fail "the library and the program in memory differ"
expect 0 '' $kiln compile "$small" --batch 2 --precision strict --target cuda --arch sm_90 --weights-mode caller -o caller.so
expect 1 'holds no weights' $kiln run caller.so --input image=image.npy
expect 0 '' $kiln run caller.so --weights w.safetensors --input image=image.npy --output logits=library.npy
cmp gpu.npy library.npy || fail "weights of the caller give another result"
expect 1 'expected mode embed or caller' $kiln compile "$small" --weights w.safetensors --target cuda --arch sm_90 --weights-mode file -o file.so

echo "$count commands behave as documented"
