"""Instances as COCO results, the JSON that pycocotools' `COCO.loadRes` reads and every COCO tool understands."""

import json
import math
import os
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from prm.files import atomic_write


def to_coco_results(
    segmentation, image_id: int, category_ids: Sequence[int], file_name: str, class_names: Sequence[str] | None = None
) -> list[dict]:
    """The instances of one picture as COCO results, in the order of `segmentation.instances`.

    image_id: the picture's id in the annotations that the results will be compared with.
    category_ids: for every label of the network, the category's id; `category_ids[instance.label]` is written.
    class_names: of the network; written where they are given.
    file_name: the picture's. `COCO.loadRes` wants a plain list at the file's top level, so each dict carries it.

    Each dict has the format's keys: image_id, category_id, segmentation {size [H, W], counts str}, score, and bbox
    [x, y, width, height] in pixels; and ours: confidence, peak [row, col] in pixels of the picture, proposal (its
    index), terms (the three of Eq. 6), file_name, category (its name). Infinity and NaN, which JSON cannot hold, become
    None, but a score -1e300.
    """
    results = []
    for instance in segmentation.instances:
        mask = np.asarray(instance.mask.masks().cpu(), dtype=np.uint8)[0]
        rle = coco_mask.encode(np.asfortranarray(mask))
        score = float(instance.score)
        results.append({
            "image_id": int(image_id),
            "category_id": int(category_ids[instance.label]),
            "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "bbox": [float(n) for n in coco_mask.toBbox(rle)],
            "score": score if math.isfinite(score) else -1e300,
            "confidence": _number(instance.confidence),
            "peak": [_number(n) for n in instance.peak],
            "proposal": int(instance.proposal),
            "terms": [_number(n) for n in instance.terms],
            "file_name": file_name,
        } | ({} if class_names is None else {"category": class_names[instance.label]}))
    return results


def write_results(path: str | os.PathLike, results: Sequence[dict]) -> None:
    """Write the COCO results of all pictures as one JSON array; a picture without instances leaves no trace.

    Raises InputError when the file cannot be written.
    """
    atomic_write(path, json.dumps(results, allow_nan=False, indent=1).encode())


def _number(value) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
