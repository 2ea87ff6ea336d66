"""Training a student from masks, pseudo labels (WISE, stage 2) or true ones, so that it can go on to the bit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from prm import InputError
from prm.files import atomic_write
from prm.settings import StudentSettings

from ..resuming import check_same, logged, plain_errors
from .base import Example, Student
from .checkpoint import StudentCheckpoint, load_student, save_student

HELD = 2**30
"""Most bytes of prepared pictures that a reading process keeps between epochs."""

Redraw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(number of a picture, generator) -> masks (a, H, W) bool and labels (a,), drawn anew."""


def train_student(
    checkpoint: StudentCheckpoint,
    samples: Sequence,
    out: Path,
    settings: StudentSettings,
    *,
    redraw: Redraw | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
    on_checkpoint: Callable[[Student, dict], dict] | None = None,
) -> list[dict]:
    """Train the student that `checkpoint` describes and leave checkpoint.json, its weights and log.jsonl in `out`.

    Under torchrun each process takes its share of every batch, gradients are averaged, and the first one writes.

    Parameters
    ----------
    checkpoint : student, options and classes; its weights are the start
    samples : sequence of objects with .image (H, W, 3) uint8, .masks (a, H, W) bool, .mask_labels (a,) and .name
    redraw : gives the labels for `settings.labels` = "sampled"; None: the samples' own
    resume : go on from the checkpoint in `out`, if there is one, with the same settings
    on_step : called with (steps done, loss) now and then
    on_checkpoint : called with (student in evaluation mode, row) before each is written; returns figures for its row

    Returns one row a checkpoint: step, loss, its terms, learning rate, seconds a step, most memory. Raises InputError
    for no pictures, for a resume with other settings, and for a loss that is not finite, naming the batch's pictures;
    the last checkpoint stays.
    """
    if not len(samples):
        raise InputError("there is no picture to train on")
    rank, processes = _processes(device)
    if settings.batch_size % processes:
        raise InputError(f"--batch-size {settings.batch_size} cannot be shared by {processes} processes alike")
    out, rows = Path(out), []
    page = out / "checkpoint.json"
    checkpoint.training = {**checkpoint.training, **asdict(settings), "samples": len(samples)}
    if resume and page.is_file():
        found = load_student(page)
        check_same(page, checkpoint, found, ("student", "class_names", "training"))
        checkpoint = found
        rows = [row for row in logged(out / "log.jsonl") if row["step"] <= checkpoint.step]
    student = checkpoint.model().to(device)
    step = _Step(student, settings, torch.device(device), checkpoint.optimizer)
    examples = _Examples(student, samples, settings, redraw if settings.labels == "sampled" else None)
    order = _Order(len(samples), settings, checkpoint.step, rank, processes)
    loader = DataLoader(examples, sampler=order, batch_size=settings.batch_size // processes, collate_fn=list,
                        num_workers=settings.workers)  # fmt: skip
    tally = _Tally()
    student.train()
    for number, batch in enumerate(plain_errors(loader), start=checkpoint.step):
        terms = step(number, [example for _, example in batch])
        names = [str(samples[k].name) for k, _ in batch]
        loss = _finite(terms, number, names)
        tally.add(terms)
        if on_step is not None and not rank:
            on_step(number + 1, loss)
        if (number + 1) % settings.save_every and number + 1 < settings.steps:
            continue
        row = {"step": number + 1, "lr": step.lr} | tally.means() | _memory(device)
        if not rank:
            row |= {} if on_checkpoint is None else on_checkpoint(student.eval(), row)
            rows.append(row)
            _save(checkpoint, step, rows, page)
            student.train()
        if processes > 1:
            dist.barrier()
        tally = _Tally()
    return rows


class _Tally:
    """The loss and the time of the steps since the last checkpoint."""

    def __init__(self):
        self.started, self.steps, self.sums = time.perf_counter(), 0, {}

    def add(self, terms: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        terms = {name: total / self.steps for name, total in self.sums.items()}
        return {"loss": sum(terms.values()), **terms, "seconds": seconds, "seconds_per_step": seconds / self.steps}


class _Examples(Dataset):
    """Examples by (epoch, picture); what is drawn depends on these and the seed alone, whatever reads it."""

    def __init__(self, student: Student, samples: Sequence, settings: StudentSettings, redraw: Redraw | None):
        self.student, self.samples, self.seed, self.redraw = student, samples, settings.seed, redraw
        self.held: dict[int, Any] = {}
        self.room = HELD

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Example]:
        epoch, index = key
        draw = np.random.default_rng((self.seed, epoch, index))
        if self.redraw is not None:
            masks, labels = self.redraw(index, draw)
            return index, self.student.example(self.student.prepare(self.samples[index].image, masks, labels), draw)
        if index not in self.held:
            sample = self.samples[index]
            prepared = self.student.prepare(sample.image, sample.masks, sample.mask_labels)
            size = sum(part.nbytes for part in prepared)
            if size > self.room:
                return index, self.student.example(prepared, draw)
            self.room -= size
            self.held[index] = prepared
        return index, self.student.example(self.held[index], draw)


