#!/usr/bin/env bash
# Everything that needs a GPU, in one go and in less than 8 minutes:
#   benchmarks/gpu.sh [BUILD_FOLDER]
# builds (a folder that is built already will do, also on a machine without what building needs: its subfolder lib is
# searched for shared libraries), compares every helper of the device prelude with what it should compute, runs the kernels' tests and networks on
# the card against the interpreter, a sample of them under compute-sanitizer, and times ResNet-50 against PyTorch. A tool
# that is missing is said and left out; a check that fails is counted, and the exit code is then 1. The table comes last.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build-gpu}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
started=$SECONDS
unset KILN_EMULATOR_ORDER
export KILN_CUDA_DRIVER=${KILN_CUDA_DRIVER:-libcuda.so.1} KILN_CACHE_DIR=$work/cache KILN_TEST_CACHE=$work/cache

say() { printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started)); }
check() { # name, limit in seconds, command…
  local name=$1 limit=$2 code=0
  shift 2
  timeout "$limit" "$@" >"$work/log" 2>&1 || code=$?
  if [ "$code" -eq 0 ]; then
    printf 'ok      %s: %s\n' "$name" "$(grep -v '^$' "$work/log" | tail -1)"
  else
    failures=$((failures + 1))
    printf 'FAILED  %s (status %d)\n' "$name" "$code"
    grep -v 'RUN  \|  OK ' "$work/log" | tail -15 | sed 's/^/        /'
  fi
}

say build
tests="test_cuda_prelude test_cuda_run test_cuda_kernels test_cuda_gemm"
[ ! -d "$build/lib" ] || export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
kiln=$build/kiln
if cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release >"$work/log" 2>&1 &&
   ninja -C "$build" kiln_cli >"$work/log" 2>&1; then
  # shellcheck disable=SC2086
  ninja -C "$build" -k 0 $tests >"$work/log" 2>&1 || echo "some tests do not build: $(grep -m1 'error' "$work/log")"
elif [ -x "$kiln" ]; then
  echo "cannot be built here ($(grep -m1 -i error "$work/log")): taken as it is"
else
  tail -20 "$work/log"
  exit 1
fi
# NVRTC may have come with PyTorch
if ! "$kiln" devices | grep -q '^NVRTC *[0-9]'; then
  nvrtc=$(python3 -c 'import glob, sys; print(next((p for d in sys.path for p in sorted(glob.glob(d + "/nvidia/*/lib/libnvrtc.so.*"))), ""))' 2>/dev/null)
  [ -z "$nvrtc" ] || export KILN_NVRTC=$nvrtc
fi
"$kiln" devices || exit 1
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw --format=csv,noheader
if ! "$kiln" devices | grep -q '^driver' || ! "$kiln" devices | grep -q '^NVRTC *[0-9]'; then
  echo "without a GPU and NVRTC there is nothing more to do"
  exit 1
fi
# the tests take the emulated GPU unless NVRTC is named
export KILN_NVRTC=${KILN_NVRTC:-$("$kiln" devices | sed -n 's/^NVRTC  *[0-9.]*, \(.*\), for .*/\1/p')}

say "helpers and kernels on the card"
for test in $tests; do
  [ -x "$build/$test" ] && check "$test" 120 "$build/$test"
done

say "networks on the card against the interpreter"
verify() { # model, shape, tolerance, options…
  local model=$1 shape=$2 tolerance=$3
  shift 3
  "$kiln" init "$root/examples/$model.json" --shape "$shape" -o "$work/$model.safetensors" >/dev/null 2>&1
  check "$model $*" 60 "$kiln" verify "$root/examples/$model.json" --weights "$work/$model.safetensors" \
    --shape "$shape" --device cuda --tolerance "$tolerance" "$@"
}
verify simple_cnn10 image=N,1,28,28 1e-5 --math fp32 --batch 3
verify resnet18 image=N,3,65,65 1e-5 --math fp32 --batch 2
verify resnet18 image=N,3,65,65 1e-5 --math 3xtf32 --batch 2
verify resnet18 image=N,3,65,65 5e-3 --math tf32 --batch 2
verify resnet18 image=N,3,65,65 5e-2 --math bf16 --batch 2
verify resnet50 image=N,3,65,65 5e-2 --math bf16 --batch 1
verify mobilenet_v2 image=N,3,65,65 2e-5 --math 3xtf32 --batch 1
verify squeezenet1_1 image=N,3,65,65 1e-5 --math 3xtf32 --batch 1

say compute-sanitizer
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    check "$tool, simple_cnn10" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$kiln" verify \
      "$root/examples/simple_cnn10.json" --weights "$work/simple_cnn10.safetensors" --device cuda --batch 3
  done
else
  echo "compute-sanitizer is not installed: left out"
fi

say benchmark
left=$((440 - (SECONDS - started)))
if command -v python3 >/dev/null; then
  timeout $((left > 60 ? left : 60)) python3 "$root/benchmarks/gpu.py" "$kiln" "$root/examples/resnet50.json" \
    --limit $((left > 120 ? left - 60 : 60))
else
  for math in fp32 tf32 bf16; do
    for batch in 1 16 64; do
      echo "$math $batch"
      "$kiln" bench "$root/examples/resnet50.json" --device cuda --math "$math" --batch "$batch" --seconds 0.5
    done
  done
fi
printf '\n%d checks failed, %d s\n' "$failures" $((SECONDS - started))
[ "$failures" -eq 0 ]
