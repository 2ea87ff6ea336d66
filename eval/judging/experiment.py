"""What the paper's tables need of every picture, computed in one pass and kept in a file a picture.

`study` takes one picture apart: class scores, the strongest response of each class, the quality of the Peak Response
Maps, and the instances that every method of Tables 4 to 6 finds, as pixel counts in common with the ground truth.
`studies` goes over a data set: finished pictures are kept, so that an interrupted run goes on where it was, and several
processes share the pictures of one run. The figures are made of these files alone (see `summary`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from prm import InputError
from prm.accelerated import Proposals, SegmentationSettings, Segmenter
from prm.accelerated.checkpoint import Checkpoint
from prm.accelerated.retrieval import suppression
from prm.files import atomic_write

from ..algorithm1 import Choice, Walk, choose, fit, respond, walk
from ..datasets.base import VOID
from ..metrics import confusion, merge_instances, response_record, strongest_points
from ..pipeline import in_order, threads
from .boxes import best_overlapping, cam_boxes, ellipses, enlarged, instance_boxes, peak_boxes, rectangles

VERSION = 1  # raised whenever the same picture and settings give another study

ANSWER = "prm: proposals"
"""The method's own answer; Table 4's last row, and in Table 6 the first gallery."""
ABLATED = {
    "prm: without the instance-aware term": (0, 1, 1),
    "prm: without the boundary-aware term": (1, 0, 1),
    "prm: without the class-aware term": (1, 1, 0),
}
GALLERIES = ("proposals", "proposals and truth", "truth")
TRUE_MASKS = "true masks"
BOX_SOURCES = ("ground truth", "CAM", "peaks")
BOX_MASKS = ("rectangle", "ellipse")


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
class Study:
    """All that the tables need of one picture."""

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


# ---- one picture


def study(segmenter: Segmenter | None, num_classes: int, prepared: tuple) -> Study:
    """Everything about one picture; prepared: (sample, its proposals or None, seconds they took).

    Without a segmenter only what the ground truth and the proposals say; without proposals only what needs no mask,
    and no walk.
    """
    sample, proposals, spent = prepared
    started = time.perf_counter()
    size = sample.image.shape[:2]
    present = np.zeros(num_classes, dtype=np.int8)
    present[list(sample.labels)], present[list(sample.difficult)] = 1, -1
    one = Study(sample.name, tuple(size), present, sample.boxes, sample.box_labels, sample.box_difficult)
    if segmenter is not None:
        found = None if proposals is None else walk(segmenter, sample.image)
        maps, scores = respond(segmenter, sample.image) if found is None else (found.maps, found.scores)
        maps = enlarged(maps, size)
        one = replace(one, scores=scores.double().cpu().numpy(), points=strongest_points(maps))
    if proposals is not None:
        truth = Proposals.from_masks(torch.from_numpy(sample.masks))
        void = None if sample.void is None else Proposals.from_masks(torch.from_numpy(sample.void)[None])
        galleries = dict(zip(GALLERIES, (proposals, Proposals.concatenate([proposals, truth]), truth)))
        answers = _of_truth(sample, truth, galleries)
        if segmenter is not None:
            answers |= _of_network(segmenter.settings, found, maps, one.scores, galleries)
            own = answers[ANSWER]
            quality, merged = _quality(found, truth, void, sample.mask_labels), _confusion(own, sample, num_classes)
            masks = own[0].masks().numpy()
            known = None if sample.void is None else _codes(masks & ~sample.void)
            one = replace(one, masks=_codes(masks), masks_known=known, quality=quality, confusion=merged)
        answers = {name: _detections(*answer, truth, void) for name, answer in answers.items()}
        one = replace(one, truth=_truth(sample, truth, proposals), answers=answers, proposals=len(proposals))
    return replace(one, seconds={"proposals": spent, "study": time.perf_counter() - started})


def _of_truth(sample, truth: Proposals, galleries: dict[str, Proposals]) -> dict[str, tuple]:
    """The rows of Tables 4 and 6 that need no network: masks, labels (K,), scores (K,)."""
    labels, ones = sample.mask_labels, np.ones(len(truth))
    nearest = {f"{TRUE_MASKS}: {name}": _nearest(truth, gallery, labels, ones) for name, gallery in galleries.items()}
    return nearest | _of_boxes(BOX_SOURCES[0], (instance_boxes(sample.masks), labels, ones), galleries)


def _of_network(settings: SegmentationSettings, found: Walk, maps, scores, galleries) -> dict[str, tuple]:
    """The other rows of Tables 4 to 6: masks, labels (K,), scores (K,)."""
    answers = {}
    for name, gallery in galleries.items():
        fitted = fit(found, gallery, settings)
        answers[f"prm: {name}"] = _chosen(gallery, choose(found, fitted, settings))
        if name == GALLERIES[0]:
            for without, keep in ABLATED.items():
                answers[without] = _chosen(gallery, choose(found, fitted, settings, keep))
    size = maps.shape[1:]
    answers |= _of_boxes(BOX_SOURCES[1], cam_boxes(maps, scores, settings.class_threshold), galleries)
    return answers | _of_boxes(BOX_SOURCES[2], _without_rivals(*peak_boxes(maps, found), settings, *size), galleries)


def _of_boxes(source: str, given: tuple, galleries: dict[str, Proposals]) -> dict[str, tuple]:
    """Every mask that is made from boxes; given: boxes (B, 4), labels (B,), scores (B,)."""
    boxes, labels, scores = given
    size = next((gallery.height, gallery.width) for gallery in galleries.values())
    filled = rectangles(boxes, *size)
    answers = dict(zip(BOX_MASKS, ((filled, labels, scores), (ellipses(boxes, *size), labels, scores))))
    answers |= {name: _nearest(filled, gallery, labels, scores) for name, gallery in galleries.items()}
    return {f"{source}: {name}": answer for name, answer in answers.items()}


def _nearest(masks: Proposals, gallery: Proposals, labels: np.ndarray, scores: np.ndarray) -> tuple:
    """The gallery's masks of highest IoU instead of the masks; a gallery of none has nothing to offer."""
    some = slice(None) if len(gallery) else slice(0)
    return best_overlapping(masks, gallery), labels[some], scores[some]


