#!/usr/bin/env bash
# No vector register is spilled in the loops that do the work: the register tiles fit. Usage: spills.sh BUILD_DIR
# The check is checked too: a planted spill must be found.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
kiln=$build/kiln
check=$source/tests/spills.awk
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export KILN_CACHE=off

fail() { printf 'FAILED: %s\n' "$*"; exit 1; }

check_model() {
  "$kiln" compile "$source/examples/$1.json" --cpu "$2" --precision "$3" --threads 2 --emit asm -o model.s >/dev/null
  awk -f "$check" model.s >found || { cat found; fail "$1 for $2, $3, spills vectors in its loops"; }
  loops=$(awk '{ n = $1 } END { print n }' found)
  [ "$loops" -ge 5 ] || fail "$1 for $2: only $loops loops of products were found"
}
for level in x86-64-v2 x86-64-v3 x86-64-v4; do
  for model in resnet34 resnet50 mobilenet_v2 squeezenet1_1 vgg11_bn simple_cnn10_bn; do
    check_model $model $level default
  done
  check_model resnet34 $level strict
done

# the last loop that was looked at, with a vector put aside in it
plant() {
  awk -v access="$1" '/^\tv?(fmadd231ps|fmadd213ps)/ && !done { print; print access; done = 1; next } { print }' model.s >planted.s
  cmp -s model.s planted.s && fail "nothing was planted"
  if awk -f "$check" planted.s >found; then fail "a planted spill was not found: $1"; fi
  grep -q '1 vectors of the frame' found || { cat found; fail "another spill was found than the planted one: $1"; }
}
plant $'\tvmovups\t%zmm3, 64(%rsp)                # 64-byte Spill'
plant $'\tvaddps\t-128(%rsp), %zmm3, %zmm3'

echo "tests/spills.sh: passed"
