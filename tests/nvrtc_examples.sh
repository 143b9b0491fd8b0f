#!/usr/bin/env bash
# Compiles kernels of the examples with a real NVRTC, for old and new architectures and every kind of arithmetic: what the
# emulated one cannot see is whether the text is also C++ and the prelude's PTX is right. Needs no GPU. Skipped (77)
# where there is no NVRTC. Usage: nvrtc_examples.sh BUILD_DIR
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
kiln=$(cd "$1" && pwd)/kiln
unset KILN_NVRTC
export KILN_CACHE=off
if ! "$kiln" devices | grep -q '^NVRTC *[0-9]'; then
  "$kiln" devices | grep '^NVRTC'
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0
compile() { # model, architecture, arithmetic, options…
  local model=$1 arch=$2 math=$3
  shift 3
  "$kiln" devices | grep -q " sm_${arch//[^0-9]/}\b" || return 0
  rm -rf "$work/out"
  "$kiln" compile "$source/examples/$model.json" --target cuda --arch "$arch" --math "$math" --emit cubin -o "$work/out" "$@" ||
    { echo "FAILED: $model for $arch, $math"; exit 1; }
  count=$((count + $(ls "$work/out" | wc -l)))
}
compile simple_cnn10_bn sm_75 fp32
compile simple_cnn10_bn sm_80 3xtf32 --hook '*:activation:stats'
compile resnet18 sm_90a bf16 --shape image=N,3,64,64 --batch 16
compile mobilenet_v2 sm_80 tf32 --shape image=N,3,64,64
compile squeezenet1_1 sm_90 fp16 --shape image=N,3,64,64
compile edges_rgb sm_80 fp32
echo "$count kernels compiled"
