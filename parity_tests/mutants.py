"""Proof that the tests would notice: realistic mistakes, put one at a time into a copy of the project, must be caught.

A mutant of the fast path must be killed by parity, one of a kernel by parity in Triton's interpreter. One of the
oracle must be killed by parity and by hand-worked numbers; one of both sides, to which parity is blind, by hand-worked
numbers alone; one of eval/ by the tests of its room. Run by `make mutants`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prm.parity_tests.mutants_of_eval import MUTANTS_OF_EVAL
from prm.parity_tests.mutation import Edit, Mutant, green_before, try_mutant

# ---- the mutants

POOL, RANK = "accelerated/peak_stimulation.py", "accelerated/retrieval/scores.py"
BACK = "accelerated/peak_backprop"
OPS, WINDOWS, VISITS = f"{BACK}/operators.py", f"{BACK}/windows.py", f"{BACK}/visits.py"
SHARED, PREPARED = f"{BACK}/shared.py", f"{BACK}/prepared.py"
PLAN, WALK, BUILDER = f"{BACK}/plan.py", f"{BACK}/walk.py", f"{BACK}/tracing/builder.py"
LAYERS, ARITHMETIC = f"{BACK}/tracing/layers.py", f"{BACK}/tracing/arithmetic.py"
CONVOLUTION, LINEAR = f"{BACK}/rules/convolution.py", f"{BACK}/rules/linear.py"
MAX_POOL, JOINING, MOVING = (f"{BACK}/rules/{name}.py" for name in ("pooling", "joining", "moving"))
KERNELS_POOL, KERNELS_WALK = "accelerated/kernels/peak_stimulation.py", "accelerated/kernels/peak_backprop.py"
KERNELS_RANK = "accelerated/kernels/retrieval.py"
FIT, REF_FIT = "accelerated/retrieval/log_linear.py", "reference/retrieval/log_linear.py"
SUPPRESS = "accelerated/retrieval/suppress.py"
WISE, REF_WISE = "accelerated/pseudo_labels.py", "reference/pseudo_labels.py"
RUNS, LOOPS = "accelerated/retrieval/runs.py", "accelerated/retrieval/loops.py"
REF_POOL, REF_WALK = "reference/peak_stimulation.py", "reference/peak_backprop/layers.py"
REF_UNDER = "reference/peak_backprop/arithmetic.py"
REF_NET = "reference/network"
REF_RANK, REF_ALGORITHM = "reference/retrieval/scores.py", "reference/retrieval/algorithm.py"


FIRST = {
    "network": ("bias kept in Z", "batch norm not folded", "eps of the folded norm forgotten", "gamma's sign forgotten",
                "PRM not divided", "largest channel", "start's bilinear", "several consumers"),
    "max_pool2d": ("last maximum", "shared argmax"),
    "add": ("both summands", "summands' values", "no summand is positive"),
    "concatenate": ("concatenation's",),
    "multiply": ("P to the gate",),
    "summation": ("a sum over axes",),
    "pad": ("zeros around a map",),
    "avg_pool2d": ("fixed weights", "average's bound", "adaptive bins"),
    "linear": ("linear layers",),
}  # fmt: skip


def _mutant(name, stem, *edits):
    first = next((function for function, names in FIRST.items() if any(part in name for part in names)), "")
    return Mutant(name, stem, tuple(Edit(*edit) for edit in edits), first)


# Mistakes that are put into one side, and into both together.
SCORE = (POOL, " / number[..., None]).sum(dim=2)", ").sum(dim=2)")
REF_SCORE = (REF_POOL, "s[n, c] = (M[n, c] * G[n, c]).sum() / G[n, c].sum()", "s[n, c] = (M[n, c] * G[n, c]).sum()")
GRADIENT = (POOL, "share = (grad_scores / number)[n, c]", "share = grad_scores[n, c]")
REF_GRADIENT = (
    REF_POOL, "grad_scores[n, c] * result.G[n, c] / result.G[n, c].sum()", "grad_scores[n, c] * result.G[n, c]",
)
SHIFT = (PREPARED, "values - least[some]", "values")
REF_SHIFT = (REF_WALK, "return U - min(0.0, U.min())", "return U")
TO_BOTH = (
    (JOINING, "shares = [to_a, visits.values - to_a]", "shares = [visits.values, visits.values]"),
    (JOINING, "return [visits.with_(visits.values, (quotient, x)) for x in plus], None",
     "return [visits.with_(visits.values, factors) for x in plus], None"),
)
REF_TO_BOTH = (REF_WALK, "shares[i] = sum_to(P * share, summands[i].shape)", "shares[i] = sum_to(P, summands[i].shape)")
LAST_MAXIMUM = (
    MAX_POOL, "out, indices = self.pool(U)",
    "out, indices = self.pool(U.flip(2, 3)); out = out.flip(2, 3); n = U.shape[2] * U.shape[3]; "
    "indices = (n - 1 - indices).flip(2, 3)",
)
REF_LAST_MAXIMUM = (REF_WALK, "U[c, i, j] > U[c, best_i, best_j]", "U[c, i, j] >= U[c, best_i, best_j]")
BETA = (RANK, "+ terms[..., 1] - beta * terms[..., 2]", "+ terms[..., 1] + beta * terms[..., 2]")
REF_BETA = (REF_RANK, "boundary - beta * class_aware", "boundary + beta * class_aware")
REF_BETA_RANKED = (REF_RANK, "three[1] - beta * three[2]", "three[1] + beta * three[2]")
NO_LEAK = (REF_UNDER, "0.0), float(P[~flows].sum())", "0.0), 0.0")

MUTANTS = (
    # ---- Eq. 1-3, fast path
    _mutant("1/N of Eq. 2 dropped", "peak_stimulation", SCORE),
    _mutant("1/N of Eq. 3 dropped", "peak_stimulation", GRADIENT),
    _mutant(
        "the last of a tie a peak", "peak_stimulation",
        (POOL, "valid = (argmax == position)",
         "last = F.max_pool2d(maps.flip(2, 3), window, stride=1, padding=window // 2, return_indices=True)[1]\n"
         "    valid = (H * W - 1 - last.flip(2, 3) == position)"),
    ),
    _mutant(
        "window off by one", "peak_stimulation",
        (POOL, "F.max_pool2d(maps, window, stride=1, padding=window // 2,",
         "F.max_pool2d(maps, window + 2, stride=1, padding=window // 2 + 1,"),
    ),
    _mutant("> for >= at the threshold", "peak_stimulation",
            (POOL, "(maps >= _thresholds(", "(maps > _thresholds(")),
    _mutant(
        "upper median", "peak_stimulation",
        (POOL, "flat.median(dim=2).values", "flat.sort(dim=2).values[..., flat.shape[2] // 2]"),
    ),
    _mutant(
        "threshold not rounded to the maps' dtype", "peak_stimulation",
        (POOL, 'float("-inf"), dtype=dtype,', 'float("-inf"), dtype=torch.float64,'),
    ),
    _mutant(
        "no fallback where no peak is valid", "peak_stimulation",
        (POOL, "torch.where(valid.flatten(2).any(dim=2)[..., None, None], valid, first)", "valid"),
    ),
    _mutant("corners not aligned", "peak_stimulation",
            (POOL, "below = i * (size - 1) // last", "below = i * size // (last + 1)")),
    _mutant(
        "bilinear weights of the gradient swapped", "peak_stimulation",
        (POOL, "((rows[0], 1 - rows[2]), (rows[1], rows[2]))", "((rows[0], rows[2]), (rows[1], 1 - rows[2]))"),
    ),
    # ---- Eq. 4-5, fast path
    _mutant("W for W+", "peak_backprop",
            (CONVOLUTION, "Weights.of(weight.clamp(min=0), groups), minus", "Weights.of(weight, groups), minus")),
    _mutant("|W| for W+ in linear layers", "peak_backprop",
            (LINEAR, "self.positive = weight.clamp(min=0)\n", "self.positive = weight.abs()\n")),
    _mutant("missing shift", "peak_backprop", SHIFT),
    _mutant("shift by the batch's minimum", "peak_backprop",
            (PREPARED, "U.amin(dim=tuple(range(1, U.dim()))).clamp(max=0)", "U.amin().expand(len(U)).clamp(max=0)")),
    _mutant("always min U subtracted", "peak_backprop",
            (PREPARED, "(range(1, U.dim()))).clamp(max=0))", "(range(1, U.dim()))))")),
    _mutant(
        "bias kept in Z", "peak_backprop",
        (CONVOLUTION, "return torch.ops.prm.walk_ratio(values, W.plain, floor, above, *geometry, out), above",
         "leaks = torch.ops.prm.walk_ratio(values, W.plain, floor, None, *geometry, out)\n"
         "        bias = getattr(self, 'bias', None)\n"
         "        Z = 1 / out + (0 if bias is None else bias.clamp(min=0)[:, None, None])\n"
         "        out.copy_((1 if above is None else above) / Z)\n"
         "        return leaks, above"),
    ),
    _mutant("no leak, a tiny Z instead", "peak_backprop",
            (OPS, "    leaks = torch.le(Z, floor[:, :, None, None], out=torch.empty_like(out, dtype=torch.bool))\n",
             "    Z = Z.clamp(min=1e-30)\n    leaks = torch.zeros_like(out, dtype=torch.bool)\n")),
    _mutant("leak only where Z is 0", "peak_backprop",
            (OPS, "torch.le(Z, floor[:, :, None, None],", "torch.le(Z, 0 * floor[:, :, None, None],")),
    _mutant("bound of the leak absolute", "peak_backprop",
            (CONVOLUTION, "floor = TINY * prepared.most(U)", "floor = TINY + 0 * prepared.most(U)")),
    _mutant(
        "minimum of U_hat sees the padding", "peak_backprop",
        (CONVOLUTION, "values, padding = self._below(prepared.hat(U), some, span)\n",
         "values, padding = self._below(prepared.plain(U), some, span)\n"
         "        values = F.pad(values, 2 * [padding[1]] + 2 * [padding[0]]) - prepared.least(U)[some.start]\n"
         "        padding = [0, 0]\n"),
    ),
    _mutant("divisor forgotten in an average's bound", "peak_backprop",
            (LAYERS, "weights if apart or divisor is not None else None)", "weights if apart else None)")),
    _mutant("leak not counted", "peak_backprop",
            (CONVOLUTION, "            out.masked_fill_(leaks, 0)\n",
             "            out.masked_fill_(leaks, 0)\n            return\n")),
    _mutant("leak counted without what P comes with", "peak_backprop",
            (CONVOLUTION, "leaks if above is None else above * leaks", "leaks")),
    _mutant(
        "stride and padding swapped", "peak_backprop",
        (OPS, "(where[2] * np.array(stride) - np.array(padding))",
         "(where[2] * np.array(padding) - np.array(stride))"),
    ),
    _mutant("kernel not turned round", "peak_backprop", (OPS, "weight.flip(2, 3).unflatten", "weight.unflatten")),
    _mutant("phases of a stride in reverse", "peak_backprop", (OPS, "kernel.flip(3, 5).permute", "kernel.permute")),
    _mutant("a stride's rows one too early", "peak_backprop",
            (OPS, "begin = [f * s - o for", "begin = [max(f * s - o - 1, 0) for")),
    _mutant("P not divided by Z", "peak_backprop",
            (OPS, "torch.reciprocal(Z, out=out)", "out.fill_(1)"),
            (OPS, "torch.div(above, Z, out=out)", "out.copy_(above)")),
    _mutant("not multiplied by U_hat", "peak_backprop",
            (CONVOLUTION, "Visits(P_over_U_hat, first, last, to, visits.image, (U_hat,), fresh=True)",
             "Visits(P_over_U_hat, first, last, to, visits.image, (), fresh=True)")),
    _mutant(
        "windows one too short", "peak_backprop",
        (WINDOWS, "np.array(dilation) * (np.array(kernel) - 1) + 1\n",
         "np.array(dilation) * (np.array(kernel) - 1)\n"),
    ),
    _mutant("every peak in the first one's place", "peak_backprop",
            (WINDOWS, "for o, (_, cut) in zip(origin[k].tolist(), cuts))",
             "for o, (_, cut) in zip(origin[0].tolist(), cuts))")),
    _mutant("every peak in the first image", "peak_backprop",
            (SHARED, "view = self.tensor[(some,", "view = self.tensor[(slice(0, 1),")),
    _mutant("a map taken for computed where it is not", "peak_backprop",
            (SHARED, "            self._done[(some, *tiles)] = True\n", "            self._done[:] = True\n")),
    _mutant("negative half of the signed rule dropped", "peak_backprop",
            (CONVOLUTION, "P_U = plus.plus(minus, U.shape[1:])", "P_U = plus")),
    _mutant("last maximum of a tie", "peak_backprop", LAST_MAXIMUM),
    _mutant("shared argmax overwritten", "peak_backprop",
            (MAX_POOL, ".addcmul_(visits.values[k : k + 1], meets)",
             ".copy_(visits.values[k : k + 1] * meets)")),
    _mutant("all of P to both summands", "peak_backprop", *TO_BOTH),
    _mutant("summands' values for their positive parts", "peak_backprop",
            (JOINING, "a, b = (U.clamp(min=0) for U in (a, b))", "pass"),
            (JOINING, "prepared.positive(a), prepared.positive(b)", "prepared.plain(a), prepared.plain(b)")),
    _mutant("all to the second where no summand is positive", "peak_backprop",
            (JOINING, "torch.where(total > 0, a / total, 0.5)", "torch.where(total > 0, a / total, 0.0)")),
    _mutant(
        "concatenation's slices in reverse", "peak_backprop",
        (JOINING, "visits.values.split([U",
         "visits.values.flip(self.dim).split([U"),
    ),
    _mutant("fixed weights not multiplied by U_hat", "peak_backprop",
            (LINEAR, "Visits(below, first, last, to, q.image, (U,), fresh=True)",
             "Visits(below, first, last, to, q.image, (), fresh=True)")),
    _mutant("the last of several consumers counts", "peak_backprop",
            (PLAN, "live[parent].plus(more, kept[parent].above) if parent in live else more", "more")),
    _mutant("batch norm not folded", "peak_backprop",
            (BUILDER, "if self.norm(users[0]) is not None:\n                return users[0]",
             "if self.norm(users[0]) is not None:\n                return None")),
    _mutant("eps of the folded norm forgotten", "peak_backprop",
            (LAYERS, "/ torch.sqrt(var + eps)", "/ torch.sqrt(var)")),
    _mutant(
        "P to the gate", "peak_backprop",
        (ARITHMETIC, "return Scaling(y if x_gate else x)", "return Scaling(x if x_gate else y)"),
    ),
    _mutant("a sum over axes split equally", "peak_backprop",
            (JOINING, "torch.where(whole > 0, positive / whole,", "torch.where(whole < 0, positive,")),
    _mutant("zeros around a map keep P", "peak_backprop",
            (MOVING, "return self.apply(some) == self.apply(some + 1)", "return self.apply(some) != self.apply(some)")),
    _mutant("PRM not divided by its total", "peak_backprop",
            (WALK, "torch.where(total > 0, prms / total, 0)", "prms")),
    _mutant("largest channel for the sum of channels", "peak_backprop",
            (WALK, "visits.P.sum(dim=1, keepdim=True, dtype=dtype)", "visits.P.amax(dim=1, keepdim=True).to(dtype)")),
    _mutant("start's bilinear weights swapped", "peak_backprop",
            (WALK, "((top, 1 - down), (below, down))", "((top, down), (below, 1 - down))")),
    # ---- truncation
    _mutant("what is dropped not told", "windows",
            (PLAN, "torch.stack([torch.zeros_like(dropped), dropped])", "torch.zeros_like(lost)")),
    _mutant("bound of what is missing without what is too large", "windows",
            (WALK, "2 * dropped / (arrived + dropped)", "dropped / (arrived + dropped)")),
    _mutant("every end of every layer may drop epsilon", "windows",
            (PLAN, "epsilon / (4 * len(self._growing))", "epsilon")),
    _mutant("a row more than allowed is dropped", "windows",
            (VISITS, "begin = (along.cumsum(axis=1) <= allowed).sum(axis=1)",
             "begin = (along.cumsum(axis=1) <= allowed).sum(axis=1) + 1")),
    _mutant("nothing is dropped", "windows",
            (VISITS, "(along.cumsum(axis=1) <= allowed)", "(along.cumsum(axis=1) <= -1)"),
            (VISITS, "(along[:, ::-1].cumsum(axis=1) <= allowed)", "(along[:, ::-1].cumsum(axis=1) <= -1)")),
    _mutant("one row is kept where the ends meet", "windows",
            (VISITS, "            gone |= begin >= end\n", "")),
    # ---- Eq. 6, fast path
    _mutant("beta's sign", "retrieval", BETA),
    _mutant("alpha on the contour", "retrieval",
            (RANK, "alpha * terms[..., 0] + terms[..., 1]", "terms[..., 0] + alpha * terms[..., 1]")),
    _mutant("contour ends before the border", "retrieval",
            (LOOPS, "max(left - reach, 0), min(right + reach, width)",
             "max(left - reach, 0), max(right, min(right + reach, width - 1))")),
    _mutant("the image's edge makes a contour", "retrieval",
            (LOOPS, "above, below = max(0, y - reach), min(height, y + reach + 1)",
             "above, below = y - reach, y + reach + 1")),
    _mutant("run off by one", "retrieval",
            (LOOPS, "totals[end, m] - totals[start, m]", "totals[end - 1, m] - totals[start, m]")),
    _mutant("mean of the map before its enlargement", "retrieval",
            (RANK, "bias * N.mean((1, 2), keepdim=True)", "bias * scaled(part).mean((1, 2), keepdim=True)"),
            (RANK, "def background(", "def scaled(M):\n    low, high = M.amin((1, 2), True), M.amax((1, 2), True)\n"
             "    return (M - low) / (high - low)\n\n\ndef background(")),
    _mutant("corners of the background aligned", "retrieval",
            (RANK, 'mode="bilinear", align_corners=False', 'mode="bilinear", align_corners=True')),
    _mutant("a constant map is background", "retrieval",
            (RANK, "maps.amax((1, 2), keepdim=True) > maps.amin(", "maps.amax((1, 2), keepdim=True) >= maps.amin(")),
    _mutant("last of equal proposals", "retrieval",
            (RANK, ".argmax(1)\n", ".flip(1).argmax(1).neg().add(scores.shape[1] - 1)\n")),
    _mutant("area limits at the wrong end", "retrieval",
            (RANK, "(fraction >= min_area) & (fraction < max_area)", "(fraction > min_area) & (fraction <= max_area)")),
    _mutant("pixel corners for centres", "retrieval",
            (RUNS, "(2 * rows + 1) * height // (2 * new_height)", "2 * rows * height // (2 * new_height)")),
    _mutant("> for >= in suppression", "retrieval",
            (SUPPRESS, "theirs - shared).clamp(min=1) >= iou", "theirs - shared).clamp(min=1) > iou")),
    _mutant("the larger mask's share", "retrieval",
            (SUPPRESS, "torch.minimum(areas, theirs)", "areas.maximum(theirs)")),
    _mutant("a peak chooses once", "retrieval",
            (SUPPRESS, "(found := another(p, by < 0))", "(found := another(p, by < -1))")),
    _mutant("any choice that is left", "retrieval",
            (SUPPRESS, "for i in choices[peak] if free[i]", "for i in choices[peak][::-1] if free[i]")),
    _mutant("suppression in the order given", "retrieval",
            (SUPPRESS, "(-value[p], label[p], keys[p], p, int(k))", "(-value[p], 0, [], p, int(k))")),
    _mutant("suppressed PRM not added", "retrieval",
            (SUPPRESS, "        if losers:\n", "        if len(losers) > 99:\n")),
    _mutant("per class ignored", "retrieval",
            (SUPPRESS, "by = dropped[of if per_class else None]", "by = dropped[None]"),
            (SUPPRESS, "dropped[label[p] if per_class else None]", "dropped[None]")),
    # ---- the second choice, fast path
    _mutant("a sum for the mean response", "retrieval",
            (FIT, "run_sums(N.flatten(1), *runs) / area.clamp(min=1)", "run_sums(N.flatten(1), *runs)")),
    _mutant("a term's floor too high", "retrieval", (FIT, "LEAST = 1e-6", "LEAST = 1e-2")),
    _mutant("background counts as inside", "retrieval",
            (FIT, "inside = 1 - over_background", "inside = over_background")),
    _mutant("the mass inside for that on the contour", "retrieval",
            (FIT, "inside, sums[..., 1]], dim=2)", "inside, sums[..., 0]], dim=2)")),
    _mutant("smoothing ends at the border", "retrieval", (FIT, 'mode="symmetric"', 'mode="edge"')),
    _mutant("a mask holds the pixel after its run", "retrieval",
            (FIT, "torch.searchsorted(side, keys, right=True) for side in (starts, ends)",
             "torch.searchsorted(side, keys, right=True) for side in (starts, ends + 1)")),
    _mutant("preferred is required", "retrieval",
            (FIT, 'if seed_pixel == "require":', 'if seed_pixel != "free":')),
    # ---- WISE, fast path
    _mutant("a peak's place for its strongest pixel's", "pseudo_labels",
            (WISE, "(2 * (at // w) + 1) * H // (2 * h)", "(at // w) * H // h")),
    _mutant("earlier peaks overwrite", "pseudo_labels",
            (WISE, 'device=maps.device), "amax")', 'device=maps.device) * -1 + len(places) - 1, "amax")')),
    _mutant("a map of zeros gives a seed", "pseudo_labels",
            (WISE, "some = maps.flatten(1).any(1)", "some = maps.flatten(1).any(1) | True")),
    _mutant("the worst proposal that holds a seed", "pseudo_labels",
            (WISE, "objectness.masked_fill(~holds, -torch.inf)", "(-objectness).masked_fill(~holds, -torch.inf)")),
    _mutant("the law of all proposals", "pseudo_labels",
            (WISE, "weights = objectness.where(holds, 0.0)", "weights = objectness.expand(holds.shape)")),
    _mutant("a sum of 0 draws nobody", "pseudo_labels",
            (WISE, "weights, holds.double())", "weights, holds.double() * 0)")),
    _mutant("drawn where the sum is reached", "pseudo_labels",
            (WISE, "[:, None], right=True)", "[:, None], right=False)")),
    _mutant("eligible at the threshold", "pseudo_labels",
            (WISE, "(objectness > threshold)", "(objectness >= threshold)")),
    _mutant("a mask that meets nobody replaced", "pseudo_labels",
            (WISE, "torch.where(ious.any(1), ", "torch.where(ious.any(1) | True, ")),
    # ---- kernels: peak pooling
    _mutant("upper median", "kernels_peak_stimulation",
            (KERNELS_POOL, "rank = (size - 1) // 2  #", "rank = size // 2  #")),
    _mutant("the last of a tie a peak", "kernels_peak_stimulation",
            (KERNELS_POOL, "earlier = down * window + right < 0", "earlier = down * window + right > 0")),
    _mutant("1/N of Eq. 2 dropped", "kernels_peak_stimulation",
            (KERNELS_POOL, "_mean(total, tl.maximum(count, 1))", "total.to(tl.float32)")),
    _mutant("1/N of Eq. 3 dropped", "kernels_peak_stimulation",
            (KERNELS_POOL, "tl.maximum(end - begin, 1).to(tl.float32))", "tl.full((), 1, tl.float32))")),
    _mutant("every block's peaks from the map's first slot", "kernels_peak_stimulation",
            (KERNELS_POOL, "slots + count + tl.cumsum", "slots + tl.cumsum")),
    _mutant("tables of rows read for columns", "kernels_peak_stimulation",
            (KERNELS_POOL, "below + EH + columns", "below + columns")),
    _mutant("every maximum of a map none of whose peaks passes", "kernels_peak_stimulation",
            (KERNELS_POOL, " & (positions <= last)", "")),
    _mutant("threshold not rounded to the maps' dtype", "kernels_peak_stimulation",
            (KERNELS_POOL, 'float(torch.tensor(value, dtype=M.dtype, device="cpu"))', "float(value)")),
    _mutant("offset of a list without the blocks before", "kernels_peak_stimulation",
            (KERNELS_POOL, "before += tl.load(counts", "before = tl.load(counts")),
    # ---- kernels: the walk back
    _mutant("taps in the order of W+", "kernels_peak_backprop",
            (KERNELS_WALK, "(KERNEL_H - 1 - i) * turned_y", "i * turned_y")),
    _mutant("window's place in the ratio map forgotten", "kernels_peak_backprop",
            (KERNELS_WALK, "(r + top) * ratio_y", "r * ratio_y")),
    _mutant("every peak of the first image", "kernels_peak_backprop",
            (KERNELS_WALK, "ratio += image.to(tl.int64)[:, None] * ratio_n + ", "ratio += ")),
    _mutant("every group takes the first one's visits", "kernels_peak_backprop",
            (KERNELS_WALK, "* G_k + group * C_out * G_c", "* G_k")),
    _mutant("dilation ignored where taps fit a stride", "kernels_peak_backprop",
            (KERNELS_WALK, "s // gcd(s, d) for", "s for")),
    _mutant("first phase of a stride off by the padding", "kernels_peak_backprop",
            (KERNELS_WALK, "(f_row - to_row - PADDING_H) % STRIDE_H", "(f_row - to_row) % STRIDE_H")),
    _mutant("Z at the bound of the leak flows", "kernels_peak_backprop",
            (KERNELS_WALK, "leaking = Z <= least", "leaking = Z < least")),
    _mutant("last tap of a pooling forgotten", "kernels_peak_backprop",
            (KERNELS_WALK, "range(0, KERNEL_H * KERNEL_W):", "range(0, KERNEL_H * KERNEL_W - 1):")),
    _mutant("argmax in a map of the window's width", "kernels_peak_backprop",
            (KERNELS_WALK, "(row * columns + col)", "(row * W + col)")),
    _mutant("second shared map forgotten", "kernels_peak_backprop",
            (KERNELS_WALK, "if second is not None:", "if False and second is not None:")),
    # ---- kernels: retrieval
    _mutant("carry of a cumulative sum lost", "kernels_retrieval",
            (KERNELS_RANK, "block = whole + tl.cumsum(block, 0)", "block = tl.cumsum(block, 0)")),
    _mutant("only the first tile of a mask's runs", "kernels_retrieval",
            (KERNELS_RANK, "more = tl.max(((column == BLOCK_RUNS - 1) & (start < end)).to(tl.int32))", "more = 0")),
    _mutant("a run that ends one pixel into a band lost", "kernels_retrieval",
            (KERNELS_RANK, "mask=first < last, other=0) > place", "mask=first < last, other=0) > place + 1")),
    _mutant("bands added up when the first is done", "kernels_retrieval",
            (KERNELS_RANK, "if tl.max(done, 0) == bands * THREADS - 1:", "if tl.max(done, 0) == THREADS - 1:")),
    _mutant("last of a lane's equal proposals", "kernels_retrieval",
            (KERNELS_RANK, "better = (score > greatest) |", "better = (score >= greatest) |")),
    # ---- the oracle
    _mutant("1/N of Eq. 2 dropped", "peak_stimulation", REF_SCORE),
    _mutant("1/N of Eq. 3 dropped", "peak_stimulation", REF_GRADIENT),
    _mutant("every position of a tie a peak", "peak_stimulation",
            (REF_POOL, "or (earlier and m[x, y] == m[i, j])", "or (earlier and m[x, y] > m[i, j])")),
    _mutant("window off by one", "peak_stimulation", (REF_POOL, "window // 2, is_peak", "window // 2 + 1, is_peak")),
    _mutant("upper median", "peak_stimulation", (REF_POOL, "[(m.size - 1) // 2]", "[m.size // 2]")),
    _mutant("> for >= at the threshold", "peak_stimulation",
            (REF_POOL, "(m >= threshold_value(m,", "(m > threshold_value(m,")),
    _mutant("corners not aligned", "peak_stimulation",
            (REF_POOL, "np.divmod(i * (size - 1), last)", "np.divmod(i * size, last + 1)")),
    _mutant("missing shift", "peak_backprop", REF_SHIFT),
    _mutant("W for W+", "peak_backprop", (REF_UNDER, "np.maximum(W, 0.0) if sign > 0", "W if sign > 0")),
    _mutant("leak not counted", "peak_backprop", NO_LEAK),
    _mutant("leak only where Z is 0", "peak_backprop",
            (REF_WALK, "ratio_of(P, Z, tiny[:, None, None])", "ratio_of(P, Z, 0.0)")),
    _mutant("bias kept in Z", "peak_backprop",
            (REF_WALK, "Z_part = convolve(part, W,", "Z_part = convolve(part, W, np.ones(len(W)),")),
    _mutant("P(V) not divided by Z", "peak_backprop",
            (REF_UNDER, "np.where(flows, P / np.where(flows, Z, 1.0), 0.0)", "np.where(flows, P, 0.0)")),
    _mutant("last maximum of a tie", "peak_backprop", REF_LAST_MAXIMUM),
    _mutant("all of P to both summands", "peak_backprop", REF_TO_BOTH),
    _mutant("nothing where no summand is positive", "peak_backprop", (REF_WALK, "1.0 / len(takers))", "0.0)")),
    _mutant("batch norm not folded", "peak_backprop",
            (f"{REF_NET}/planning.py", 'if source.op == "conv2d" and', 'if source.op == "none" and')),
    _mutant("gamma's sign forgotten in folding", "peak_backprop",
            (REF_WALK, "scale = (1.0 if gamma is None else np.asarray(gamma, np.float64))",
             "scale = (1.0 if gamma is None else np.abs(gamma))")),
    _mutant("the last of several consumers counts", "peak_backprop",
            (f"{REF_NET}/passes.py", "mass[name] = mass.get(name, 0.0) + share", "mass[name] = share")),
    _mutant("adaptive bins end early", "peak_backprop",
            (REF_UNDER, "-((-(p + 1) * size) // out)", "max((p + 1) * size // out, p * size // out + 1)")),
    _mutant("the image's edge makes a contour", "retrieval",
            (REF_RANK, "binary_erosion(S, square, border_value=1)", "binary_erosion(S, square, border_value=0)")),
    _mutant("beta's sign", "retrieval", REF_BETA),
    _mutant("mean of the map before its enlargement", "retrieval",
            (REF_RANK, "bias * N.mean()", "bias * scaled(M).mean()"),
            (REF_RANK, "def background(", "def scaled(M):\n    return (M - np.min(M)) / np.ptp(M)\n\n\n"
             "def background(")),
    _mutant("> for >= in suppression", "retrieval",
            (REF_ALGORITHM, "overlap(one.mask, other.mask) >= threshold", "overlap(one.mask, other.mask) > threshold")),
    _mutant("the larger mask's share", "retrieval",
            (REF_ALGORITHM, "min(np.count_nonzero(A)", "max(np.count_nonzero(A)")),
    _mutant("the last that drops a choice takes the map", "retrieval",
            (REF_ALGORITHM, "dropped.setdefault(peak, (k, one.prm))", "dropped[peak] = (k, one.prm)")),
    _mutant("a peak that chose again joins another too", "retrieval",
            (REF_ALGORITHM, "dropped.pop(peak, None)", "dropped.get(peak)")),
    _mutant("suppression in the order given", "retrieval",
            (REF_ALGORITHM, "(-one.score, one.label, *one.peak)", "-one.score")),
    _mutant("last of equal proposals", "retrieval",
            (REF_RANK, "sorted(found, key=lambda one: -one[1])", "sorted(found[::-1], key=lambda one: -one[1])")),
    _mutant("the mean response of the picture", "retrieval", (REF_FIT, "N[S].mean()", "N.mean()")),
    _mutant("smoothed by the longer side", "retrieval", (REF_FIT, "smooth * min(R.shape)", "smooth * max(R.shape)")),
    _mutant("last of equal L", "retrieval",
            (REF_FIT, "sorted(found, key=lambda one: -one[0])", "sorted(found[::-1], key=lambda one: -one[0])")),
    _mutant("required is preferred", "retrieval",
            (REF_FIT, 'if seed_pixel == "require" or (seed_pixel == "prefer" and holding):', "if holding:")),
    _mutant("pixel corners for centres", "retrieval",
            (REF_RANK, "((2 * np.arange(out) + 1) * size) // (2 * out)", "(np.arange(out) * size) // out")),
    _mutant("log(1 + s) for log(1 + exp(s))", "pseudo_labels",
            (REF_WISE, "(1 - y) * np.logaddexp(0, s)", "(1 - y) * np.log1p(abs(s))")),
    _mutant("the first peak of a pixel stays", "pseudo_labels",
            (REF_WISE, "for (label, _, _), G in zip(peaks, prms):",
             "for (label, _, _), G in zip(peaks[::-1], prms[::-1]):")),
    _mutant("rows scaled as columns", "pseudo_labels",
            (REF_WISE, "(2 * row + 1) * H // (2 * h)", "(2 * row + 1) * W // (2 * w)")),
    _mutant("the last of equal objectness", "pseudo_labels",
            (REF_WISE, "int(np.argmax(np.where(holding, o, -np.inf)))",
             "int(len(o) - 1 - np.argmax(np.where(holding, o, -np.inf)[::-1]))")),
    _mutant("a seed that nobody holds kept", "pseudo_labels",
            (REF_WISE, "        if holding.any():\n", "        if len(o):\n")),
    _mutant("the law not normalised", "pseudo_labels",
            (REF_WISE, "weights / max(weights.sum(), np.finfo(np.float64).tiny)", "weights / weights.max(initial=1)")),
    _mutant("the share of the detection for IoU", "pseudo_labels",
            (REF_WISE, "max((masks[k] | d).sum(), 1)", "max(d.sum(), 1)")),
    # ---- both sides: parity cannot see these
    _mutant("1/N of Eq. 2 dropped", "peak_stimulation", SCORE, REF_SCORE),
    _mutant("1/N of Eq. 3 dropped", "peak_stimulation", GRADIENT, REF_GRADIENT),
    _mutant("missing shift", "peak_backprop", SHIFT, REF_SHIFT),
    _mutant("all of P to both summands", "peak_backprop", *TO_BOTH, REF_TO_BOTH),
    _mutant("last maximum of a tie", "peak_backprop", LAST_MAXIMUM, REF_LAST_MAXIMUM),
    _mutant("beta's sign", "retrieval", BETA, REF_BETA, REF_BETA_RANKED),
    # ---- eval
    *MUTANTS_OF_EVAL,
)  # fmt: skip


# ---- the run


def main() -> int:
    """Exit code 0: the unmutated tests are green and every mutant is killed by each of its judges."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="mutants whose name, stem or kind contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once (default: all cores)")
    parser.add_argument("--limit", type=float, default=180, help="seconds for one mutant's tests")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in f"{m.name} {m.stem} {m.kind}"]
    begun = time.perf_counter()
    if not chosen or not green_before(chosen, options.limit):
        print("nothing to judge" if not chosen else "the unmutated tests are not green: nothing can be said of mutants")
        return 1
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, verdicts in zip(chosen, pool.map(lambda mutant: try_mutant(mutant, options.limit), chosen)):
            for name, verdict in verdicts.items():
                shown = "killed by" if verdict.killed else "NOT KILLED:"
                print(f"{mutant.kind:10}  {mutant.stem:16}  {mutant.name:46}  {name:6}  {shown} {verdict.outcome}"
                      f"  {verdict.seconds:.0f} s", flush=True)  # fmt: skip
                rows.append({"kind": mutant.kind, "stem": mutant.stem, "mutant": mutant.name, "judge": name,
                             "killed": verdict.killed, "by": verdict.outcome, "seconds": round(verdict.seconds, 1)})
    alive = sorted({(row["kind"], row["mutant"]) for row in rows if not row["killed"]})
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants killed, in {time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"mutants": len(chosen), "killed": len(chosen) - len(alive), "rows": rows},
                                           indent=1) + "\n")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
