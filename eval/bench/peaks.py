"""Peak stimulation, Eqs. 1-3, beside the usual max pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from prm.accelerated import peak_stimulation

from .clock import interleave, ratios, summary, timed
from .competitors import pooled_peaks

POOLED = 1e-5  # scores and gradients of peak stimulation, share of the largest


def measure_peaks(
    size: Sequence[int], kind: str = "smooth", rounds: int = 5, seed: int = 0, device: str = "cpu"
) -> dict:
    """Peak stimulation, forward alone and with its backward pass, on maps (N, C, H, W) of a kind: smooth or noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(2, side // 8) for side in size[2:]] if kind == "smooth" else list(size[2:])
    drawn = torch.randn(*size[:2], *coarse, generator=generator)
    maps = F.interpolate(drawn, list(size[2:]), mode="bicubic").to(device)
    leaf = maps.clone().requires_grad_()

    def run(find, calls=1):
        seconds: dict[str, float] = {}
        with torch.no_grad(), timed(seconds, "forward", device):
            for _ in range(calls):
                find(maps)
        with timed(seconds, "forward and backward", device):
            for _ in range(calls):
                scores, peaks = find(leaf)
                (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        return {stage: s / calls for stage, s in seconds.items()}, (scores.detach(), peaks, gradient)

    functions = {"ours": peak_stimulation, "max pooling": pooled_peaks}
    answers = [run(find)[1] for find in functions.values()]
    # A call may take less than a millisecond: many in a row are one measurement.
    calls = max(1, min(100, int(0.05 / run(peak_stimulation)[0]["forward"])))
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*([x[0], x[2]] for x in answers)))
    passed = torch.equal(answers[0][1], answers[1][1]) and difference <= POOLED
    seconds = interleave({name: lambda f=f: run(f, calls)[0] for name, f in functions.items()}, rounds)
    rows = [{"name": name} for name in functions]
    for row in rows if passed else []:
        for stage in ("forward", "forward and backward"):
            own, ours = ([r[stage] for r in seconds[name]] for name in (row["name"], "ours"))
            row[stage] = summary(own) | {"ratio": ratios(own, ours)}
    return {
        "size": list(size), "kind": kind, "device": device, "rounds": rounds, "calls": calls,
        "threads": torch.get_num_threads(),
        "found": len(answers[0][1]), "passed": passed, "difference": difference, "tolerance": POOLED, "variants": rows,
    }  # fmt: skip
