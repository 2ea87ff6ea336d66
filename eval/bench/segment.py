"""Picture to masks, a stage at a time, beside the same as it is usually done."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from PIL import Image

from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import random_checkpoint

from ..pictures.images import read_image
from ..proposals.grouping import generate
from . import STAGES
from .clock import highest, interleave, mb, summary, timed, totals
from .competitors import DenseRetrieval, autograd_walk
from .inputs import full_precision


def measure_segment(
    network: str, size: int, peaks: int, image: str = "", limit: int = 200, rounds: int = 3, competitor: bool = False,
    device: str = "cpu",
) -> dict:  # fmt: skip
    """Picture to masks, a stage at a time. What the first walk of a picture prepares once is part of `walk`.

    competitor: the same with autograd's walk and dense masks, from the network's input on.
    """
    full_precision()
    noise = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    source = Image.fromarray(read_image(image) if image else noise)
    shown = np.asarray(source.resize((size, size), Image.Resampling.BICUBIC))
    # Random weights: every class and every peak passes, and the strongest `peaks` are walked.
    settings = {"class_threshold": 0.0, "peak_threshold": -1e30, "max_peaks": peaks, "upsample": 8}
    checkpoint = random_checkpoint(network, [f"class {i}" for i in range(20)])
    segmenter = Segmenter.from_checkpoint(checkpoint, device, **settings)

    def ours():
        seconds: dict[str, float] = {}
        with timed(seconds, "proposals"):
            masks = generate(shown, limit)
        answer = segmenter([shown], [masks])[0]
        return {stage: (seconds | answer.seconds)[stage] for stage in STAGES}, answer, masks

    _, answer, masks = ours()
    most = highest()
    variants, passed = {"ours": lambda: ours()[0]}, True
    if competitor:
        published = _published(segmenter, checkpoint.model().eval().to(device), shown, masks, device)
        passed = sorted(published()[1]) == sorted((one.proposal, one.label) for one in answer.instances)
        variants["published"] = lambda: published()[0]
    rows = _segment_rows(interleave(variants, rounds), passed)
    return {
        "network": network, "size": size, "peaks": answer.peaks, "proposals": len(masks), "device": device,
        "rounds": rounds, "threads": torch.get_num_threads(), "peak_memory_mb": mb(most), "passed": passed,
        "seconds": {stage: s["median"] for stage, s in rows[0].get("seconds", {}).items()}, "variants": rows,
    }  # fmt: skip


def _published(segmenter, model, shown, masks, device):
    """Picture to masks as published implementations go about it: autograd a peak at a time, dense masks."""
    s, slow = segmenter.settings, copy(segmenter)
    slow.backprop = autograd_walk(model, upsample=s.upsample)  # the same stages, another walk

    def run():
        seconds: dict[str, float] = {}
        with timed(seconds, "forward", device):
            responses = slow.respond([shown])
        with timed(seconds, "peaks", device):
            peaks = slow.find_peaks(responses)
        with timed(seconds, "walk", device):
            (walked,) = slow.walk(responses, peaks)
        with timed(seconds, "retrieval", device):
            dense = DenseRetrieval(masks.to(device), walked.prms.shape[1:], s)
            choice = dense.choose(walked, dense.scores(walked, s), s)
        labels = walked.peaks[choice.peaks, 0]
        return seconds, list(zip(choice.proposals.tolist(), labels.tolist()))

    return run


def _segment_rows(seconds: dict, passed: bool) -> list[dict]:
    """Proposals at hand: their time is a stage of ours, and not in `all`."""
    without = lambda r: {k: v for k, v in r.items() if k != "proposals"}  # noqa: E731
    bare = {name: [without(r) for r in rounds] for name, rounds in seconds.items()}
    rows = totals(bare, passed)
    if passed:
        rows[0]["seconds"]["proposals"] = summary([r["proposals"] for r in seconds["ours"]])
    return rows
