#!/usr/bin/env bash
# Everything that needs a GPU, in one go and in less than 8 minutes:
#   benchmarks/gpu.sh [BUILD_FOLDER]
# builds (a folder that is built already will do, also on a machine without what building needs: its subfolder lib is
# searched for shared libraries), compares every helper of the device prelude with what it should compute, runs the
# kernels' tests and networks on the card against the interpreter, a sample of them under compute-sanitizer, and times
# ResNet-50 against PyTorch. Nothing is installed or fetched: what is missing is named and left out. Every step has a
# limit of time; one that fails or takes too long is counted, the others go on, and the exit code is then 1. The table
# comes last.
#   PYTHON=python3.12   the Python that has PyTorch
#   GPU_BENCHMARK="examples/simple_cnn10.json --batches 1 --torch-device cpu"   tries this script with the emulated GPU
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build-gpu}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
started=$SECONDS
total=465     # seconds
benchmark=200 # of them, for the table at the end
unset KILN_EMULATOR_ORDER KILN_CACHE
export KILN_CUDA_DRIVER=${KILN_CUDA_DRIVER:-libcuda.so.1} KILN_CACHE_DIR=$work/cache KILN_TEST_CACHE=$work/cache
cd "$root" || exit 1

say() { printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started)); }
# left MOST: seconds until the benchmark has to begin, at most MOST and at least 5
left() {
  local seconds=$((total - benchmark - (SECONDS - started)))
  [ "$seconds" -lt "$1" ] || seconds=$1
  echo $((seconds > 5 ? seconds : 5))
}
# check NAME LIMIT COMMAND…: runs it beside the others, one on a processor; `settle` waits for all of them and says what
# became of them
processors=$(nproc)
names=()
check() {
  local name=$1 limit=$2 number=${#names[@]}
  shift 2
  names+=("$name")
  while [ "$(jobs -rp | wc -l)" -ge "$processors" ]; do wait -n; done
  (
    timeout -k 5 "$(left "$limit")" "$@" >"$work/log.$number" 2>&1
    echo $? >"$work/code.$number"
  ) &
}
settle() {
  local number code
  wait
  for number in "${!names[@]}"; do
    code=$(cat "$work/code.$number" 2>/dev/null || echo 'none')
    if [ "$code" = 0 ]; then
      printf 'ok      %s: %s\n' "${names[$number]}" "$(grep -v '^$' "$work/log.$number" | tail -1)"
    else
      failures=$((failures + 1))
      [ "$code" != 124 ] || code='124: the time was up'
      printf 'FAILED  %s (status %s)\n' "${names[$number]}" "$code"
      grep -v 'RUN  \|  OK ' "$work/log.$number" | tail -15 | cut -c 1-300 | sed 's/^/        /'
    fi
  done
  names=()
}

say build
for tool in cmake ninja cc "$python"; do command -v "$tool" >/dev/null || echo "missing: $tool"; done
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null || echo "missing: PyTorch"
tests="test_cuda_prelude test_cuda_run test_cuda_kernels test_cuda_ride"
if timeout 60 cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release >"$work/log" 2>&1 &&
   timeout 150 ninja -C "$build" kiln_cli >"$work/log" 2>&1; then
  # shellcheck disable=SC2086
  timeout "$(left 90)" ninja -C "$build" -k 0 $tests >"$work/log" 2>&1 ||
    echo "some tests do not build: $(grep -i -m1 'error' "$work/log" || tail -1 "$work/log")"
elif [ -x "$build/kiln" ]; then
  echo "cannot be built here ($(grep -i -m1 'error' "$work/log" || tail -1 "$work/log")): taken as it is"
else
  tail -20 "$work/log"
  echo "cannot be built here, and $build/kiln is not there"
  exit 1
fi
# libraries of the build folder are for Kiln alone: PyTorch brings its own
libraries=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
kiln=$work/kiln
printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$build/kiln" >"$kiln"
chmod +x "$kiln"
# NVRTC may have come with PyTorch
timeout 60 "$kiln" devices >"$work/devices" 2>&1
if ! grep -q '^NVRTC *[0-9]' "$work/devices"; then
  nvrtc=$("$python" -c 'import glob, sys; print(next((p for d in sys.path for p in sorted(glob.glob(d + "/nvidia/*/lib/libnvrtc.so.*"))), ""))' 2>/dev/null)
  [ -z "$nvrtc" ] || export KILN_NVRTC=$nvrtc
  timeout 60 "$kiln" devices >"$work/devices" 2>&1
fi
cat "$work/devices"
if command -v nvidia-smi >/dev/null; then
  timeout 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.draw --format=csv,noheader
fi
if ! grep -q '^driver' "$work/devices" || ! grep -q '^NVRTC *[0-9]' "$work/devices"; then
  echo "without a GPU and NVRTC there is nothing more to do"
  exit 1
fi
# the tests take the emulated GPU unless NVRTC is named
export KILN_NVRTC=${KILN_NVRTC:-$(sed -n 's/^NVRTC  *[0-9.]*, \(.*\), for .*/\1/p' "$work/devices")}

say "helpers and kernels on the card; networks on the card against the interpreter"
for test in $tests; do
  if [ -x "$build/$test" ]; then
    check "$test" 150 env "LD_LIBRARY_PATH=$libraries" "$build/$test"
  else
    echo "$test is not built: left out"
  fi
done
verify() { # model, shape, tolerance, options…
  local model=$1 shape=$2 tolerance=$3 weights=$work/$1.safetensors
  shift 3
  [ -f "$weights" ] || timeout 60 "$kiln" init "$root/examples/$model.json" -o "$weights" >/dev/null 2>&1
  check "$model $*" 100 "$kiln" verify "$root/examples/$model.json" --weights "$weights" --shape "$shape" \
    --device cuda --tolerance "$tolerance" "$@"
}
verify simple_cnn10 image=N,1,28,28 1e-5 --math fp32 --batch 3
verify simple_cnn10_bn image=N,1,28,28 1e-5 --batch 2 --hook '*:activation:stats'
verify resnet18 image=N,3,65,65 1e-5 --math fp32 --batch 2
verify resnet18 image=N,3,65,65 1e-5 --math 3xtf32 --batch 2
verify resnet18 image=N,3,65,65 5e-3 --math tf32 --batch 2
verify resnet18 image=N,3,65,65 5e-2 --math bf16 --batch 2
verify resnet18 image=N,3,65,65 5e-3 --math fp16 --batch 2
verify resnet50 image=N,3,65,65 5e-2 --math bf16 --batch 1
verify mobilenet_v2 image=N,3,65,65 2e-5 --math 3xtf32 --batch 1
verify squeezenet1_1 image=N,3,65,65 1e-5 --math 3xtf32 --batch 1
# shellcheck disable=SC2016
check "a library for the card" 60 sh -c '"$1" compile "$2" --weights "$3" --target cuda --math bf16 -o "$4" && "$1" bench "$4" --seconds 0.2' - \
  "$kiln" "$root/examples/resnet18.json" "$work/resnet18.safetensors" "$work/libresnet18.so"
settle

say compute-sanitizer
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer 2>/dev/null | tail -1)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    check "$tool, simple_cnn10" 60 env "LD_LIBRARY_PATH=$libraries" "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$build/kiln" verify "$root/examples/simple_cnn10.json" --weights "$work/simple_cnn10.safetensors" --device cuda --batch 3
  done
  check "memcheck, resnet18 in bf16" 60 env "LD_LIBRARY_PATH=$libraries" "$sanitizer" --tool memcheck --error-exitcode 9 \
    "$build/kiln" verify "$root/examples/resnet18.json" --weights "$work/resnet18.safetensors" --shape image=N,3,65,65 \
    --device cuda --math bf16 --tolerance 5e-2 --batch 1
  settle
else
  echo "missing: compute-sanitizer"
fi

say benchmark
# shellcheck disable=SC2206
arguments=(${GPU_BENCHMARK:-$root/examples/resnet50.json})
remains=$((total - (SECONDS - started)))
if command -v "$python" >/dev/null; then
  timeout -k 10 $((remains - 5)) "$python" "$root/benchmarks/gpu.py" "$kiln" "${arguments[@]}" --limit $((remains - 15)) ||
    failures=$((failures + 1))
else
  for math in fp32 tf32 bf16; do
    for batch in 1 16 64; do
      echo "$math $batch"
      timeout 20 "$kiln" bench "${arguments[0]}" --device cuda --math "$math" --batch "$batch" --seconds 0.5 || failures=$((failures + 1))
    done
  done
fi
printf '\n%d checks failed, %d s\n' "$failures" $((SECONDS - started))
[ "$failures" -eq 0 ]
