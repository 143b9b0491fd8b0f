#!/usr/bin/env bash
# The kiln program as others script it: every verb, exit codes, messages, files. Usage: command_line.sh BUILD_DIR
source "$(dirname "$0")/support.sh"

# --- help and usage
expect 0 'Usage: kiln VERB' $kiln --help
expect 2 'Usage: kiln VERB' $kiln
expect 0 'kiln 0\.' $kiln --version
expect 2 "did you mean compile" $kiln compil
for verb in check summary init run compile verify explain bench grad heatmap stats train lr-find augment tune devices inspect ops; do
  expect 0 'Examples:' $kiln $verb --help
  expect 2 "unknown option '--nonsense'" $kiln $verb --nonsense
done
expect 2 'did you mean --weights' $kiln run x.json --weigths w
expect 2 'expected 1 argument' $kiln check
expect 2 'expected an integer from 1 to 64' $kiln run x.json --threads 0
for batch in 0 '' 1, 1,,2 x 65537; do expect 2 'batch sizes from 1 to 65536' $kiln run "$examples/simple_net.json" --batch "$batch"; done
expect 2 'expected NAME=VALUE' $kiln run "$examples/simple_net.json" --input image
expect 2 'expected NAME=VALUE' $kiln run "$examples/simple_net.json" --input image=
expect 2 'ending in \.safetensors' $kiln run "$examples/simple_net.json" --outputs out.npy
expect 2 'ending in \.safetensors' $kiln run "$examples/simple_net.json" --hooks-out out.npy
expect 2 'ending in \.npy' $kiln run "$examples/simple_net.json" --output 2=out.txt
expect 2 'expected LOW,HIGH' $kiln run "$examples/simple_net.json" --range 1,0
expect 2 'expected a number' $kiln bench "$examples/simple_net.json" --seconds nan
expect 2 'at least 0' $kiln bench "$examples/simple_net.json" --seconds -1
expect 2 'at least 0' $kiln verify "$examples/simple_net.json" --tolerance -1
expect 2 'expected at most 1 argument, found 2' $kiln ops conv2d pad
expect 2 'strict, default or fast' $kiln run "$examples/simple_net.json" --precision exact

# --- standard output: a reader that goes away is no failure, a full disk is, a closed stream harms no file
for command in "summary $examples/resnet34.json" "explain $examples/resnet18.json" "run --help" ops --version \
  "compile $examples/simple_cnn10_bn.json --emit llvm"; do
  for sink in "| true" "| head -1"; do
    expect 0 '' bash -c "set -o pipefail; $kiln $command $sink"
    [ "$(wc -l <output)" -le 1 ] || fail "a message for an early end: $command $sink"
  done
  [ ! -w /dev/full ] || expect 1 'cannot write to standard output' bash -c "$kiln $command >/dev/full"
done
expect 1 '' bash -c "exec $kiln init $examples/simple_net.json --seed 1 -o closed.safetensors >&- 2>&- <&-"
expect 0 '' $kiln init "$examples/simple_net.json" --seed 1 -o open.safetensors
cmp closed.safetensors open.safetensors || fail "closed streams damaged a file"

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
expect 1 "^'': error: cannot open" $kiln check ''
printf '{\r\n"kiln": 1,\r\n"name": "a",\r\n "inputz": {}}\r\n' >crlf.json
expect 1 'crlf\.json:4:2: error: unknown key' $kiln check crlf.json
printf '\357\273\277{"kiln": 1}' >bom.json
expect 1 'bom\.json:1:1: error: .*byte order mark' $kiln check bom.json

# --- files that are none, of every kind
mkfifo fifo
for kind in json ir safetensors npy so png jpg; do
  mkdir folder.$kind && : >empty.$kind && head -c 3000 "$kiln" >garbage.$kind && ln -s fifo fifo.$kind && truncate -s 20G huge.$kind
  expect 1 "^folder\.$kind: error: is a folder, expected a file" $kiln inspect folder.$kind
  expect 1 "^missing\.$kind: error: cannot open the file" $kiln inspect missing.$kind
  expect 1 "^fifo\.$kind: error: is not a regular file" timeout 10 $kiln inspect fifo.$kind
  expect 1 "^empty\.$kind(:1:1)?: error: " $kiln inspect empty.$kind
  expect 1 "^garbage\.$kind(:[0-9]+:[0-9]+)?: error: " $kiln inspect garbage.$kind
  case $kind in
    safetensors | npy) ;; # no limit but memory
    *) expect 1 "^huge\.$kind: error: .*more than the limit" $kiln inspect huge.$kind ;;
  esac
  rm huge.$kind
