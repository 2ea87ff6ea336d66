"""The report's drawings: lines and bars as SVG, and a picture with its truth, its Peak Response Maps or its answer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from scipy import ndimage

BLUE, GREY, ORANGE = "#0072b2", "#6b7280", "#d55e00"
LONGEST = 360
"""Pixels of a tile's longer side at most; a small picture is enlarged by a whole factor."""
Colour = tuple[int, int, int]


# ---- lines and bars


def quality_plot(
    runs: Sequence[Sequence[dict]], names: Sequence[str], xlabel: str, paper: Mapping[str, float | str]
) -> bytes:
    """One panel of Figure 6, SVG: the share of a Peak Response Map inside its instance, and on the background.

    runs: for each run the figures of its groups, as `metrics.QualityGroup` names them; means are drawn over runs.
    names: of the groups. paper: percent that the paper printed, by name; words are left out.
    """
    groups = [[group for group in some if group["maps"]] for some in zip(*runs)]
    at = [k for k, some in enumerate(groups) if some]

    def over_runs(key: str) -> np.ndarray:
        return 100 * np.array([np.mean([group[key] for group in groups[k]], axis=0) for k in at])

    figure, axes = _axes(5.0, 3.5, xlabel, "share of a map, %")
    if at:
        inside, background, (low, middle, high) = over_runs("inside"), over_runs("background"), over_runs("quartiles").T
        axes.vlines(at, low, high, color=BLUE, alpha=0.25, linewidth=13, label="inside, quartiles")
        axes.plot(at, middle, "_", color=BLUE, markersize=13, label="inside, median")
        axes.plot(at, inside, "o-", color=BLUE, markersize=6, label="inside, mean")
        axes.plot(at, background, "s--", color=GREY, markersize=5, label="background, mean")
    printed = [(k, paper[name]) for k, name in enumerate(names) if isinstance(paper.get(name), float)]
    if printed:
        axes.plot(*zip(*printed), "D", color=ORANGE, fillstyle="none", markersize=7, label="inside, paper (VOC 2012)")
    counts = [sum(group["maps"] for group in some) for some in groups]
    axes.set_xticks(range(len(names)), [f"{name}\nn = {n}" for name, n in zip(names, counts)])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 100))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return _svg(figure)


def curve_plot(name: str, figure_of_merit: str, curves: Sequence[dict]) -> bytes:
    """Precision against recall of one class, SVG, a line a run; curves: recall and precision, best detection first."""
    figure, axes = _axes(2.6, 2.6, "recall", "precision")
    for curve in curves:
        points = [(r, p) for r, p in zip(curve["recall"], curve["precision"]) if r is not None]
        if points:
            recall, precision = zip((0.0, points[0][1]), *points)
            axes.plot(recall, precision, color=BLUE, linewidth=1.6, alpha=max(0.4, 1 / len(curves)))
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    short = name if len(name) <= 26 else name[:25] + "…"
    axes.set_title(f"{short}\n{figure_of_merit}", fontsize=10.5, parse_math=False)
    return _svg(figure)


def shares_plot(shares: Mapping[str, float], bad: Sequence[str]) -> bytes:
    """Bars of shares in 0..1 by name, SVG; those in `bad` in another colour."""
    figure, axes = _axes(6.2, 0.5 + 0.34 * len(shares), "share of the true instances, %", "")
    names, values = list(shares), [100 * share for share in shares.values()]
    bars = axes.barh(names, values, color=[ORANGE if name in bad else BLUE for name in names], height=0.66)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=4, fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlim(0, max(*values, 1) * 1.12)
    axes.grid(visible=False, axis="y")
    return _svg(figure)


def _axes(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    """The same bytes for the same drawing, with words as words."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prm"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


# ---- pictures


def truth_tile(image: np.ndarray, masks: np.ndarray, tints: Sequence[Colour], filled: np.ndarray) -> bytes:
    """The picture (H, W, 3) uint8 with its masks (G, H, W) outlined, those of `filled` (G,) bool also filled; JPEG."""
    return _jpeg(_painted(_resized(image), masks, tints, [0.55 if full else 0.0 for full in filled]))


def answer_tile(image: np.ndarray, masks: np.ndarray, tints: Sequence[Colour]) -> bytes:
    """The picture (H, W, 3) uint8 in grey with masks (K, H, W), best first, in colour, the best on top; JPEG."""
    grey = np.repeat(_resized(image).mean(axis=2, keepdims=True), 3, axis=2)
    return _jpeg(_painted(0.8 * grey, masks[::-1], tints[::-1], [0.55] * len(masks)))


def responses_tile(image: np.ndarray, prms: np.ndarray, tints: Sequence[Colour], peaks: np.ndarray) -> bytes:
    """Peak Response Maps (P, h, w) in colour over the dark grey picture, dots at peaks (P, 2) row and column; JPEG.

    Each map is stretched to its own maximum; the square root shows the faint outline beside strong pixels.
    """
    canvas = _resized(image)
    height, width = canvas.shape[:2]
    canvas = np.repeat(0.3 * canvas.mean(axis=2, keepdims=True), 3, axis=2)
    for prm, tint in zip(prms, tints):
        heat = Image.fromarray((prm / max(prm.max(), 1e-30)).astype(np.float32))
        heat = np.sqrt(np.clip(heat.resize((width, height), Image.Resampling.BILINEAR), 0, 1))[..., None]
        canvas = np.maximum(canvas, heat * np.asarray(tint, dtype=np.float64))
    picture = Image.fromarray(np.rint(canvas).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for row, column in (np.asarray(peaks) + 0.5) * (height / image.shape[0], width / image.shape[1]):
        draw.ellipse((column - 3, row - 3, column + 3, row + 3), fill="white", outline="black")
    return _jpeg(np.asarray(picture))


def _resized(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = LONGEST / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, method))


def _painted(canvas: np.ndarray, masks: np.ndarray, tints: Sequence[Colour], fills: Sequence[float]) -> np.ndarray:
    """Masks over the canvas, the last on top; a dark line around each tells neighbours of one colour apart."""
    canvas = canvas.astype(np.float64)
    for mask, tint, fill in zip(masks, tints, fills):
        mask = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(canvas.shape[1::-1], Image.Resampling.NEAREST))
        mask = mask.astype(bool)
        canvas[mask] += fill * (np.asarray(tint) - canvas[mask])
        canvas[ndimage.binary_dilation(mask) & ~mask] = 0
        canvas[mask & ~ndimage.binary_erosion(mask, iterations=2)] = tint
    return np.rint(canvas).astype(np.uint8)


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88, subsampling=0)
    return file.getvalue()
