# Finds sums that are spilled in x86-64 assembly as kiln compile --emit asm prints it.
#
# Looked at are innermost loops (from a label to a jump back to it, with no such loop within) that multiply and add
# vectors and store none: what they compute stays in registers until they end. There a vector of the frame, read or
# written, is a sum or operand that found no register, in every step. Loops that store what they compute are left out:
# Winograd's transforms hold a whole tile, and the frame is where it belongs.
#
# Prints a line per loop with such accesses and a line with the numbers of loops; the exit code is 1 when there are any.

function check_function(   i, j, line, target, inner, products, sums, frame, stores) {
  loops = 0
  for (i = 1; i <= count; i++) {
    if (text[i] !~ /^\tj[a-z]+[ \t]+\.L/) continue
    target = text[i]
    sub(/^\tj[a-z]+[ \t]+/, "", target)
    sub(/[ \t#].*$/, "", target)
    if (!(target in place) || place[target] > i) continue
    loops++
    first[loops] = place[target]
    last[loops] = i
  }
  for (i = 1; i <= loops; i++) {
    inner = 1
    for (j = 1; j <= loops; j++)
      if (first[j] >= first[i] && last[j] <= last[i] && last[j] - first[j] < last[i] - first[i]) inner = 0
    if (!inner) continue
    products = sums = frame = stores = 0
    for (j = first[i]; j <= last[i]; j++) {
      line = text[j]
      sub(/[ \t]*#.*$/, "", line)
      if (line ~ /^\tvfn?m(add|sub)[0-9]+ps/) { products++; sums++ }
      if (line ~ /^\tv?mulps/) products++
      if (line ~ /^\tv?addps/) sums++
      if (line !~ /%[xyz]mm[0-9]/) continue
      if (line ~ /\(%rsp[,)]/ || (framed && line ~ /\(%rbp\)/)) frame++
      else if (line ~ /^\tv?mov[a-z]*[ \t]+%[xyz]mm[0-9]+, [^%]/) stores++
    }
    if (products == 0 || sums == 0 || stores > 0) continue
    checked++
    if (frame == 0) continue
    printf "%s: loop at %s %d products, %d vectors of the frame\n", title, text[first[i]], products, frame
    spilled++
  }
}

/^# / && !inside { title = substr($0, 3) }
/^[A-Za-z_][A-Za-z0-9_.]*:/ { inside = 1; framed = 0; count = 0; split("", place) }
inside { text[++count] = $0 }
inside && /^\.L[A-Za-z0-9_]+:/ { label = $1; sub(/:.*$/, "", label); place[label] = count }
inside && /^\tmovq[ \t]+%rsp, %rbp/ { framed = 1 }
inside && /^\.Lfunc_end/ { check_function(); inside = 0 }
END {
  printf "%d loops of products, %d with spills\n", checked, spilled
  exit spilled > 0
}
