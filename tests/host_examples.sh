#!/usr/bin/env bash
# Builds and runs the host programs of examples/host against an installed Kiln, the first one with pkg-config and
# with find_package, and checks that all print the same values. Usage: host_examples.sh BUILD_DIR
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cmake --install "$build" --prefix "$work/prefix" >/dev/null
kiln=$work/prefix/bin/kiln
examples=$work/prefix/share/kiln/examples
[ -f "$examples/simple_cnn10_bn.json" ]
$kiln init "$examples/simple_cnn10_bn.json" --seed 3 -o w.safetensors >/dev/null

# a library and its header, with nothing of Kiln in sight
mkdir alone
$kiln compile "$examples/simple_cnn10_bn.json" --weights w.safetensors --batch 2 -o alone/libsimple_cnn10_bn.so >/dev/null
cp "$source/examples/host/compiled.c" alone/
(cd alone && cc -std=c11 -Wall -Wextra -Werror -D_POSIX_C_SOURCE=200809L compiled.c -I. -L. -lsimple_cnn10_bn -pthread -o compiled)
LD_LIBRARY_PATH=alone alone/compiled >compiled.txt
[ "$(wc -l <compiled.txt)" -eq 20 ]

# a training step: the loss falls
$kiln compile "$examples/simple_cnn10_bn.json" --train --optimizer adam --batch 32 -o alone/libsimple_cnn10_bn_train.so >/dev/null
cp "$source/examples/host/train.c" alone/
(cd alone && cc -std=c11 -Wall -Wextra -Werror train.c -I. -L. -lsimple_cnn10_bn_train -lm -o train)
LD_LIBRARY_PATH=alone alone/train >train.txt
awk '{ last = $4 } NR == 1 { first = $4 } END { exit !(first > 1.5 && last < 0.5) }' train.txt

# the library through pkg-config
libdir=$(dirname "$(find prefix -name kiln.pc)")
export PKG_CONFIG_PATH=$work/$libdir LD_LIBRARY_PATH=$(dirname "$work/$libdir")
# shellcheck disable=SC2046
cc -std=c11 -Wall -Wextra -Werror "$source/examples/host/jit.c" $(pkg-config --cflags --libs kiln) -o jit
for threads in 1 2 3; do
  ./jit "$examples/simple_cnn10_bn.json" w.safetensors $threads >"jit$threads.txt"
  cmp compiled.txt "jit$threads.txt"
done

# and through CMake
mkdir cmake
cat >cmake/CMakeLists.txt <<CMAKE
cmake_minimum_required(VERSION 3.25)
project(host C)
find_package(Kiln 0.1 REQUIRED)
add_executable(jit $source/examples/host/jit.c)
target_link_libraries(jit PRIVATE Kiln::kiln)
CMAKE
cmake -G Ninja -S cmake -B cmake/build -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build cmake/build >/dev/null
cmake/build/jit "$examples/simple_cnn10_bn.json" w.safetensors >cmake.txt
cmp compiled.txt cmake.txt
# Grad-CAM from a compiled library; the program's own heat map of the same picture is the reference
"$build/draw_scene" scene.png 640 480
cat >view.json <<JSON
{ "kiln": 1, "name": "view",
  "inputs": { "image": { "shape": ["N", 3, 352, 352],
      "preprocess": { "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": 352 } } },
  "layers": [{ "op": "identity", "name": "seen" }] }
JSON
$kiln run view.json --input image=scene.png --output seen=image.npy >/dev/null
$kiln init "$examples/resnet34_pets.json" --seed 3 -o pets.safetensors >/dev/null
$kiln compile "$examples/resnet34_pets.json" --weights pets.safetensors --hook body:activation:store \
  --hook body:gradient:store -o alone/libresnet34_pets.so >/dev/null
cp "$source/examples/host/gradcam.c" alone/
(cd alone && cc -std=c11 -Wall -Wextra -Werror gradcam.c -I. -L. -lresnet34_pets -o gradcam)
LD_LIBRARY_PATH=alone alone/gradcam image.npy >cam.txt
class=$(sed -n 's/^class //p' cam.txt)
$kiln heatmap alone/libresnet34_pets.so --input image=scene.png --layer body --method gradcam --raw cam.npy -o cam.png >reference.txt
grep -q "^class $class" reference.txt
largest=$($kiln inspect cam.npy | awk 'NR == 2 { print $NF }')
sed 1d cam.txt | tr ' ' '\n' | awk -v want="$largest" '$1 > most { most = $1 } END { exit !(most > 0 && most < want * 1.001 && most > want * 0.999) }'

# a network trained by Kiln classifies from C as well as it did in training
data=/usr/share/datasets/fashion-mnist
if [ -d $data ]; then
  $kiln train "$examples/fashion.json" --data $data --batch 512 --lr 0.06 --one-cycle --save fashion.safetensors >train.txt 2>/dev/null
  $kiln compile "$examples/fashion.json" --weights fashion.safetensors -o alone/libfashion.so >/dev/null
  cp "$source/examples/host/classify.c" alone/
  (cd alone && cc -std=c11 -Wall -Wextra -Werror classify.c -I. -L. -lfashion -lz -o classify)
  [ "$(LD_LIBRARY_PATH=alone alone/classify $data)" = "$(tail -1 train.txt)" ]
  tail -1 train.txt | awk '{ exit !($2 > 0.84) }'
fi

echo "compiled library, pkg-config and CMake hosts print the same $(wc -l <compiled.txt) values"
