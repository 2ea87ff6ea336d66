#!/usr/bin/env bash
# docs/way.png: what `make demo` trains, its settings chosen on some of the training scenes, and
# a scene that it has not seen. Run from the root: eval/results/way.sh
set -euo pipefail
make demo
.venv/bin/prm tune --data demo/scenes --split train --every 20 -c demo/network --cache demo/proposals
.venv/bin/prm segment demo/scenes/val/val_00056.png -c demo/network --cache demo/proposals -o demo/way
cp demo/way/val_00056.panel.png docs/way.png
