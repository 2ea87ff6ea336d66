"""What `prm bench` measures: time and memory of the fast path beside its competitors.

One process measures one case: a network and a size, say. Its answers are compared first, and a path whose answer is
wrong has no speed. Then come the rounds; each runs every variant in turn, so that whatever slows the machine down for a
while slows them all. Medians and spread are over the rounds, and so are ratios: of the two times of one round.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import datetime
from pathlib import Path

from prm import InputError
from prm.files import reason

from .pipeline import trim

# How glibc gives memory back. By default a large block is borrowed from the system, and every new one is cleared page
# by page as it is first touched; "tuned" keeps all blocks in the process, "huge" asks for large pages on top of that.
# (The threshold from which blocks are borrowed cannot be set above 32 MiB: any larger value is passed over in silence.)
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
MALLOC = {"default": "", "tuned": KEEP, "huge": f"{KEEP}:glibc.malloc.hugetlb=1"}

COMPETITORS = ("autograd", "autograd-channels-last", "zennit", "full")
PEAK_SIZES = ("16x20x14x14", "16x20x112x112", "16x80x112x112")

EXACT = 1e-4  # L1 of two PRMs by the same equation: trained networks magnify what float32 rounds
OTHER_Z = 1e-4  # zennit adds 1e-6 to Z
ORACLE = 1e-4  # float32 against float64
POOLED = 1e-5  # scores and gradients of peak stimulation, share of the largest
SCORES = 1e-4  # of Eq. 6, from float32 products of masks
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)  # of a PRM's mass


# ---------------------------------------------------------------------------------------------------- a case at a time


def measure(kind: str, arguments: dict, malloc: str = "default", threads: int | None = None) -> dict:
    """The row of one case, MEASURES[kind](**arguments), measured in a process of its own.

    malloc: a key of MALLOC. Raises InputError with what the process said last where it fails.
    """
    if malloc not in MALLOC:
        raise InputError(f"--malloc {malloc}: known are {', '.join(MALLOC)} and both")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    if MALLOC[malloc]:
        environment["GLIBC_TUNABLES"] = MALLOC[malloc]
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    command = [sys.executable, "-m", "prm.eval.bench", json.dumps([kind, arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"stopped by signal {-done.returncode}: out of memory?"])[-1]
        raise InputError(re.sub(r"^(prm\.InputError|ValueError|RuntimeError): ", "", said))
    return json.loads(done.stdout.splitlines()[-1]) | {"malloc": malloc}


def machine(device: str = "cpu") -> dict:
    """What the figures depend on: machine, versions, date."""
    import numpy as np
    import torch

    cpu = _cpu()
    found = {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__, "numba": _version("numba"), "zennit": _version("zennit"),
        "onednn": torch.backends.mkldnn.is_available(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn_settings": {k: v for k, v in os.environ.items() if k.startswith(("ONEDNN_", "DNNL_"))},
        "malloc": MALLOC, "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    """Name of the processor; cloud machines shorten it, so its family and model tell the generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entry = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    name, family, model = (entry.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------------------ the clock


@contextmanager
def timed(seconds: dict[str, float], stage: str, device: str = "cpu"):
    """Adds the block's time to seconds[stage]."""
    _wait(device)
    started = time.perf_counter()
    yield
    _wait(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def _wait(device: str) -> None:
    """The clock is read when the device has done what it was told to."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def interleave(variants: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Each variant's seconds by stage, a dict a round. Every round runs each variant, beginning with another one."""
    found = {name: [] for name in variants}
    names = list(variants)
    for k in range(rounds):
        first = k % max(1, len(names))
        for name in names[first:] + names[:first]:
            found[name].append(variants[name]())
    return found


def summary(values: Sequence[float]) -> dict:
    """Median and spread of one number a round."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def ratios(others: Sequence[float], ours: Sequence[float]) -> dict:
    """Summary of their time over ours, a round at a time."""
    return summary([other / own for other, own in zip(others, ours)])


# ---------------------------------------------------------------------------------------------------------- the memory


def resident() -> int:
    """Bytes of memory that the process holds now, after what is free has gone back."""
    gc.collect()
    trim()
    return _status("VmRSS")


def highest(device: str = "cpu") -> int:
    """Most bytes held since `forget_highest`: resident memory, or the device's own."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def forget_highest(device: str = "cpu") -> int:
    """Begins a new measurement of `highest`; returns the bytes held now."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    held = resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the highest since the start stands: of use where each measurement needs more than the last
    return held


def _status(name: str) -> int:
    try:
        found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(found[1])
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---------------------------------------------------------------------------------------------------------------- walk


def picture(height: int, width: int, seed: int = 0):
    """A network input (1, 3, height, width) float32 that is smooth with some noise on it; the same for a seed."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return smooth + 0.2 * torch.randn(1, 3, height, width, generator=generator)


def random_peaks(shape: Sequence[int], number: int, where: str = "random", seed: int = 0):
    """Peaks (number, 4) on maps of `shape` (1, C, h, w): of random classes, at random positions, or all at one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    _, C, h, w = shape
    draw = [torch.randint(0, size, (number,), generator=generator) for size in (1, C, h, w)]
    if where != "random":
        row, column = {"corner": (0, 0), "centre": (h // 2, w // 2)}[where]
        draw[2:] = [torch.full((number,), row), torch.full((number,), column)]
    return torch.stack(draw, dim=1)


def _network(name: str, device: str):
    from prm.accelerated.checkpoint import random_checkpoint

    _same_precision()
    return random_checkpoint(name, [f"class {i}" for i in range(20)]).model().eval().to(device)


def _same_precision():
    import torch

    torch.backends.cudnn.allow_tf32 = False  # without TF32 everywhere


def _case(network, size, peaks, where, seed, device, checkpoint, image):
    """What is walked: the model, the factor its maps are enlarged by, its input, and the peaks.

    A network with random weights walks a made-up picture from made-up peaks; a trained one a picture as `prm segment`
    would, from the strongest peaks it finds there.
    """
    import torch

    if not checkpoint:
        model, images = _network(network, device), picture(*size, seed).to(device)
        with torch.no_grad():
            return model, 1, images, random_peaks(model(images).shape, peaks, where, seed)
    from prm.accelerated import Segmenter
    from prm.accelerated.checkpoint import load_checkpoint

    from .pictures.images import read_image

    _same_precision()
    shown = read_image(image)
    segmenter = Segmenter.from_checkpoint(load_checkpoint(checkpoint), device, max_peaks=peaks)
    own = segmenter.find_peaks(segmenter.respond([shown])).peaks.cpu()
    if len(own) == 0:
        raise InputError(f"{image}: the network finds no peak to walk from")
    return _load(checkpoint, device), segmenter.settings.upsample, segmenter.network_input(shown), own


def _load(checkpoint: str, device: str):
    from prm.accelerated.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint).model().eval().to(device)


def _walkers(model, upsample: int, competitors: Sequence[str], epsilons: Sequence[float]) -> dict:
    """name -> (walker, most L1 to ours or None where the equation is another)."""
    import torch

    from prm.accelerated import PeakBackprop

    from . import competitors as others

    found = {}
    for epsilon in epsilons:
        found[f"ours, epsilon {epsilon:g}"] = (PeakBackprop(model, upsample, epsilon=epsilon), EXACT)
    for name in competitors:
        if name == "full":
            found[name] = (PeakBackprop(model, upsample, windows=False), EXACT)
        elif name == "zennit":
            found[name] = (others.zennit_walk(model), None if others.adds(model) else OTHER_Z)
        else:
            layout = torch.channels_last if name.endswith("last") else torch.contiguous_format
            found[name] = (others.autograd_walk(model, upsample, layout), EXACT)
    return found


def _walk(walker, images, peaks, device):
    """Seconds of forward, preparation and walk.

    Ours computes what all peaks share when their windows first need it: a second walk from the same peaks shows what
    the walk alone takes, and the first one's rest is preparation. The others prepare in their forward pass.
    """
    from prm.accelerated import PeakBackprop

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


def measure_walk(
    network: str, size: Sequence[int], peaks: int, competitors: Sequence[str] = (), epsilons: Sequence[float] = (),
    rounds: int = 5, competitor_peaks: int | None = None, where: str = "random", seed: int = 0, device: str = "cpu",
    checkpoint: str = "", image: str = "",
) -> dict:  # fmt: skip
    """Time of a forward pass, of what the walk prepares, and of the walk itself, for one network, size and number of
    peaks. Competitors: autograd, autograd-channels-last, zennit, full; they walk `competitor_peaks` at most.

    checkpoint, image: a trained network and a picture, instead of random weights and a picture of a size.
    """
    import torch

    from prm.accelerated import PeakBackprop

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
        "mass_within": mass_within(exact.prms), "held_mb": _mb(held),
        "highest_mb": _mb(most), "plain_forward": summary(plain),
        "variants": [row | _walk_times(row, seconds, peaks, plain, not errors) for row in rows],
    }  # fmt: skip


def mass_within(prms) -> dict[str, float]:
    """Side in pixels of the square that holds so much of a PRM: centred where its mass is, median of the PRMs.

    prms: (K, H, W), each summing to 1. "all" is the extent of what is not zero.
    """
    import numpy as np

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


def _compared(name, walker, tolerance, exact, images, peaks, model) -> dict:
    """How far a walker's PRMs are from ours, and whether that is near enough."""
    from prm.accelerated import PeakBackprop

    if tolerance is None:
        return {"passed": True, "difference": None, "note": "another equation at additions: not compared"}
    found = walker.prepare(images).prms(peaks)
    if name == "zennit":
        exact = PeakBackprop(model, signed=True).prepare(images).prms(peaks)
    difference = (found.prms - exact.prms[: len(peaks)]).abs().sum(dim=(1, 2)).double()
    passed = bool((difference <= tolerance + found.bound).all())
    note = {"bound": most} if (most := float(found.bound.max())) else {}
    return {"passed": passed, "difference": float(difference.max()), "tolerance": tolerance, **note}


def _plain_forward(model, images, device) -> dict:
    """The same network without anything of ours: batch norm folded, in both memory layouts."""
    import torch

    from .competitors import folded

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


def withheld(row: dict) -> dict:
    """A row of `measure_walk` without any speed of ours, for an answer that is not the oracle's."""
    keep = ("name", "peaks", "difference", "tolerance", "note", "bound")
    bare = [{key: one[key] for key in keep if key in one} for one in row["variants"]]
    return row | {"variants": [one | {"passed": False} for one in bare]}


def measure_walk_memory(
    network: str, size: Sequence[int], peaks: int, where: str = "random", seed: int = 0, device: str = "cpu",
    checkpoint: str = "", image: str = "",
) -> dict:  # fmt: skip
    """Memory of the walk alone, PRMs included: what one peak needs on its way, and what each further peak of a call
    adds, from calls with a third of the peaks and with all."""
    import torch

    from prm.accelerated import PeakBackprop

    model, upsample, images, all_peaks = _case(network, size, peaks, where, seed, device, checkpoint, image)
    run, peaks = PeakBackprop(model, upsample, max_memory=1 << 50).prepare(images), len(all_peaks)
    run.prms(all_peaks)
    some, taken = max(1, peaks // 3), []
    for number in (1, some, peaks):
        held = forget_highest(device)
        run.prms(all_peaks[:number])
        taken.append(highest(device) - held)
    further = _mb((taken[2] - taken[1]) / (peaks - some)) if peaks > some else None
    return {
        "memory_one_peak_mb": _mb(taken[0]), "memory_further_peak_mb": further, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _mb(size: float) -> float:
    return round(size / 1e6, 1)


def oracle_difference(
    network: str, convert: Callable, size: int = 64, peaks: int = 2, device: str = "cpu", checkpoint: str = ""
) -> float:
    """Largest L1 between our PRMs and the oracle's at a small size. `convert`: a module to the oracle's network."""
    import numpy as np

    from prm.accelerated import PeakBackprop
    from prm.reference import network as oracle

    model, images = _load(checkpoint, device) if checkpoint else _network(network, device), picture(size, size)
    run = PeakBackprop(model).prepare(images.to(device))
    where_to = random_peaks(run.maps.shape, peaks)
    found = run.prms(where_to).prms.double().cpu().numpy()
    plain = convert(model.cpu())
    activations = oracle.forward(plain, images[0].double().numpy())
    truth = [oracle.walk(plain, activations, tuple(peak[1:])).prm for peak in where_to.tolist()]
    return float(np.abs(found - np.array(truth)).sum(axis=(1, 2)).max())


# ----------------------------------------------------------------------------------------------------------- retrieval

def make_proposals(number: int, height: int, width: int, image: str = ""):
    """Exactly `number` proposals of height x width pixels, from a picture and as many drawn scenes as it takes."""
    import numpy as np
    from PIL import Image

    from prm.accelerated.retrieval import Proposals

    from .pictures.images import read_image
    from .proposals.grouping import generate

    parts, have, index = [], 0, 0
    while have < number:
        source = read_image(image) if image and index == 0 else _scene(index, max(height, width))
        scaled = np.asarray(Image.fromarray(source[: max(height, width)]).resize((width, height)))
        parts.append(generate(scaled, number - have))
        have, index = have + len(parts[-1]), index + 1
    return Proposals.concatenate(parts)


def _scene(index: int, size: int):
    from .datasets.synthetic import draw_scene

    return draw_scene(0, index, size).image


def random_walk(number: int, height: int, width: int, seed: int = 0, device: str = "cpu"):
    """What a walk from `number` peaks of 20 classes might have found in a picture of height x width: a `Walked`."""
    import numpy as np
    import torch

    from prm.accelerated.stages import Walked

    generator = torch.Generator().manual_seed(seed)
    row, column = (torch.arange(size).float() for size in (height, width))
    centre = torch.rand(2, number, 1, 1, generator=generator) * torch.tensor([height, width])[:, None, None, None]
    spread = 0.03 * width + 0.1 * width * torch.rand(number, 1, 1, generator=generator)
    far = ((row[:, None] - centre[0]) ** 2 + (column - centre[1]) ** 2) / spread**2
    prms = torch.exp(-far / 2) * torch.rand(number, height, width, generator=generator)
    maps = torch.randn(20, 12, 16, generator=generator)
    peaks = torch.cat([torch.randint(0, 20, (number, 1), generator=generator), centre[:, :, 0, 0].T.long()], dim=1)
    one, none = torch.ones(number, device=device), torch.zeros(number, dtype=torch.float64, device=device)
    return Walked(
        (height, width), maps.to(device), torch.zeros(20, device=device), peaks.to(device), one, one,
        np.zeros((number, 2)), (prms / prms.sum(dim=(1, 2), keepdim=True)).to(device), none, none,
    )  # fmt: skip


def _retrieve(proposals, walked, s, device):
    """Ours: seconds by stage, Eq. 6 of every peak and proposal (P, K), and the choice."""
    from prm.accelerated.retrieval import prepare, score
    from prm.accelerated.segmenter import choose, fit

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
    from .competitors import DenseRetrieval

    seconds: dict[str, float] = {}
    with timed(seconds, "preparation", device):
        dense = dense or DenseRetrieval(proposals, walked.size, s)
    with timed(seconds, "scores", device):
        scores = dense.scores(walked, s)
    with timed(seconds, "choice", device):
        choice = dense.choose(walked, scores, s)
    return seconds, scores, choice


def measure_retrieval(
    proposals: int, peaks: int, size: Sequence[int] = (375, 500), image: str = "", rounds: int = 5, seed: int = 0,
    making: bool = True, device: str = "cpu",
) -> dict:  # fmt: skip
    """Eq. 6 and suppression, all in, from run-length encoded proposals, and by products of dense masks."""
    import torch

    from prm.accelerated import SegmentationSettings

    from .competitors import DenseRetrieval

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
        "working_memory_mb": _mb(most - held), "dense_memory_mb": _mb(4 * dense.masks.numel() * 2),
        "passed": passed, "difference": difference, "tolerance": SCORES, "kept": len(choice.peaks),
    }  # fmt: skip
    return row | {"variants": _totals(interleave({k: lambda f=f: f()[0] for k, f in variants.items()}, rounds), passed)}


def _totals(seconds: dict, passed: bool) -> list[dict]:
    """A row a variant: stages, their sum, and its ratio to ours; only names where the answers differ."""
    if not passed:
        return [{"name": name} for name in seconds]
    ours = [sum(r.values()) for r in seconds["ours"]]
    rows = []
    for name, rounds in seconds.items():
        total = [sum(r.values()) for r in rounds]
        stages = {stage: summary([r[stage] for r in rounds]) for stage in rounds[0]}
        rows.append({"name": name, "all": summary(total), "seconds": stages, "ratio": ratios(total, ours)})
    return rows


# --------------------------------------------------------------------------------------------------------------- peaks


def measure_peaks(
    size: Sequence[int], kind: str = "smooth", rounds: int = 5, seed: int = 0, device: str = "cpu"
) -> dict:
    """Peak stimulation, forward alone and with its backward pass, on maps (N, C, H, W) of a kind: smooth or noise."""
    import torch
    from torch.nn import functional as F

    from prm.accelerated import peak_stimulation

    from .competitors import pooled_peaks

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


# ------------------------------------------------------------------------------------------------------------- segment

STAGES = ("forward", "peaks", "walk", "proposals", "retrieval")


def measure_segment(
    network: str, size: int, peaks: int, image: str = "", limit: int = 200, rounds: int = 3, competitor: bool = False,
    device: str = "cpu",
) -> dict:  # fmt: skip
    """Picture to masks, a stage at a time. What the first walk of a picture prepares once is part of `walk`.

    competitor: the same with autograd's walk and dense masks, from the network's input on.
    """
    import numpy as np
    import torch
    from PIL import Image

    from prm.accelerated import Segmenter
    from prm.accelerated.checkpoint import random_checkpoint

    from .pictures.images import read_image
    from .proposals.grouping import generate

    _same_precision()
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
        "rounds": rounds, "threads": torch.get_num_threads(), "peak_memory_mb": _mb(most), "passed": passed,
        "seconds": {stage: s["median"] for stage, s in rows[0].get("seconds", {}).items()}, "variants": rows,
    }  # fmt: skip


def _published(segmenter, model, shown, masks, device):
    """Picture to masks as published implementations go about it: autograd a peak at a time, dense masks."""
    from .competitors import DenseRetrieval, autograd_walk

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
    rows = _totals(bare, passed)
    if passed:
        rows[0]["seconds"]["proposals"] = summary([r["proposals"] for r in seconds["ours"]])
    return rows


MEASURES = {
    "walk": measure_walk, "walk-memory": measure_walk_memory, "retrieval": measure_retrieval, "peaks": measure_peaks,
    "segment": measure_segment,
}  # fmt: skip

if __name__ == "__main__":
    kind, arguments = json.loads(sys.argv[1])
    try:
        print(json.dumps(MEASURES[kind](**arguments)))
    except (InputError, RuntimeError, NotImplementedError) as error:
        sys.exit(reason(error)[:300])
