"""Retrieval (Eq. 6) on GPUs: sums of maps over the runs of masks, and the best proposal of each Peak Response Map.

Masks are runs, as in `Proposals`. Maps may have any strides. Numbers are cast to float64 as soon as they are
loaded: all sums are in float64, and which proposal wins does not hang on the dtype of the maps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import retrieval
from .launching import CONFIGURATIONS, TORCH, chosen, expect, launch, register, short

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Programs of `run_sums`, each with memory of its own that is to stay in the caches.
_PER_MULTIPROCESSOR = 4
_WARP = 64  # threads of the widest; where a warp has 32, each of its threads counts twice
_INTERPRETED = 3  # so few that each has several units of work


@triton.jit
def _double(values):
    """values in float64; by way of float32, since the interpreter casts bfloat16 to nothing else."""
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return values.to(tl.float64)


# ------------------------------------------------------------------------------------------------- sums over runs


@triton.jit
def _meet(flags, THREADS: tl.constexpr):
    """All threads of the program wait here, and then see what the others wrote to global memory before.

    A barrier alone orders that on NVIDIA's GPUs. On AMD's a thread's release of a flag makes it wait for its own stores
    where the memory model asks for that: on gfx11; a work-group of gfx9 has one cache and keeps their order.
    """
    tl.atomic_add(flags + tl.arange(0, THREADS), 0, sem="acq_rel", scope="cta")
    tl.debug_barrier()


@triton.jit
def _cumulate(values, totals, length, stride, BLOCK: tl.constexpr):
    """totals[i] = values[0] + .. + values[i], i < length; answers the last."""
    lane = tl.arange(0, BLOCK)
    whole = tl.full((), 0.0, tl.float64)
    for first in range(0, length, BLOCK):
        i = first + lane
        block = _double(tl.load(values + i.to(tl.int64) * stride, mask=i < length, other=0.0))
        block = whole + tl.cumsum(block, 0)
        tl.store(totals + i, block, mask=i < length)
        # Not the sum of the block, which may be rounded otherwise: pixels of zero between two blocks are to add zero.
        # Within a block a card's scan adds in an order of its own: there they add zero to rounding.
        whole = tl.sum(tl.where(lane == BLOCK - 1, block, 0.0), 0)
    return whole


@triton.jit
def _first_run(ends, first, last, place):
    """Each mask's first run of first .. last - 1 that ends after `place`; `last` where there is none."""
    longest = tl.max(last - first, 0)
    while longest > 0:  # halved with each mask's part: then all of them are down to nothing
        middle = (first + last) // 2
        ends_after = tl.load(ends + middle, mask=first < last, other=0) > place
        first, last = (
            tl.where((first < last) & (ends_after == 0), middle + 1, first),
            tl.where((first < last) & ends_after, middle, last),
        )
        longest = longest // 2
    return first


@triton.jit
def _add_runs(totals, starts, ends, run, last, begin, end, BLOCK_RUNS: tl.constexpr):
    """Sums over the part in the band begin .. end of each mask's runs `run` .. last - 1, which go on beyond `begin`.

    A mask's runs are added in an order that depends on nothing but the mask.
    """
    column = tl.arange(0, BLOCK_RUNS)[None, :]
    added = tl.zeros((run.shape[0], BLOCK_RUNS), tl.float64)
    more = 1
    while more > 0:
        r = run[:, None] + column
        start = tl.load(starts + r, mask=r < last[:, None], other=end)
        stop = tl.load(ends + r, mask=r < last[:, None], other=end)
        # Also what no map has, runs outside of it, is cut off here: nothing else is ever read than the band's totals.
        here = tl.minimum(tl.maximum(start, begin), end) - begin
        there = tl.minimum(tl.maximum(stop, begin), end) - begin
        meets = here < there
        upper = tl.load(totals + there - 1, mask=meets, other=0.0)
        added += upper - tl.load(totals + here - 1, mask=meets & (here > 0), other=0.0)
        # As runs are in order, a mask has more in this band only if the last one seen begins before its end.
        more = tl.max(((column == BLOCK_RUNS - 1) & (start < end)).to(tl.int32))
        run += BLOCK_RUNS
    return tl.sum(added, 1)


