"""Pseudo labels for a whole data set: from a network, its peaks and proposals to masks that a student is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from prm import InputError
from prm.accelerated import Proposals, Segmenter
from prm.accelerated.pseudo_labels import assign, gradient_maps, seed_map, seeds_of, strongest_pixels
from prm.accelerated.retrieval import choose, fit
from prm.accelerated.segmenter import Instance, Segmentation
from prm.accelerated.students.segmenter import StudentSegmenter, middle, wants_proposals
from prm.files import atomic_write, json_bytes, reason
from prm.settings import LabelSettings

from .datasets.pseudo_labels import (
    FORMAT,
    LABELS,
    SEEDS,
    SOURCE,
    Drawable,
    Labelled,
    hash_of,
    load_labels,
    picture_file,
    read_page,
    save_labels,
)
from .judging.run import share_of_processes, wait_for_all
from .pictures.figures import overlay, write_png
from .pictures.gallery import Entry, gallery, instance_rows
from .pictures.pipeline import in_order, threads

Seeds = Mapping[str, np.ndarray]
"""Picture's name -> (s, 3) int64 rows (row, column, class + 1)."""


# ---- one picture


def label_picture(
    segmenter: Segmenter | StudentSegmenter | None, sample, proposals: Proposals | None, settings: LabelSettings,
    seeds: np.ndarray | None = None,
) -> Drawable:  # fmt: skip
    """The pseudo labels of a picture with the image-level labels that it has.

    proposals : with objectness; a student needs none
    seeds : (s, 3) rows (row, column, class + 1), which need no segmenter; None finds them
    """
    if isinstance(segmenter, StudentSegmenter):
        return _answers(segmenter, sample)
    if settings.method == "prm":
        return _instances(segmenter, sample, proposals)
    found = _seeds(segmenter, sample, settings) if seeds is None else torch.from_numpy(seeds)
    labels = assign(proposals, found.cpu())
    used, holds = labels.probabilities.any(0).nonzero()[:, 0], labels.probabilities > 0
    place = torch.zeros(len(proposals), dtype=torch.int64)
    place[used] = torch.arange(len(used))
    which, candidates = holds.nonzero(as_tuple=True)
    law = torch.nn.functional.pad(torch.bincount(which, minlength=len(holds)).cumsum(0), (1, 0))
    seen = found[labels.seeds.to(found.device)]
    return _drawable(proposals.select(used), seen, labels.scores, place[labels.proposals], law, place[candidates],
                     labels.probabilities[holds], len(found))  # fmt: skip


def _seeds(segmenter: Segmenter, sample, settings: LabelSettings) -> Tensor:
    walked = segmenter.look(sample.image, labels=None if settings.ungated else sample.labels)
    maps = walked.prms
    if settings.maps == "gradient":
        if segmenter.classes.members is not None or segmenter.settings.views > 1:
            raise InputError("--maps gradient is of a network's own classes and one view: leave out --classes, --views")
        inputs = segmenter.network_input(sample.image)
        maps = gradient_maps(segmenter.backprop.model, inputs, walked.peaks, segmenter.settings.upsample)
    return seeds_of(seed_map(walked.peaks, maps, walked.size))


def _instances(segmenter: Segmenter, sample, proposals: Proposals) -> Drawable:
    """Algorithm 1's instances."""
    walked = segmenter.look(sample.image, labels=sample.labels)
    choice = choose(walked, fit(walked, proposals, segmenter.settings), segmenter.settings)
    pixels, labels = strongest_pixels(walked.prms[choice.peaks], walked.size), walked.peaks[choice.peaks, :1]
    masks = proposals.select(choice.proposals.cpu())
    return _alone(masks, torch.cat([pixels, labels + 1], 1), choice.scores, len(walked.peaks))


def _answers(segmenter: StudentSegmenter, sample) -> Drawable:
    """A student's instances of the picture's classes; a seed is the middle one of an instance's pixels."""
    found = segmenter.find(sample.image)
    own = np.flatnonzero(np.isin(found.labels, sample.labels))
    masks = found.masks.select(torch.from_numpy(own))
    rows = [(*map(int, middle(masks, k)), label + 1) for k, label in enumerate(found.labels[own].tolist())]
    seeds = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
    return _alone(masks, seeds, torch.from_numpy(found.scores[own]), len(own))


def _alone(masks: Proposals, seeds: Tensor, scores: Tensor, found: int) -> Drawable:
    """Labels of which each has itself alone to be drawn."""
    each, one = torch.arange(len(seeds)), torch.ones(len(seeds), dtype=torch.float64)
    return _drawable(masks, seeds, scores, each, torch.arange(len(seeds) + 1), each, one, found)


