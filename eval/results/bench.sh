#!/usr/bin/env bash
# The section on time and memory of docs/results.md, with its plots: about 45 minutes on two cores that do nothing else.
# Needs the extra "bench", BBBC038's stage 1 training set (.zip or folder) and what `make demo` leaves in demo/.
# Run from the root: eval/results/bench.sh DATA
set -euo pipefail
data="$1"
out=eval/results/bench
work=runs/bench
mkdir -p $out $work
autograd="--competitor autograd --competitor autograd-channels-last"
both="--threads 2 --malloc both"

for network in resnet50 vgg16; do
    prm bench walk --network $network --peaks 10 --peaks 30 $autograd --competitor-peaks 3 --rounds 3 $both \
        --json $out/$network.json
    prm bench walk --network $network --competitor zennit --competitor-peaks 3 --rounds 3 --threads 2 \
        --json $out/$network-zennit.json
    prm bench walk --network $network --size 800x1333 $autograd --competitor-peaks 2 --rounds 3 $both \
        --json $out/$network-800x1333.json
done
prm bench walk --size 448 --size 800 --size 1600 --peaks 3 --peaks 20 --competitor full --competitor autograd \
    --competitor-peaks 1 --rounds 3 --threads 2 --json $out/growth.json --plot docs/cost-walk.png

# Truncation, on random weights and on trained networks with pictures that they were not trained on.
epsilons="--epsilon 1e-4 --epsilon 1e-3 --epsilon 1e-2 --epsilon 1e-1 --threads 2"
prm bench walk --size 448 --size 800 --rounds 3 $epsilons --json $out/epsilon-resnet50.json
python - "$data" $work <<'END'
import sys
from pathlib import Path

from prm.eval.datasets import open_dataset
from prm.eval.pictures.figures import write_png

pictures = open_dataset(sys.argv[1], split="val")
for k in range(3):
    write_png(Path(sys.argv[2]) / f"nuclei-{k}.png", pictures[20 * k].image)
END
prm bench walk -c accelerated/networks/nuclei-prm.json --image $work/nuclei-0.png --image $work/nuclei-1.png \
    --image $work/nuclei-2.png --peaks 30 --competitor autograd --competitor-peaks 5 $epsilons --json $out/epsilon-nuclei.json
prm bench walk -c demo/network $(ls demo/scenes/val/*.png | head -3 | sed 's/^/--image /') \
    --peaks 30 --competitor autograd --competitor-peaks 5 $epsilons --json $out/epsilon-synthetic.json

prm bench retrieval --proposals 50 --proposals 200 --proposals 1000 --proposals 2000 --peaks 10 --peaks 30 --threads 2 \
    --no-making --json $out/retrieval.json --plot docs/cost-retrieval.png
prm bench peaks --threads 2 --json $out/peaks.json
prm bench segment --peaks 30 --competitor $both --json $out/segment.json