@triton.jit
def _add_bands(partial, sums, p, P, K, bands, BLOCK: tl.constexpr):
    """sums[p] = partial[0, p] + .. + partial[bands - 1, p], in this order."""
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float64)
        for band in range(0, bands):
            # Other programs wrote these, before the counter that was acquired; there is no use in keeping them close.
            at = partial + (tl.cast(band, tl.int64) * P + p) * K + k
            total += tl.load(at, mask=k < K, other=0.0, cache_modifier=".cg")
        tl.store(sums + p * K + k, total, mask=k < K)


@triton.jit(do_not_specialize=["P", "K", "L", "bands"])
def run_sums(
    maps,  # (P, L), any strides
    starts,  # (R,) int64: first pixel of each run
    ends,  # (R,) int64: one past its last
    offsets,  # (K + 1,) int64: mask k has the runs offsets[k] .. offsets[k + 1] - 1
    totals,  # (programs, BAND) float64: each program's own, cumulative sums of the band that it is at
    flags,  # (programs, THREADS) int32, of any value: each thread's own
    partial,  # (bands, P, K) float64: sums over the parts of the masks that lie in a band
    counters,  # (P,) int32, zeros: how many bands of the map are done, times THREADS
    sums,  # (P, K) float64
    P, K, L, bands, map_stride, value_stride,
    THREADS: tl.constexpr, BAND: tl.constexpr, BLOCK: tl.constexpr, BLOCK_MASKS: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
):  # fmt: skip
    """Sums of the P maps over the K masks: for each map p, band by band of BAND pixels, and at last over the bands.

    Unit p * bands + b of the work is band b of map p, pixels b * BAND .. (b + 1) * BAND - 1; a program takes every
    (number of programs)th unit. Of the band it keeps the cumulative sums, and a run adds their difference at its two
    ends. Whichever program ends a map's last band adds up the bands, in order: which one it is changes nothing.

    A value that is not finite makes all sums of its map NaN, as it does in a sum over all pixels times the mask.

    Of memory it reads the maps once and, for each map, the masks' runs (16 bytes each) and the offsets once a band;
    both are shared by all maps and should be in the cache. It writes and reads 8 bytes for each map, band and mask. The
    totals, written and read for each band, are so few that they stay in the caches.
    """
    own = totals + tl.program_id(0).to(tl.int64) * BAND
    for unit in range(tl.program_id(0), P * bands, tl.num_programs(0)):
        p, band = tl.cast(unit // bands, tl.int64), tl.cast(unit % bands, tl.int64)
        begin = band * BAND
        end = tl.minimum(begin + BAND, L)
        values = maps + p * map_stride + begin * value_stride
        whole = _cumulate(values, own, (end - begin).to(tl.int32), value_stride, BLOCK)
        _meet(flags + tl.program_id(0) * THREADS, THREADS)  # the totals are there for all threads
        for first in range(0, K, BLOCK_MASKS):
            k = first + tl.arange(0, BLOCK_MASKS)
            run = tl.load(offsets + k, mask=k < K, other=0)
            last = tl.load(offsets + k + 1, mask=k < K, other=0)
            run = _first_run(ends, run, last, begin)
            added = _add_runs(own, starts, ends, run, last, begin, end, BLOCK_RUNS)
            tl.store(partial + (band * P + p) * K + k, added + (whole - whole), mask=k < K)
        tl.debug_barrier()  # nobody needs the totals any more
        # Each thread tells of its own partial sums: on AMD's GPUs none can vouch for what another warp wrote.
        done = tl.atomic_add(counters + p + tl.zeros((THREADS,), tl.int32), 1, sem="acq_rel")
        if tl.max(done, 0) == bands * THREADS - 1:
            _add_bands(partial, sums, p, P, K, bands, BLOCK)


def _programs(units: int, device: torch.device) -> int:
    """How many programs share the units of work."""
    if device.type != "cuda":
        return min(units, _INTERPRETED)
    return min(units, _PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count)


def _case(rows: int, columns: int, tensor: Tensor, of: str = "") -> str:
    """The name of a case in the record of measured choices."""
    return f"{rows}x{columns}{of} {short(tensor.dtype)}"


def launch_run_sums(maps: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    """`prm::run_sums`: maps (P, L) float, masks as in `Proposals` -> (P, K) float64, in one launch.

    Runs must lie inside the map. That is not checked, since the host would wait for the device: what lies outside
    counts nothing.
    """
    device, integers = maps.device, (torch.int64,)
    expect(
        "run_sums", device, maps=(maps, FLOATS, (None, None)), starts=(starts, integers, (None,)),
        ends=(ends, integers, tuple(starts.shape)), offsets=(offsets, integers, (None,)),
    )  # fmt: skip
    if len(offsets) == 0:
        raise ValueError("run_sums: offsets must have at least one entry")
    (P, L), K = maps.shape, len(offsets) - 1
    choice = chosen("run_sums", _case(P, K, maps, f" of {L}"), device)
    if choice == TORCH:
        return retrieval.sums_over_runs(maps, starts, ends, offsets)
    sums = maps.new_empty(P, K, dtype=torch.float64)
    if sums.numel() == 0:
        return sums
    configuration = CONFIGURATIONS["run_sums"][choice]
    bands = max(1, triton.cdiv(L, configuration["BAND"]))  # a map of no pixels has a band, too: it has sums
    programs = _programs(P * bands, device)
    totals = sums.new_empty(programs, configuration["BAND"])
    partial = sums.new_empty(bands, P, K)
    threads = _WARP * configuration["num_warps"]
    flags = torch.empty(programs, threads, dtype=torch.int32, device=device)
    counters = torch.zeros(P, dtype=torch.int32, device=device)
    masks = starts.contiguous(), ends.contiguous(), offsets.contiguous()
    launch(
        run_sums, (programs,), maps, *masks, totals, flags, partial, counters, sums, P, K, L, bands, *maps.stride(),
        THREADS=threads, **configuration,
    )  # fmt: skip
    return sums


# --------------------------------------------------------------------------------------------------- best proposal


@triton.jit(do_not_specialize=["K"])
def best_proposal(
    scores,  # (P, K), any strides
    allowed,  # (K,) bool
    best,  # (P,) int64
    K, score_p, score_k,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first maximum among the allowed of row p, program p: -1 for none, and NaN above all, as in torch.argmax.

    Each lane keeps the first of the greatest that it has seen, of k = lane, lane + BLOCK, ..; at last the lanes are
    compared. Reads the scores once and the K truth values, which all programs share, once each; writes 8 bytes.
    """
    p = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    greatest = tl.full((BLOCK,), float("-inf"), tl.float64)
    place, any_allowed = lane, tl.zeros((BLOCK,), tl.int32)
    for first in range(0, K, BLOCK):
        k = first + lane
        usable = tl.load(allowed + k, mask=k < K, other=0) != 0
        at = scores + p * score_p + k.to(tl.int64) * score_k
        score = tl.where(usable, _double(tl.load(at, mask=k < K, other=0.0)), float("-inf"))
        better = (score > greatest) | ((score != score) & (greatest == greatest))
        greatest, place = tl.where(better, score, greatest), tl.where(better, k, place)
        any_allowed |= usable.to(tl.int32)
    unordered = greatest != greatest
    top = tl.max(tl.where(unordered, float("-inf"), greatest), 0)
    winner = tl.where(tl.max(unordered.to(tl.int32), 0) > 0, unordered, greatest == top)
    chosen_place = tl.min(tl.where(winner, place, 2147483647), 0)
    tl.store(best + p, tl.where(tl.max(any_allowed, 0) > 0, chosen_place, -1).to(tl.int64))


def launch_best_proposal(scores: Tensor, allowed: Tensor) -> Tensor:
    """`prm::best_proposal`: scores (P, K) float, allowed (K,) bool -> (P,) int64."""
    expect("best_proposal", scores.device, scores=(scores, FLOATS, (None, None)))
    P, K = scores.shape
    expect("best_proposal", scores.device, allowed=(allowed, (torch.bool,), (K,)))
    choice = chosen("best_proposal", _case(P, K, scores), scores.device)
    if choice == TORCH:
        return retrieval.first_maximum(scores, allowed)
    best = scores.new_empty(P, dtype=torch.int64)
    configuration = CONFIGURATIONS["best_proposal"][choice]
    launch(best_proposal, (P,), scores, allowed.contiguous(), best, K, *scores.stride(), **configuration)
    return best


register(retrieval.run_sums, launch_run_sums)
register(retrieval.best_proposal, launch_best_proposal)