def _drawable(masks: Proposals, *columns) -> Drawable:
    seeds, scores, best, law, candidates, probabilities = (column.cpu().numpy() for column in columns[:-1])
    runs = (part.cpu().numpy() for part in (masks.starts, masks.ends, masks.offsets))
    return Drawable(seeds, scores, best, *runs, law, candidates, probabilities, np.array(columns[-1]))


# ---- a data set


@dataclass(frozen=True)
class Summary:
    """What became of a data set.

    pictures : how many are labelled; seeds : how many there were; labels : class name -> how many
    without_seed : pairs of a picture and a class that it is labelled with, and for which no seed was found
    pairs : how many such pairs there are; missing : names of pictures that failed
    """

    pictures: int
    seeds: int
    labels: Counter
    without_seed: int
    pairs: int
    missing: list[str]


def label_dataset(
    segmenter: Segmenter | StudentSegmenter | None,
    samples: Sequence,
    class_names: Sequence[str],
    propose: Callable,
    out: Path,
    about: dict,
    settings: LabelSettings,
    seeds: Seeds | None = None,
    drawings: int = 60,
    tick: Callable[[], None] = lambda: None,
    failed: Callable[[str], None] = lambda line: None,
) -> Summary | None:
    """Label every picture of a data set, or one process's share of it, and write the folder `out`, see
    `datasets.pseudo_labels`; what is done is not done again. None in all but the first process of a torchrun.

    about: what decides about the labels, JSON; with "data", the path of the data set, and "split". propose: sample to
    proposals with objectness. seeds: of each picture, instead of a network's. drawings: most pictures on the page.
    failed: called with a line for each picture that cannot be used; it is left out.
    """
    page = {"format_of_labels": FORMAT, "class_names": list(class_names)} | about
    _check_same(out / SOURCE, page)
    rank, processes = share_of_processes()
    if not (out / SOURCE).exists():
        atomic_write(out / SOURCE, json_bytes(page))
    numbers = range(rank, len(samples), processes)
    propose = propose if wants_proposals(segmenter) else lambda sample: None
    waiting = [k for k in numbers if load_labels(picture_file(out, k)) is None]
    for _ in range(len(numbers) - len(waiting)):
        tick()
    with threads(1) as (before,):
        for k, prepared in zip(waiting, in_order(before, partial(_prepare, propose), (samples[k] for k in waiting))):
            try:
                if isinstance(prepared, str):
                    raise InputError(prepared)
                sample, proposals = prepared
                own = None if seeds is None else _seeds_of(seeds, sample, len(class_names))
                one = Labelled(sample.name, sample.image.shape[:2], hash_of(sample.image), tuple(sample.labels),
                               label_picture(segmenter, sample, proposals, settings, own))  # fmt: skip
                save_labels(picture_file(out, k), one)
            except (InputError, ValueError, MemoryError) as error:  # ValueError: response maps that are not finite
                failed(reason(error))
            tick()
    wait_for_all(processes)
    return None if rank else _finish(out, page, samples, class_names, drawings)


def _check_same(path: Path, page: dict) -> None:
    """A folder goes on as it began."""
    if path.exists():
        begun = read_page(path)
        other = [key for key in page if begun.get(key) != json.loads(json.dumps(page[key])) and key != "command"]
        if other:
            raise InputError(f"{path.parent}: holds labels made with other {', '.join(other)}; name another folder")


def _prepare(propose: Callable, sample) -> tuple | str:
    """The sample with its picture read, and its proposals; or why that cannot be had."""
    try:
        _ = sample.image
        return sample, propose(sample)
    except (InputError, MemoryError) as error:
        text = reason(error)
        return text if sample.name in text else f"{sample.name}: {text}"


def _seeds_of(seeds: Seeds, sample, classes: int) -> np.ndarray:
    found, (H, W) = seeds.get(sample.name, np.zeros((0, 3), np.int64)), sample.image.shape[:2]
    if len(found) and not ((found >= [0, 0, 1]) & (found < [H, W, classes + 1])).all():
        raise InputError(f"{sample.name}: a seed lies outside of the picture, {H} x {W}, or has a class not from 1 on")
    return found


