#!/usr/bin/env bash
# Every example description against the interpreter: odd sizes, batches, instruction sets, passes left out, and equal
# bits for any number of threads. Usage: verify_examples.sh BUILD_DIR
source "$(dirname "$0")/support.sh"

verify() {
  quiet "$kiln" verify "$@"
  grep -q 'compared with the interpreter' output || fail "nothing was compared: verify $*"
  count=$((count + 1))
}

levels=()
for level in x86-64-v2 x86-64-v3 x86-64-v4; do
  "$kiln" init "$examples/simple_net.json" --seed 1 -o w.safetensors >/dev/null
  if "$kiln" verify "$examples/simple_net.json" --weights w.safetensors --cpu $level >output 2>&1; then
    levels+=($level)
  else
    grep -q 'cannot run' output || fail "verify --cpu $level"
    echo "this processor cannot run $level code: left out"
  fi
done
[ ${#levels[@]} -gt 0 ] || levels=(native)

# Image size and "LEVELS BATCHES": large networks take the interpreter long, so they get fewer combinations.
plan() {
  case $1 in
    vgg11_bn) echo "33,35 last 1" ;;
    resnet50 | resnet34) echo "33,39 each 1; 33,39 last 3" ;;
    resnet50_products | resnet34_pets) echo "33,39 last 1 3" ;; # the same bodies with other heads
    resnet18) echo "33,35 each 1; 65,41 last 3; 33,33 last 16" ;;
    mobilenet_v2 | squeezenet1_1) echo "33,35 each 1 3" ;;
    edges_rgb | edges_rgb2) echo "33,65 each 1 3 16; 37,34 each 1" ;;
    *) echo "- each 1 3 16" ;;
  esac
}

for example in "$examples"/*.json; do
  name=$(basename "$example" .json)
  "$kiln" init "$example" --seed 1 -o w.safetensors >/dev/null
  IFS=';' read -ra parts <<<"$(plan "$name")"
  for part in "${parts[@]}"; do
    read -r size which batches <<<"$part"
    shape=()
    [ "$size" = - ] || shape=(--shape "image=N,3,$size")
    chosen=("${levels[@]}")
    [ "$which" = each ] || chosen=("${levels[-1]}")
    for level in "${chosen[@]}"; do
      for batch in $batches; do
        verify "$example" --weights w.safetensors "${shape[@]}" --cpu "$level" --batch "$batch" --threads 2
      done
    done
  done
done

# Passes that may be left out, and the precisions.
for name in simple_cnn10_bn simple_net edges_rgb2 resnet18 mobilenet_v2 squeezenet1_1; do
  shape=()
  case $name in resnet18 | mobilenet_v2 | squeezenet1_1) shape=(--shape image=N,3,35,33) ;; esac
  "$kiln" init "$examples/$name.json" --seed 2 -o w.safetensors >/dev/null
  for passes in fuse fold_bn simplify fuse,fold_bn,simplify; do
    verify "$examples/$name.json" --weights w.safetensors "${shape[@]}" --disable $passes --batch 2
  done
  for precision in strict fast; do
    verify "$examples/$name.json" --weights w.safetensors "${shape[@]}" --precision $precision --tolerance 1e-4
  done
done

# Bits do not depend on the number of threads. Narrower vectors do not change how work is divided: two numbers will do.
"$build/draw_scene" one.png 97 71
"$build/draw_scene" two.png 50 65
for name in simple_cnn10 simple_cnn10_bn edges_rgb resnet18 mobilenet_v2 squeezenet1_1 resnet34_pets; do
  shape=()
  case $name in simple*) ;; *) shape=(--shape image=N,3,65,59) ;; esac
  "$kiln" init "$examples/$name.json" --seed 3 -o w.safetensors >/dev/null
  for level in "${levels[@]}"; do
    counts="1 3"
    [ "$level" != "${levels[-1]}" ] || counts="1 2 3 7"
    for threads in $counts; do
      quiet "$kiln" run "$examples/$name.json" --weights w.safetensors "${shape[@]}" --cpu "$level" --threads $threads --top 0 \
        --input image=one.png --input image=two.png --input image=one.png --outputs $threads.safetensors
      cmp 1.safetensors $threads.safetensors || fail "$name for $level: $threads threads give other results"
      count=$((count + 1))
    done
  done
done

echo "$count runs agree"
