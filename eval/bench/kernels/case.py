"""What a case of `prm bench kernels` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prm.accelerated.peak_backprop import operators

PEAKS = (1, 8, 32, 128)


@dataclass(frozen=True)
class Work:
    """What no implementation can do without: bytes read or written, and multiplications and additions of matrices."""

    bytes: float
    operations: float = 0.0
    unit: str = "ieee"
    """How the matrices may be multiplied: ieee, tf32 or bf16."""


class Case:
    """One thing to measure. Each field of a subclass is part of what makes the case.

    inputs(device) : what is handed to the functions below, which answer with a tuple of tensors
    run(*inputs) : by the operators, the kernels where they are registered
    plain(*inputs) : torch's own code, without any operator between; None if it is not to be compiled
    """

    kernels: ClassVar[tuple[str, ...]]
    group: ClassVar[str]
    precision = "ieee"
    plain = None

    @property
    def name(self) -> str:
        return f"{self.group} {self.size} {self.dtype}" + (f" {self.precision}" if self.precision != "ieee" else "")

    @property
    def tolerance(self) -> float:
        """Most by which answers may differ, as a share of the largest."""
        halves = self.dtype in ("bfloat16", "float16") or self.precision == "bf16"
        return 2e-2 if halves else 2e-3 if self.precision == "tf32" else 2e-5

    @property
    def worth_compiling(self) -> bool:
        """Whether torch.compile is measured too, which takes long: for one number of peaks and one precision."""
        return getattr(self, "peaks", 32) == 32 and self.precision == "ieee" and self.dtype == "float32"

    def answers(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What of a run's answer is compared."""
        return tensors

    def others(self, *inputs) -> dict:
        """Further ways to the same answer, by name: functions without arguments."""
        return {}

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def random(self, device, *shape: int) -> Tensor:
        """Numbers in [0.25, 1.25): a seed for each shape, so that they are the same every time."""
        generator = torch.Generator(device).manual_seed(sum(shape))
        made = 0.25 + torch.rand(shape, generator=generator, device=device)
        return made.to(self.torch_dtype, memory_format=operators.LAYOUT if len(shape) == 4 else torch.contiguous_format)


def fewer(peaks: int) -> int:
    """Of peaks, for a reduced case: 1, 2, 3 or 4."""
    return PEAKS.index(peaks) + 1
