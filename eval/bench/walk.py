"""The walk from peaks beside its competitors: time a peak, before the walk, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from prm import InputError
from prm.accelerated import PeakBackprop, Segmenter
from prm.accelerated.checkpoint import load_checkpoint
from prm.reference import network as oracle

from ..pictures.images import read_image
from .clock import forget_highest, highest, interleave, mb, ratios, summary, timed
from .competitors import adds, autograd_walk, folded, zennit_walk
from .inputs import full_precision, picture, random_network, random_peaks

EXACT = 1e-4  # L1 of two PRMs by the same equation: trained networks magnify what float32 rounds
OTHER_Z = 1e-4  # zennit adds 1e-6 to Z
ORACLE = 1e-4  # float32 against float64
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)  # of a PRM's mass


def measure_walk(
    network: str, size: Sequence[int], peaks: int, competitors: Sequence[str] = (), epsilons: Sequence[float] = (),
    rounds: int = 5, competitor_peaks: int | None = None, where: str = "random", seed: int = 0, device: str = "cpu",
    checkpoint: str = "", image: str = "",
) -> dict:  # fmt: skip
    """Time of a forward pass, of what the walk prepares, and of the walk itself, for one network, size and number of
    peaks. Competitors: autograd, autograd-channels-last, zennit, full; they walk `competitor_peaks` at most.

    checkpoint, image: a trained network and a picture, instead of random weights and a picture of a size.
    """
    model, upsample, images, where_to = _case(network, size, peaks, where, seed, device, checkpoint, image)
    peaks = len(where_to)
    ours = PeakBackprop(model, upsample)
    held = forget_highest(device)
    exact = ours.prepare(images).prms(where_to)
    most = highest(device)
    # Only now, so that the memory above is ours alone.
    walkers = {"ours": (ours, 0.0)} | _walkers(model, upsample, competitors, epsilons)
    few = where_to[: competitor_peaks or peaks]
    variants, rows, errors = _plain_forward(model, images, device), [], []
    for name, (walker, tolerance) in walkers.items():
        own = where_to if name.startswith("ours") else few
        row = {"name": name, "peaks": len(own)}
        row |= _compared(name, walker, tolerance, exact, images, own, model)
        variants[name] = lambda walker=walker, own=own: _walk(walker, images, own, device)
        rows.append(row)
        errors += [name] if not row["passed"] and not name.startswith("ours,") else []
    rows[0]["passed"] = not errors
    seconds = interleave(variants, rounds)
    plain = [min(a["forward"], b["forward"]) for a, b in zip(seconds.pop("nchw"), seconds.pop("channels_last"))]
    return {
        "network": checkpoint or network, "image": image, "size": list(images.shape[2:]), "peaks": peaks,
        "where": where, "seed": seed, "device": device, "threads": torch.get_num_threads(), "rounds": rounds,
        "mass_within": mass_within(exact.prms), "held_mb": mb(held),
        "highest_mb": mb(most), "plain_forward": summary(plain),
        "variants": [row | _walk_times(row, seconds, peaks, plain, not errors) for row in rows],
    }  # fmt: skip


def measure_walk_memory(
    network: str, size: Sequence[int], peaks: int, where: str = "random", seed: int = 0, device: str = "cpu",
    checkpoint: str = "", image: str = "",
) -> dict:  # fmt: skip
    """Memory of the walk alone, PRMs included: what one peak needs on its way, and what each further peak of a call
    adds, from calls with a third of the peaks and with all."""
    model, upsample, images, all_peaks = _case(network, size, peaks, where, seed, device, checkpoint, image)
    run, peaks = PeakBackprop(model, upsample, max_memory=1 << 50).prepare(images), len(all_peaks)
    run.prms(all_peaks)
    some, taken = max(1, peaks // 3), []
    for number in (1, some, peaks):
        held = forget_highest(device)
        run.prms(all_peaks[:number])
        taken.append(highest(device) - held)
    further = mb((taken[2] - taken[1]) / (peaks - some)) if peaks > some else None
    return {
        "memory_one_peak_mb": mb(taken[0]), "memory_further_peak_mb": further, "threads": torch.get_num_threads(),
    }  # fmt: skip


def oracle_difference(
    network: str, convert: Callable, size: int = 64, peaks: int = 2, device: str = "cpu", checkpoint: str = ""
) -> float:
    """Largest L1 between our PRMs and the oracle's at a small size. `convert`: a module to the oracle's network."""
    model, images = _load(checkpoint, device) if checkpoint else random_network(network, device), picture(size, size)
    run = PeakBackprop(model).prepare(images.to(device))
    where_to = random_peaks(run.maps.shape, peaks)
    found = run.prms(where_to).prms.double().cpu().numpy()
    plain = convert(model.cpu())
    activations = oracle.forward(plain, images[0].double().numpy())
    truth = [oracle.walk(plain, activations, tuple(peak[1:])).prm for peak in where_to.tolist()]
    return float(np.abs(found - np.array(truth)).sum(axis=(1, 2)).max())


def withheld(row: dict) -> dict:
    """A row of `measure_walk` without any speed of ours, for an answer that is not the oracle's."""
    keep = ("name", "peaks", "difference", "tolerance", "note", "bound")
    bare = [{key: one[key] for key in keep if key in one} for one in row["variants"]]
    return row | {"variants": [one | {"passed": False} for one in bare]}


