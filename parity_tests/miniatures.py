"""PASCAL VOC, SBD and COCO in small: drawn scenes on disk in the official layouts, for tests and for trying commands.

Scenes are those of `prm.eval.datasets.draw_scene`; the shapes stand in for five real classes, always the same ones, so
that a network can learn them. `write_voc`, `write_sbd` and `write_coco` write whole data sets; `put_voc`, `put_sbd`,
`coco_annotation` and `put_coco` write one picture, instance or file with contents of the caller's choice, and
`put_lists` the lists of names.
"""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import io, ndimage, sparse
from skimage import measure

from prm.eval.datasets import draw_scene
from prm.eval.datasets.synthetic import Scene

coco = pytest.importorskip("pycocotools.mask")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_CATEGORIES = dict(
    entry.split(" ", 1)[::-1]
    for entry in (
        "1 person,2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat,10 traffic light,"
        "11 fire hydrant,13 stop sign,14 parking meter,15 bench,16 bird,17 cat,18 dog,19 horse,20 sheep,21 cow,"
        "22 elephant,23 bear,24 zebra,25 giraffe,27 backpack,28 umbrella,31 handbag,32 tie,33 suitcase,34 frisbee,"
        "35 skis,36 snowboard,37 sports ball,38 kite,39 baseball bat,40 baseball glove,41 skateboard,42 surfboard,"
        "43 tennis racket,44 bottle,46 wine glass,47 cup,48 fork,49 knife,50 spoon,51 bowl,52 banana,53 apple,"
        "54 sandwich,55 orange,56 broccoli,57 carrot,58 hot dog,59 pizza,60 donut,61 cake,62 chair,63 couch,"
        "64 potted plant,65 bed,67 dining table,70 toilet,72 tv,73 laptop,74 mouse,75 remote,76 keyboard,"
        "77 cell phone,78 microwave,79 oven,80 toaster,81 sink,82 refrigerator,84 book,85 clock,86 vase,87 scissors,"
        "88 teddy bear,89 hair drier,90 toothbrush"
    ).split(",")
)
"""Name -> official id, as text, of the 80 categories."""

STAND_INS = ("bottle", "car", "cat", "dog", "person")
"""The real class that each of `prm.eval.datasets.synthetic.CLASS_NAMES` stands for; both data sets have all five."""


def write_voc(folder, year: int = 2012, pictures: int = 4, seed: int = 0, size: int = 128) -> Path:
    """VOCdevkit/VOC<year> below `folder`, `pictures` a split: train, val and, for 2007, test. Returns VOC<year>.

    All pictures have XML; all but each split's last are in the segmentation lists and have masks with void borders.
    The last object of every third picture is difficult. Each person has a "head" part, as some real ones do.
    """
    root = Path(folder) / "VOCdevkit" / f"VOC{year}"
    splits = ("train", "val", "test") if year == 2007 else ("train", "val")
    names: dict[str, list[str]] = {split: [] for split in splits}
    present: dict[str, dict[str, int]] = {}
    for index in range(pictures * len(splits)):
        name = f"{index + 1:06d}" if year == 2007 else f"2008_{index + 1:06d}"
        split, at = splits[index % len(splits)], index // len(splits)
        scene = _scene(seed, index, size, split)
        objects = [STAND_INS[label] for label in scene.labels]
        difficult = [index % 3 == 2 and k == len(objects) - 1 for k in range(len(objects))]
        labels, void = _with_void(scene) if at < pictures - 1 else (None, None)
        put_voc(root, name, scene.image, objects, tight_boxes(scene.masks), difficult, labels, void)
        names[split].append(name)
        present[name] = {c: min(d for o, d in zip(objects, difficult) if o == c) for c in objects}
    put_lists(root / "ImageSets" / "Segmentation", {split: names[split][:-1] for split in splits})
    put_lists(root / "ImageSets" / "Main", names, present)
    return root


def write_sbd(folder, pictures: int = 4, seed: int = 0, size: int = 128) -> Path:
    """benchmark_RELEASE/dataset below `folder`, `pictures` in train and in val each. Returns the folder `dataset`."""
    root = Path(folder) / "benchmark_RELEASE" / "dataset"
    names: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(2 * pictures):
        split, name = ("train", "val")[index % 2], f"2008_{index + 1:06d}"
        scene = _scene(seed, index, size, split)
        put_sbd(root, name, scene.image, scene.masks, [STAND_INS[label] for label in scene.labels])
        names[split].append(name)
    put_lists(root, names, joined=False)
    return root


