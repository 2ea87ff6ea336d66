"""Pairs of pixels: how alike two are said to be by the boundaries between them, and what is learnt from pairs.

Symbols: B (h, w) boundary map in [0, 1]; D (2, h, w) displacements, in cells; i, j = i + d pixels; a_ij affinity; y
labels: 0 background, class + 1, 255 ignored.
"""

import numpy as np

IGNORED = 255
SMALL = 1e-5  # e: in logarithms, and in the counts that means divide by


def offsets(radius) -> list[tuple[int, int]]:
    """Half of the disc of `radius`: every d = (dy, dx) with |d| < radius, 0 and one of d, -d left out."""
    around = range(-radius + 1, radius)
    return [(dy, dx) for dy in range(radius) for dx in around
            if (dy > 0 or dx > 0) and dy * dy + dx * dx < radius * radius]  # fmt: skip


def path(d) -> list[tuple[int, int]]:
    """The pixels of the straight line from 0 to d, ends included, row-major: those of their bounding box that lie less
    than a pixel off it, (dy qx - dx qy)^2 < |d|^2."""
    dy, dx = d
    rows, columns = range(min(dy, 0), max(dy, 0) + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def affinity(boundary, d, rows, columns) -> np.ndarray:
    """a_ij = 1 - max of B on the path from i to i + d: (len(rows), len(columns)), for the sources i of these rows and
    columns. ValueError where a path leaves the map."""
    return 1 - _strongest(np.asarray(boundary, np.float64)[None], d, rows, columns)[0][0]


def _strongest(boundary, d, rows, columns):
    """max of B (N, h, w) on the paths, (N, rows, columns), and which q of `path` it is: the first."""
    rows, columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
    steps, (h, w) = path(d), boundary.shape[1:]
    for line, length, moves in ((rows, h, [y for y, _ in steps]), (columns, w, [x for _, x in steps])):
        if line.size and (line.min() + min(moves) < 0 or line.max() + max(moves) >= length):
            raise ValueError(f"paths to {tuple(d)} leave the map {h} x {w}")
    seen = np.stack([boundary[:, rows[:, None] + y, columns + x] for y, x in steps])
    return seen.max(0), seen.argmax(0)


def losses(labels, boundary, displacement, radius):
    """The losses of a batch, and their gradients.

    labels: (N, h, w); boundary: (N, h, w) after the sigmoid; displacement: (N, 2, h, w). All losses run over the same
    pairs: i in rows 0..h - R and columns R - 1..w - R, d in `offsets`, all pictures; an ignored end drops the pair.
    P0 are both background, P1 of one class, P- of two.

    Returns ((background part of L+, foreground part of L+, L+, L-, Lfg, Lbg, L), dL/dB, dL/dD): the parts without their
    1/2; L+ = 1/2 mean over P0 + 1/2 mean over P1 of -log(a + e); L- = mean over P- of -log(1 + e - a);
    Lfg = sum over P1 of |D(i) - D(j) - (j - i)|_1 / (2 |P1|), Lbg = sum over P0 of |D(i) - D(j)|_1 / (2 |P0|);
    L = (L+ + L-) / 2 + (Lfg + Lbg) / 2. Counts have e added; a set without a pair gives 0. Where B is greatest at
    several q of a path, the first has the gradient.
    """
    y, B, D = np.asarray(labels), np.asarray(boundary, np.float64), np.asarray(displacement, np.float64)
    if y.ndim != 3 or B.shape != y.shape or D.shape != (y.shape[0], 2, *y.shape[1:]):
        shapes = f"labels {y.shape}, boundary {B.shape} and displacement {D.shape}"
        raise ValueError(f"{shapes} must be (N, h, w), the same, and (N, 2, h, w)")
    h, w = y.shape[1:]
    rows, columns = np.arange(0, h - radius + 1), np.arange(radius - 1, w - radius + 1)
    pairs = [_Pairs(y, d, rows, columns) for d in offsets(radius)] if rows.size and columns.size else []
    counts = {kind: sum(int(one.sets[kind].sum()) for one in pairs) for kind in ("same ground", "same class", "apart")}
    share = {kind: 1 / (count + SMALL) for kind, count in counts.items()}
    moved = {kind: 1 / (2 * counts[kind] + SMALL) for kind in ("same ground", "same class")}
    total, dB, dD = dict.fromkeys(("b+", "f+", "-", "fg", "bg"), 0.0), np.zeros_like(B), np.zeros_like(D)
    for one in pairs:
        strongest, which = _strongest(B, one.d, rows, columns)
        a = 1 - strongest
        total["b+"] += share["same ground"] * -np.log(a + SMALL)[one.sets["same ground"]].sum()
        total["f+"] += share["same class"] * -np.log(a + SMALL)[one.sets["same class"]].sum()
        total["-"] += share["apart"] * -np.log(1 + SMALL - a)[one.sets["apart"]].sum()
        # dL/da, and da/dB = -1 at the strongest q: L has 1/2 of L+, whose parts have 1/2 each, and 1/2 of L-.
        da = sum(one.sets[kind] * share[kind] / 4 for kind in ("same ground", "same class")) * -1 / (a + SMALL)
        da = da + one.sets["apart"] * share["apart"] / 2 / (1 + SMALL - a)
        one.add_at_path(dB, -da, which)
        delta = one.difference(D)
        for kind, name, target in (("same class", "fg", np.array(one.d)), ("same ground", "bg", np.zeros(2))):
            error = (delta - target[:, None, None]) * one.sets[kind][:, None]
            total[name] += moved[kind] * np.abs(error).sum()
            one.add_difference(dD, np.sign(error) * moved[kind] / 2)
    plus = (total["b+"] + total["f+"]) / 2
    whole = (plus + total["-"]) / 2 + (total["fg"] + total["bg"]) / 2
    return (total["b+"], total["f+"], plus, total["-"], total["fg"], total["bg"], whole), dB, dD


class _Pairs:
    """All pairs of one offset: which set each is in, and the ways between pairs and maps."""

    def __init__(self, y, d, rows, columns):
        self.d, self.rows, self.columns = d, rows[:, None], columns
        i, j = y[:, self.rows, columns], y[:, self.rows + d[0], columns + d[1]]
        known = (i != IGNORED) & (j != IGNORED)
        self.sets = {"same ground": known & (i == 0) & (j == 0), "same class": known & (i == j) & (i > 0),
                     "apart": known & (i != j)}  # fmt: skip

    def difference(self, D):
        """D(i) - D(j), (N, 2, rows, columns)."""
        dy, dx = self.d
        return D[:, :, self.rows, self.columns] - D[:, :, self.rows + dy, self.columns + dx]

    def add_difference(self, dD, values):
        dy, dx = self.d
        dD[:, :, self.rows, self.columns] += values
        dD[:, :, self.rows + dy, self.columns + dx] -= values

    def add_at_path(self, dB, values, which):
        """Add each pair's value where its path has the q that `which` says."""
        for k, (y, x) in enumerate(path(self.d)):
            dB[:, self.rows + y, self.columns + x] += np.where(which == k, values, 0)
