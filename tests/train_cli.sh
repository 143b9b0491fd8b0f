#!/usr/bin/env bash
# kiln train and kiln lr-find as others script them: options, results, files, messages. Usage: train_cli.sh BUILD_DIR
source "$(dirname "$0")/support.sh"
model=$source/tests/stripes.json

mkdir data one
"$build/make_idx" data 256 96
"$build/make_idx" one 40 1
rm one/t10k-*
train=("$kiln" train "$model" --data data --lr 0.05)
cycle=("${train[@]}" --epochs 6 --batch 32 --one-cycle)

# --- usage
for verb in train lr-find; do
  expect 0 'Examples:' "$kiln" $verb --help
  expect 2 "unknown option '--nonsense'" "$kiln" $verb --nonsense
done
expect 2 '\-\-data DIR is missing' "$kiln" train "$model" --lr 1
expect 2 '\-\-data DIR is missing' "$kiln" lr-find "$model"
expect 2 '\-\-lr is missing' "$kiln" train "$model" --data data
expect 2 "LOW,HIGH.*found 'x'" "$kiln" train "$model" --data data --lr x
expect 2 'exclude each other' "${train[@]}" --one-cycle --schedule step
expect 2 'constant, one-cycle, cosine or step' "${train[@]}" --schedule linear
expect 2 '\-\-pct-start: expected a share from 0 to 1, found 2' "${train[@]}" --one-cycle --pct-start 2
expect 2 '\-\-momenta: expected HIGH,LOW' "${train[@]}" --momenta 0.9
expect 2 'sgd or adam' "${train[@]}" --optimizer lion
expect 2 'belong to --optimizer adam' "${train[@]}" --optimizer sgd --beta2 0.9
expect 2 'belongs to --optimizer sgd' "${train[@]}" --nesterov
expect 2 'needs --checkpoint' "${train[@]}" --resume
expect 2 'pytorch or kaiming' "${train[@]}" --init-mode zeros
expect 2 'accuracy or error_rate' "${train[@]}" --metric f1
expect 2 'cross_entropy, mse or bce' "${train[@]}" --loss hinge
expect 1 "no group 'tail'|tail" "${train[@]}" --freeze tail
expect 1 '3 scores, but the data has 2 classes' "${train[@]}" --classes 0,1
expect 1 "no output 'x' to train" "${train[@]}" --loss-of x
expect 2 '0 < --low < --high' "$kiln" lr-find "$model" --data data --low 1 --high 0.1

# --- a run: it learns, tells the same in every form, and does not depend on threads and workers
expect 0 '^accuracy 0\.[89].* of 96\)' "${cycle[@]}" --save a.safetensors --log a.jsonl --seed 3
accuracy=$(sed -n 's/^accuracy \([0-9.]*\) .*/\1/p' output)
[ "$(grep -Ec '^ +[1-6]  ' output)" -eq 6 ] || fail "not six rows"
logged=$(sed -n 's/.*"epoch":6,.*"accuracy":\([0-9.]*\),.*/\1/p' a.jsonl)
[ "$(printf %.4f "$logged")" = "$accuracy" ] || fail "the log has accuracy '$logged', the output $accuracy"
[ "$(grep -c '"event":"step"' a.jsonl)" -eq 48 ] || fail "not 48 steps in the log"
expect 0 '"epoch":6' "${cycle[@]}" --save b.safetensors --seed 3 --threads 3 --workers 2 --json
sed -i '/^kiln: warning: 3 threads, but/d' output # of standard error, where there are fewer processors
! command -v python3 >/dev/null || python3 -c 'import json; json.load(open("output"))' || fail "not JSON"
cmp a.safetensors b.safetensors || fail "weights depend on the number of threads"
expect 0 '' "${cycle[@]}" --save b.safetensors --seed 3 --workers 0
cmp a.safetensors b.safetensors || fail "weights depend on the number of workers"
expect 0 '' "${cycle[@]}" --save b.safetensors --seed 3 --threads 3 --workers 0
cmp a.safetensors b.safetensors || fail "weights depend on who prepares the batches"
# the pictures themselves: as many of the file as the program takes at once
images=$(ls data/t10k-images*)
expect 0 '^.*\[1\]' "$kiln" run "$model" --weights a.safetensors --input "image=$images" --batch 2
! grep -q '\[2\]' output || fail "more pictures than the batch"
expect 1 'expected images of three dimensions, found labels' \
  "$kiln" run "$model" --weights a.safetensors --input "image=$(ls data/t10k-labels*)"
expect 0 '' "${cycle[@]}" --save b.safetensors --seed 4
! cmp -s a.safetensors b.safetensors || fail "the seed changes nothing"
expect 0 '' "${cycle[@]}" --save b.safetensors --seed 3 --stats '*'
cmp a.safetensors b.safetensors || fail "statistics change the weights"

