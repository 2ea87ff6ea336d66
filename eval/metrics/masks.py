"""Masks of one image, as arrays or as COCO run-length codes: their size, their pixels, and the pixels they share."""

import numpy as np
from scipy.sparse import csr_array

from prm import InputError


def common_size(**groups) -> tuple[int, int] | None:
    """The (H, W) of the named groups of masks; None where all are empty.

    A group is a sequence of masks, or None. Raises: `prm.InputError` for masks of different sizes.
    """
    sizes = {name.replace("_", " "): _size(masks) for name, masks in groups.items() if masks is not None and len(masks)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"sizes differ in one image: {found}; all must have the size of the image")
    return next(iter(sizes.values()), None)


def _size(masks) -> tuple[int, int]:
    if isinstance(masks, np.ndarray) and masks.ndim == 3:
        return masks.shape[1:]
    sizes = {tuple(mask["size"]) if isinstance(mask, dict) else np.shape(mask) for mask in masks}
    if len(sizes) > 1 or len(min(sizes)) != 2:
        raise InputError(f"masks of one image have shapes {sorted(sizes)}; each must be (height, width) of the image")
    return sizes.pop()


def as_arrays(masks, size: tuple[int, int] | None = None) -> np.ndarray:
    """(K, H, W) bool of masks or of COCO run-length codes; `size` is (H, W) where there are none."""
    if len(masks) == 0:
        return np.zeros((0, *(size or (0, 0))), dtype=bool)
    if isinstance(masks[0], dict):
        # Imported late: masks as arrays are compared without pycocotools.
        from pycocotools import mask as coco

        masks = coco.decode(list(masks)).transpose(2, 0, 1)
    return np.asarray(masks, dtype=bool)


def pixel_counts(masks, true_masks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many pixels predicted and true masks of one image have in common (K, G), and each has: (K,), (G,); all int64.

    masks, true_masks: (K, H, W) and (G, H, W) bool, or lists of COCO run-length codes ({"size", "counts"}).
    Raises: `prm.InputError` for masks of different sizes.
    """
    size = common_size(masks=masks, true_masks=true_masks)
    if all(len(some) and isinstance(some[0], dict) for some in (masks, true_masks)):
        from pycocotools import mask as coco

        # One by one: asked for more than 255 areas at once, pycocotools 2.0.11 fails with NumPy 2.
        area, true_area = (np.array([coco.area(code) for code in some], dtype=np.int64) for some in (masks, true_masks))
        # The overlap with a crowd is the share of the detection inside: exact counts, without a pixel being decoded.
        share = coco.iou(list(masks), list(true_masks), [1] * len(true_masks))
        return np.rint(share * area[:, None]).astype(np.int64), area, true_area
    rows, columns = (_pixels(as_arrays(some, size)) for some in (masks, true_masks))
    return (rows @ columns.T).toarray(), rows.sum(axis=1), columns.sum(axis=1)


def _pixels(masks: np.ndarray) -> csr_array:
    """(K, H * W) int64, a row of 0 and 1 for each mask; sparse: in a crowd most masks have few of the pixels."""
    where = [np.flatnonzero(mask) for mask in masks]
    ends = np.cumsum([0, *(len(pixels) for pixels in where)])
    pixels = np.concatenate([np.zeros(0, dtype=np.int64), *where])
    ones = np.ones(len(pixels), dtype=np.int64)
    return csr_array((ones, pixels, ends), shape=(len(masks), masks.shape[1] * masks.shape[2]))


def class_labels(labels, name: str) -> np.ndarray:
    """(K,) int64; raises `prm.InputError` unless they are whole numbers from 0 on."""
    labels = np.asarray(labels).reshape(-1)
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise InputError(f"{name} must be class indices, whole numbers from 0 on; found {labels.dtype} {labels.min()}")
    return labels.astype(np.int64)


def finite_scores(scores) -> np.ndarray:
    """(K,) float64; raises `prm.InputError` unless they are finite."""
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    if not np.all(np.isfinite(scores)):
        k = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(f"score of prediction {k} is {scores[k]}; scores must be finite")
    return scores


def one_each(masks: int, labels: np.ndarray, scores: np.ndarray, true_masks: int, true_labels: np.ndarray) -> None:
    """Raises `prm.InputError` unless there is a label and a score for each mask and a label for each true mask."""
    if not len(labels) == len(scores) == masks:
        raise InputError(f"{masks} masks, {len(labels)} labels, {len(scores)} scores; one each per prediction")
    if len(true_labels) != true_masks:
        raise InputError(f"{true_masks} true masks but {len(true_labels)} true labels; one each per instance")
