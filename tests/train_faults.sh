#!/usr/bin/env bash
# Training runs that are killed, run out of disk or are told to stop lose nothing: whatever happens at whichever write,
# --resume ends with the very weights and log of a run that nothing happened to. Usage: train_faults.sh BUILD_DIR
source "$(dirname "$0")/support.sh"
mounted=
trap '[ -z "$mounted" ] || umount "$work/small"; rm -rf "$work"' EXIT

mkdir data
"$build/make_idx" data 96 32
run=(train "$source/tests/stripes.json" --data data --epochs 2 --batch 32 --lr 0.02 --one-cycle --optimizer adam
  --checkpoint-every 2 --workers 0)
untimed() { sed 's/,"seconds":[^}]*//' "$1"; }

"$kiln" "${run[@]}" --save expected.safetensors --log expected.jsonl --checkpoint reference >output 2>&1
[ "$(ls reference | wc -l)" -eq 2 ] || fail "not two checkpoints"

# resumes in folder $1 with log $2 and checks what comes out
check_resumed() {
  "$kiln" "${run[@]}" --checkpoint "$1" --resume --log "$2" --save found.safetensors >output 2>&1 || fail "resuming ($3)"
  cmp -s expected.safetensors found.safetensors || fail "other weights after resuming ($3)"
  cmp -s <(untimed expected.jsonl) <(untimed "$2") || fail "another log after resuming ($3)"
  [ "$(find "$1" -name '.kiln-*' | wc -l)" -eq 0 ] || fail "a temporary file is left ($3)"
}

# a damaged newest checkpoint: the one before it is taken
printf 'x' | dd of=reference/checkpoint-000000000006.kiln bs=1 seek=300 conv=notrunc status=none
check_resumed reference expected.jsonl damaged
grep -q 'damaged checkpoint' output || fail "no warning about a damaged checkpoint"

# --- SIGINT and SIGTERM: the step is finished, a checkpoint written
long=("${run[@]}" --epochs 4000 --checkpoint-every 1000000)
stop_run() { # SIGNAL CODE
  rm -rf stop stop.jsonl
  "$kiln" "${long[@]}" --checkpoint stop --log stop.jsonl >output 2>&1 &
  local job=$! code=0
  for _ in $(seq 200); do
    [ "$(cat stop.jsonl 2>/dev/null | wc -l)" -gt 20 ] && break
    sleep 0.05
  done
  kill "-$1" $job
  wait $job || code=$?
  [ "$code" -eq "$2" ] || fail "exit code $code after SIG$1"
  grep -q 'stopped after .* --resume goes on' output || fail "no word about SIG$1"
  [ "$(find stop -name 'checkpoint-*' | wc -l)" -ge 1 ] || fail "no checkpoint after SIG$1"
}
stop_run INT 130
stop_run TERM 143
grep -o '"step":[0-9]*' stop.jsonl | sort -u -t: -k2n | wc -l >steps
[ "$(grep -c '"event":"step"' stop.jsonl)" -eq "$(cat steps)" ] || fail "a step twice in the log"

# --- a second signal ends the run at once: here while it waits for the reader of its log
mkfifo pipe
sleep 60 <pipe &
reader=$!
"$kiln" "${run[@]}" --epochs 4000 --log pipe >output 2>&1 &
job=$!
before=-1 same=0
while [ $same -lt 3 ]; do # until the pipe is full and no more epochs come
  sleep 0.5
  now=$(grep -c '^ ' output || true)
  [ "$now" -gt 1 ] && [ "$now" -eq "$before" ] && same=$((same + 1)) || same=0
  before=$now
done
kill -INT $job
sleep 0.2
kill -0 $job 2>/dev/null || fail "the first signal ended the run in the middle of a step"
kill -INT $job
code=0
wait $job || code=$?
kill $reader
[ "$code" -eq 130 ] || fail "exit code $code after the second signal"
! grep -q 'stopped after' output || fail "the run ended in the ordinary way"

if ! strace -o /dev/null true 2>/dev/null; then
  echo "strace cannot be used here: the rest is left out"
  exit 0
fi
inject() { # INJECTION FOLDER LOG; with filtered=--seccomp-bpf only the calls wanted stop, but no signal can be injected
  strace -f ${filtered:-} -o trace -e trace=write,fsync,rename -e "inject=$1" "$kiln" "${run[@]}" --checkpoint "$2" --log "$3" \
    --save lost.safetensors >output 2>&1
}
strace -f -o trace -e trace=write,fsync "$kiln" "${run[@]}" --checkpoint count --log count.jsonl --save lost.safetensors \
  >/dev/null 2>&1
writes=$(grep -c ' write(' trace) flushes=$(grep -c ' fsync(' trace)
[ "$writes" -gt 50 ] && [ "$flushes" -ge 10 ] || fail "only $writes writes and $flushes flushes"

# --- killed at every write and flush
for call in write fsync; do
  [ $call = write ] && times=$writes || times=$flushes
  for n in $(seq "$times"); do
    rm -rf killed killed.jsonl
    inject "$call:signal=SIGKILL:when=$n" killed killed.jsonl 2>/dev/null && fail "not killed at $call $n"
    check_resumed killed killed.jsonl "killed at $call $n"
  done
done

# --- a full disk at every write, a broken one at every flush: a message, and nothing lost
filtered=--seccomp-bpf
for call in write:error=ENOSPC fsync:error=EIO; do
  [ "${call%%:*}" = write ] && times=$writes || times=$flushes
  for n in $(seq "$times"); do
    rm -rf broken broken.jsonl
    code=0
    inject "$call:when=$n" broken broken.jsonl || code=$?
    grep -q '(INJECTED)' trace || fail "nothing failed for $call at $n"
    if [ $code -eq 0 ]; then # only words on standard error may be lost
      grep -q ' write(2, .*(INJECTED)' trace || fail "not noticed: $call at $n"
    else
      grep -Eq 'error: cannot|cannot write to standard output' output || fail "no message for $call at $n"
    fi
    check_resumed broken broken.jsonl "$call at $n"
  done
done

# --- a disk that is really full
mkdir small
if mount -t tmpfs -o size=256k tmpfs small 2>/dev/null; then
  mounted=1
  head -c 300000 /dev/zero >small/filler 2>/dev/null || true
  truncate -s -16K small/filler
  "$kiln" "${run[@]}" --checkpoint small/run --log full.jsonl --save lost.safetensors >output 2>&1 &&
    fail "a full disk was not noticed"
  grep -q 'No space left on device' output || fail "no message for a full disk"
  rm small/filler
  check_resumed small/run full.jsonl "a full disk"
fi
echo "$writes writes and $flushes flushes: killed and failed at each, every run resumed to the same weights and log"
