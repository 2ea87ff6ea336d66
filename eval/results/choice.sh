#!/usr/bin/env bash
# The ways to choose a peak's proposal, on nuclei with the network that comes along: the table of docs/results.md#choice.
# Run from the root: eval/results/choice.sh DATA [SPLIT EVERY], DATA being BBBC038's stage 1 training set (.zip or folder).
# The weights were chosen on every 8th training picture; kinds of objectness were compared on both sets of the table.
set -euo pipefail
work=runs/choice
mkdir -p $work
[ -e $work/bbbc038_stage1_train.zip ] || ln -s "$(realpath "$1")" $work/bbbc038_stage1_train.zip
split=${2:-val} every=${3:-1}
out=eval/results/choice/$split
mkdir -p $out

# rule NAME OPTION ...
rule() {
    [ ! -e "$out/$1.json" ] || return 0
    prm eval --data $work/bbbc038_stage1_train.zip --split "$split" --every "$every" --model nuclei \
        --cache $work/proposals --json "$out/$1.json" "${@:2}"
}
alone=(--weight-mass 0 --weight-response 0 --weight-inside 0 --weight-on-contour 0)
rule eq6 --choice eq6
rule wise "${alone[@]}" --seed-pixel require
rule objectness "${alone[@]}"
rule without_objectness --weight-objectness 0 --weight-mass 1 --weight-response 1
rule without_mass --weight-mass 0
rule without_contour --weight-on-contour 0
rule required --seed-pixel require
rule fit
prm eval compare $out/*.json
