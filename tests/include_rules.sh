#!/usr/bin/env bash
# Checks that layers include downwards only: every quoted include must be a file of a folder that the layer may see.
# With --self-test plants a forbidden include in a copy and expects to find it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# layer folder : roots that its includes may resolve in
rules="
ir/base: ir/base ir include
ir: ir include
frontend: frontend ir include
passes: passes ir include
codegen: codegen codegen/cpu ir include
runtime/core: runtime/core ir/base@base include
runtime/session: runtime/session runtime frontend passes codegen ir include
cli: cli runtime frontend passes codegen ir include
"

check() { # tree
  local tree=$1 bad=0
  while IFS=: read -r layer roots; do
    [ -n "$layer" ] || continue
    while IFS= read -r file; do
      # ir/base is a layer of its own, though inside ir
      [ "$layer" = ir ] && [[ "$file" == */ir/base/* ]] && continue
      while IFS= read -r include; do
        local found=0 root_dir
        for root_dir in $roots; do
          case $root_dir in
            *@*) [[ "$include" == "${root_dir#*@}/"* ]] && [ -f "$tree/${root_dir%@*}/${include#*/}" ] && found=1 ;;
            *) [ -f "$tree/$root_dir/$include" ] && found=1 ;;
          esac
        done
        # ir/base sees the rest of ir's folder only through base/
        [ "$layer" = ir/base ] && [ -f "$tree/ir/$include" ] && [[ "$include" != base/* ]] && found=0
        [ -f "$(dirname "$file")/$include" ] && found=1
        if [ $found -eq 0 ]; then
          echo "${file#"$tree"/}: includes \"$include\", which layer $layer may not see"
          bad=1
        fi
      done < <(sed -n 's/^#include "\(.*\)".*/\1/p' "$file")
    done < <(find "$tree/$layer" -name '*.[ch]')
  done <<<"$rules"
  return $bad
}

if [ "${1:-}" = --self-test ]; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  (cd "$root" && tar cf - ir frontend passes codegen runtime cli include) | tar xf - -C "$copy"
  echo '#include "codegen.h"' >>"$copy/passes/fuse.c"
  echo '#include "graph.h"' >>"$copy/runtime/core/pool.c"
  output=$(check "$copy" || true)
  grep -q 'passes/fuse.c: includes "codegen.h"' <<<"$output" && grep -q 'runtime/core/pool.c: includes "graph.h"' <<<"$output"
  exit
fi
check "$root"