done

# --- summary
expect 0 'parameters +21,831,599' $kiln summary "$examples/resnet34_pets.json" --shape image=1x3x352x352
expect 0 'trainable +563,951' $kiln summary "$examples/resnet34_pets.json"
expect 0 '"params":25637484,"trainable":2182572' $kiln summary "$examples/resnet50_products.json" --json
expect 0 '"output":\[1,512,11,11\]' $kiln summary "$examples/resnet34_pets.json" --shape image=1x3x352x352 --json
expect 2 'shape' $kiln summary "$examples/resnet34.json" --shape image=1x3xx
expect 0 '4 x 64 x 32 x 32' $kiln summary "$examples/resnet34.json" --shape image=4x3x64x64
expect 1 "image" $kiln summary "$examples/resnet34.json" --shape picture=1x3x64x64

# --- init: reproducible
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 1 -o w.safetensors
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 1 -o w2.safetensors
cmp w.safetensors w2.safetensors || fail "the same seed gave different weights"
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --seed 2 -o w2.safetensors
! cmp -s w.safetensors w2.safetensors || fail "another seed gave the same weights"
expect 2 'missing' $kiln init "$examples/simple_cnn10_bn.json" --seed 1
expect 0 'tensors' $kiln init "$examples/simple_cnn10_bn.json" --init-mode pytorch -o w3.safetensors
expect 2 'kaiming or pytorch' $kiln init "$examples/simple_cnn10_bn.json" --init-mode zeros -o w3.safetensors
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
expect 1 '^none\.so: error: cannot open the file' $kiln run none.so
expect 1 "no input 'picture'; did you mean 'image'" $kiln run libsimple.so --input picture=scene.png
expect 1 "no output 'nothing'" $kiln run libsimple.so --input image=scene.png --output nothing=x.npy
expect 1 'has no value' $kiln run "$examples/simple_cnn10_bn.json" --input image=scene.png
expect 2 'expected cpu' $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --device tpu
expect 1 'compiled already' $kiln run libsimple.so --input image=scene.png --shape image=1x1x28x28
printf 'a\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\nb\r\n' >labels2.txt
expect 0 '%' $kiln run libsimple.so --input image=scene.png --labels labels2.txt
printf 'a\0b\n' >labels2.txt
expect 1 'labels2\.txt: error: expected labels' timeout 10 $kiln run libsimple.so --input image=scene.png --labels labels2.txt
: >labels2.txt
expect 1 'found an empty file' $kiln run libsimple.so --input image=scene.png --labels labels2.txt
head -c 200 scene.png >cut.png
expect 1 'cut\.png' $kiln run libsimple.so --input image=cut.png

# --- parameters from the inputs file; a picture out
"$build/draw_scene" wide.png 400 352
expect 0 'edge' $kiln run "$examples/edges_rgb.json" --input image=wide.png --output edge=edges.png --output edge=edges.npy --shape image=1x3x352x352
expect 0 '350 x 350, 1 channel' $kiln inspect edges.png
expect 0 '\[1,1,350,350\]' $kiln inspect edges.npy
expect 0 '' $kiln run "$examples/simple_cnn10_bn.json" --inputs w.safetensors --input image=scene.png --outputs jit2.safetensors
cmp jit.safetensors jit2.safetensors || fail "parameters from --inputs give other results"

