#!/usr/bin/env bash
# What shortcuts do (Li et al. 2018, figure 5): ResNets with and without, on the same data, each on a
# filter-normalised plane of its own, with the map of λmin/λmax over it. RESNETS names the depths.
# Interrupted and started again, it goes on where it stopped: what is done is up to date.
set -euo pipefail

data=(--dataset fashion-mnist --data-root "${DATA_ROOT:-/usr/share/datasets/fashion-mnist}"
  --dataset-arg image_size=32 --dataset-arg channels=3 --train-samples "${SAMPLES:-10000}")

runs=()
for resnet in ${RESNETS:-resnet20 resnet56}; do
  for shortcuts in true false; do
    run="resnets/$resnet-shortcuts-$shortcuts"
    lgo train --out "$run" --model "$resnet" --model-arg "shortcuts=$shortcuts" "${data[@]}" \
      --epochs "${EPOCHS:-3}" --schedule cosine --lr 0.05 --quiet
    lgo contour "$run" --resolution "${RESOLUTION:-51}" --tolerance "${TOLERANCE:-0.01}" \
      --convexity "${CONVEXITY:-11}" --analysis-samples "${PROBE:-1024}" --quiet
    runs+=("$run")
  done
done

# The numbers side by side; the pictures are <run>/contour_2d.png and its neighbours.
lgo table "${runs[@]}"
lgo table --format csv "${runs[@]}" > resnets/table.csv
