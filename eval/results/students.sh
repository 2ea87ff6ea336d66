#!/usr/bin/env bash
# The nuclei student that comes along. Needs BBBC038's stage 1 training set (.zip or folder). Run from the root:
# eval/results/students.sh DATA
#
# Pseudo labels of the train split by nuclei-prm, a student that learns them, its figures on the val split. No mask is
# read before the last command but for the figures on every 8th val picture, which choose nothing. On two cores: labels
# 14 minutes, training 14, judging 6 (one thread).
set -euo pipefail
data="$1"
work=runs/students
out=eval/results/students
mkdir -p $work $out

prm label --data "$data" --method prm -c nuclei-prm --max-peaks 400 --nms-nested 0.5 --cache $work/proposals \
    -o $work/nuclei-labels --json $out/nuclei-labels.json
prm student train --data $work/nuclei-labels --preset cells --steps 1500 --resume -o $work/nuclei --val "$data" \
    --val-every 8 --json $out/nuclei-train.json
prm eval --data "$data" -m $work/nuclei --json $out/nuclei.json
# What comes along is this one, without what the optimiser remembers and with its figures on the val split.
python - <<'END'
import json
from pathlib import Path

from prm.accelerated.students.checkpoint import SHIPPED, load_student, save_student

trained = load_student("runs/students/nuclei")
judged = json.loads(Path("eval/results/students/nuclei.json").read_text())["rows"]["prm"]
trained.optimizer = {}
trained.figures["bbbc038 val"] = {k: judged[k] for k in ("images", "mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO")}
save_student(trained, SHIPPED)
END