# --- scalars, integers, several inputs, batches larger than compiled for, an empty batch, NaN
cat >kinds.json <<'JSON'
{ "kiln": 1, "name": "kinds", "max_batch": 2,
  "inputs": { "x": { "shape": ["N", 4] }, "class": { "dtype": "i64", "shape": ["N"] } },
  "layers": [ { "op": "argmax", "name": "best", "in": "x" }, { "op": "mean", "name": "mean", "in": "x" },
              { "op": "cross_entropy", "name": "each", "in": ["x", "class"], "reduction": "none" },
              { "op": "cross_entropy", "name": "loss", "in": ["x", "class"] } ],
  "outputs": ["best", "mean", "each"] }
JSON
sed 's/"outputs": \[/"outputs": ["loss", /' kinds.json >scalar.json
# npy NAME DESCR SHAPE BYTES: a .npy file of version 1.0
npy() {
  local header="{'descr': '$2', 'fortran_order': False, 'shape': $3, }"
  printf '\x93NUMPY\x01\x00\x76\x00%-117s\n%b' "$header" "$4" >"$1"
}
npy x.npy '|u1' '(3, 4)' '\x01\x02\x03\x04\x09\x02\x03\x04\x01\x08\x03\x04'
npy class.npy '|i1' '(3,)' '\x00\x01\x03'
npy none.npy '<f2' '(0, 4)' ''
npy none_class.npy '<i8' '(0,)' ''
npy nan.npy '<f2' '(1, 4)' '\x00\x7e\x00\x7e\x00\x7e\x00\x7e'
npy float.npy '<f4' '(1,)' '\x00\x00\x80\x3f'
npy far.npy '<i4' '(1,)' '\x09\x00\x00\x00'
expect 0 'best +\[3\] +mean 1.33333 +min 0 +max 3' $kiln run kinds.json --input x=x.npy --input class=class.npy --output best=best.npy --output mean=mean.npy
expect 0 'best.npy +i64 +\[3\]' $kiln inspect best.npy
expect 0 'loss +\[\] ' $kiln run scalar.json --input x=x.npy --input class=class.npy --batch 3 --output loss=loss.npy
expect 0 'loss.npy +f32 +\[\] ' $kiln inspect loss.npy
expect 1 'compile with --batch 3' $kiln run scalar.json --input x=x.npy --input class=class.npy
expect 0 'best +\[0\]$' $kiln run kinds.json --input x=none.npy --input class=none_class.npy --outputs none.safetensors
expect 0 'each +f32 +\[0\]' $kiln inspect none.safetensors
expect 1 'batch of 0' $kiln verify kinds.json --input x=none.npy --input class=none_class.npy
expect 0 'compared' $kiln verify kinds.json --input x=x.npy --input class=class.npy --batch 3
expect 0 'mean +\[1\] +NaN 1 of 1' $kiln run kinds.json --input x=nan.npy --input class=far.npy
expect 1 "'class' holds a batch of 3, input 'x' one of 1" $kiln run kinds.json --input x=nan.npy --input class=class.npy
expect 1 "input 'class': expected integers, found f32" $kiln run kinds.json --input x=nan.npy --input class=float.npy
expect 1 "input 'x' is \[N,4\]" $kiln run kinds.json --input x=scene.png --input class=class.npy
cat >pictures.json <<'JSON'
{ "kiln": 1, "name": "pictures", "inputs": { "image": { "shape": ["N", 3, 32, 40] } },
  "layers": [ { "op": "normalize", "name": "scaled", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.5] },
              { "op": "identity", "name": "same", "in": "image" } ], "outputs": ["scaled", "same"] }
JSON
expect 0 'scaled' $kiln run pictures.json --input image=scene.png --output same=same.png --range 0,1
expect 0 'same' $kiln run pictures.json --input image=same.png --output same=again.png --range 0,1
expect 0 '40 x 32, 3 channels' $kiln inspect again.png
cmp same.png again.png || fail "a picture changed on its way through"

