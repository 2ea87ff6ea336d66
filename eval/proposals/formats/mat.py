"""Proposals in MATLAB's .mat files: MCG, SCG and COB, Endres and Hoiem, Selective Search.

What is read, at the file's top level or inside a struct such as the `proposals` that im2mcg and COB's im2prop return:

superpixels (H, W), labels {K}     MCG's and COB's usual form: the numbers of the superpixels that make each proposal
superpixels, ranked_regions        the same from Endres and Hoiem
masks (H, W, K)                    the masks themselves, where MCG was told to compute them; `maskmat`, an array or a
                                   cell array of K masks, is what others saved of COB
blobIndIm (H, W), hierarchy {M}    Selective Search: a label map, and M hierarchies of its regions as parent vectors

and `scores` (K) beside them or one struct further out. Names follow the packages' own code: `im2mcg_all.m` of
github.com/jponttuset/mcg, `im2cob_all.m` of github.com/kmaninis/COB, `Image2HierarchicalGrouping.m` of Selective
Search (Uijlings et al., IJCV 2013).

Files up to version 7 are read by SciPy, those of version 7.3 (HDF5, where MATLAB keeps arrays with their axes in
reverse order) by h5py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prm import InputError
from prm.accelerated.retrieval import Proposals
from prm.files import reason

from .entries import by, check_size, checked_scores, first
from .regions import from_dense, from_labels, hierarchy_lists, whole

_MAPS = ("superpixels", "blobIndIm")
_LISTS = ("labels", "ranked_regions", "regions")
_MASKS = ("masks", "maskmat")
_BOXES = ("bboxes", "boxes", "blobBoxes", "bb_boxes")
_KNOWN = "'superpixels' with 'labels', 'masks' (or 'maskmat'), 'blobIndIm' with 'hierarchy'"

# A variable of a file: a numeric array in MATLAB's shape, a cell array as a list in MATLAB's order, or a struct.
Value = np.ndarray | list | dict


def read(path: Path, shape: Sequence[int], limit: int | None = None) -> tuple[Proposals, np.ndarray | None]:
    """A picture's proposals and their scores, (K,) float64 or None. shape: the picture's (H, W).

    limit: only the first so many, by score where the file has scores. Raises InputError, naming the file and the
    variable (in MATLAB's notation, from 1), for anything else than such a file.
    """
    content = load(path)
    structs = list(_structs(content))
    for struct, scores in structs:
        label_map = next((struct[name] for name in _MAPS if name in struct), None)
        lists = next((name for name in _LISTS if isinstance(struct.get(name), list)), None)
        masks = next((name for name in _MASKS if name in struct), None)
        if label_map is not None and lists is not None:
            return _unions(path, shape, limit, label_map, lists, struct[lists], scores)
        if label_map is not None and "hierarchy" in struct:
            return _hierarchies(path, shape, limit, label_map, struct["hierarchy"]), None
        if masks is not None:
            return _masks(path, shape, limit, masks, struct[masks], scores)
    names = list(dict.fromkeys(name for struct, _ in structs for name in struct))
    if any(name in _BOXES for name in names):
        raise InputError(f"{path}: holds boxes only, and masks cannot be made of them; it needs {_KNOWN}")
    raise InputError(f"{path}: holds {', '.join(names)[:200] or 'nothing'}, where proposals need {_KNOWN}")


def _structs(content: dict, scores: Value | None = None) -> Iterator[tuple[dict, Value | None]]:
    """All structs, the outermost first, each with the scores that are its own or of one that holds it."""
    scores = content.get("scores", scores)
    yield content, scores
    for value in content.values():
        if isinstance(value, dict):
            yield from _structs(value, scores)


def _unions(path, shape, limit, label_map, name, lists, scores) -> tuple[Proposals, np.ndarray | None]:
    label_map = _label_map(path, shape, label_map)
    scores = None if scores is None else checked_scores(scores, len(lists), f"{path}, scores")
    order = first(scores, len(lists), limit)
    for k in order:
        _check_array(lists[k], f"{path}, {name}{{{k + 1}}}")
    proposals = from_labels(label_map, [lists[k] for k in order], lambda k: f"{path}, {name}{{{order[k] + 1}}}")
    return proposals, None if scores is None else scores[order]


def _hierarchies(path, shape, limit, label_map, hierarchies) -> Proposals:
    label_map = _label_map(path, shape, label_map)
    hierarchies = hierarchies if isinstance(hierarchies, list) else [hierarchies]
    for k, parents in enumerate(hierarchies):
        _check_array(parents, f"{path}, hierarchy{{{k + 1}}}")
    lists = hierarchy_lists(int(label_map.max()), hierarchies, lambda k: f"{path}, hierarchy{{{k + 1}}}")
    return from_labels(label_map, lists[:limit], lambda k: f"{path}, blobIndIm")


def _masks(path, shape, limit, name, masks, scores) -> tuple[Proposals, np.ndarray | None]:
    if isinstance(masks, list):
        for k, mask in enumerate(masks):
            _check_array(mask, f"{path}, {name}{{{k + 1}}}")
            check_size(mask.shape, shape, f"{path}, {name}{{{k + 1}}}")
        count = len(masks)
    else:
        _check_array(masks, f"{path}, {name}")
        masks = _stack(path, shape, name, masks)
        count = masks.shape[2]
    scores = None if scores is None else checked_scores(scores, count, f"{path}, scores")
    order = first(scores, count, limit)

    def some(part: slice) -> np.ndarray:
        return masks[:, :, order[part]] if not isinstance(masks, list) else np.dstack([masks[k] for k in order[part]])

    return from_dense(shape, len(order), some), None if scores is None else scores[order]


def _stack(path, shape, name, masks) -> np.ndarray:
    """(H, W, K), also of a single mask, of which MATLAB drops the last axis, of none, and of (K, H, W)."""
    if masks.size == 0:
        return np.zeros((*shape, 0), bool)
    if masks.ndim == 3 and masks.shape[:2] != tuple(shape) and masks.shape[1:] == tuple(shape):
        return masks.transpose(1, 2, 0)
    if masks.ndim not in (2, 3):
        raise InputError(f"{path}, {name}: of {by(masks.shape)}, where {by(shape)} x K was expected")
    check_size(masks.shape[:2], shape, f"{path}, {name}")
    return masks.reshape(*shape, -1)


def _label_map(path, shape, label_map) -> np.ndarray:
    where = f"{path}, label map"
    _check_array(label_map, where)
    check_size(label_map.shape, shape, where)
    return whole(label_map, lambda: where)


def _check_array(value: Value, where: str) -> None:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise InputError(f"{where}: must be an array of numbers, not a {_kind(value)}")


def _kind(value: Value) -> str:
    return {list: "cell array", dict: "struct"}.get(type(value), f"{getattr(value, 'dtype', 'foreign')} array")


# ---- from a file to its variables


def load(path: Path) -> dict[str, Value]:
    """All variables of a .mat file of any version; raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head.startswith((b"MATLAB 7.3", b"\x89HDF")):
            return _load_hdf5(path)
        # Imported late, as h5py below: most proposals come from elsewhere.
        from scipy.io import loadmat

        return {name: _plain(value) for name, value in loadmat(path).items() if not name.startswith("__")}
    except Exception as error:  # both libraries raise whatever a damaged file makes them trip over
        raise InputError(f"{path}: cannot be read as a MATLAB file ({reason(error)[:200]})") from error


def _plain(value) -> Value:
    """SciPy's arrays of objects as lists, and its structured arrays of one element as dictionaries."""
    if not isinstance(value, np.ndarray):
        return np.asarray(value)
    if value.dtype.names is not None and value.size == 1:
        return {name: _plain(value[name].flat[0]) for name in value.dtype.names}
    if value.dtype == object:
        return [_plain(item) for item in value.ravel(order="F")]
    return value


def _load_hdf5(path: Path) -> dict[str, Value]:
    import h5py

    def plain(item) -> Value:
        if isinstance(item, h5py.Group):
            return {name: plain(item[name]) for name in item if name != "#refs#"}
        stored = item[()]
        # Of an empty array MATLAB stores the shape instead, and marks it. (`item.attrs` would take longer to ask than
        # all the rest, and a cell array has thousands of items.)
        empty = h5py.h5a.exists(item.id, b"MATLAB_empty") and item.attrs["MATLAB_empty"]
        if h5py.check_ref_dtype(item.dtype) is not None:
            return [plain(file[reference]) for reference in np.ravel(stored)]
        if empty:
            cell = item.attrs.get("MATLAB_class") == b"cell"
            return [] if cell else np.zeros(np.ravel(stored).astype(int))
        return np.asarray(stored).T

    with h5py.File(path, "r") as file:
        return plain(file)