class _Order(Sampler):
    """(epoch, picture) of every example from a step on: each epoch in an order of its own; one process's share."""

    def __init__(self, count: int, settings: StudentSettings, done: int, rank: int, processes: int):
        self.count, self.settings, self.done, self.rank, self.processes = count, settings, done, rank, processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        s, orders = self.settings, {}
        for k in range(self.done * s.batch_size + self.rank, s.steps * s.batch_size, self.processes):
            epoch, place = divmod(k, self.count)
            if epoch not in orders:
                orders = {epoch: np.random.default_rng((s.seed, epoch)).permutation(self.count).tolist()}
            yield epoch, orders[epoch][place]


class _Step:
    """One step of the optimiser."""

    def __init__(self, student: Student, settings: StudentSettings, device: torch.device, state: dict[str, Tensor]):
        self.student, self.settings, self.device, self.lr = student, settings, device, 0.0
        groups = student.groups(settings.lr, settings.weight_decay)
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.amp = half if settings.amp is None else settings.amp
        self._load(state)

    def __call__(self, number: int, examples: list[Example]) -> dict[str, Tensor]:
        """The terms of the loss, before the step numbered from 0."""
        factor = learning_rate_factor(self.settings, number)
        for group, lr in zip(self.optimizer.param_groups, self.base):
            group["lr"] = lr * factor
        self.lr = self.settings.lr * factor
        # Students draw from torch's own generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(self.settings.seed * 1_000_003 + number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            terms = self.student.losses(examples)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        if dist.is_initialized():
            self._average()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _average(self) -> None:
        """Gradients as the mean over the processes; a parameter that had none in one process counts as 0 there."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

    def state(self) -> dict[str, Tensor]:
        """What the optimiser remembers, as "parameter|what"."""
        state = self.optimizer.state
        named = [(n, state[p]) for n, p in self.student.named_parameters() if p in state]
        return {f"{n}|{what}": value for n, own in named for what, value in own.items() if value is not None}

    def _load(self, state: dict[str, Tensor]) -> None:
        parameters = dict(self.student.named_parameters())
        for key, value in state.items():
            name, what = key.rsplit("|", 1)
            # AdamW counts its steps on the host.
            self.optimizer.state[parameters[name]][what] = value if what == "step" else value.to(self.device)


def learning_rate_factor(settings: StudentSettings, step: int) -> float:
    """What the learning rate is multiplied by at a step (from 0)."""
    done = step / settings.steps
    factor = {"constant": 1.0, "linear": 1 - done, "step": 0.1 ** ((done >= 0.6) + (done >= 0.85))}[settings.schedule]
    rising = min(1.0, (step + 1) / settings.warm_up) if settings.warm_up else 1.0
    return factor * (1 / 3 + 2 / 3 * rising)


def _processes(device: str) -> tuple[int, int]:
    """(rank, number of processes) of a torchrun, ready to talk to each other; (0, 1) without one."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return int(os.environ.get("RANK", 0)), processes


def _finite(terms: dict[str, Tensor], number: int, names: list[str]) -> float:
    loss = float(torch.stack([term.float() for term in terms.values()]).sum())
    if not np.isfinite(loss):
        raise InputError(
            f"the loss is {loss} in step {number + 1} on the batch [{', '.join(names)}]; try a lower --lr; the last "
            "checkpoint is kept"
        )
    return loss


def _memory(device: str) -> dict[str, float]:
    """Most memory so far, in MB: the device's, or the process's."""
    if torch.device(device).type == "cuda":
        return {"memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1)}
    import resource

    return {"memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)}


def _save(checkpoint: StudentCheckpoint, step: _Step, rows: list[dict], page: Path) -> None:
    checkpoint.step, checkpoint.state, checkpoint.optimizer = rows[-1]["step"], step.student.state_dict(), step.state()
    checkpoint.figures = {"loss": rows[-1]["loss"], "training_seconds": round(sum(r["seconds"] for r in rows), 1)}
    atomic_write(page.parent / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    save_student(checkpoint, page)