# --- names that mean something to shells, linkers and printf
for name in 'a b' "q'uote" 'd"quote' -o @x ';id' '$(id)' '%s%n' 'back\slash' $'new\nline'; do
  mkdir -p "./in $name"
  cp w.safetensors "./in $name/$name.safetensors"
  cp "$examples/simple_cnn10_bn.json" "./in $name/$name.json"
  expect 0 '' $kiln compile "./in $name/$name.json" --weights "./in $name/$name.safetensors" --weights-mode file -o "./in $name/lib$name.so"
  expect 0 '' $kiln run "./in $name/lib$name.so" --input "image=scene.png" --outputs "./in $name/out $name.safetensors"
  cmp jit.safetensors "./in $name/out $name.safetensors" || fail "other results in a folder called $name"
  [ "$(find "./in $name" -type f -printf x | wc -c)" -ge 6 ] || fail "files are missing in a folder called $name"
done
expect 1 'cannot open the folder' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o none/libx.so
expect 1 'Is a directory' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o folder.so
expect 1 'cannot open the folder' $kiln run libsimple.so --input image=scene.png --outputs none/x.safetensors

# --- a locale with a decimal comma
if localedef -i de_DE -f UTF-8 "$work/de_DE.UTF-8" >/dev/null 2>&1; then
  comma=(env "LOCPATH=$work" LC_ALL=de_DE.UTF-8)
  expect 0 '0\.0\.weight' "${comma[@]}" $kiln inspect w.safetensors
  expect 0 '^ +[0-9]+\.[0-9]+ %' "${comma[@]}" $kiln run "$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png --outputs comma.safetensors
  cmp jit.safetensors comma.safetensors || fail "a decimal comma changes results"
  expect 0 '' "${comma[@]}" $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libcomma.so
  expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libplain.so
  cmp libcomma.so libplain.so || fail "a decimal comma changes libraries"
  cmp comma.h plain.h || fail "a decimal comma changes headers"
  expect 0 '"median_ms":[0-9]+\.[0-9]+,' "${comma[@]}" $kiln bench libcomma.so --seconds 0.1 --json
fi

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
expect 0 'tensors' $kiln init "$examples/simple_net.json" --seed 1 -o other.safetensors
expect 1 "^other\.safetensors: error: has no tensor '2\.1\.bias'" $kiln run caller/libsimple.so --weights other.safetensors --input image=scene.png
expect 0 '' $kiln run caller/libsimple.so --weights w.safetensors --input image=scene.png --outputs caller.safetensors
cmp jit.safetensors file.safetensors || fail "weights from a file give other results"
cmp jit.safetensors caller.safetensors || fail "weights from the caller give other results"
expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libfirst.so
expect 0 '' $kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors -o libsecond.so
cmp libfirst.so libsecond.so || fail "two builds differ"
cmp first.h second.h || fail "two headers differ"
# what fast precision may use besides, where the processor has it: convolutions of whole panels of channels
cat >panels.json <<'JSON'
{ "kiln": 1, "name": "panels", "inputs": { "image": { "shape": ["N", 3, 40, 32] } },
  "layers": [ { "op": "conv2d", "out_channels": 64, "kernel": 3, "padding": 1 }, { "op": "relu" },
              { "op": "conv2d", "out_channels": 128, "kernel": 3, "padding": 1 }, { "op": "relu" },
              { "op": "conv2d", "name": "y", "out_channels": 96, "kernel": 3, "stride": 2 } ] }
JSON
expect 0 '' $kiln init panels.json --seed 3 -o panels.safetensors
expect 0 '' $kiln run panels.json --weights panels.safetensors --input image=scene.png --precision fast --outputs jit_fast.safetensors
expect 0 'libpanels\.so' $kiln compile panels.json --weights panels.safetensors --precision fast -o libpanels.so
expect 0 '' $kiln run libpanels.so --input image=scene.png --outputs library_fast.safetensors
cmp jit_fast.safetensors library_fast.safetensors || fail "library and jit differ in fast precision"
if grep -qw amx_bf16 /proc/cpuinfo; then
  expect 0 'halves of bf16 in tile registers' $kiln explain panels.json --precision fast