def _finish(out: Path, page: dict, samples, class_names: Sequence[str], drawings: int) -> Summary:
    """Write what sums the pictures up; source.json, which says that all is there, last."""
    images, annotations, records, listed, missing = [], [], {}, [], []
    counts, seeds, without, pairs = Counter({name: 0 for name in class_names}), 0, 0, 0
    for k in range(len(samples)):
        one = load_labels(picture_file(out, k))
        if one is None:
            missing.append(samples[k].name)
            continue
        labels = one.drawable.seeds[:, 2].tolist()
        size = {"height": one.size[0], "width": one.size[1]}
        images.append({"id": k + 1, "file_name": one.name} | size)
        annotations += _annotations(one, k + 1, len(annotations))
        records[one.name] = [_record(seed, one.size, n) for n, seed in enumerate(one.drawable.seeds.tolist())]
        counts.update(class_names[label - 1] for label in labels)
        seeds, pairs = seeds + int(one.drawable.found), pairs + len(one.labels)
        without += len(set(one.labels) - {label - 1 for label in labels})
        listed.append({"number": k, "name": one.name, "sha256": one.sha256,
                       "classes": sorted({class_names[label - 1] for label in labels})} | size)  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    atomic_write(out / LABELS, json.dumps(coco).encode())
    atomic_write(out / SEEDS, json_bytes({"class_names": list(class_names), "pictures": records}))
    step = max(1, -(-len(listed) // max(1, drawings)))
    _draw(out, page, [one["number"] for one in listed[::step]] if drawings else [], samples, class_names)
    atomic_write(out / SOURCE, json_bytes(page | {"pictures": listed}))
    return Summary(len(listed), seeds, counts, without, pairs, missing)


def _annotations(one: Labelled, image: int, before: int) -> list[dict]:
    """COCO's annotations of a picture's labels, numbered from `before` + 1 on."""
    found, drawable = [], one.drawable
    for n, (best, label) in enumerate(zip(drawable.best, drawable.seeds[:, 2].tolist())):
        mask = drawable.masks([best], one.size)[0]
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        found.append({
            "id": before + n + 1, "image_id": image, "category_id": label, "iscrowd": 0,
            "score": float(drawable.scores[n]), "area": int(mask.sum()),
            "bbox": [float(side) for side in coco_mask.toBbox(code)],
            "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode("ascii")},
        })  # fmt: skip
    return found


def _record(seed: list[int], size: tuple[int, int], number: int) -> dict:
    row, column, label = seed
    return {"class": label, "x": column / size[1], "y": row / size[0], "W": size[1], "H": size[0], "number": number,
            "row": row, "column": column}  # fmt: skip


def read_seeds(path: Path) -> Seeds:
    """The seeds of a file, seeds.json or one with x, y, W and H alone: these are rounded to pixels, halves to even.

    Raises InputError, naming the picture, for what cannot be one.
    """
    try:
        pictures = json.loads(path.read_bytes())["pictures"]
        found = {}
        for name, records in pictures.items():
            at = f" in {name}"
            rows = [(one.get("row", min(round(one["y"] * one["H"]), one["H"] - 1)),
                     one.get("column", min(round(one["x"] * one["W"]), one["W"] - 1)), one["class"])
                    for one in records]  # fmt: skip
            found[name] = np.array(rows, np.int64).reshape(-1, 3)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        where = locals().get("at", "")
        raise InputError(f"{path}: not a file of seeds ({reason(error)}{where}); prm label writes one") from error


def _draw(out: Path, page: dict, numbers: Sequence[int], samples, class_names: Sequence[str]) -> None:
    """The page of labels: pictures with their labels over them."""
    entries = []
    for k in numbers:
        one = load_labels(picture_file(out, k))
        order = np.argsort(-one.drawable.scores, kind="stable")
        masks = Proposals.from_masks(one.drawable.masks(one.drawable.best[order], one.size))
        nothing = torch.zeros(0, 0)
        instances = [
            Instance(label - 1, masks.select([n]), score, 1.0, (row, column), nothing, n, (0.0, 0.0, 0.0))
            for n, ((row, column, label), score) in enumerate(
                zip(one.drawable.seeds[order].tolist(), one.drawable.scores[order].tolist()))
        ]  # fmt: skip
        answer = Segmentation(one.size, torch.zeros(len(class_names), 1, 1), torch.zeros(len(class_names)), instances)
        file = out / "drawings" / f"{k:06d}.png"
        write_png(file, overlay(samples[k].image, answer, class_names))
        entries.append(Entry(one.name, overlay=file, instances=instance_rows(answer, class_names)))
    gallery(entries, out / "index.html", "Pseudo labels", {k: v for k, v in page.items() if k != "class_names"})
