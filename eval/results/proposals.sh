#!/usr/bin/env bash
# How much of the truth the generated proposals reach, beside plain superpixels: eval/results/proposals/*.json.
# Settings were chosen on the even half of the COCO photographs; judged is the odd one. Run from the repository's root:
# eval/results/proposals.sh COCO VOC NUCLEI, the folders of the first two and the .zip (or folder) of BBBC038.
set -euo pipefail
export OMP_NUM_THREADS=1
out=eval/results/proposals
prm eval proposals --data "$1" --split train --half odd --json $out/coco_mini.json
prm eval proposals --data "$2" --split all --json $out/voc_annotated.json
prm eval proposals --data "$3" --split val --every 4 --no-baselines --json $out/bbbc038.json