fi
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
expect 0 'training step  batch 16  2 threads' $kiln bench "$examples/simple_cnn10_bn.json" --train --batch 16 --seconds 0.05 --threads 2
expect 0 '"train":true,"batch":3,' $kiln bench "$examples/simple_cnn10_bn.json" --train --optimizer adam --clip --run-batch 3 --seconds 0.05 --json
expect 2 'need --train' $kiln bench "$examples/simple_cnn10_bn.json" --optimizer adam
expect 2 'expected a description' $kiln bench libsimple.so --train
expect 0 'conv2d' $kiln ops
expect 0 'stride' $kiln ops conv2d
expect 1 'did you mean' $kiln ops conv2e

# --- affinity
first=$(sed -nE 's/^Cpus_allowed_list:[[:space:]]*([0-9]+).*/\1/p' /proc/self/status)
allowed=$(nproc)
expect 0 '  1 thread  ' $kiln bench "$examples/simple_cnn10_bn.json" --affinity "$first" --seconds 0.01
expect 0 '"threads":1,' $kiln bench "$examples/simple_cnn10_bn.json" --train --batch 2 --affinity "$first" --seconds 0.01 --json
list=$(taskset -c -p $$ | sed 's/.*: //')
expect 0 "  $((allowed < 64 ? allowed : 64)) threads?  " $kiln bench "$examples/simple_cnn10_bn.json" --affinity "$list" --seconds 0.01
expect 2 'expected a processor for each of 2 threads, found 1' $kiln bench "$examples/simple_cnn10_bn.json" --affinity "$first" --threads 2
expect 1 'this process may use the processors .*, found 1023' $kiln bench "$examples/simple_cnn10_bn.json" --affinity 1023
for list in '' x 0- -1 0,,1 0,0 2-1 0-3:0 0:2 0-1,1 1024; do
  expect 2 "expected processors such as .*, found '$list'" $kiln bench "$examples/simple_cnn10_bn.json" --affinity "$list"
done
expect 2 'is for processors' $kiln bench "$examples/simple_cnn10_bn.json" --device cuda --affinity 0
expect 0 'warning: 2 threads, but this process may use 1 processor at a time' taskset -c "$first" $kiln bench "$examples/simple_cnn10_bn.json" --threads 2 --seconds 0.01
[ "$(grep -c 'at a time' output)" -eq 1 ] || fail "warned more than once"
expect 0 '' taskset -c "$first" $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.01
! grep -q 'at a time' output || fail "warned without reason"

# --- bench: tables, peaks, traces
expect 0 '^simple_cnn10_bn,[a-z0-9-]+,2,1,[0-9]+,[0-9.]+,' $kiln bench "$examples/simple_cnn10_bn.json" --batch 2 --seconds 0.01 --csv
expect 0 'peaks of 1 thread, x86-64-v2: [1-9][0-9.]* GFLOP/s .*memory [0-9.]+ GB/s' $kiln bench "$examples/simple_cnn10_bn.json" --cpu x86-64-v2 --seconds 0.01 --kernels
slow=$(sed -nE 's/^peaks of .*: ([0-9]+)\.?[0-9]* GFLOP.*/\1/p' output)
if grep -qw avx2 /proc/cpuinfo; then
  expect 0 'peaks of 1 thread, x86-64-v3' $kiln bench "$examples/simple_cnn10_bn.json" --cpu x86-64-v3 --seconds 0.01 --kernels
  fast=$(sed -nE 's/^peaks of .*: ([0-9]+)\.?[0-9]* GFLOP.*/\1/p' output)
  [ "$fast" -gt "$slow" ] || fail "the peak of AVX2, $fast GFLOP/s, is not above that of SSE, $slow"
fi
expect 0 'peaks of 1 thread, x86-64-v[2-4]: ' $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.01 --kernels
grep -Eq '^0\.2 .* [0-9.]+ +[0-9]+ %$' output || fail "no share of the roof"
expect 0 'the whole run: [1-9][0-9]* % of the peak' $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.01 --kernels
expect 0 '^\{"model".*"of_peak":[0-9.]+,"peaks":\{.*"kernels":\[\{"value".*"variants":\[\{"value".*"best_us":[0-9.]+\}$' \
  $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.01 --kernels --variants --json
