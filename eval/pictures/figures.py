"""Drawings of results: instances over the photograph, and the steps that led to them.

A `segmentation` here has size (H, W), maps (C, h, w) and instances, each with label, mask (whose `masks()` is (1, H, W)
bool), score, confidence, peak (row, col) in pixels of the picture, and prm (h', w'). Maps and PRMs span the picture.
"""

import colorsys
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from prm import InputError
from prm.files import atomic_write

SHORTEST, LONGEST = 300, 1600  # an overlay's sides, in pixels
ROOM = 200  # the smallest canvas side: a picture of 20,000 x 2 pixels still needs a place for its labels
CROWD = 25  # from so many instances on, labels are numbers
PANEL_WIDTH, PANEL_COLUMNS, GAP = 1280, 4, 12
DARK = (24, 24, 27)
# Colours that stay apart for colour-blind readers (after Okabe and Ito, brightened); more follow by the golden angle.
COLOURS = ((255, 176, 0), (64, 180, 255), (255, 96, 88), (40, 205, 140), (226, 128, 222), (250, 236, 70),
           (110, 120, 255), (255, 140, 60))


def colour(index: int) -> tuple[int, int, int]:
    """The RGB colour of the instance at this place in the list; neighbours in the list differ clearly."""
    if index < len(COLOURS):
        return COLOURS[index]
    shade = index % 3
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.85, 0.55, 0.7)[shade], (1.0, 1.0, 0.8)[shade])
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: np.ndarray, segmentation, class_names: Sequence[str]) -> np.ndarray:
    """The picture with every instance tinted, outlined, its peak marked and its class and score written beside it.

    image: (H, W, 3) uint8. Returns (H', W', 3) uint8: a short side below 300 pixels is enlarged by a whole factor, a
    long side above 1600 reduced, and very narrow pictures get a margin. From 25 instances on, labels are numbers, which
    count `segmentation.instances` from 1, and a line below the picture counts the classes.
    Raises InputError when the picture and the segmentation differ in size.
    """
    _check_size(image, segmentation)
    instances = segmentation.instances
    crowded = len(instances) >= CROWD
    size = _display_size(*image.shape[:2])
    canvas, offset = _with_room(_paint(image, instances, size, crowded))
    draw = ImageDraw.Draw(canvas)
    font = _font(11 if crowded else int(np.clip(max(size) * 0.022, 13, 24)))
    if not instances:
        _tag(draw, (6, 6), "nothing found", font, (255, 255, 255))
        return np.asarray(canvas)
    scale = np.divide(size, image.shape[:2])
    peaks = [tuple((np.add(i.peak, 0.5) * scale + offset)[::-1]) for i in instances]  # (x, y) of the pixel's middle
    texts = [str(k + 1) if crowded else _label(instance, class_names) for k, instance in enumerate(instances)]
    boxes = [_box(instance, scale, offset) for instance in instances]
    labels = _places(texts, font, peaks, boxes, canvas.size, crowded)
    for k, label in enumerate(labels):  # lines lie under dots, dots under words
        if label and label.led:
            draw.line([peaks[k], (label.left + label.width / 2, label.top + label.height / 2)], colour(k), 2)
    for k, (x, y) in enumerate(peaks):
        _dot(canvas, x, y, 2.5 if crowded else max(4.5, font.size / 3.2), colour(k))
    for k, label in enumerate(labels):
        if label and crowded:
            draw.text((label.left + 1, label.top), label.text, "white", font, stroke_width=1, stroke_fill="black")
        elif label:
            _tag(draw, (label.left, label.top), label.text, font, colour(k))
    if crowded:
        counts = Counter(called(i.label, class_names) for i in instances).most_common()
        canvas = _captioned(canvas, f"{len(instances)} instances: " + ", ".join(f"{n} {name}" for name, n in counts))
    return np.asarray(canvas)


