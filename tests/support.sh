# What the tests in shell share. Sourced with BUILD_DIR as $1; goes to an empty folder, which is removed at the end, and
# compiles with a cache of its own, whatever the environment says.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$(cd "$1" && pwd)
kiln=$build/kiln
examples=$source/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset KILN_CACHE
export KILN_CACHE_DIR=$work/cache
count=0

# The file output holds what the last command has printed.
fail() { printf 'FAILED: %s\n' "$*"; [ ! -s output ] || cat output; exit 1; }
# quiet COMMAND…: a command that has to succeed
quiet() { "$@" >output 2>&1 || fail "$*"; }
# expect CODE PATTERN COMMAND…: runs it, checks the exit code and that its output (both streams) matches
expect() {
  local code=$1 pattern=$2 found=0
  shift 2
  "$@" >output 2>&1 || found=$?
  [ "$found" -eq "$code" ] || fail "exit code $found, expected $code: $*"
  [ -z "$pattern" ] || grep -Eq -- "$pattern" output || fail "no '$pattern' in the output of: $*"
  count=$((count + 1))
}
# Where programs find the emulated GPU.
use_emulated_gpu() { export KILN_NVRTC=$build/libfake_nvrtc.so KILN_CUDA_DRIVER=$build/libfake_cuda.so; }
