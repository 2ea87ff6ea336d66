"""Training from image-level labels (section 3.2): SGD on the multi-label soft-margin loss of the class scores."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from prm import InputError
from prm.files import atomic_write
from prm.settings import TrainingSettings

from .aggregation import aggregation
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .inputs import scaled, to_input
from .resuming import check_same, logged, plain_errors

CHECK_EVERY = 10  # steps between looks at the losses; looking makes the host wait for the device


def soft_margin_loss(scores: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Multi-label soft-margin loss of scores (N, C): mean of -y log sigmoid(s) - (1 - y) log sigmoid(-s).

    `labels` (N, C) in {0, 1}; entries with `counted` (N, C) = 0, the "difficult" ones, take no part.
    """
    loss = F.binary_cross_entropy_with_logits(scores, labels, weight=counted, reduction="sum")
    return loss / counted.sum().clamp(min=1)


class _Crops(Dataset):
    """Augmented crops. What is drawn depends on (seed, epoch, index) alone, so a resumed run sees the same crops."""

    def __init__(self, samples: Sequence, classes: int, given: dict, settings: TrainingSettings):
        self.samples, self.classes, self.settings = samples, classes, settings
        self.mean, self.std, self.epoch = given["mean"], given["std"], 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        sample = self.samples[index]
        labels, counted = torch.zeros(self.classes), torch.ones(self.classes)
        labels[list(sample.labels)] = 1
        counted[list(sample.difficult)] = 0
        draw = np.random.default_rng((self.settings.seed, self.epoch, index))
        picture = sample.image
        factor = self.settings.jitter ** draw.uniform(-1, 1) if self.settings.jitter > 1 else 1.0
        size = scaled(picture.shape[:2], self.settings.resize, factor)
        image = _crop(to_input(picture, self.mean, self.std, size=size), self.settings.size, draw)
        if self.settings.flip and draw.random() < 0.5:
            image = image.flip(2)
        if self.settings.vertical_flip and draw.random() < 0.5:
            image = image.flip(1)
        if self.settings.turn and draw.random() < 0.5:
            image = image.rot90(1, (1, 2))
        return image, labels, counted, index


