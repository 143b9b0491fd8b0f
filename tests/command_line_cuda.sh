#!/usr/bin/env bash
# The kiln program on the emulated GPU: verbs, messages, libraries. Usage: command_line_cuda.sh BUILD_DIR
source "$(dirname "$0")/support.sh"
use_emulated_gpu

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
# images in 16 bits beside ones that stay f32: channels that are no multiple of 8, ops that do not know 16 bits, outputs
cat >mixed.json <<'END'
{ "kiln": 1, "name": "mixed", "inputs": { "image": { "shape": ["N", 3, 12, 10] } },
  "layers": [
    { "op": "conv2d", "name": "stem", "out_channels": 24, "kernel": 3, "padding": 1 },
    { "op": "gelu", "name": "act" },
    { "op": "conv2d", "name": "a", "in": "act", "out_channels": 12, "kernel": 1 },
    { "op": "conv2d", "name": "b", "in": "act", "out_channels": 16, "kernel": 3, "padding": 1 },
    { "op": "conv2d", "name": "c", "in": "act", "out_channels": 12, "kernel": 1 },
    { "op": "concat", "name": "joined", "in": ["a", "b", "c"] },
    { "op": "conv2d", "name": "d", "in": "joined", "out_channels": 32, "kernel": 3, "padding": 1, "groups": 2 },
    { "op": "upsample", "name": "up", "in": "b", "scale": 2, "mode": "bilinear" },
    { "op": "avg_pool2d", "name": "down", "in": "up", "kernel": 2, "stride": 2 },
    { "op": "concat", "name": "both", "in": ["d", "down"] },
    { "op": "pad", "name": "padded", "in": "both", "padding": [1, 2, 0, 1] },
    { "op": "conv_transpose2d", "name": "t", "in": "padded", "out_channels": 8, "kernel": 2, "stride": 2 },
    { "op": "softmax", "name": "s", "in": "t", "dim": 1 },
    { "op": "conv2d", "name": "g", "in": "s", "out_channels": 8, "kernel": 3 },
    { "op": "adaptive_avg_pool2d" }, { "op": "flatten" }, { "op": "linear", "name": "logits", "out_features": 5 } ],
  "outputs": ["logits", "s", "both"] }
END
$kiln init mixed.json --seed 2 -o mixed.safetensors >/dev/null
expect 0 'kernels compared' env KILN_EMULATOR_OPTIMIZE=0 $kiln verify mixed.json --weights mixed.safetensors --device cuda --batch 2 --math fp16 \
  --tolerance 0.003 --hook 'joined:activation:stats'
expect 0 'joined +f32.N,40,12,10. nhwc_f16 .* concat' $kiln compile mixed.json --target cuda --arch sm_90 --math fp16 --emit plan
expect 0 'channels last, kept in bf16; rejected' $kiln explain mixed.json --target cuda --arch sm_90 --math bf16

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

# --- a training step as a library: the same host trains with either
sed -e 's/BATCH = 32, STEPS = 80/BATCH = 4, STEPS = 3/' -e 's/step % 10 == 0/step > 1/' "$source/examples/host/train.c" >train.c
grep -q 'BATCH = 4, STEPS = 3' train.c && grep -q 'step > 1' train.c || fail "the host that trains has changed"
for kind in cpu gpu; do
  target=(--target cuda --arch sm_90)
  [ $kind = gpu ] || target=()
  expect 0 'kernels' env KILN_EMULATOR_OPTIMIZE=0 $kiln compile "$small" --train --optimizer adam --batch 4 --precision strict "${target[@]}" \
    -o $kind/libsimple_cnn10_bn_train.so
  cc -std=c11 -Wall -Wextra -Werror -D_POSIX_C_SOURCE=200809L train.c -I$kind -L$kind -lsimple_cnn10_bn_train -lm -o $kind/train
  LD_LIBRARY_PATH=$kind $kind/train >$kind.txt || fail "the host of the training step for a $kind fails"
done
[ "$(wc -l <gpu.txt)" -eq 3 ] || fail "not three steps: $(cat gpu.txt)"
paste cpu.txt gpu.txt | awk '{ if (!(($4 - $8) ^ 2 < 4e-6)) exit 1 }' ||
  fail "training with the libraries for GPU and processor differs: $(paste cpu.txt gpu.txt)"

echo "$count commands behave as documented"
