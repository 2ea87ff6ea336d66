"""Drawn scenes with exact masks, for trying everything without a download.

A scene shows textured discs, squares, triangles, stars and crosses of many sizes, tilts and colours, overlapping, on a
cluttered ground, among blobs and bars that belong to no class. The class is the shape alone: colours and textures are
drawn independently of it. Objects are mostly lighter than the ground and tilted by less than 30 degrees, which is what
lets a small network learn the shapes from some hundred scenes in minutes.

Scene i of a split depends on (seed, split, i) only, so a larger set starts with the smaller one. On disk each split is
a folder dataset (see `folder`):

    scenes/synthetic.json                  what was drawn: seed, counts, size, version, class names; written last
    scenes/train/labels.csv, classes.txt   image-level labels
    scenes/train/train_00000.png ...       the pictures
    scenes/train/instances.json            instance masks in COCO's format, for evaluation only
    scenes/val/...
"""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prm import InputError
from prm.files import atomic_write, reason

from .base import Sample, check_split, existing, refuse
from .folder import FolderDataset

CLASS_NAMES = ("disc", "square", "triangle", "star", "cross")
SPLITS = ("train", "val")
VERSION = 1  # of the drawing: raise it with every change that alters a scene

_OVERSAMPLE = 4  # outlines are drawn this much larger, then averaged down, for smooth edges
_MIN_VISIBLE = 0.55  # of an instance's own area must stay uncovered
_MIN_CONTRAST = 100.0  # distance of an object's mean colour from what it covers, in RGB units of 0..255