# --- weights: PyTorch's names, which other verbs take; frozen groups stay; what a file lacks is said
expect 0 'conv1\.weight.*\[6,1,3,3\]' "$kiln" inspect a.safetensors
expect 0 'bn1\.running_mean' "$kiln" inspect a.safetensors
expect 0 '' "$kiln" compile "$model" --weights a.safetensors -o libstripes.so
expect 0 '' "${cycle[@]}" --init a.safetensors --freeze body --freeze-bn --save c.safetensors
# the head's 99 numbers are the last of the file, and nothing before them has changed
first=$( (cmp a.safetensors c.safetensors || true) | sed -n 's/.* byte \([0-9]*\),.*/\1/p')
[ -n "$first" ] && [ "$first" -gt $(($(stat -c %s a.safetensors) - 99 * 4 - 64)) ] || fail "a frozen group has changed (byte $first)"
expect 0 '' "${train[@]}" --batch 32 --init a.safetensors --init-skip 'logits.*' --save c.safetensors
printf '{"kiln":1,"name":"w","inputs":{"image":{"shape":["N",1,8,8]}},"layers":[{"op":"conv2d","name":"conv1","out_channels":6,"kernel":3}]}' >part.json
"$kiln" init part.json --seed 1 -o part.safetensors >/dev/null
expect 1 "lacks 8 tensors of the model: 'bn1\.weight'" "${train[@]}" --init part.safetensors
expect 0 '' "${train[@]}" --batch 32 --init part.safetensors --init-skip 'bn1.*' --init-skip 'conv2.*' --init-skip 'logits.*'
expect 1 'expects shape \[6,1,3,3\]' bash -c "sed s/6,/7,/ part.json >other.json && $kiln init other.json --seed 1 -o other.safetensors && \
  ${train[*]} --init other.safetensors --init-skip 'bn1.*' --init-skip 'conv2.*' --init-skip 'logits.*'"

# --- optimisers, schedules, losses, groups, accumulation, clipping
for options in "--optimizer sgd --momentum 0.9" "--optimizer sgd --nesterov --wd 1e-4" "--schedule cosine" \
  "--schedule step --step-every 0.5 --step-factor 0.2" "--one-cycle --pct-start 0.8 --momenta 0.9,0.8" \
  "--clip 0.5" "--accumulate 3" "--accumulate 2 --clip 1 --optimizer sgd" "--loss mse" "--loss bce_with_logits" \
  "--init-mode kaiming" "--augment flip" "--keep-last" "--metric error_rate" "--loss-of logits" "--memory-limit 10000000"; do
  expect 0 'accuracy' "${train[@]}" --epochs 2 --batch 32 --log o.jsonl $options
done
expect 0 '' "$kiln" train "$model" --data data --batch 32 --lr 'slice(1e-3,1e-1)' --log o.jsonl
grep -q '"rates":\[0\.001,0\.1\]' o.jsonl || fail "groups have not their rates"
expect 0 '' "$kiln" train "$model" --data data --batch 32 --lr 'slice(1e-2)' --log o.jsonl
grep -q '"rates":\[0\.001,0\.01\]' o.jsonl || fail "groups have not their rates"
# four batches accumulated are one four times as large: without batch norm and dropout both runs do the same
sed -e '/batch_norm/d; /dropout/d' -e 's/"bn\*", //; s/, "drop"//' "$model" >plain.json
plain=("$kiln" train plain.json --data data --epochs 2 --optimizer sgd --lr 0.1)
expect 0 '' "${plain[@]}" --batch 64 --json
sed 's/"seconds.*//' output >whole
expect 0 '' "${plain[@]}" --batch 16 --accumulate 4 --json
pick() { sed -n 's/.*"valid_loss":\([0-9]*\.[0-9]\{4\}\).*/\1/p' "$1"; }
[ -n "$(pick whole)" ] && [ "$(pick whole)" = "$(pick output)" ] || fail "accumulated batches give $(pick output), whole ones $(pick whole)"

# --- a set without pictures for validation
expect 0 '^ +1 .* - ' "$kiln" train "$model" --data one --valid 0 --batch 8 --lr 0.01

# --- checkpoints
expect 0 '' "${cycle[@]}" --seed 3 --checkpoint run --save b.safetensors
cmp a.safetensors b.safetensors || fail "checkpoints change the weights"
expect 1 'holds checkpoints of an earlier run' "${cycle[@]}" --checkpoint run
expect 1 'was made with batch 32, this run has 16' "${train[@]}" --epochs 6 --batch 16 --one-cycle --seed 3 --checkpoint run --resume
expect 0 'resumed after 48 of 48 steps' "${cycle[@]}" --seed 3 --checkpoint run --resume --save b.safetensors
cmp a.safetensors b.safetensors || fail "a finished run changes when it is resumed"
[ "$(grep -Ec '^ +[1-6]  ' output)" -eq 6 ] || fail "a resumed run does not show its epochs"
expect 0 '' "${cycle[@]}" --seed 3 --checkpoint new --resume --save b.safetensors
cmp a.safetensors b.safetensors || fail "--resume without a checkpoint is not a beginning"

# --- a loss that is not finite ends the run and says where it began
expect 1 "the loss of step [0-9]+ .* is not finite: the first value that is not is '" "$kiln" train plain.json --data data \
  --batch 32 --optimizer sgd --lr 1e30 --save lost.safetensors
[ ! -e lost.safetensors ] || fail "weights of a run that failed were written"

# --- report and finder
expect 0 '' "${cycle[@]}" --report report
for file in loss metrics schedule activations histograms; do
  [ -s report/$file.png ] && [ -s report/$file.svg ] || fail "no plot $file"
done
! grep -Eq '(src|href)="?(http|//)|<script' report/index.html || fail "the report loads something"
expect 0 '' "${cycle[@]}" --report plain --stats 'act1' --stats 'conv?'
expect 1 "matches no value" "${train[@]}" --stats nothing
expect 0 'steepest' "$kiln" lr-find "$model" --data data --batch 16 --plot rates.svg
[ -s rates.svg ] || fail "no plot of rates"
expect 0 '"steepest":' "$kiln" lr-find "$model" --data data --batch 16 --optimizer sgd --json
echo "$count commands"
