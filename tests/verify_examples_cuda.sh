#!/usr/bin/env bash
# The example descriptions on the emulated GPU against the interpreter, in every mode of computing; hooks, gradients and
# training steps against the processor; equal bits for any order of threads. Usage: verify_examples_cuda.sh BUILD_DIR
source "$(dirname "$0")/support.sh"
use_emulated_gpu

# line WHAT RESULT: one of the runs that agree, and its share of the time
begun=${EPOCHREALTIME/[.,]/}
line() {
  local now=${EPOCHREALTIME/[.,]/}
  printf '%-56s %6.2f s  %s\n' "$1" "$(((now - begun) / 10000))e-2" "$2"
  begun=$now
  count=$((count + 1))
}

# --- against the interpreter

# Reduced pictures; the networks themselves are whole.
shape_of() {
  case $1 in
    simple_* | fashion | edges_digit | broken_cnn) shape=() ;;
    *) shape=(--shape image=N,3,33,33) ;;
  esac
}
# The largest relative L2 error of a value. A product of tf32 or f16 operands is off by 2^-11 and one of bf16 by 2^-8;
# on normalised random networks the layers add up to some times that, in the deep mobilenet_v2 most.
gate_of() {
  case $1-$2 in
    *-default | *-fp32 | *-3xtf32) gate=1e-5 ;;
    mobilenet_v2-bf16) gate=1e-1 ;;
    mobilenet_v2-*) gate=2e-2 ;;
    *-bf16) gate=3e-2 ;;
    *) gate=5e-3 ;;
  esac
}
# verify NAME MODE BATCH OPTIONS…
verify() {
  local name=$1 mode=$2 batch=$3 math=()
  shift 3
  shape_of "$name"
  gate_of "$name" "$mode"
  [ "$mode" = default ] || math=(--math "$mode")
  quiet "$kiln" verify "$examples/$name.json" --weights "$name.safetensors" "${shape[@]}" --device cuda --batch "$batch" \
    "${math[@]}" --tolerance "$gate" "$@"
  local found
  found=$(sed -n 's/.* kernels compared with the interpreter; worst relative L2 \([^ ]*\) at .*/\1/p' output)
  [ -n "$found" ] || fail "nothing was compared: $name"
  line "$name, batch $batch, $mode${*:+, $*}" "$found of $gate"
}