def write_coco(folder, year: int = 2017, pictures: int = 4, seed: int = 0, size: int = 128) -> Path:
    """annotations/instances_<split><year>.json and <split><year>/ in `folder`, `pictures` in train and in val each.

    Instances are polygons and compressed runs in turn; the last instance of every third picture is a crowd, in runs
    written as numbers, as the official ones are. All 80 categories are declared. Returns `folder`.
    """
    folder = Path(folder)
    for split in ("train", "val"):
        images, annotations = [], []
        for at in range(pictures):
            index = 2 * at + (split == "val")
            scene = _scene(seed, index, size, split)
            file = f"{index + 1:012d}.jpg"
            if year == 2014:
                file = f"COCO_{split}2014_{file}"
            _save(folder / f"{split}{year}" / file, scene.image)
            images.append({"id": index + 1, "file_name": file, "height": size, "width": size})
            for k, (mask, label) in enumerate(zip(scene.masks, scene.labels)):
                crowd = index % 3 == 2 and k == len(scene.masks) - 1
                kind = "numbers" if crowd else ("polygon", "code")[k % 2]
                entry = coco_annotation(mask, int(COCO_CATEGORIES[STAND_INS[label]]), kind, crowd)
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | entry)
        put_coco(folder / "annotations" / f"instances_{split}{year}.json", images, annotations)
    return folder