@dataclass(frozen=True)
class Scene:
    """One drawn scene."""

    image: np.ndarray
    """(size, size, 3) uint8, RGB."""
    masks: np.ndarray
    """(K, size, size) bool, the visible pixels of each instance, disjoint."""
    labels: np.ndarray
    """(K,) int64 indices into `CLASS_NAMES`."""


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` is a folder with synthetic.json."""
    return (path / "synthetic.json").is_file()


def make_synthetic(out, train: int = 600, val: int = 200, seed: int = 0, size: int = 128) -> Path:
    """Writes `train` and `val` scenes of size×size pixels into the folder `out`, and returns its path.

    A folder that already holds exactly this set is left as it is. Anything else in `out`, counts below 1, a negative
    seed or a size below 48 raise `prm.InputError`.
    """
    out = Path(out).expanduser()
    if train < 1 or val < 1 or seed < 0 or size < 48:
        raise InputError(f"train={train}, val={val}, seed={seed}, size={size}: counts >= 1, seed >= 0, size >= 48")
    record = {
        "version": VERSION, "seed": seed, "train": train, "val": val, "size": size, "class_names": list(CLASS_NAMES)
    }  # fmt: skip
    if out.exists():
        if (out / "synthetic.json").is_file() and _read_record(out / "synthetic.json") == record:
            return out
        if not out.is_dir() or any(out.iterdir()):
            raise InputError(f"{out}: already exists and is not this set; name a new folder or delete it")
    # Drawn beside its place and then moved there, so that an interrupted run is simply begun again.
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for split, count in zip(SPLITS, (train, val)):
            _write_split(partial / split, split, count, seed, size)
        atomic_write(partial / "synthetic.json", (json.dumps(record, indent=1) + "\n").encode())
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}); name another place or make room") from error
    return out


class SyntheticDataset:
    """Scenes written by `make_synthetic`: split "train", "val", or None for both, one after the other.

    `report` is what to do with a bad line or a wrong count; by default it is raised.

    Raises: `prm.InputError` if the folder is incomplete or its contents do not fit `class_names`.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        path = existing(path)
        check_split(path, split, SPLITS)
        if not (path / "synthetic.json").is_file():
            raise InputError(f"{path}: has no synthetic.json; write the scenes again (an interrupted run leaves none)")
        record = _read_record(path / "synthetic.json")
        self._parts = [FolderDataset(path, part, class_names, report) for part in SPLITS if split in (None, part)]
        expected = sum(record[part] for part in SPLITS if split in (None, part))
        if len(self) != expected:
            report(InputError(f"{path}: holds {len(self)} scenes, synthetic.json says {expected}; write them again"))
        self.class_names = self._parts[0].class_names

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        for part in self._parts[:-1]:
            if index < len(part):
                return part[index]
            index -= len(part)
        return self._parts[-1][index]


def draw_scene(seed: int, index: int, size: int = 128, split: str = "train") -> Scene:
    """Scene `index` of a split: 1-3 classes, up to 6 instances, up to 2 distractors; see the module's text."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _ground(rng, size)
    classes = rng.permutation(len(CLASS_NAMES))[: rng.integers(1, 4)]
    # Every chosen class once, then in any order a few more of the same classes, and distractors, which are None.
    more = [*map(int, rng.choice(classes, rng.integers(0, 4))), *[None] * int(rng.integers(0, 3))]
    wanted = [*map(int, classes), *(more[i] for i in rng.permutation(len(more)))]
    owner = np.full((size, size), -1)  # which object is visible at a pixel
    areas, labels = [], []
    for label in wanted:
        cover = _place(rng, label, owner, areas)
        if cover is None:
            continue
        canvas += cover[..., None] * (_texture(rng, size, canvas[cover > 0.5].mean(0)) - canvas)
        owner[cover > 0.5] = len(areas)
        areas.append(int(np.count_nonzero(cover > 0.5)))
        labels.append(label)
    canvas += rng.normal(0, rng.uniform(2, 8), canvas.shape)
    kept = [k for k, label in enumerate(labels) if label is not None]
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        masks=np.stack([owner == k for k in kept]),
        labels=np.array([labels[k] for k in kept], dtype=np.int64),
    )


def _place(rng, label: int | None, owner: np.ndarray, areas: list[int]) -> np.ndarray | None:
    """Coverage 0..1 (size, size) of a new object at a place where all earlier ones stay visible enough, or None."""
    size = len(owner)
    visible = np.bincount(owner[owner >= 0], minlength=len(areas))
    for _ in range(12):
        radius = size * rng.uniform(0.11, 0.21)
        center = rng.uniform(radius, size - radius, 2)
        cover = _rasterise(center + radius * _outline(rng, label), size)
        hidden = np.bincount(owner[(owner >= 0) & (cover > 0.5)], minlength=len(areas))
        if np.all(visible - hidden >= _MIN_VISIBLE * np.array(areas)):
            return cover
    return None


def _outline(rng, label: int | None) -> np.ndarray:
    """(V, 2) polygon about the origin, of radius about 1, slightly stretched and tilted at random."""
    if label is None:
        points = _distractor(rng)
    else:
        points = _OUTLINES[CLASS_NAMES[label]]
    points = points * [1.0, rng.uniform(0.85, 1.0)]
    angle = rng.uniform(-0.5, 0.5)  # radians
    return points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _distractor(rng) -> np.ndarray:
    """A wavy blob or a long bar: as large as the shapes and of no class."""
    if rng.random() < 0.4:
        half = rng.uniform(0.18, 0.35)
        return np.array([(1.2, half), (1.2, -half), (-1.2, -half), (-1.2, half)])
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = sum(rng.uniform(0.15, 0.3) * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3))
    return _polar(0.9 + waves)


def _polar(radii: np.ndarray) -> np.ndarray:
    """(V, 2) points at equal angles and the given radii."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _rasterise(points: np.ndarray, size: int) -> np.ndarray:
    """Coverage 0..1 (size, size) of a polygon given in pixels, (x, y)."""
    image = Image.new("L", (size * _OVERSAMPLE,) * 2)
    ImageDraw.Draw(image).polygon([tuple(point) for point in points * _OVERSAMPLE], fill=255)
    return np.asarray(image.reduce(_OVERSAMPLE), dtype=np.float64) / 255


def _texture(rng, size: int, ground: np.ndarray) -> np.ndarray:
    """(size, size, 3) of two random colours in a random pattern; their mean stands out from the colour `ground`."""
    while True:
        first, second = rng.uniform(60, 255, (2, 3))
        second = first + 0.3 * (second - first)
        if np.linalg.norm((first + second) / 2 - ground) >= _MIN_CONTRAST:
            break
    return first + _pattern(rng, size)[..., None] * (second - first)


def _pattern(rng, size: int) -> np.ndarray:
    """(size, size) in 0..1: plain, a gradient, stripes, a checkerboard or smooth noise."""
    kind = rng.integers(5)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(4, 12), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:
        return np.full((size, size), 0.5)
    if kind == 1:
        return 0.5 + 0.5 * np.sin(along * np.pi / size + phase)
    if kind == 2:
        return (np.sin(2 * np.pi * along / period + phase) > 0).astype(float)
    if kind == 3:
        return (np.sin(2 * np.pi * along / period + phase) * np.sin(2 * np.pi * across / period) > 0).astype(float)
    return _smooth_noise(rng, size, int(rng.integers(12, 32)))


def _smooth_noise(rng, size: int, cells: int) -> np.ndarray:
    """(size, size) in 0..1, varying on the scale of size / cells pixels."""
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / 255


def _ground(rng, size: int) -> np.ndarray:
    """(size, size, 3) float: two colours mixed by coarse noise, a faint fine pattern, and thin lines."""
    first, second = rng.uniform(10, 120, (2, 3))
    second = first + 0.25 * (second - first)
    canvas = first + _smooth_noise(rng, size, int(rng.integers(2, 7)))[..., None] * (second - first)
    canvas += rng.uniform(0, 12) * (_pattern(rng, size) - 0.5)[..., None]
    lines = Image.new("L", (size, size))
    draw = ImageDraw.Draw(lines)
    for _ in range(rng.integers(0, 5)):
        draw.line([tuple(point) for point in rng.uniform(0, size, (2, 2))], fill=255, width=int(rng.integers(1, 3)))
    canvas += (np.asarray(lines) > 0)[..., None] * (rng.uniform(60, 255, 3) - canvas) * 0.5
    return canvas


_QUARTER_TURNS = [np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), k) for k in range(4)]
# The cross repeats the corners of one arm, (3, ±1) in thirds of an arm, and one inner corner every quarter turn.
_OUTLINES = {
    "disc": _polar(np.ones(48)),
    "square": _polar(np.full(4, 1.15)),
    "triangle": _polar(np.full(3, 1.3)),
    "star": _polar(np.tile([1.3, 0.55], 5)),
    "cross": np.concatenate([np.array([(3, -1), (3, 1), (1, 1)]) @ turn for turn in _QUARTER_TURNS]) / 2.7,
}


def _write_split(folder: Path, split: str, count: int, seed: int, size: int) -> None:
    """Pictures, label table and, in a file of its own, the masks of one split."""
    from pycocotools import mask as coco

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    images, annotations = [], []
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "labels"])
        for index in range(count):
            scene = draw_scene(seed, index, size, split)
            file = f"{split}_{index:05d}.png"
            Image.fromarray(scene.image).save(folder / file, compress_level=1)
            table.writerow([file, " ".join(CLASS_NAMES[c] for c in np.unique(scene.labels))])
            images.append({"id": index, "file_name": file, "height": size, "width": size})
            for mask, label in zip(scene.masks, scene.labels):
                code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotations.append({
                    "id": len(annotations) + 1, "image_id": index, "category_id": int(label) + 1, "iscrowd": 0,
                    "area": int(coco.area(code)), "bbox": coco.toBbox(code).tolist(),
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                })  # fmt: skip
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for split in SPLITS:
            record[split] + 0
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path}: not the record of a drawn set ({error!r}); write the scenes again") from None
    return record
