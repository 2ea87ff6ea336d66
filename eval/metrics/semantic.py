"""Semantic segmentation: instances merged into one map of classes, and its mean intersection over union.

In a map, 0 is the background and c + 1 is class c. The counts of all images are added up before anything is divided.
"""

from collections.abc import Sequence

import numpy as np

from prm import InputError

from .classification import defined_mean
from .masks import as_arrays, class_labels, common_size, finite_scores, one_each

VOID = 255


def merge_instances(masks, labels, scores, size: tuple[int, int] | None = None) -> np.ndarray:
    """The map of classes of one image from its instances; where they overlap the highest score wins, then the earlier.

    Arguments:
        masks: (K, H, W) bool, or a list of COCO run-length codes. labels: (K,) classes. scores: (K,) finite.
        size: (H, W); needed where there are no masks to tell it.

    Returns: (H, W) int64, 0 where no mask is.
    Raises: `prm.InputError` for numbers or sizes that differ, or no size at all.
    """
    labels, scores = class_labels(labels, "labels"), finite_scores(scores)
    one_each(len(masks), labels, scores, 0, labels[:0])
    shape = masks.shape[1:] if isinstance(masks, np.ndarray) and masks.ndim == 3 else common_size(masks=masks)
    shape = size if shape is None else shape
    if shape is None:
        raise InputError("there are no masks to tell the size of the image; give it as size")
    if size is not None and tuple(shape) != tuple(size):
        raise InputError(f"masks are {tuple(shape)} but the image is {tuple(size)}; they must be of one size")
    shape = tuple(shape)
    merged = np.zeros(shape, dtype=np.int64)
    # Painted from the last to the first in rank, so that the first stays on top.
    order = np.argsort(-scores, kind="stable")[::-1]
    for k, mask in zip(order, as_arrays(masks, shape)[order]):
        merged[mask] = labels[k] + 1
    return merged


def confusion(prediction, truth, num_classes: int, void: int = VOID) -> np.ndarray:
    """How many pixels of each true class (rows) are predicted as each class (columns), (C + 1, C + 1) int64.

    Arguments:
        prediction, truth: maps of classes of one size, whole numbers 0..C or `void`. Pixels whose truth is void are
            not counted; a prediction of void counts as background.
        num_classes: C, without the background.

    Add up the matrices of all images, each times its weight, for `mean_iou`.
    Raises: `prm.InputError` for shapes that differ or any other number.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise InputError(f"prediction has shape {prediction.shape} but truth {truth.shape}; they must be of one size")
    if 0 <= void <= num_classes:
        raise InputError(f"void is {void}, which is also one of the {num_classes} classes; choose another number")
    for name, values in (("prediction", prediction), ("truth", truth)):
        wrong = (values != void) & ((values < 0) | (values > num_classes))
        if values.dtype.kind not in "iub" or wrong.any():
            found = values[wrong].flat[0] if wrong.any() else values.dtype
            raise InputError(f"{name} holds {found}; maps hold whole numbers, 0 to {num_classes} or {void} for void")
    use = truth != void
    truth, prediction = truth[use].astype(np.int64), prediction[use].astype(np.int64)
    prediction[prediction == void] = 0
    side = num_classes + 1
    return np.bincount(side * truth + prediction, minlength=side * side).reshape(side, side)


def mean_iou(confusion: np.ndarray | Sequence) -> tuple[np.ndarray, float]:
    """Intersection over union of every class, (C + 1,) float64, background first, and its mean.

    A class that is neither true nor predicted anywhere is NaN and left out of the mean; one that is only predicted is 0
    and counts. The mean is NaN if nothing was counted.

    confusion: (C + 1, C + 1), the sum of the matrices of all images.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"confusion has shape {confusion.shape}; it must be a square of true by predicted classes")
    common = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - common
    ious = np.divide(common, union, out=np.full(len(common), np.nan), where=union > 0)
    return ious, defined_mean(ious)