def panel(image: np.ndarray, segmentation, class_names: Sequence[str], max_instances: int = 4) -> np.ndarray:
    """How the answer came about, one step a tile: picture, response map, masks; below, PRMs.

    The map is that of the first instance's class, or where there is none, of the class that responds most. A student
    has neither maps nor PRMs: what remains is the picture and the masks.

    image: (H, W, 3) uint8. Returns (H', 1280, 3) uint8. The PRMs of the first `max_instances` instances are shown, four
    a row, each stretched to its own maximum. Raises InputError when the picture and the segmentation differ in size.
    """
    _check_size(image, segmentation)
    instances, maps = segmentation.instances, _array(segmentation.maps)
    size, tile = _tile(image.shape[:2], 3 if maps.size else 2)
    small = _resized(image, size)
    found = f"{len(instances)} instance{'s' * (len(instances) != 1)}" if instances else "Nothing found"
    top = [("Picture", Image.fromarray(small), None), (found, _masks(small, instances, size), None)]
    if not maps.size:
        return _row(top, size, tile)
    if instances:
        shown = instances[0].label
    else:
        shown = int(np.nan_to_num(maps.max(axis=(1, 2)), nan=-np.inf).argmax())
    scale = np.divide(size, image.shape[:2])
    response = Image.fromarray(_heat_over(small, maps[shown]))
    for k, instance in enumerate(instances):
        if instance.label == shown:
            row, col = np.add(instance.peak, 0.5) * scale
            _dot(response, col, row, 2.5 if len(instances) >= CROWD else 5, colour(k))
    top.insert(1, (f"Response to “{called(shown, class_names)}”", response, None))
    rows = [_row(top, size, tile)]
    size, tile = _tile(image.shape[:2], PANEL_COLUMNS)
    shown = list(enumerate(instances[:max_instances]))
    if shown:
        rows.append(_line("Peak response maps: the pixels that made each peak respond"))
    for start in range(0, len(shown), PANEL_COLUMNS):
        tiles = [(f"Peak {k + 1}: {_label(i, class_names)}", _heat(i, size, image, colour(k)), colour(k))
                 for k, i in shown[start : start + PANEL_COLUMNS]]
        rows.append(_row(tiles, size, tile))
    return np.concatenate(rows)


def _masks(small: np.ndarray, instances: Sequence, size: tuple[int, int]) -> Image.Image:
    """The picture with its masks, or darkened where there is none."""
    if instances:
        return _paint(small, instances, size, len(instances) >= CROWD)
    masks, font = Image.fromarray(small // 3), _font(22)
    if size[0] >= 40 and size[1] >= 160:  # in less the words would be cut; the title says it too
        ImageDraw.Draw(masks).text((size[1] / 2, size[0] / 2), "nothing found", "white", font, anchor="mm")
    return masks


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an (H, W, 3) or (H, W) uint8 array as a PNG, whole or not at all. Raises InputError if it cannot be."""
    atomic_write(path, lambda file: Image.fromarray(array).save(file, "PNG"))


# -- painting ---------------------------------------------------------------------------------------------------------


def _array(values) -> np.ndarray:
    """A tensor of any device, or an array, as float32 NumPy."""
    return np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


def _dense(instance) -> np.ndarray:
    """The instance's mask, (H, W) uint8 of 0 and 1."""
    mask = instance.mask.masks()[0]
    return np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask).astype(np.uint8)


def _check_size(image: np.ndarray, segmentation) -> None:
    if tuple(image.shape[:2]) != tuple(segmentation.size):
        raise InputError(f"segmentation of a {tuple(segmentation.size)} picture (height, width), drawn on one of "
                         f"{tuple(image.shape[:2])}: draw it on the picture that was segmented")


def _display_size(height: int, width: int) -> tuple[int, int]:
    """The overlay's (height, width): see `overlay`."""
    longest, shortest = max(height, width), min(height, width)
    scale = LONGEST / longest if longest > LONGEST else max(1, min(math.ceil(SHORTEST / shortest), LONGEST // longest))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3): smooth when reduced, square pixels when enlarged."""
    larger = size[0] > image.shape[0] or size[1] > image.shape[1]
    method = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size[::-1], method))


def _mask(instance, size: tuple[int, int]) -> np.ndarray:
    """The instance's mask at another size, (h, w) bool; one that is thinner than a pixel stays visible."""
    mask = Image.fromarray(_dense(instance) * np.uint8(255))
    area = np.asarray(mask.resize(size[::-1], Image.Resampling.BOX))
    return area >= 128 if (area >= 128).any() else area > 0


def _paint(image: np.ndarray, instances: Sequence, size: tuple[int, int], crowded: bool) -> Image.Image:
    """The picture at `size` (height, width) with every mask tinted and outlined, the best on top."""
    canvas = _resized(image, size).copy()
    thickness = 1 if crowded else max(2, round(max(size) / 450))
    outlines = []
    for k in reversed(range(len(instances))):
        mask = _mask(instances[k], size)
        box = ndimage.find_objects(mask.astype(np.uint8))
        if not box:
            continue
        mask, region = mask[box[0]], canvas[box[0]]
        tint = np.asarray(colour(k))
        region[mask] = 0.62 * region[mask] + 0.38 * tint
        outlines.append((region, mask & ~ndimage.binary_erosion(mask, iterations=thickness), tint))
    for region, edge, tint in outlines:
        region[edge] = tint
    return Image.fromarray(canvas)


