"""One picture judged: its record, from the five stages of Algorithm 1, the proposals and the ground truth."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask

from prm.accelerated import Proposals, Segmenter
from prm.accelerated.retrieval import Choice
from prm.accelerated.stages import Walked
from prm.accelerated.students.segmenter import StudentSegmenter

from ..datasets.base import VOID
from ..metrics import confusion, merge_instances, response_record, strongest_points
from .answers import GALLERIES, chosen, of_network, of_truth
from .boxes import enlarged
from .record import ANSWER, Detections, Record, Truth


def judge_picture(
    segmenter: Segmenter | StudentSegmenter | None, num_classes: int, prepared: tuple, tables: bool = True
) -> Record:
    """The record of one picture; prepared: (sample, its proposals or None, seconds they took).

    Without a segmenter only what the ground truth and the proposals say; without proposals only what needs no mask,
    and no walk. tables: also what Tables 1 to 6 show beside the method's own answer. Of a student its own answer,
    which needs proposals only where it is refined.
    """
    sample, proposals, spent = prepared
    began, seconds = time.perf_counter(), {}
    if isinstance(segmenter, StudentSegmenter):
        found = segmenter.find(sample.image, proposals)
        seconds["student"] = time.perf_counter() - began
        one = of_predictions(sample, num_classes, (found.masks, found.labels, found.scores))
        scores = np.zeros(num_classes)
        np.maximum.at(scores, found.labels, found.scores)
        if tables and sample.masks is not None:
            one = _with_codes(one, found.masks.masks().numpy(), sample)
        rest = time.perf_counter() - began - seconds["student"]
        return replace(one, scores=scores, seconds={"proposals": spent, **seconds, "judging": rest})
    one, found, maps = _blank(sample, num_classes), None, None
    if segmenter is not None and proposals is None:
        responses = segmenter.respond([sample.image])
        one, maps = _responding(one, responses.maps[0], responses.scores[0], tables)
    elif segmenter is not None:
        (found,) = segmenter.stages([sample.image], [proposals])
        one, maps, seconds = *_responding(one, found.walked.maps, found.walked.scores, tables), found.seconds
    if proposals is not None:
        settings = segmenter and segmenter.settings
        one = _with_masks(one, sample, proposals, found, maps, settings, num_classes, tables)
    rest = time.perf_counter() - began - sum(seconds.values())
    return replace(one, seconds={"proposals": spent, **seconds, "judging": rest})


def of_predictions(sample, num_classes: int, found: tuple[Proposals, np.ndarray, np.ndarray]) -> Record:
    """The record of a picture's predicted instances; found: masks, labels (K,) and scores (K,)."""
    one = _blank(sample, num_classes)
    if sample.masks is None:
        return one
    truth = Proposals.from_masks(sample.masks)
    void = None if sample.void is None else Proposals.from_masks(sample.void[None])
    return replace(one, truth=_truth(sample, truth, found[0]), answers={ANSWER: _detections(*found, truth, void)})


def _blank(sample, num_classes: int) -> Record:
    """What is known of a picture before anything is looked for."""
    present = np.zeros(num_classes, dtype=np.int8)
    present[list(sample.labels)], present[list(sample.difficult)] = 1, -1
    size = tuple(sample.image.shape[:2])
    return Record(sample.name, size, present, sample.boxes, sample.box_labels, sample.box_difficult)


def _responding(one: Record, maps, scores, tables: bool) -> tuple[Record, np.ndarray | None]:
    """The record with what needs no peak; for tables the class response maps (C, H, W) at the picture's size."""
    one = replace(one, scores=scores.double().cpu().numpy())
    if not tables:
        return one, None
    large = enlarged(maps, one.size)
    return replace(one, points=strongest_points(large)), large


def _with_masks(one, sample, proposals, found, maps, settings, num_classes, tables) -> Record:
    """The record with all that is compared with true masks."""
    truth = Proposals.from_masks(sample.masks)
    void = None if sample.void is None else Proposals.from_masks(sample.void[None])
    galleries = dict(zip(GALLERIES, (proposals, Proposals.concatenate([proposals, truth]), truth)))
    answers = of_truth(sample, truth, galleries) if tables else {}
    if found is not None:
        answers[ANSWER] = own = chosen(found.walked, found.fitted, found.choice)
        one = replace(one, peaks=len(found.walked.leaked), on_truth=_on_truth(found.walked, found.choice, sample))
        if tables:
            answers |= of_network(settings, found.walked, found.fitted, maps, one.scores, galleries)
            masks = own[0].masks().numpy()
            one = replace(_with_codes(one, masks, sample),
                          quality=_quality(found.walked, truth, void, sample.mask_labels),
                          confusion=_confusion(own, masks, sample, num_classes))  # fmt: skip
    detections = {name: _detections(*answer, truth, void) for name, answer in answers.items()}
    return replace(one, truth=_truth(sample, truth, proposals), answers=detections, proposals=len(proposals))


def _with_codes(one: Record, masks: np.ndarray, sample) -> Record:
    """The record with the answer's own masks, and these without void pixels."""
    known = None if sample.void is None else _codes(masks & ~sample.void)
    return replace(one, masks=_codes(masks), masks_known=known)


def _detections(masks: Proposals, labels, scores, truth: Proposals, void: Proposals | None) -> Detections:
    areas = masks.areas().numpy()
    on_void = np.zeros_like(areas) if void is None else masks.intersections(void)[:, 0].numpy()
    return Detections(np.asarray(labels, np.int64), np.asarray(scores, np.float64), areas, on_void,
                      masks.intersections(truth).numpy())  # fmt: skip


def _on_truth(found: Walked, choice: Choice, sample) -> np.ndarray:
    labels = found.peaks[choice.peaks, 0].cpu().numpy()
    rows, columns = np.rint(found.positions[choice.peaks.cpu().numpy()]).astype(np.int64).T
    height, width = sample.image.shape[:2]
    under = sample.masks[:, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return (under & (sample.mask_labels[:, None] == labels)).any(axis=0)


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


def _quality(found: Walked, truth: Proposals, void: Proposals | None, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The maps' quality, at their own size: the network's input."""
    height, width = found.prms.shape[1:]
    masks = truth.resized(height, width).masks().numpy()
    unknown = None if void is None else void.resized(height, width).masks().numpy()[0]
    given = (found.prms.cpu().numpy(), found.peaks[:, 0].cpu().numpy(), found.response.double().cpu().numpy(), masks,
             labels, unknown)  # fmt: skip
    kept = response_record(*given)
    known = kept if void is None else response_record(*given, void_rule="drop")
    return {name: np.asarray(value) for name, value in vars(kept).items()} | {"known": known.q}


def _confusion(own: tuple, masks: np.ndarray, sample, num_classes: int) -> np.ndarray:
    _, labels, scores = own
    predicted = merge_instances(masks, labels, scores, sample.masks.shape[1:])
    true = sample.semantic
    if true is None:
        true = merge_instances(sample.masks, sample.mask_labels, np.zeros(len(sample.masks)), sample.masks.shape[1:])
        if sample.void is not None:
            true[sample.void] = VOID
        if sample.crowd is not None:  # who is there is not told apart, but it is no background
            true[sample.crowd[0].any(axis=0) & (true == 0)] = VOID
    return confusion(predicted, np.asarray(true, dtype=np.int64), num_classes)