[ "$(wc -l <output)" = 1 ] || fail "bench --json prints more than an object"
expect 0 '^[^,]+,conv2d,[0-9.]+,1,' $kiln bench "$examples/simple_cnn10_bn.json" --seconds 0.01 --variants --csv
expect 0 '^0\.2,conv2d/direct,[0-9.]+,0\.[0-9]+,79968,' $kiln bench "$examples/simple_cnn10_bn.json" --batch 1 --seconds 0.01 --kernels --csv --roofline roof.svg
grep -q '<svg' roof.svg || fail "no SVG"
[ "$(head -1 output | tr ',' '\n' | wc -l)" -eq "$(sed -n 2p output | tr ',' '\n' | wc -l)" ] || fail "a row has other columns"
for threads in 1 2; do
  expect 0 '' $kiln bench "$examples/simple_cnn10_bn.json" --threads $threads --seconds 0.01 --profile trace.json
  [ "$(grep -c '"ph":"X"' trace.json)" -ge 6 ] || fail "no slices"
  grep -q "\"tid\":$((threads - 1))," trace.json || fail "no slice of the last thread"
done

# --- tune: times kept in a file, and what they do
net=$examples/simple_cnn10_bn.json
expect 0 '^net\.tuning: 5 different kernels of simple_cnn10_bn measured' $kiln tune "$net" --batch 2 --rounds 1 -o net.tuning
[ "$(wc -l <net.tuning)" -eq 6 ] || fail "expected a line for the machine and one per kernel"
expect 0 'select: measured: direct, .* us' $kiln explain "$net" --batch 2 --tuning net.tuning --locked
expect 1 "error: '.*' \((conv2d|linear)\) was not measured: net\.tuning has no times of" $kiln explain "$net" --batch 3 --tuning net.tuning --locked
[ "$(grep -c 'was not measured' output)" -eq 5 ] || fail "not all kernels without times are named"
expect 0 '' $kiln explain "$net" --batch 3 --tuning net.tuning
expect 0 'different kernels' $kiln tune "$net" --batch 3 --rounds 1 -o net.tuning
[ "$(wc -l <net.tuning)" -eq 11 ] || fail "times that stood in the file are gone"
expect 0 'above the best' $kiln bench "$net" --batch 2 --seconds 0.01 --tuning net.tuning --variants
expect 0 'different kernels' $kiln tune "$net" --batch 2 --rounds 1 --all
expect 0 'select: measured' $kiln explain "$net" --batch 2 --tuning default --locked
sed 's/"machine":"/&another /' net.tuning >other.tuning
expect 0 'other\.tuning:1:1: warning: its times are not used: it was measured on .another' $kiln explain "$net" --tuning other.tuning
head -c 300 net.tuning >cut.tuning
expect 1 'cut\.tuning:2:[0-9]+: error: this string does not end' $kiln explain "$net" --tuning cut.tuning
expect 1 'missing\.tuning: error' $kiln explain "$net" --tuning missing.tuning
expect 2 '--locked needs --tuning' $kiln explain "$net" --locked
expect 2 'no cache folder' env KILN_CACHE=off $kiln tune "$net"

# --- training steps
step=$examples/simple_cnn10_bn.json
expect 0 'one state of 4 rows' $kiln explain "$step" --train --optimizer adam --accumulate
for pattern in 'statistics of the batch' 'gradient 0; rejected: a sum over the batch' "computed in the parameter's memory"; do
  grep -q "$pattern" output || fail "explain --train does not say: $pattern"
done
expect 0 'libstep.so: simple_cnn10_bn_train for .*, 0 bytes of weights' $kiln compile "$step" --train --batch 16 -o libstep.so
grep -q 'int simple_cnn10_bn_train_step(' step.h || fail "the header has no step"
cp libstep.so first.so
expect 0 '' $kiln compile "$step" --train --batch 16 -o libstep.so
cmp first.so libstep.so || fail "two training libraries of the same model differ"
expect 2 'options of a training step need --train' $kiln compile "$step" --clip -o l.so
expect 2 "--optimizer: expected sgd or adam, found 'adm'" $kiln compile "$step" --train --optimizer adm -o l.so
expect 2 "--loss: expected cross_entropy, mse or bce_with_logits, found 'l1'" $kiln compile "$step" --train --loss l1 -o l.so
expect 1 'exceeds the limit of 100000; give a smaller batch' $kiln compile "$step" --train --memory-limit 100000 -o l.so
expect 1 "parameter '[^']*' has no value" $kiln compile "$examples/resnet34_pets.json" --train --shape image=N,3,64,64 -o l.so