def _chosen(gallery: Proposals, choice: Choice) -> tuple[Proposals, np.ndarray, np.ndarray]:
    return gallery.select(torch.from_numpy(choice.proposals)), choice.labels, choice.scores


def _without_rivals(boxes, labels, scores, settings: SegmentationSettings, height: int, width: int) -> tuple:
    """Peaks of one object give one box twice: of boxes of one class that overlap, the strongest stays."""
    overlap = rectangles(boxes, height, width).ious() >= settings.nms
    corners = torch.from_numpy(np.asarray(boxes)[:, :2])
    left = list(suppression(overlap, torch.from_numpy(scores), torch.from_numpy(labels), corners, per_class=True))
    return boxes[left], labels[left], scores[left]


def _detections(masks: Proposals, labels, scores, truth: Proposals, void: Proposals | None) -> Detections:
    areas = masks.areas().numpy()
    on_void = np.zeros_like(areas) if void is None else masks.intersections(void)[:, 0].numpy()
    return Detections(np.asarray(labels, np.int64), np.asarray(scores, np.float64), areas, on_void,
                      masks.intersections(truth).numpy())  # fmt: skip


def _truth(sample, truth: Proposals, proposals: Proposals) -> Truth:
    crowd, crowd_labels = (np.zeros((0, *sample.masks.shape[1:]), bool), np.zeros(0, np.int64))
    if sample.crowd is not None:
        crowd, crowd_labels = sample.crowd
    areas = truth.areas().numpy()
    annotated = areas if sample.areas is None else sample.areas
    best = proposals.ious(truth).amax(dim=0).numpy() if len(proposals) else np.zeros(len(areas))
    return Truth(sample.mask_labels, areas, _codes(sample.masks) + _codes(crowd), crowd_labels,
                 np.concatenate([annotated, crowd.sum(axis=(1, 2))]).astype(np.float64), best)  # fmt: skip


def _codes(masks: np.ndarray) -> list[dict]:
    """COCO run-length codes of masks (K, H, W) bool."""
    codes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(n) for n in code["size"]], "counts": code["counts"].decode("ascii")} for code in codes]


