"""Time and memory of `prm segment`, a stage at a time, for one picture and a network with random weights."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prm import InputError


def bench_segment(
    network: str, size: int, peaks: Sequence[int], image: Path | None, limit: int, repeat: int
) -> list[dict]:
    """A row for each number of peaks: median seconds by stage of `repeat` pictures, and peak memory in MB.

    Each row is measured in a process of its own, whose highest resident memory the system reports. What the
    first walk of a picture prepares once, the normalisers of Eq. 5, is part of `walk`.
    """
    rows = []
    for number in peaks:
        arguments = [network, size, number, str(image) if image else "", limit, repeat]
        done = subprocess.run(
            [sys.executable, "-m", "prm.eval.bench", json.dumps(arguments)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["failed"])[-1]
            raise InputError(last.removeprefix("prm.InputError: ").removeprefix("ValueError: "))
        rows.append(json.loads(done.stdout))
    return rows


def _measure(network: str, size: int, number: int, image: str, limit: int, repeat: int) -> dict:
    import resource
    import time

    import numpy as np
    import torch
    from PIL import Image

    from prm.accelerated import Segmenter
    from prm.accelerated.checkpoint import random_checkpoint

    from .images import read_image
    from .proposals.grouping import generate

    if image:
        picture = np.asarray(Image.fromarray(read_image(image)).resize((size, size)))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
    checkpoint = random_checkpoint(network, [f"class {i}" for i in range(20)])
    # Random weights: every class and every peak passes, and the strongest `number` are walked.
    segmenter = Segmenter.from_checkpoint(
        checkpoint, class_threshold=0.0, peak_threshold=-1e30, max_peaks=number, upsample=8
    )
    runs = []
    for _ in range(repeat):
        started = time.perf_counter()
        proposals = generate(picture, limit)
        spent = {"proposals": time.perf_counter() - started}
        answer = segmenter([picture], [proposals])[0]
        runs.append(spent | answer.seconds)
    order = ("forward", "peaks", "walk", "proposals", "retrieval")
    return {
        "peaks": answer.peaks,
        "proposals": len(proposals),
        "seconds": {stage: round(statistics.median(run[stage] for run in runs), 4) for stage in order},
        "spread": {stage: [round(f(run[stage] for run in runs), 4) for f in (min, max)] for stage in order},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
