#!/usr/bin/env bash
# The network that comes along and the table "Nuclei" of docs/results.md. Needs BBBC038's stage 1 training set (.zip or
# folder).
# Trains on tile labels of the train split, chooses the weights of the log-linear choice on every 8th picture of it, judges on the
# val split beside a watershed tuned on the same pictures. Run from the root: eval/results/nuclei.sh DATA
set -euo pipefail
data="$1"
work=runs/nuclei
prm train --data "$data" --out $work --resume --tile 48 --tile-stride 40 --tile-limit 8000 --contrast --vertical-flip \
    --network-options '{"widths": [16, 32, 48, 64], "pools": 2, "depth": 3}' --batch-size 64 --epochs 8 \
    --lr-features 0.05 --lr-classifier 0.05 --weight-decay 5e-4 --seed 0
prm tune --data "$data" --split train --every 8 -c $work --choice fit --nms 0.3 --class-threshold 0.5 \
    --cache $work/proposals --json eval/results/nuclei/tune.json
prm eval --data "$data" --split val --baseline 8 -c $work --cache $work/proposals --json eval/results/nuclei/eval.json
# The network that comes along is this one, without the optimiser's momentum and with its figures on the val split.
python - <<'END'
import json
from dataclasses import replace
from pathlib import Path

from prm.accelerated.checkpoint import load_checkpoint, save_checkpoint

trained = load_checkpoint("runs/nuclei")
judged = json.loads(Path("eval/results/nuclei/eval.json").read_text())["rows"]["prm"]
shown = {name: judged[name] for name in ("images", "mAP^r_0.25", "mAP^r_0.5", "mAP^r_0.75", "ABO")}
figures = trained.figures | {"bbbc038 val": shown}
save_checkpoint(replace(trained, momentum={}, figures=figures), Path("accelerated/networks/nuclei.json"))
END
prm eval compare eval/results/nuclei/eval.json
