#!/usr/bin/env bash
# A sweep over learning rates: train, measure the curvature, put the runs side by side.
# Interrupted and started again, it goes on where it stopped: what is done is up to date.
set -euo pipefail

runs=()
for lr in 0.02 0.1 0.5; do
  run="sweep/lr-$lr"
  lgo train --out "$run" --lr "$lr" --schedule constant --epochs "${EPOCHS:-10}" --quiet
  lgo hessian "$run" --top-k 1 --trace --quiet
  runs+=("$run")
done

lgo table "${runs[@]}"
lgo table --format csv "${runs[@]}" > sweep/table.csv
