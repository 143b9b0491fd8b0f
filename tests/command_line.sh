#!/usr/bin/env bash
# The kiln program as others script it: every verb, exit codes, messages, files. Usage: command_line.sh BUILD_DIR
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
kiln=$build/kiln
examples=$source/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
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

# --- help and usage
expect 0 'Usage: kiln VERB' $kiln --help
expect 2 'Usage: kiln VERB' $kiln
expect 0 'kiln 0\.' $kiln --version
expect 2 "did you mean compile" $kiln compil
for verb in check summary init run compile verify explain bench inspect ops; do
  expect 0 'Examples:' $kiln $verb --help
  expect 2 "unknown option '--nonsense'" $kiln $verb --nonsense
done
expect 2 'did you mean --weights' $kiln run x.json --weigths w
expect 2 'expected 1 argument' $kiln check
expect 2 'expected an integer from 1 to 64' $kiln run x.json --threads 0

# --- check
for example in "$examples"/*.json; do
  expect 0 '' $kiln check "$example"
  [ ! -s output ] || fail "check printed something about $example"
done
cat >bad.json <<'JSON'
{ "kiln": 1, "name": "bad",
  "inputs": { "image": { "dtype": "f32", "shape": ["N", 3, 8, 8] } },
  "layers": [ { "op": "conv2d", "name": "a", "out_channels": 4, "kernal": 3 },
              { "op": "conv3d", "name": "b" } ],
  "outputs": ["nowhere"] }
JSON
expect 1 'bad\.json:3:6[0-9]: error: .*kernal.*kernel' $kiln check bad.json
expect 1 'bad\.json:4:[0-9]+: error: .*conv3d' $kiln check bad.json
expect 1 'nowhere' $kiln check bad.json
expect 1 'missing\.json' $kiln check missing.json

# --- summary
expect 0 'parameters +21,831,599' $kiln summary "$examples/resnet34_pets.json" --shape image=1x3x352x352
expect 0 'trainable +563,951' $kiln summary "$examples/resnet34_pets.json"
expect 0 '"params":25637484,"trainable":2182572' $kiln summary "$examples/resnet50_products.json" --json
expect 0 '"output":\[1,512,11,11\]' $kiln summary "$examples/resnet34_pets.json" --shape image=1x3x352x352 --json
expect 1 'shape' $kiln summary "$examples/resnet34.json" --shape image=1x3xx
expect 1 "image" $kiln summary "$examples/resnet34.json" --shape picture=1x3x64x64

# --- init: reproducible
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 1 -o w.safetensors
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 1 -o w2.safetensors
cmp w.safetensors w2.safetensors || fail "the same seed gave different weights"
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 2 -o w2.safetensors
! cmp -s w.safetensors w2.safetensors || fail "another seed gave the same weights"
expect 2 'missing' $kiln init "$examples/simple_cnn10_bn.json" --seed 1
expect 0 '0\.0\.weight +f32 +\[8,1,5,5\]' $kiln inspect w.safetensors

# --- run: jit and library, threads, batches, inputs of every kind
"$build/draw_scene" scene.png 40 32
expect 0 '%' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --outputs jit.safetensors --output logits=logits.npy
expect 0 'libsimple\.so' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libsimple.so
[ -f simple.h ] || fail "no header beside the library"
expect 0 '%' $kiln run libsimple.so --input image=scene.png --outputs library.safetensors
cmp jit.safetensors library.safetensors || fail "library and jit differ"
for threads in 1 2 3 7; do
  expect 0 '' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --outputs threads.safetensors --threads $threads --device cpu
  cmp jit.safetensors threads.safetensors || fail "$threads threads give other results"
done
expect 0 '\[1,10\]' $kiln inspect logits.npy
expect 0 '' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --input image=scene.png --input image=scene.png --outputs three.safetensors
expect 0 '\[3,10\]' $kiln inspect three.safetensors
expect 0 '' $kiln run libsimple.so --input image=scene.png --input image=scene.png --input image=scene.png --outputs three2.safetensors
cmp three.safetensors three2.safetensors || fail "batch of three in one run and one by one differ"
for precision in strict default fast; do
  expect 0 '' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --precision $precision
done
printf 'zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n' >labels.txt
expect 0 ' (zero|one|two|three|four|five|six|seven|eight|nine)$' $kiln run libsimple.so --input image=scene.png --labels labels.txt --top 3
expect 1 "input 'image'.*is not given" $kiln run libsimple.so
expect 1 "no input 'picture'; did you mean 'image'" $kiln run libsimple.so --input picture=scene.png
expect 1 "no output 'nothing'" $kiln run libsimple.so --input image=scene.png --output nothing=x.npy
expect 1 'has no value' $kiln run "$examples/simple_cnn10_bn.json" --input image=scene.png
expect 1 'expected cpu' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --device tpu
expect 1 'compiled already' $kiln run libsimple.so --input image=scene.png --shape image=1x1x28x28
head -c 200 scene.png >cut.png
expect 1 'cut\.png' $kiln run libsimple.so --input image=cut.png

# --- parameters from the inputs file; a picture out
"$build/draw_scene" wide.png 400 352
expect 0 'edge' $kiln run "$examples/edges_rgb.json" --input image=wide.png --output edge=edges.png --output edge=edges.npy --shape image=1x3x352x352
expect 0 '350 x 350, 1 channel' $kiln inspect edges.png
expect 0 '\[1,1,350,350\]' $kiln inspect edges.npy
expect 0 '' $kiln run "$examples/simple_cnn10_bn.json" --inputs w.safetensors --input image=scene.png --outputs jit2.safetensors
cmp jit.safetensors jit2.safetensors || fail "parameters from --inputs give other results"

# --- hooks
expect 0 'hook\.' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --hook '1:activation:store' --hooks-out hooks.safetensors --outputs hooked.safetensors
expect 0 'hook\.1 ' $kiln inspect hooks.safetensors
cmp jit.safetensors hooked.safetensors || fail "a hook changed the output"
expect 1 'hook|gradient' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --hook 'nosuchvalue'

# --- compile: modes, levels, emits, reproducible
for mode in embed file caller; do
  mkdir -p $mode
  expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --weights-mode $mode -o $mode/libsimple.so
done
expect 0 '' $kiln run file/libsimple.so --input image=scene.png --outputs file.safetensors
expect 0 '' $kiln run caller/libsimple.so --weights w.safetensors --input image=scene.png --outputs caller.safetensors
cmp jit.safetensors file.safetensors || fail "weights from a file give other results"
cmp jit.safetensors caller.safetensors || fail "weights from the caller give other results"
expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libfirst.so
expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libsecond.so
cmp libfirst.so libsecond.so || fail "two builds differ"
cmp first.h second.h || fail "two headers differ"
for level in x86-64-v2 x86-64-v3 x86-64-v4; do
  expect 0 "$level" $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --cpu $level -o lib$level.so
done
expect 1 'x86-64-v3' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --cpu i386 -o libx.so
expect 0 'conv2d' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --emit ir
expect 0 'workspace|conv2d' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --emit plan
expect 0 'define' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --emit llvm
expect 0 'ret' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --emit asm
expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --emit obj -o simple.o
expect 2 '-o FILE is missing' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors
expect 2 'embed, file or caller' $kiln compile "$examples/simple_cnn10_bn.json" --weights-mode none -o libx.so
expect 0 'aarch64' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --triple aarch64-linux-gnu -o libarm.so

# --- verify, explain, inspect, bench, ops
expect 0 'compared with the interpreter' $kiln verify "$examples/simple_cnn10_bn.json" --weights w.safetensors --batch 3
expect 1 "differs from the interpreter" $kiln verify "$examples/simple_cnn10_bn.json" --weights w.safetensors --tolerance 0
expect 0 'fold_bn' $kiln explain "$examples/simple_cnn10_bn.json"
$kiln explain "$examples/simple_cnn10_bn.json" --json | python3 -c 'import json,sys; json.load(sys.stdin)' 2>/dev/null || ! command -v python3 >/dev/null || fail "explain --json is not JSON"
expect 0 'graph' $kiln explain "$examples/simple_cnn10_bn.json" --stop-after fuse
expect 0 '# before fuse' $kiln explain "$examples/simple_cnn10_bn.json" --dump before:fuse
expect 0 '' $kiln explain "$examples/simple_cnn10_bn.json" --dump-dir dumps --dot
ls dumps/*.ir dumps/*.dot >/dev/null || fail "no dumps"
expect 1 'no_such_pass' $kiln explain "$examples/simple_cnn10_bn.json" --stop-after no_such_pass
expect 0 'workspace' $kiln inspect libsimple.so
expect 0 'graph' $kiln inspect "$examples/simple_cnn10_bn.json"
expect 1 'expected a name ending' $kiln inspect labels.txt
expect 0 'median' $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.1 --threads 2 --kernels
expect 0 '"median_ms":' $kiln bench libsimple.so --seconds 0.1 --json
expect 0 'conv2d' $kiln ops
expect 0 'stride' $kiln ops conv2d
expect 1 'did you mean' $kiln ops conv2e

# --- a full disk loses nothing: the old file stays
cp w.safetensors keep.safetensors
expect 1 'w\.safetensors' bash -c "ulimit -f 8; trap '' XFSZ; exec $kiln init $examples/resnet18.json --seed 1 -o w.safetensors"
cmp w.safetensors keep.safetensors || fail "a failed write damaged the old file"
[ -z "$(find . -name '*.tmp*')" ] || fail "a temporary file stayed behind"

echo "$count commands behave as documented"