def _quality(found: Walk, truth: Proposals, void: Proposals | None, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The maps' quality, at their own size: the network's input."""
    size, prms = tuple(found.prms.shape[1:]), found.prms.cpu().numpy()
    masks = truth.resized(*size).masks().numpy()
    unknown = None if void is None else void.resized(*size).masks().numpy()[0]
    given = prms, found.peaks[:, 0].cpu().numpy(), found.response.double().cpu().numpy(), masks, labels, unknown
    kept = response_record(*given)
    known = kept if void is None else response_record(*given, void_rule="drop")
    return {name: np.asarray(value) for name, value in vars(kept).items()} | {"known": known.q}


def _confusion(own: tuple, sample, num_classes: int) -> np.ndarray:
    masks, labels, scores = own
    predicted = merge_instances(masks.masks().numpy(), labels, scores, sample.masks.shape[1:])
    true = sample.semantic
    if true is None:
        true = merge_instances(sample.masks, sample.mask_labels, np.zeros(len(sample.masks)), sample.masks.shape[1:])
        if sample.void is not None:
            true[sample.void] = VOID
        if sample.crowd is not None:  # who is there is not told apart, but it is no background
            true[sample.crowd[0].any(axis=0) & (true == 0)] = VOID
    return confusion(predicted, np.asarray(true, dtype=np.int64), num_classes)


# ---- a data set


def studies(
    segmenter: Segmenter | None,
    samples: Sequence,
    num_classes: int,
    propose: Callable | None,
    folder: Path,
    share: tuple[int, int] = (0, 1),
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Study all pictures of a data set, or one process's share of them; what `folder` holds already is not done again.

    propose: sample -> Proposals; called one picture ahead, in another thread. None leaves masks alone. share: (k, n),
    every n-th picture from the k-th on. tick: called after every picture. Raises InputError for what cannot be read or
    written.
    """
    numbers = range(share[0], len(samples), share[1])
    missing = [k for k in numbers if _load(_file(folder, k)) is None]
    for _ in range(len(numbers) - len(missing)):
        tick()
    with threads(1) as (before,):
        prepared = in_order(before, partial(_prepare, propose), (samples[k] for k in missing))
        for k, one in zip(missing, prepared):
            _save(_file(folder, k), study(segmenter, num_classes, one))
            tick()


def load_studies(folder: Path, count: int) -> Iterator[Study]:
    """The studies of all pictures, in the data set's order; InputError where one is missing."""
    for k in range(count):
        found = _load(_file(folder, k))
        if found is None:
            raise InputError(f"{_file(folder, k)}: missing or damaged; run the evaluation again, it fills the gap")
        yield found


def run_folder(work: Path, description: dict) -> Path:
    """Where the studies of one run are kept: a folder named by what decides about them, with a `run.json` that says it.

    description: JSON; everything that the answers depend on.
    """
    page = json.dumps({"version": VERSION} | description, sort_keys=True, indent=1)
    folder = work / hashlib.sha256(page.encode()).hexdigest()[:16]
    if not (folder / "run.json").exists():
        atomic_write(folder / "run.json", page.encode())
    return folder


def fingerprint(checkpoint: Checkpoint, settings: SegmentationSettings) -> dict:
    """What a network's answers depend on: its settings and input, and a hash of all its parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    made = {"network": checkpoint.network, "input": checkpoint.input, "aggregation": checkpoint.aggregation}
    return {"parameters": digest.hexdigest(), "settings": asdict(settings), **made}


def _prepare(propose: Callable | None, sample) -> tuple:
    """The sample with its picture and annotation read, its proposals (None where no mask is to be judged), and the
    seconds that they took."""
    started = time.perf_counter()
    _ = sample.image, sample.boxes  # read when first asked for: here, and not while the walk waits
    proposals = None if propose is None or sample.masks is None else propose(sample)
    return sample, proposals, time.perf_counter() - started


# ---- files


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _save(path: Path, one: Study) -> None:
    page = {"name": one.name, "size": one.size, "proposals": one.proposals, "seconds": one.seconds, "masks": one.masks,
            "masks_known": one.masks_known}  # fmt: skip
    arrays = {name: getattr(one, name) for name in ("scores", "present", "points", "confusion", *_BOXES)}
    arrays |= {f"quality/{name}": value for name, value in one.quality.items()}
    if one.truth is not None:
        page["truth"] = one.truth.masks
        arrays |= {f"truth/{name}": value for name, value in vars(one.truth).items() if name != "masks"}
    for method, found in one.answers.items():
        arrays |= {f"answers/{method}/{name}": value for name, value in vars(found).items()}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    atomic_write(path, lambda file: np.savez_compressed(file, page=json.dumps(page), **arrays))


_BOXES = ("boxes", "box_labels", "box_difficult")


def _load(path: Path) -> Study | None:
    """The study in a file, or None if there is none or it is damaged."""
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
        return Study(**page, **arrays, truth=truth, quality=groups["quality"], answers=answers)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


# ---- several processes


def share_of_processes() -> tuple[int, int]:
    """(rank, number of processes) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all(processes: int) -> None:
    """Returns once every process of a torchrun has come here."""
    if processes > 1:
        from datetime import timedelta

        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        dist.barrier()