# --- explain --memory
expect 0 'workspace per image: [0-9,]+ bytes; a buffer for every value: [0-9,]+; no plan can take less than [0-9,]+' $kiln explain "$examples/simple_cnn10_bn.json" --memory --svg memory.svg
grep -q '<svg' memory.svg || fail "no SVG"
# places that are alive together do not overlap, and the largest end is the size that is printed
$kiln explain "$examples/resnet18.json" --memory >output
awk 'BEGIN { n = 0 }
  $3 == "*" { name[n] = $1; low[n] = $2; high[n] = $2 + $5; from[n] = $8; to[n] = $10; if (high[n] > most) most = high[n]; n++ }
  END { for (i = 0; i < n; i++) for (k = 0; k < i; k++)
          if (low[i] < high[k] && low[k] < high[i] && from[i] <= to[k] && from[k] <= to[i]) { print name[i], name[k]; exit 1 }
        exit n < 15 }' output || fail "values overlap"
expect 2 'leaves no plan' $kiln explain "$examples/simple_cnn10_bn.json" --memory --stop-after fuse

# --- grad, heatmap, stats
model=("$examples/simple_cnn10_bn.json" --weights w.safetensors --input image=scene.png)
expect 0 'grad\.0\.0\.weight +\[8,1,5,5\]' $kiln grad "${model[@]}" --of logits --class 3 --wrt image,0.0.weight,1 -o g.safetensors
expect 0 'grad\.image +f32 +\[1,1,28,28\]' $kiln inspect g.safetensors
expect 1 "no value 'imag'" $kiln grad "${model[@]}" --of logits --class 3 --wrt imag -o g.safetensors
expect 1 'which class' $kiln grad "${model[@]}" --of logits --wrt image -o g.safetensors
expect 2 '--wrt is missing' $kiln grad "${model[@]}" --of logits --class 3 -o g.safetensors
expect 0 'hook\.grad\.1' $kiln run "${model[@]}" --hook 1:activation:store --hook 1:gradient:store --class 3 --hooks-out both.safetensors --outputs hooked.safetensors
cmp jit.safetensors hooked.safetensors || fail "a gradient hook changed the output"
expect 0 '' $kiln run "${model[@]}" --profile trace.json
grep -q '"name":"0.2","cat":"conv2d/direct"' trace.json || fail "no slice of 0.2"
for value in 0.0 0.1 0.2 2.0 3.1 4.0; do
  for hook in store stats; do
    expect 0 '' $kiln run "${model[@]}" --hook $value:activation:$hook --outputs hooked.safetensors
    cmp jit.safetensors hooked.safetensors || fail "a $hook hook on $value changed the output"
  done
done
expect 0 'computed once more, as written, for the hook' $kiln explain "$examples/simple_cnn10_bn.json" --hook 2.0
expect 0 'hook\.grad\.1 +f32 +\[1,16,7,7\]' $kiln inspect both.safetensors
expect 0 'map of 7x7' $kiln heatmap "${model[@]}" --layer 1 -o map.png --raw map.npy
expect 0 '28 x 28, 3 channels' $kiln inspect map.png
expect 0 '\[7,7\]' $kiln inspect map.npy
expect 0 'class 3' $kiln heatmap "${model[@]}" --layer 1 --method gradcam --class 3 -o cam.png
expect 1 'from 0 to 9, found 77' $kiln heatmap "${model[@]}" --layer 1 --method gradcam --class 77 -o cam.png
expect 1 "'nothing' matches no value" $kiln heatmap "${model[@]}" --layer nothing -o cam.png
expect 0 'maps of' $kiln heatmap "${model[@]}" --all-layers -o sheet.png
expect 2 'give --layer' $kiln heatmap "${model[@]}" -o sheet.png
expect 0 'near zero' $kiln stats "${model[@]}" --plot stats.svg
grep -q '<svg' stats.svg || fail "no SVG"
expect 0 '"near_zero":' $kiln stats "${model[@]}" --hook 0.0 --bins 10 --low -1 --high 1 --json

