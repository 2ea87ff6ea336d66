"""What judging leaves of one picture: a record, kept in a file, of which every figure is made."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prm.files import atomic_write

from ..metrics import ImageRecord, ResponseRecord, failures

ANSWER = "prm: proposals"
"""The method's own answer; Table 4's last row, and in Table 6 the first gallery."""
_BOXES = ("boxes", "box_labels", "box_difficult")


@dataclass(frozen=True, eq=False)
class Detections:
    """The K instances that one method finds in a picture with G true ones."""

    labels: np.ndarray
    """(K,) int64 classes."""
    scores: np.ndarray
    """(K,) float64."""
    areas: np.ndarray
    """(K,) int64 pixels."""
    void: np.ndarray
    """(K,) int64, how many of them are void."""
    common: np.ndarray
    """(K, G) int64 pixels in common with each true instance."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The G true instances of a picture, and the B boxes that its annotation has."""

    labels: np.ndarray
    """(G,) int64."""
    areas: np.ndarray
    """(G,) int64 pixels."""
    masks: list[dict]
    """G COCO run-length codes, then those of the crowd regions."""
    crowd_labels: np.ndarray
    """(Kc,) int64, crowd regions."""
    annotated_areas: np.ndarray
    """(G + Kc,) float64, COCO's `area`, or pixels."""
    reachable: np.ndarray
    """(G,) float64, the best overlap of any proposal."""


@dataclass(frozen=True, eq=False)
class Record:
    """All that the figures need of one picture."""

    name: str
    size: tuple[int, int]
    present: np.ndarray
    """(C,) int8: 1 present, 0 absent, -1 nobody says."""
    boxes: np.ndarray | None
    """(B, 4) float64 x0, y0, x1, y1; None where there are none, as for the next two."""
    box_labels: np.ndarray | None
    box_difficult: np.ndarray | None
    scores: np.ndarray | None = None
    """(C,) float64 class scores before the sigmoid; None without a network, as for the next one."""
    points: np.ndarray | None = None
    """(C, 2) int64 x, y of each class's strongest response, pixels of the picture."""
    truth: Truth | None = None
    """None where the data set has no masks of this picture; what follows is then empty."""
    answers: dict[str, Detections] = field(default_factory=dict)
    peaks: int = 0
    """How many were walked back from."""
    on_truth: np.ndarray | None = None
    """(K,) bool, whether the peak of each instance of the own answer lies on a true instance of its class."""
    masks: list[dict] = field(default_factory=list)
    """COCO run-length codes of the method's own answer."""
    masks_known: list[dict] | None = None
    """The same without void pixels; None where there are none."""
    quality: dict[str, np.ndarray] = field(default_factory=dict)
    """The fields of a `ResponseRecord`, and `known`: q without void pixels."""
    confusion: np.ndarray | None = None
    """(C + 1, C + 1) int64 pixels, truth by prediction."""
    proposals: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: proposals, forward, peaks, walk, retrieval (of the own answer), judging (the rest)."""


# ---- as the metrics want it


def image_record_of(one: Record, method: str = ANSWER, void: bool = False) -> ImageRecord:
    """The record for mAP^r and ABO. void: clear void pixels from the predictions first."""
    found, truth = one.answers[method], one.truth
    areas = found.areas - found.void if void else found.areas
    union = areas[:, None] + truth.areas[None, :] - found.common
    return ImageRecord(found.common / np.maximum(union, 1), found.labels, found.scores, truth.labels)


def response_record_of(one: Record, known: bool = False) -> ResponseRecord:
    """The record for the maps' quality. known: with void pixels left out of both sums."""
    fields = dict(one.quality)
    without_void = fields.pop("known")
    return ResponseRecord(**fields | ({"q": without_void} if known else {}))


def failures_of(one: Record):
    """What became of each true instance and each prediction; see `metrics.failures`."""
    found, truth = one.answers[ANSWER], one.truth
    return failures(found.common, found.areas, found.labels, found.scores, truth.areas, truth.labels)


# ---- as a file


def save_record(path: Path, one: Record) -> None:
    """Write the file whole or not at all; InputError where it cannot be written."""
    page = {name: getattr(one, name) for name in ("name", "size", "proposals", "peaks", "seconds", "masks",
                                                  "masks_known")}  # fmt: skip
    arrays = {name: getattr(one, name) for name in ("scores", "present", "points", "on_truth", "confusion", *_BOXES)}
    arrays |= {f"quality/{name}": value for name, value in one.quality.items()}
    if one.truth is not None:
        page["truth"] = one.truth.masks
        arrays |= {f"truth/{name}": value for name, value in vars(one.truth).items() if name != "masks"}
    for method, found in one.answers.items():
        arrays |= {f"answers/{method}/{name}": value for name, value in vars(found).items()}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    atomic_write(path, lambda file: np.savez_compressed(file, page=json.dumps(page), **arrays))


def load_record(path: Path) -> Record | None:
    """The record in a file, or None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        page = json.loads(str(arrays.pop("page")))
        groups: dict = {"truth": {}, "quality": {}, "answers": {}}
        for name in [name for name in arrays if "/" in name]:
            group, *path_in = name.split("/")
            into = groups[group] if len(path_in) == 1 else groups[group].setdefault(path_in[0], {})
            into[path_in[-1]] = arrays.pop(name)
        truth = Truth(masks=page.pop("truth"), **groups["truth"]) if "truth" in page else None
        answers = {method: Detections(**fields) for method, fields in groups["answers"].items()}
        arrays = {name: None for name in _BOXES} | arrays
        page["size"] = tuple(page["size"])
        return Record(**page, **arrays, truth=truth, quality=groups["quality"], answers=answers)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
