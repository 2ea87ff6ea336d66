#!/usr/bin/env bash
# The networks behind the paper's Tables 1, 2 and 5, from nothing: five aggregations, one command, three seeds each.
# Run from the root: eval/results/tables.sh DATA [PART ...], DATA being BBBC038's stage 1 training set (.zip or folder),
# the parts: synthetic nuclei synthetic-deep. What is finished is not done again, what was interrupted goes on.
#
# Drawn scenes follow the paper's protocol: a network trained on other pictures (seed 1, global average pooling; it
# stands for ImageNet's) gives its features, a new classifier is put on them, and all is trained with the aggregation in
# question. The learning rates were chosen on a third set (seed 2) by the mean over all five aggregations of the
# classification mAP, never by localisation: after two epochs 0.01 / 0.1 (features / classifier) gave 91.2, 0.02 / 0.2 95.8,
# 0.05 / 0.05 96.0. Nuclei start from random weights, as in nuclei.sh.
set -euo pipefail
work=runs/tables
results=eval/results/tables
mkdir -p $work $results
[ -e $work/bbbc038_stage1_train.zip ] || ln -s "$(realpath "$1")" $work/bbbc038_stage1_train.zip
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(synthetic nuclei synthetic-deep)

# scenes NAME NETWORK-OPTIONS [OPTION ...]: the start, then the series from it; options of `prm eval train`
scenes() {
    local out=$work/$1 options=(--jitter 1.1 --network-options "$2" --lr-features 0.05 --lr-classifier 0.05)
    prm data make-synthetic $work/synthetic/start-scenes --train 2000 --val 200 --seed 1
    prm data make-synthetic $work/synthetic/scenes --train 600 --val 200 --seed 0
    prm train --data $work/synthetic/start-scenes --out $out/start --resume --val --seed 0 --aggregation average \
        --size 128 --epochs 12 "${options[@]}"
    prm eval train --data $work/synthetic/scenes --out $out --seeds 3 "${@:3}" --json $results/train-$1.json -- \
        --weights $out/start --val --size 128 --epochs 5 "${options[@]}"
}

for part in "${parts[@]}"; do
    case "$part" in
    synthetic) scenes synthetic '{"widths": [16, 32, 64, 96], "pools": 3}' ;;
    synthetic-deep)
        scenes synthetic-deep '{"widths": [16, 32, 64, 96], "pools": 3, "depth": 3}' \
            --aggregation average --aggregation peak
        ;;
    nuclei)
        prm eval train --data $work/bbbc038_stage1_train.zip --out $work/nuclei --seeds 3 \
            --json $results/train-nuclei.json -- \
            --tile 48 --tile-stride 40 --tile-limit 4000 --contrast --vertical-flip \
            --network-options '{"widths": [16, 32, 48, 64], "pools": 2, "depth": 3}' --batch-size 32 --epochs 4 \
            --lr-features 0.05 --lr-classifier 0.05 --weight-decay 5e-4
        ;;
    *) echo "unknown part: $part" >&2; exit 2 ;;
    esac
done

# Every network's settings are chosen on some of its training pictures with masks, then it is judged on the val split.
# judge PART DATA NAME TUNE-EVERY VAL-EVERY
judge() {
    for net in $work/$1/*-[0-9]; do
        file=$results/$1/$(basename "$net").json
        [ -e "$file" ] && continue
        prm tune --data "$2" --split train --every "$4" -c "$net" --cache $work/proposals
        prm eval tables --data "$2" --split val --every "$5" --name "$3" -c "$net" --out $results/$1 \
            --work $work/studies --cache $work/proposals
        rm $results/$1/tables.md
    done
}
for part in "${parts[@]}"; do
    case "$part" in
    synthetic*) judge "$part" $work/synthetic/scenes "drawn scenes" 6 1 ;;
    nuclei) judge "$part" $work/bbbc038_stage1_train.zip BBBC038 30 8 ;;
    esac
done
prm eval tables $results/*/*.json > docs/tables.md

# What `prm tune` is worth on other pictures than those that it chose on, against the defaults.
half() { prm tune --data "$1" --split val --halves --against-defaults --no-write --cache $work/proposals "${@:2}"; }
out=eval/results/tune
half $work/synthetic/scenes --every 2 -c $work/synthetic/peak-0 --json $out/scenes.json --plot docs/tune-scenes.png
half $work/synthetic/scenes --every 2 -c $work/synthetic/peak-0 --objective proxy --json $out/scenes-proxy.json
half $work/bbbc038_stage1_train.zip --every 6 --json $out/nuclei.json
half $work/bbbc038_stage1_train.zip --every 6 --objective proxy --json $out/nuclei-proxy.json