def _crop(image: Tensor, size: int, draw: np.random.Generator) -> Tensor:
    """A random crop of (size, size); where the picture is smaller, it lies anywhere on a ground of mean colour."""
    out = image.new_zeros((image.shape[0], size, size))
    source, target = [], []
    for have in image.shape[1:]:
        offset = int(draw.integers(0, abs(have - size) + 1))
        length = min(have, size)
        source.append(slice(offset, offset + length) if have > size else slice(0, length))
        target.append(slice(0, length) if have > size else slice(offset, offset + length))
    out[:, *target] = image[:, *source]
    return out


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict]:
    """Features and classifier apart; the classifier is the child that holds the last convolution."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]
    head = last.split(".")[0] + "."
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if not n.startswith(head)], "lr": settings.lr_features},
        {"params": [p for n, p in named if n.startswith(head)], "lr": settings.lr_classifier},
    ]


def learning_rate_factor(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """What both learning rates are multiplied by at a step (from 0)."""
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / (settings.epochs * steps_per_epoch)))
    done = step // steps_per_epoch / settings.epochs
    return 0.1 ** ((done >= 0.6) + (done >= 0.85))


def train(
    checkpoint: Checkpoint,
    samples: Sequence,
    out: Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, int, float, float], None] | None = None,
    on_epoch: Callable[[nn.Module, list[dict]], dict] | None = None,
) -> list[dict]:
    """Train the network that `checkpoint` describes and leave checkpoint.json, its weights and log.jsonl in `out`.

    Parameters
    ----------
    checkpoint : network, classes, input and aggregation; its weights are the start
    samples : sequence of objects with .image (H, W, 3) uint8, .labels, .difficult (class indices) and .name
    resume : go on from the checkpoint in `out`, if there is one, with the same settings
    on_step : called with (step, steps, loss, pictures per second) now and then
    on_epoch : called with (model in evaluation mode, rows so far) after each epoch; returns figures for its row

    Returns one row an epoch: epoch, loss, learning rate, seconds, and what `on_epoch` returned. Raises InputError for
    no pictures, for a resume with other settings, and for a non-finite loss, naming the batch's pictures; the last
    epoch's checkpoint stays.
    """
    if not len(samples):
        raise InputError("there is no picture to train on")
    out, rows = Path(out), []
    page = out / "checkpoint.json"
    checkpoint.training = {**checkpoint.training, **asdict(settings), "samples": len(samples)}
    if resume and page.is_file():
        found = load_checkpoint(page)
        check_same(page, checkpoint, found, ("network", "class_names", "input", "aggregation", "training"))
        checkpoint = found
        rows = logged(out / "log.jsonl")[: checkpoint.epoch]
    # Channels last: the layout that convolutions are fastest in, on a CPU too (1.4x here).
    model = checkpoint.model().to(device).to(memory_format=torch.channels_last)
    pool = aggregation(checkpoint.aggregation["name"], **checkpoint.aggregation.get("options", {})).to(device)
    optimizer = torch.optim.SGD(
        parameter_groups(model, settings), momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    _set_momentum(optimizer, model, checkpoint.momentum)
    step = _Step(model, pool, optimizer, settings, torch.device(device))
    crops = _Crops(samples, len(checkpoint.class_names), checkpoint.input, settings)
    for epoch in range(checkpoint.epoch, settings.epochs):
        started = time.perf_counter()
        crops.epoch = epoch
        loss = _epoch(step, crops, epoch, settings, on_step)
        row = {"epoch": epoch + 1, "loss": loss, "lr_features": optimizer.param_groups[0]["lr"],
               "seconds": round(time.perf_counter() - started, 2)}  # fmt: skip
        if on_epoch is not None:
            row |= on_epoch(model.eval(), [*rows, row])
        rows.append(row)
        checkpoint.epoch, checkpoint.state = epoch + 1, model.state_dict()
        checkpoint.momentum = _momentum(optimizer, model)
        checkpoint.figures = {"loss": loss, "training_seconds": round(sum(r["seconds"] for r in rows), 1)}
        atomic_write(out / "log.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
        save_checkpoint(checkpoint, page)
    return rows


class _Step:
    """One step of SGD; mixed precision is bfloat16, or float16 with scaled losses where that is all there is."""

    def __init__(self, model, pool, optimizer, settings: TrainingSettings, device: torch.device):
        self.model, self.pool, self.optimizer, self.device = model, pool, optimizer, device
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.amp = device.type == "cuda" if settings.amp is None else settings.amp
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp and half)

    def __call__(self, factor: float, images: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        for group, lr in zip(self.optimizer.param_groups, self.base):
            group["lr"] = lr * factor
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        labels, counted = (t.to(self.device, non_blocking=True) for t in (labels, counted))
        with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
            maps = self.model(images)
        loss = soft_margin_loss(self.pool(maps).float(), labels, counted)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def _epoch(step: _Step, crops: _Crops, epoch: int, settings: TrainingSettings, on_step) -> float:
    """Mean loss of one epoch, every picture once, in an order that depends on (seed, epoch) alone."""
    step.model.train()
    # Dropout draws from torch's own generator: seeded by the epoch, a resumed run draws the same.
    torch.manual_seed(settings.seed * 1_000_003 + epoch)
    order = np.random.default_rng((settings.seed, epoch)).permutation(len(crops)).tolist()
    loader = DataLoader(crops, settings.batch_size, sampler=order, num_workers=settings.workers,
                        pin_memory=step.device.type == "cuda")  # fmt: skip
    losses, batches, started = [], [], time.perf_counter()
    for i, (images, labels, counted, index) in enumerate(plain_errors(loader)):
        factor = learning_rate_factor(settings, epoch * len(loader) + i, len(loader))
        losses.append(step(factor, images, labels, counted))
        batches.append(index)
        if (i + 1) % CHECK_EVERY == 0 or i + 1 == len(loader):
            _check_finite(losses, batches, crops.samples, epoch)
            batches.clear()
            if on_step is not None:
                done = min((i + 1) * settings.batch_size, len(crops))
                on_step(i + 1, len(loader), float(losses[-1]), done / (time.perf_counter() - started))
    return float(torch.stack(losses).mean())


def _check_finite(losses: list[Tensor], batches: list[Tensor], samples: Sequence, epoch: int) -> None:
    """Stop at the first non-finite loss of the last batches, naming their pictures."""
    for loss, index in zip(losses[-len(batches) :], batches):
        if not bool(loss.isfinite()):
            names = ", ".join(str(samples[i].name) for i in index.tolist())
            raise InputError(
                f"the loss is {float(loss)} in epoch {epoch + 1} on the batch [{names}]; "
                "try lower learning rates; the checkpoint of the last finished epoch is kept"
            )


def _momentum(optimizer: torch.optim.SGD, model: nn.Module) -> dict[str, Tensor]:
    buffers = {
        n: optimizer.state[p].get("momentum_buffer") for n, p in model.named_parameters() if p in optimizer.state
    }
    return {n: b for n, b in buffers.items() if b is not None}


def _set_momentum(optimizer: torch.optim.SGD, model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in buffers:
            optimizer.state[parameter]["momentum_buffer"] = buffers[name].to(parameter.device)
