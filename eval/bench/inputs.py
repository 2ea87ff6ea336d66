"""What is measured on: pictures, peaks and proposals, the same for a seed, and networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from prm.accelerated.checkpoint import random_checkpoint
from prm.accelerated.retrieval import Proposals
from prm.accelerated.stages import Walked

from ..datasets.synthetic import draw_scene
from ..pictures.images import read_image
from ..proposals.grouping import generate


def random_network(name: str, device: str) -> nn.Module:
    """A network of 20 classes with random weights, in evaluation mode."""
    full_precision()
    return random_checkpoint(name, [f"class {i}" for i in range(20)]).model().eval().to(device)


def full_precision() -> None:
    """Without TF32 everywhere."""
    torch.backends.cudnn.allow_tf32 = False


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A network input (1, 3, height, width) float32 that is smooth with some noise on it; the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return smooth + 0.2 * torch.randn(1, 3, height, width, generator=generator)


def random_peaks(shape: Sequence[int], number: int, where: str = "random", seed: int = 0) -> Tensor:
    """Peaks (number, 4) on maps of `shape` (1, C, h, w): of random classes, at random positions, or all at one."""
    generator = torch.Generator().manual_seed(seed)
    _, C, h, w = shape
    draw = [torch.randint(0, size, (number,), generator=generator) for size in (1, C, h, w)]
    if where != "random":
        row, column = {"corner": (0, 0), "centre": (h // 2, w // 2)}[where]
        draw[2:] = [torch.full((number,), row), torch.full((number,), column)]
    return torch.stack(draw, dim=1)


def make_proposals(number: int, height: int, width: int, image: str = "") -> Proposals:
    """Exactly `number` proposals of height x width pixels, from a picture and as many drawn scenes as it takes."""
    parts, have, index = [], 0, 0
    while have < number:
        source = read_image(image) if image and index == 0 else draw_scene(0, index, max(height, width)).image
        scaled = np.asarray(Image.fromarray(source[: max(height, width)]).resize((width, height)))
        parts.append(generate(scaled, number - have))
        have, index = have + len(parts[-1]), index + 1
    return Proposals.concatenate(parts)


def random_walk(number: int, height: int, width: int, seed: int = 0, device: str = "cpu") -> Walked:
    """What a walk from `number` peaks of 20 classes might have found in a picture of height x width."""
    generator = torch.Generator().manual_seed(seed)
    row, column = (torch.arange(size).float() for size in (height, width))
    centre = torch.rand(2, number, 1, 1, generator=generator) * torch.tensor([height, width])[:, None, None, None]
    spread = 0.03 * width + 0.1 * width * torch.rand(number, 1, 1, generator=generator)
    far = ((row[:, None] - centre[0]) ** 2 + (column - centre[1]) ** 2) / spread**2
    prms = torch.exp(-far / 2) * torch.rand(number, height, width, generator=generator)
    maps = torch.randn(20, 12, 16, generator=generator)
    peaks = torch.cat([torch.randint(0, 20, (number, 1), generator=generator), centre[:, :, 0, 0].T.long()], dim=1)
    one, none = torch.ones(number, device=device), torch.zeros(number, dtype=torch.float64, device=device)
    return Walked(
        (height, width), maps.to(device), torch.zeros(20, device=device), peaks.to(device), one, one,
        np.zeros((number, 2)), (prms / prms.sum(dim=(1, 2), keepdim=True)).to(device), none, none,
    )  # fmt: skip