expect 0 'gradient of 0\.0 ' $kiln stats "${model[@]}" --hook 0.0 --class 3 --bins 10 --low -1 --high 1
expect 0 '"name":"0\.0","kind":"gradient"' $kiln stats "${model[@]}" --hook 0.0 --class 3 --json
expect 0 'hook\.grad\.stats\.1' $kiln run "${model[@]}" --hook 1:gradient:stats:bins=8,range=-1..1 --class 3 --hooks-out both.safetensors --outputs hooked.safetensors
cmp jit.safetensors hooked.safetensors || fail "statistics of a gradient changed the output"

# --- augment
"$build/draw_scene" large.png 300 200
expect 0 'grid\.png: 9 pictures of 224x224' $kiln augment large.png -o grid.png
expect 0 '9 pictures of 48x32' $kiln augment large.png --size 32x48 --augment dihedral,light=0.5,rotate=180,pad=zeros,p=1 --seed 3 -o grid.svg
cp grid.png same.png
expect 0 '' $kiln augment large.png --augment default -o grid.png
cmp grid.png same.png || fail "the same seed gave another picture"
mkdir -p pictures/a pictures/b
for i in 1 2 3 4 5 6; do cp large.png pictures/a/$i.png; cp scene.png pictures/b/b_$i.png; done
expect 0 '4 pictures of 40x40' $kiln augment --data pictures --size 40 --batch 4 --workers 2 -o batch.png
expect 1 "the file's name does not match the pattern" $kiln augment --data pictures --pattern '^(b)_' -o batch.png
: >pictures/a/7.png
expect 0 '7\.png: warning: left out: not a PNG or JPEG picture: it is empty' $kiln augment --data pictures -o batch.png
expect 1 '7\.png: error: not a PNG or JPEG picture: it is empty' $kiln augment --data pictures --strict -o batch.png
expect 1 "has no class 'c'" $kiln augment --data pictures --classes a,c -o batch.png
expect 2 'give a picture or --data DIR' $kiln augment -o batch.png
expect 2 'give a picture or --data DIR' $kiln augment large.png --data pictures -o batch.png
expect 2 '-o FILE is missing' $kiln augment large.png
expect 2 'ending in \.png or \.svg' $kiln augment large.png -o grid.jpg
expect 2 "found 'rotat=3'" $kiln augment large.png --augment flip,rotat=3 -o grid.png
expect 2 'expected a warp from 0 to below 0\.5, found 0\.5' $kiln augment large.png --augment warp=0.5 -o grid.png
expect 2 "HEIGHTxWIDTH in pixels, such as 224, found '0x3'" $kiln augment large.png --size 0x3 -o grid.png
expect 2 "share from 0 to below 1 or a number of pictures, found '1\.5'" $kiln augment --data pictures --valid 1.5 -o batch.png
expect 2 "none, imagenet, dataset or .*, found 'mnist'" $kiln augment --data pictures --normalize mnist -o batch.png
fashion=/usr/share/datasets/fashion-mnist
printf '\0\0\10\2\0\0\0\2\0\0\0\3abcdef' | gzip >six-ubyte.gz
expect 0 'u8 +\[2,3\] +99\.5 +97 +102' $kiln inspect six-ubyte.gz
[ ! -d $fashion ] || expect 0 '16 pictures of 28x28' $kiln augment --data $fashion --batch 16 --classes 9,0 -o batch.png

# --- a full disk loses nothing: the old file stays
cp w.safetensors keep.safetensors
expect 1 'w\.safetensors' bash -c "ulimit -f 8; trap '' XFSZ; exec $kiln init $examples/resnet18.json --seed 1 -o w.safetensors"
cmp w.safetensors keep.safetensors || fail "a failed write damaged the old file"
[ -z "$(find . -name '*.tmp*')" ] || fail "a temporary file stayed behind"

echo "$count commands behave as documented"