def _with_room(canvas: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """The canvas in the middle of one that is at least ROOM wide and high, and where (top, left) it begins."""
    width, height = canvas.size
    top, left = max(0, ROOM - height) // 2, max(0, ROOM - width) // 2
    roomy = Image.new("RGB", (max(ROOM, width), max(ROOM, height)), DARK)
    roomy.paste(canvas, (left, top))
    return roomy, (top, left)


def _dot(canvas: Image.Image, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    """A smooth white disc with a coloured core and a dark rim; Pillow's own circles have jagged edges."""
    reach = math.ceil(radius + 2)
    left, top = math.floor(x) - reach, math.floor(y) - reach
    patch = canvas.crop((left, top, left + 2 * reach + 1, top + 2 * reach + 1))
    rows, cols = np.mgrid[: 2 * reach + 1, : 2 * reach + 1]
    distance = np.hypot(cols + left + 0.5 - x, rows + top + 0.5 - y)
    pixels = np.asarray(patch, dtype=np.float32)
    for r, tint in ((radius + 1, (0, 0, 0)), (radius, (255, 255, 255)), (radius * 0.55, fill)):
        cover = np.clip(r - distance + 0.5, 0, 1)[..., None]
        pixels = pixels * (1 - cover) + np.asarray(tint) * cover
    canvas.paste(Image.fromarray(np.rint(pixels).astype(np.uint8)), (left, top))


# -- words ------------------------------------------------------------------------------------------------------------


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along on every system."""
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def called(label: int, class_names: Sequence[str]) -> str:
    """The class's name; of a label that has none, a makeshift."""
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


def _label(instance, class_names: Sequence[str]) -> str:
    return f"{called(instance.label, class_names)} {instance.score:.2f}"


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text on one line, its middle cut out where it is wider than `width` pixels (the end holds the score)."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(_shortened(text, keep)) > width:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, keep: int) -> str:
    tail = min(5, keep // 2)
    return text[: keep - tail] + "…" + text[len(text) - tail :]


def _box(instance, scale: np.ndarray, offset: tuple[int, int]) -> tuple[float, float, float, float]:
    """The mask's bounding box (left, top, right, bottom) on the canvas; of an empty mask, the peak's pixel."""
    found = ndimage.find_objects(_dense(instance))
    row, col = instance.peak
    rows, cols = found[0] if found else (slice(row, row + 1), slice(col, col + 1))
    return (cols.start * scale[1] + offset[1], rows.start * scale[0] + offset[0],
            cols.stop * scale[1] + offset[1], rows.stop * scale[0] + offset[0])


@dataclass
class _Label:
    text: str
    left: float
    top: float
    width: float
    height: float
    led: bool  # so far from its mask that a line has to lead from the peak to it


def _places(texts, font, peaks, boxes, canvas_size, crowded: bool) -> list[_Label | None]:
    """Where each label covers no earlier label and no peak: at the mask, else near, else far with a line to the peak.

    In a crowd a label stays beside its peak, and one that finds no free place there is None.
    """
    canvas_width, canvas_height = canvas_size
    pad = 1 if crowded else 4
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in peaks]
    labels = []
    for text, (x, y), box in zip(texts, peaks, boxes):  # best first: it gets the best place
        text = _fitted(text, font, canvas_width - 2 * pad - 2)
        w, h = font.getlength(text) + 2 * pad, sum(font.getmetrics()) + (0 if crowded else 2)
        near = _corners_near_peak(x, y, w, h)
        close = near if crowded else _corners_at_mask(box, w, h) + near
        corners = close if crowded else close + _corners_around(x, y, w, h)
        corners = [(min(max(a, 0), canvas_width - w), min(max(b, 0), canvas_height - h)) for a, b in corners]
        chosen = next((n for n, (a, b) in enumerate(corners) if _is_free((a, b, a + w, b + h), taken)), None)
        if crowded and chosen is None:
            labels.append(None)
            continue
        left, top = corners[chosen or 0]
        labels.append(_Label(text, left, top, w, h, led=chosen is not None and chosen >= len(close)))
        taken.append((left, top, left + w, top + h))
    return labels


def _corners_at_mask(box, w: float, h: float) -> list[tuple[float, float]]:
    """Top left corners for a w x h label at a mask's box, the best first: on top of it, inside, below."""
    left, top, right, bottom = box
    return [(left, top - h), (left, top), (right - w, top - h), (right - w, top), (left, bottom), (left, bottom - h)]


def _corners_near_peak(x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    return [(x - w / 2, y - h - 4), (x + 4, y - h / 2), (x - w - 4, y - h / 2), (x - w / 2, y + 4)]


def _corners_around(x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    """Rings of ever larger radius around a peak."""
    angles = np.arange(12) * math.pi / 6
    return [(x + r * h * math.cos(a) - w / 2, y + r * h * math.sin(a) - h / 2) for r in range(2, 16) for a in angles]


def _is_free(box, taken: list) -> bool:
    left, top, right, bottom = box
    return all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in taken)


def _tag(draw, corner, text, font, fill) -> None:
    """Text on a filled, rounded rectangle, black or white after the fill's brightness."""
    pad = 4
    w, h = font.getlength(text) + 2 * pad, sum(font.getmetrics()) + 2
    x, y = round(corner[0]), round(corner[1])
    draw.rounded_rectangle((x, y, x + w - 1, y + h - 1), 3, fill)
    ink = "black" if np.dot(fill, (0.299, 0.587, 0.114)) > 120 else "white"
    draw.text((x + pad, y + h / 2), text, ink, font, anchor="lm")


def _captioned(canvas: Image.Image, text: str) -> Image.Image:
    """The canvas with a line of text below it."""
    font = _font(14)
    taller = Image.new("RGB", (canvas.width, canvas.height + 26), DARK)
    taller.paste(canvas, (0, 0))
    text = _fitted(text, font, canvas.width - 16)
    ImageDraw.Draw(taller).text((8, canvas.height + 13), text, "white", font, anchor="lm")
    return taller


# -- the panel's tiles ------------------------------------------------------------------------------------------------


def _tile(shape: tuple[int, int], columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (height, width) of a picture of this shape in a row of so many tiles, and of the tile around it."""
    wide = (PANEL_WIDTH - GAP * (columns + 1)) // columns
    scale = min(wide / shape[1], 1.25 * wide / shape[0])
    size = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    return size, (max(size[0], 40), wide)


def _row(tiles: Sequence[tuple], size: tuple[int, int], tile: tuple[int, int]) -> np.ndarray:
    """Tiles (title, picture, colour of the title's mark or None) side by side: (h, PANEL_WIDTH, 3) uint8, white."""
    font, title_height = _font(20), 36
    canvas = Image.new("RGB", (PANEL_WIDTH, title_height + tile[0] + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (title, picture, mark) in enumerate(tiles):
        left = GAP + k * (tile[1] + GAP)
        indent = 24 if mark else 0
        if mark:
            draw.rounded_rectangle((left, 10, left + 16, 26), 3, mark)
        draw.text((left + indent, 18), _fitted(title, font, tile[1] - indent), DARK, font, anchor="lm")
        canvas.paste(DARK, (left, title_height, left + tile[1], title_height + tile[0]))
        canvas.paste(picture, (left + (tile[1] - size[1]) // 2, title_height + (tile[0] - size[0]) // 2))
    return np.asarray(canvas)


def _line(text: str) -> np.ndarray:
    """A line of text across the panel: (h, PANEL_WIDTH, 3) uint8."""
    canvas = Image.new("RGB", (PANEL_WIDTH, 36), "white")
    ImageDraw.Draw(canvas).text((GAP, 20), text, (96, 96, 104), _font(20), anchor="lm")
    return np.asarray(canvas)


def _stretched(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at another size, its finite values stretched to 0..1 (all 0 where it is constant)."""
    values = np.nan_to_num(values, nan=np.nanmin(values) if np.isfinite(values).any() else 0.0)
    method = Image.Resampling.BOX if size[0] < values.shape[0] else Image.Resampling.BICUBIC
    # Bicubic curves overshoot beside sharp peaks: without the clip, what is zero would not be black.
    values = np.clip(Image.fromarray(values).resize(size[::-1], method), values.min(), values.max())
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _heat_over(image: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A response map as heat over the grey picture: (h, w, 3) uint8."""
    heat = _stretched(response, image.shape[:2])
    tint = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    grey = image.mean(axis=2, keepdims=True)
    return np.rint(0.35 * grey + 0.65 * tint).astype(np.uint8)


def _heat(instance, size: tuple[int, int], image: np.ndarray, mark: tuple[int, int, int]) -> Image.Image:
    """A PRM as heat on black, a ring around its peak. The square root shows the faint outline beside strong pixels."""
    heat = np.sqrt(_stretched(_array(instance.prm), size))
    picture = Image.fromarray(np.rint(matplotlib.colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8))
    row, col = np.add(instance.peak, 0.5) * np.divide(size, image.shape[:2])
    ImageDraw.Draw(picture).ellipse((col - 8, row - 8, col + 8, row + 8), outline=mark, width=2)
    return picture