def put_voc(root: Path, name: str, image, objects, boxes, difficult, labels=None, void=None) -> None:
    """One picture of a VOC<year> folder: JPEG, XML and, where `labels` is given, the two palette PNGs.

    objects: class names; boxes: x0, y0, x1, y1 of each in pixels from 0, ends inclusive (written counted from 1);
    labels: (H, W) int, 0 off the objects and k + 1 on object k; void: (H, W) bool.
    """
    _save(root / "JPEGImages" / f"{name}.jpg", image)
    height, width = image.shape[:2]
    xml = ElementTree.Element("annotation")
    for tag, text in (("folder", root.name), ("filename", f"{name}.jpg")):
        ElementTree.SubElement(xml, tag).text = text
    _children(ElementTree.SubElement(xml, "source"), {"database": "Miniature", "annotation": "PASCAL " + root.name})
    _children(ElementTree.SubElement(xml, "size"), {"width": width, "height": height, "depth": 3})
    ElementTree.SubElement(xml, "segmented").text = str(int(labels is not None))
    for kind, (x0, y0, x1, y1), flag in zip(objects, boxes, difficult):
        entry = ElementTree.SubElement(xml, "object")
        _children(entry, {"name": kind, "pose": "Unspecified", "truncated": 0, "difficult": int(flag)})
        box = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1 + 1, "ymax": y1 + 1}
        _children(ElementTree.SubElement(entry, "bndbox"), box)
        if kind == "person":
            part = ElementTree.SubElement(entry, "part")
            ElementTree.SubElement(part, "name").text = "head"
            _children(ElementTree.SubElement(part, "bndbox"), box | {"ymax": (y0 + y1) // 2 + 1})
    ElementTree.indent(xml, "\t")
    _write(root / "Annotations" / f"{name}.xml", ElementTree.tostring(xml))
    if labels is not None:
        of_object = np.array([0, *(VOC_CLASSES.index(kind) + 1 for kind in objects)])
        _save_palette(root / "SegmentationClass" / f"{name}.png", np.where(void, 255, of_object[labels]))
        _save_palette(root / "SegmentationObject" / f"{name}.png", np.where(void, 255, labels))


def put_sbd(root: Path, name: str, image, masks, objects) -> None:
    """One picture of an SBD `dataset` folder: img/<name>.jpg and the MATLAB structs cls/<name>.mat, inst/<name>.mat."""
    _save(root / "img" / f"{name}.jpg", image)
    classes = np.array([VOC_CLASSES.index(kind) + 1 for kind in objects], dtype=np.uint8)
    labels = np.zeros(image.shape[:2], dtype=np.uint8)
    for k, mask in enumerate(masks):
        labels[mask] = k + 1
    semantic = np.concatenate([[0], classes]).astype(np.uint8)[labels]
    column = classes.astype(float)[:, None]
    _put_struct(root / "inst" / f"{name}.mat", "GTinst", labels, len(classes), Categories=column)
    _put_struct(root / "cls" / f"{name}.mat", "GTcls", semantic, 20, CategoriesPresent=np.unique(column)[:, None])


def put_lists(folder: Path, names: dict[str, list[str]], present=None, joined: bool = True) -> None:
    """<split>.txt for every split, trainval.txt where `joined`, and, with `present`, <class>_<split>.txt.

    present: name of a picture -> class name -> whether all objects of that class in it are difficult.
    """
    if joined:
        names = names | {"trainval": sorted(names["train"] + names["val"])}
    for split, listed in names.items():
        _write(folder / f"{split}.txt", "".join(f"{name}\n" for name in listed).encode())
        for kind in VOC_CLASSES if present is not None else ():
            flags = [{None: -1, True: 0, False: 1}[present[name].get(kind)] for name in listed]
            lines = "".join(f"{name} {flag:2d}\n" for name, flag in zip(listed, flags))
            _write(folder / f"{kind}_{split}.txt", lines.encode())


def coco_annotation(mask: np.ndarray, category: int, kind: str = "code", crowd: bool = False) -> dict:
    """An entry of "annotations", without its ids; kind: "polygon", "code" (text) or "numbers".

    Polygons are approximate; as they cannot have holes, a mask with holes is written as code instead.
    """
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    if kind == "polygon" and np.array_equal(ndimage.binary_fill_holes(mask), mask):
        contours = measure.find_contours(np.pad(mask, 1).astype(float), 0.5)
        segmentation = [np.round(c[:, ::-1] - 0.5, 2).ravel().tolist() for c in contours if len(c) > 3]
    elif kind == "numbers":
        columns = mask.ravel(order="F").astype(int)
        edges = np.flatnonzero(np.diff(columns, prepend=0))  # a mask that begins with a one begins with a run of none
        counts = np.diff(edges, prepend=0, append=columns.size).tolist()
        segmentation = {"size": list(mask.shape), "counts": counts}
    else:
        segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
    return {
        "category_id": category, "iscrowd": int(crowd), "area": float(coco.area(code)),
        "bbox": coco.toBbox(code).tolist(), "segmentation": segmentation,
    }  # fmt: skip


def put_coco(path: Path, images: list[dict], annotations: list[dict]) -> None:
    """A COCO annotation file with the 80 categories."""
    categories = [{"id": int(key), "name": name, "supercategory": "any"} for name, key in COCO_CATEGORIES.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    _write(path, json.dumps(content).encode())


def tight_boxes(masks: np.ndarray) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of each mask, both ends inclusive."""
    return [(int(x.min()), int(y.min()), int(x.max()), int(y.max())) for y, x in map(np.nonzero, masks)]


def _scene(seed: int, index: int, size: int, split: str) -> Scene:
    return draw_scene(seed, index, size, "train" if split == "train" else "val")


def _with_void(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(object number + 1 of every pixel, void): void is a border two pixels wide around every object."""
    labels = np.zeros(scene.image.shape[:2], dtype=np.int64)
    for k, mask in enumerate(scene.masks):
        labels[mask] = k + 1
    borders = [ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask) for mask in scene.masks]
    return labels, np.any(borders, axis=0)


def _put_struct(path: Path, name: str, segmentation: np.ndarray, boundaries: int, **more) -> None:
    edges = np.empty((boundaries, 1), dtype=object)
    for k in range(boundaries):
        inside = segmentation == k + 1
        edges[k, 0] = sparse.csc_matrix((inside & ~ndimage.binary_erosion(inside)).astype(float))
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = {"Boundaries": edges, "Segmentation": segmentation.astype(np.uint8)} | more
    io.savemat(path, {name: struct}, do_compression=True)


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def _save_palette(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())  # colours mean nothing
    picture.save(path)


def _children(parent: ElementTree.Element, texts: dict) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
