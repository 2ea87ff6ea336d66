#!/usr/bin/env bash
# The table "Drawn scenes from random weights" of docs/results.md: peak stimulation and global average pooling, same
# budget, three seeds each.
# Run from the repository's root; writes one JSON file a run to eval/results/synthetic/. Arguments: only these aggregations.
set -euo pipefail
work=runs/synthetic
prm data make-synthetic $work/scenes --train 600 --val 100 --seed 0
for aggregation in ${@:-peak average}; do
    for seed in 0 1 2; do
        prm train --data $work/scenes --out $work/$aggregation-$seed --resume --seed $seed \
            --aggregation $aggregation --size 128 --epochs 18 --jitter 1.1 \
            --network-options '{"widths": [16, 32, 64, 96], "pools": 3}' --lr-features 0.05 --lr-classifier 0.05
        prm eval --data $work/scenes -c $work/$aggregation-$seed --cache $work/proposals \
            --json eval/results/synthetic/$aggregation-$seed.json
    done
done
prm eval compare eval/results/synthetic/*.json
