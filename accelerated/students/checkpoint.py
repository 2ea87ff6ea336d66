"""A student's checkpoint: a JSON page and safetensors files, as those of classifiers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from prm import InputError
from prm.files import reason

from ..checkpoint import read_page, write_page
from .base import Student
from .registry import student

FORMAT = "prm-student-1"
SHIPPED = Path(__file__).parent / "nuclei.json"
"""The student that comes with the package: nuclei in microscopy, its masks learnt from tile labels only."""


@dataclass
class StudentCheckpoint:
    """A trained student and what is needed to use and to go on training it.

    student : {"name": one of STUDENTS, "options": its keyword arguments}
    class_names : one name a class
    training : settings, seed, command, and whether true masks were learnt ("masks"); `step` counts the steps done
    state, optimizer : parameters and buffers by name; what the optimiser remembers
    """

    student: dict
    class_names: list[str]
    training: dict = field(default_factory=dict)
    figures: dict = field(default_factory=dict)
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict, repr=False)
    optimizer: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def learnt_from(self) -> str:
        """ "masks", or "best labels" or "sampled labels", pseudo labels both."""
        return "masks" if self.training.get("masks") else f"{self.training.get('labels', 'best')} labels"

    def model(self) -> Student:
        """The student with its weights, in evaluation mode. Raises InputError where they do not fit each other."""
        try:
            model = student(self.student["name"], len(self.class_names), **self.student.get("options", {}))
            model.load_state_dict(self.state)
        except InputError:
            raise
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise InputError(f"student {self.student}: weights and network do not fit ({reason(error)})") from error
        return model.eval()


def student_page(name: str | Path) -> Path | None:
    """The page of the student of that name: a folder, a .json, or "nuclei"; None for whatever is none."""
    path = SHIPPED if str(name) == "nuclei" and not Path(name).exists() else Path(name)
    page = path / "checkpoint.json" if path.is_dir() else path
    try:
        return page if json.loads(page.read_text())["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_student(checkpoint: StudentCheckpoint, path: Path) -> None:
    """Write `path` (a .json) and the safetensors files that it names, replacing an earlier checkpoint there."""
    page = {k: v for k, v in vars(checkpoint).items() if k not in ("state", "optimizer")}
    write_page(path, {"format": FORMAT, **page}, {"weights": checkpoint.state, "optimizer": checkpoint.optimizer})


def load_student(path: str | Path) -> StudentCheckpoint:
    """Read a student: its .json page, or the folder that holds checkpoint.json. Errors as for `load_checkpoint`."""
    path, page, tensors = read_page(path, FORMAT, "prm student train")
    try:
        found = StudentCheckpoint(**page, state=tensors["weights"], optimizer=tensors.get("optimizer", {}))
        if not isinstance(found.step, int) or not isinstance(found.student["name"], str) or not found.class_names:
            raise ValueError("step, student or class_names cannot be used")
        return found
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: the checkpoint is incomplete ({reason(error)})") from error
