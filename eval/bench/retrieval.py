"""Retrieval, Eq. 6 and suppression, beside products of dense masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prm.accelerated.retrieval import choose, fit, prepare, score
from prm.settings import SegmentationSettings

from .clock import forget_highest, highest, interleave, mb, timed, totals
from .competitors import DenseRetrieval
from .inputs import make_proposals, random_walk

SCORES = 1e-4  # of Eq. 6, from float32 products of masks


def measure_retrieval(
    proposals: int, peaks: int, size: Sequence[int] = (375, 500), image: str = "", rounds: int = 5, seed: int = 0,
    making: bool = True, device: str = "cpu",
) -> dict:  # fmt: skip
    """Eq. 6 and suppression, all in, from run-length encoded proposals, and by products of dense masks."""
    masks, s = make_proposals(proposals, *size, image).to(device), SegmentationSettings()
    walked = random_walk(peaks, *size, seed, device)
    run = lambda: _retrieve(masks, walked, s, device)  # noqa: E731
    run()  # loads the compiled loops, which are no working memory
    held = forget_highest(device)
    _, scores, choice = run()
    most = highest(device)
    dense = DenseRetrieval(masks, walked.size, s)
    variants = {
        "ours": run,
        "dense": lambda: _retrieve_dense(dense, masks, walked, s, device),
    } | ({"dense + making": lambda: _retrieve_dense(None, masks, walked, s, device)} if making else {})
    _, dense_scores, dense_choice = variants["dense"]()
    difference = float((scores - dense_scores).abs().max())
    chosen = [(c.peaks.tolist(), c.proposals.tolist(), c.suppressed) for c in (choice, dense_choice)]
    if chosen[0] == chosen[1]:  # the choice is by scores of its own
        difference = max(difference, float((choice.scores - dense_choice.scores).abs().max()))
    passed = difference <= SCORES and chosen[0] == chosen[1]
    row = {
        "proposals": proposals, "peaks": peaks, "size": list(size), "device": device, "rounds": rounds,
        "threads": torch.get_num_threads(), "runs_per_mask": round(len(masks.starts) / proposals, 1),
        "working_memory_mb": mb(most - held), "dense_memory_mb": mb(4 * dense.masks.numel() * 2),
        "passed": passed, "difference": difference, "tolerance": SCORES, "kept": len(choice.peaks),
    }  # fmt: skip
    return row | {"variants": totals(interleave({k: lambda f=f: f()[0] for k, f in variants.items()}, rounds), passed)}


def _retrieve(proposals, walked, s, device):
    """Ours: seconds by stage, Eq. 6 of every peak and proposal (P, K), and the choice."""
    seconds: dict[str, float] = {}
    with timed(seconds, "preparation", device):
        ready = prepare(proposals, walked.size, s.contour, s.min_area, s.max_area)
    with timed(seconds, "scores", device):
        fitted = fit(walked, proposals, s, ready)
    with timed(seconds, "choice", device):
        choice = choose(walked, fitted, s)
    return seconds, score(fitted.sums, s.alpha, s.beta_area / (walked.size[0] * walked.size[1])), choice


def _retrieve_dense(dense, proposals, walked, s, device):
    """The competitor: `dense` is a DenseRetrieval, or None to make it, which is a stage then; answers as ours."""
    seconds: dict[str, float] = {}
    with timed(seconds, "preparation", device):
        dense = dense or DenseRetrieval(proposals, walked.size, s)
    with timed(seconds, "scores", device):
        scores = dense.scores(walked, s)
    with timed(seconds, "choice", device):
        choice = dense.choose(walked, scores, s)
    return seconds, scores, choice