def _case(network, size, peaks, where, seed, device, checkpoint, image):
    """What is walked: the model, the factor its maps are enlarged by, its input, and the peaks.

    A network with random weights walks a made-up picture from made-up peaks; a trained one a picture as `prm segment`
    would, from the strongest peaks it finds there.
    """
    if not checkpoint:
        model, images = random_network(network, device), picture(*size, seed).to(device)
        with torch.no_grad():
            return model, 1, images, random_peaks(model(images).shape, peaks, where, seed)
    full_precision()
    shown = read_image(image)
    segmenter = Segmenter.from_checkpoint(load_checkpoint(checkpoint), device, max_peaks=peaks)
    own = segmenter.find_peaks(segmenter.respond([shown])).peaks.cpu()
    if len(own) == 0:
        raise InputError(f"{image}: the network finds no peak to walk from")
    return _load(checkpoint, device), segmenter.settings.upsample, segmenter.network_input(shown), own


def _load(checkpoint: str, device: str):
    return load_checkpoint(checkpoint).model().eval().to(device)


def _walkers(model, upsample: int, competitors: Sequence[str], epsilons: Sequence[float]) -> dict:
    """name -> (walker, most L1 to ours or None where the equation is another)."""
    found = {}
    for epsilon in epsilons:
        found[f"ours, epsilon {epsilon:g}"] = (PeakBackprop(model, upsample, epsilon=epsilon), EXACT)
    for name in competitors:
        if name == "full":
            found[name] = (PeakBackprop(model, upsample, windows=False), EXACT)
        elif name == "zennit":
            found[name] = (zennit_walk(model), None if adds(model) else OTHER_Z)
        else:
            layout = torch.channels_last if name.endswith("last") else torch.contiguous_format
            found[name] = (autograd_walk(model, upsample, layout), EXACT)
    return found


def _walk(walker, images, peaks, device):
    """Seconds of forward, preparation and walk.

    Ours computes what all peaks share when their windows first need it: a second walk from the same peaks shows what
    the walk alone takes, and the first one's rest is preparation. The others prepare in their forward pass.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "forward", device):
        run = walker.prepare(images)
    with timed(seconds, "walk", device):
        run.prms(peaks)
    seconds["preparation"], first = 0.0, seconds["walk"]
    if isinstance(walker, PeakBackprop):
        del seconds["walk"]
        with timed(seconds, "walk", device):
            run.prms(peaks)
        seconds["preparation"] = max(0.0, first - seconds["walk"])
    return seconds


def _plain_forward(model, images, device) -> dict:
    """The same network without anything of ours: batch norm folded, in both memory layouts."""

    def one(layout):
        network, own = folded(model).to(memory_format=layout), images.contiguous(memory_format=layout)

        @torch.no_grad()
        def run():
            seconds: dict[str, float] = {}
            with timed(seconds, "forward", device):
                network(own)
            return seconds

        run()
        return run

    return {"nchw": one(torch.contiguous_format), "channels_last": one(torch.channels_last)}


def _compared(name, walker, tolerance, exact, images, peaks, model) -> dict:
    """How far a walker's PRMs are from ours, and whether that is near enough."""
    if tolerance is None:
        return {"passed": True, "difference": None, "note": "another equation at additions: not compared"}
    found = walker.prepare(images).prms(peaks)
    if name == "zennit":
        exact = PeakBackprop(model, signed=True).prepare(images).prms(peaks)
    difference = (found.prms - exact.prms[: len(peaks)]).abs().sum(dim=(1, 2)).double()
    passed = bool((difference <= tolerance + found.bound).all())
    note = {"bound": most} if (most := float(found.bound.max())) else {}
    return {"passed": passed, "difference": float(difference.max()), "tolerance": tolerance, **note}


def _walk_times(row: dict, seconds: dict, peaks: int, plain: Sequence[float], right: bool) -> dict:
    """What is reported of a variant's rounds: nothing where its answer was wrong, no ratio where ours was."""
    if not row["passed"]:
        return {}
    rounds, ours, n = seconds[row["name"]], seconds["ours"], row["peaks"]
    stages = {stage: summary([r[stage] for r in rounds]) for stage in rounds[0]}
    each = [r["walk"] / n for r in rounds]
    ready = [r["forward"] + r["preparation"] for r in rounds]
    total = [a + peaks * b for a, b in zip(ready, each)]
    our_each = [r["walk"] / peaks for r in ours]
    our_prepared = [(r["preparation"] + r["walk"]) / peaks for r in ours]
    found = {
        "seconds": stages, "per_peak": summary(each), "all": summary(total),
        "per_peak_prepared": summary([(r["preparation"] + r["walk"]) / n for r in rounds]),
        "ready_over_plain": ratios(ready, plain),
    }  # fmt: skip
    if row["name"] != "ours" and right:
        found |= {
            "ratio": ratios(each, our_each), "ratio_prepared": ratios(each, our_prepared),
            "ratio_all": ratios(total, [sum(r.values()) for r in ours]),
        }  # fmt: skip
    return found


def mass_within(prms) -> dict[str, float]:
    """Side in pixels of the square that holds so much of a PRM: centred where its mass is, median of the PRMs.

    prms: (K, H, W), each summing to 1. "all" is the extent of what is not zero.
    """
    sides = []
    for prm in prms.double().cpu().numpy():
        rows, columns = np.arange(len(prm)), np.arange(prm.shape[1])
        centre = [(prm.sum(axis=1) * rows).sum(), (prm.sum(axis=0) * columns).sum()]
        far = np.maximum(np.abs(rows - centre[0])[:, None], np.abs(columns - centre[1])).ravel()
        order = far.argsort()
        held = prm.ravel()[order].cumsum()
        at = [min(int(np.searchsorted(held, share * held[-1])), held.size - 1) for share in SHARES]
        sides.append([*(1 + 2 * far[order[i]] for i in at), max(np.ptp(places) + 1 for places in prm.nonzero())])
    return dict(zip([*map(str, SHARES), "all"], np.median(sides, axis=0).round(1).tolist()))
