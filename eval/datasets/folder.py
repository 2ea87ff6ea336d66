"""A folder of pictures with a table of image-level labels: the format for your own data.

    pictures/labels.csv      header `file,labels` or `file,labels,difficult`, one line a picture; more: `label_table`
    pictures/classes.txt     optional: one class name a line, fixes the order of the classes
    pictures/instances.json  optional, evaluation only: instance masks in COCO's annotation format (RLE or polygons)

Without labels.csv the labels follow from instances.json: the pictures are those of its `images`, and a picture has the
categories of its instances as labels; one without instances has none of the classes, and a category that shows only as
a crowd is difficult. Without classes.txt the classes are then its `categories`, ordered by ascending id. See `coco` for
pictures whose EXIF orientation says that they are stored on their side.

`file` is relative to the folder. Several labels are separated by `;` or, if the field holds no `;`, by spaces (so a
name with a space is written `traffic light;`). No label at all is a picture without any of the classes. `difficult`
lists classes that training should neither count as present nor as absent.

Splits are subfolders of this very layout, such as `train/` and `val/`.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from prm import InputError

from .base import Boxes, Instances, Sample, class_indices, existing, read_names, read_picture, refuse
from .coco import AnnotationFile
from .label_table import read_label_table


def looks_like(path: Path, split: str | None = None) -> bool:
    """Whether `path` (or its subfolder for `split`) holds a labels.csv or an instances.json."""
    if (path / "synthetic.json").is_file():
        return False
    return _is_one(path) or (split is not None and _is_one(path / split))


def splits(path: Path) -> list[str]:
    """The names of the subfolders that are of this layout, sorted."""
    return sorted({file.parent.name for name in _TABLES for file in path.glob(f"*/{name}")})


def _is_one(path: Path) -> bool:
    return any((path / name).is_file() for name in _TABLES)


_TABLES = ("labels.csv", "instances.json")  # of either the labels can be known


class FolderDataset:
    """Pictures and labels.csv or instances.json; see the module's text for the layout.

    Arguments:
        path: the folder.
        split: None for the folder itself, or the name of the subfolder to read instead.
        class_names: the classes, in order, of a trained classifier; None takes classes.txt, or else the sorted names of
            labels.csv, or else the categories of instances.json.
        report: what to do with a bad line of the table or a bad entry of instances.json; by default it is raised.

    Raises: `prm.InputError` for a table, class list, picture file or annotation that cannot be used.
    """

    def __init__(self, path, split: str | None = None, class_names: Sequence[str] | None = None, report=refuse):
        self.path = existing(path)
        if split is not None:
            offered = splits(self.path)
            if split not in offered:
                others = f" (it has {', '.join(map(repr, offered))})" if offered else ""
                hint = "; for the folder itself say --split all" if _is_one(self.path) else ""
                missing = self.path / split / "labels.csv"
                raise InputError(f"{path}: has no split {split!r}{others}; {missing} is missing{hint}")
            self.path = self.path / split
        self._report = report
        table = self.path / "labels.csv"
        if table.is_file() or self._annotations is None:
            rows, columns = read_label_table(table, report)
            known = columns or sorted({name for _, _, *names in rows for group in names for name in group})
        else:
            table = self._annotations.path
            rows = [(str(table), name, *self._annotations.named(name)) for name in self._annotations.images]
            known = self._annotations.class_names
        if class_names is None:
            class_names = _read_classes(self.path / "classes.txt")
        if class_names is None:
            class_names = known
            if not class_names:
                raise InputError(f"{table}: no picture has a label; add labels, or name the classes in classes.txt")
        self.class_names = tuple(class_names)
        self._rows = []
        for row in rows:
            try:
                self._rows.append(self._resolve(*row))
            except InputError as problem:
                report(problem)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        file, labels, difficult = self._rows[index]
        return Sample(
            name=file,
            labels=labels,
            difficult=difficult,
            read=lambda: read_picture(self.path / file),
            read_instances=lambda: self._read(AnnotationFile.instances, file),
            read_boxes=lambda: self._read(AnnotationFile.boxes, file),
        )

    def _resolve(self, where: str, file: str, labels: list[str], difficult: list[str]):
        """One row with names replaced by class indices, after checking that its picture exists."""
        if not (self.path / file).is_file():
            raise InputError(f"{where}: picture {self.path / file} does not exist; correct the name or remove it")
        index = class_indices([*labels, *difficult], self.class_names, where)
        both = set(labels) & set(difficult)
        if both:
            raise InputError(f"{where}: {min(both)!r} is in both 'labels' and 'difficult'; keep it in one of them")
        return file, *(tuple(sorted({index[name] for name in names})) for names in (labels, difficult))

    def _read(self, what, file: str) -> Instances | Boxes | None:
        """What the method `what` of `AnnotationFile` answers for a picture; None without instances.json."""
        if self._annotations is None:
            return None
        if file not in self._annotations.images:
            raise InputError(f"{self._annotations.path}: no entry in 'images' for {file}; add it")
        return what(self._annotations, file, self.class_names)

    @cached_property
    def _annotations(self) -> AnnotationFile | None:
        # Beside labels.csv opened at the first request for a mask and not before: training works with the file absent.
        path = self.path / "instances.json"
        return AnnotationFile(path, [self.path], self._report) if path.is_file() else None


def _read_classes(path: Path) -> list[str] | None:
    """The names in classes.txt, or None where there is no such file."""
    if not path.is_file():
        return None
    names = read_names(path)
    if not names:
        raise InputError(f"{path}: is empty; write one class name a line, or remove the file")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"{path}: class {twice[0]!r} is listed twice; keep one of them")
    return names