for example in "$examples"/*.json; do
  name=$(basename "$example" .json)
  quiet "$kiln" init "$example" --seed 1 -o "$name.safetensors"
  case $name in
    resnet50 | resnet34_pets) batches=2 ;;
    vgg11_bn | resnet34 | resnet50_products) batches=1 ;; # the bodies of others, or layers that take long
    *) batches="1 2" ;;
  esac
  for batch in $batches; do verify "$name" default "$batch"; done
done
for name in simple_cnn10_bn edges_digit edges_rgb edges_rgb2 squeezenet1_1; do
  for mode in fp32 tf32 bf16 fp16; do verify "$name" $mode 1; done
done
for mode in tf32 bf16; do verify mobilenet_v2 $mode 1; done
for mode in fp32 fp16; do verify resnet18 $mode 1; done
verify simple_cnn10_bn default 3 --hook '*:activation:stats'
verify squeezenet1_1 default 1 --disable fuse

# The comparison notices a mode that is not precise enough, and code that is wrong: here a compiler that turns every ReLU
# into its opposite.
wrong() {
  local pattern=$1
  shift
  ! "$@" >output 2>&1 || fail "not noticed: $*"
  grep -q "$pattern" output || fail "no '$pattern': $*"
}
model=("$examples/simple_cnn10_bn.json" --weights simple_cnn10_bn.safetensors)
wrong 'differs from the interpreter' "$kiln" verify "${model[@]}" --device cuda --math bf16
cat >wrong_cc <<'END'
#!/bin/sh
for argument; do case $argument in *.c) sed -i 's/ < 0[.]0f ? 0[.]0f :/ > 0.0f ? 0.0f :/' "$argument" ;; esac; done
exec cc "$@"
END
chmod +x wrong_cc
line 'a mode that is not precise enough' 'noticed'

# --- against the processor

cat >compare.py <<'END'
"""compare.py A B TOLERANCE: the worst relative L2 difference of tensors with the same name, in safetensors or .npy."""
import array, json, math, struct, sys

def read(path):
    data = open(path, "rb").read()
    if data[:6] == b"\x93NUMPY":
        start = 10 + struct.unpack("<H", data[8:10])[0]
        return {"map": array.array("f", data[start:])}
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            low, high = entry["data_offsets"]
            found[name] = array.array("f", data[8 + size + low : 8 + size + high])
    return found

a, b = read(sys.argv[1]), read(sys.argv[2])
if a.keys() != b.keys() or not a:
    sys.exit(f"tensors {sorted(a)} and {sorted(b)}")
if not any(any(values) for values in a.values()):
    sys.exit("all values are 0")
worst, where = 0.0, ""
for name in a:
    if len(a[name]) != len(b[name]):
        sys.exit(f"{name}: {len(a[name])} and {len(b[name])} elements")
    difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a[name], b[name])))
    size = math.sqrt(sum(x * x for x in a[name]))
    relative = 0.0 if difference == 0 else difference / size if size > 0 else math.inf
    if not relative <= worst:
        worst, where = relative, name
if not worst <= float(sys.argv[3]):
    sys.exit(f"{where}: relative L2 {worst:.2e}, allowed {sys.argv[3]}")
print(f"{worst:.2e} of {sys.argv[3]}")
END
# both WHAT TOLERANCE FILE COMMAND…: with --device cpu and cuda; the command writes FILE
both() {
  local what=$1 tolerance=$2 file=$3 device
  shift 3
  for device in cpu cuda; do
    quiet "$@" --device $device
    mv "$file" "$device.$file"
  done
  quiet python3 compare.py "cpu.$file" "cuda.$file" "$tolerance"
  line "$what" "$(cat output)"
}

"$build/draw_scene" scene.png 40 33
both 'hooks: values, statistics and gradients' 1e-5 hooks.safetensors "$kiln" run "${model[@]}" --input image=scene.png \
  --class 3 --hook 0.2:activation:store --hook 1:activation:stats --hook 1:gradient:store --hook 2.0:gradient:stats \
  --hooks-out hooks.safetensors
both 'gradients of a class score' 1e-5 gradients.safetensors "$kiln" grad "${model[@]}" --input image=scene.png --of logits \
  --class 3 --wrt image,0.0.weight,1 -o gradients.safetensors
both 'Grad-CAM, simple_cnn10_bn' 1e-4 map.npy "$kiln" heatmap "${model[@]}" --input image=scene.png --layer 1 \
  --method gradcam --class 3 -o cam.png --raw map.npy
both 'Grad-CAM, squeezenet1_1' 1e-4 map.npy "$kiln" heatmap "$examples/squeezenet1_1.json" \
  --weights squeezenet1_1.safetensors --shape image=N,3,65,65 --input image=scene.png --layer features.3 \
  --method gradcam --class 100 -o cam.png --raw map.npy

# Pictures of 28 by 28 in ten classes: four steps of sixteen.
python3 - <<'END'
import os, random, struct
random.seed(5)
os.mkdir("data")
for part, count in (("train", 64), ("t10k", 16)):
    labels = bytes(i % 10 for i in range(count))
    pixels = bytes(min(255, 20 * label + random.randrange(60)) for label in labels for _ in range(784))
    open(f"data/{part}-images-idx3-ubyte", "wb").write(struct.pack(">4i", 2051, count, 28, 28) + pixels)
    open(f"data/{part}-labels-idx1-ubyte", "wb").write(struct.pack(">2i", 2049, count) + labels)
END
for optimizer in sgd adam; do
  rate=0.05
  [ $optimizer = sgd ] || rate=0.002
  both "training, $optimizer: weights after 4 steps" 1e-4 trained.safetensors "$kiln" train "${model[0]}" --data data --lr $rate \
    --batch 16 --optimizer $optimizer --precision strict --seed 2 --save trained.safetensors
done

# --- the order of threads, warps and blocks
for name in simple_cnn10_bn squeezenet1_1; do
  shape_of $name
  for order in forward reverse; do
    quiet env KILN_EMULATOR_ORDER=$order "$kiln" run "$examples/$name.json" --weights $name.safetensors "${shape[@]}" \
      --device cuda --input image=scene.png --input image=scene.png --outputs $order.safetensors
  done
  cmp forward.safetensors reverse.safetensors || fail "$name: the order of threads shows"
  line "$name, threads in reverse order" 'the same bits'
done

# Last, because a broken kernel must not be found in the cache.
wrong 'differs from the interpreter' env KILN_CACHE=off KILN_EMULATOR_CC="$work/wrong_cc" "$kiln" verify "${model[@]}" --device cuda
line 'a wrong kernel' 'noticed'

times >times # in this shell: its own time, then that of the commands
read -r user _ < <(tail -1 times)
echo "$count runs agree; user time of all commands $user"
