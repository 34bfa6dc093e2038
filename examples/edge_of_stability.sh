#!/usr/bin/env bash
# The edge of stability (Cohen et al. 2021): full-batch training, and the sharpness at each checkpoint
# against the threshold of the steps there. Takes a name for the run and options of its training, such
# as: adam --optimizer adam --lr 0.05. Without any it is plain gradient descent.
# Interrupted and started again, it goes on where it stopped: what is done is up to date.
set -euo pipefail

run="edge/${1:-gd}"
recipe=("${@:2}")
(($# > 1)) || recipe=(--momentum 0 --lr 0.4)
lgo train --out "$run" --dataset synthetic --dataset-arg num_train=512 --loss squared_error \
  --model-arg hidden=64 --model-arg activation=tanh --batch-size 512 --weight-decay 0 \
  --schedule constant "${recipe[@]}" --epochs "${EPOCHS:-1000}" --save-every "${EVERY:-100}" --quiet

steps=()
for checkpoint in "$run"/checkpoints/*.pth; do
  steps+=("$run/$(basename "$checkpoint" .pth)")
  lgo hessian "$checkpoint" --top-k 1 --bottom-k 0 --no-audit --out "${steps[-1]}" --quiet
done

lgo table "${steps[@]}"
