"""How kernels are launched: configured from one small table, counted, and recorded where nothing can run.

A launcher takes the arguments of an operator of `torch.ops.prm`, checks them, and launches its kernels through
`launch`. `chosen` says which configuration of the table, or whether torch's code is to answer instead.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

# Read by triton when a kernel is defined: with it, kernels run on tensors of the CPU, slowly.
INTERPRETED = triton.knobs.runtime.interpret
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")  # the compiler's; everything else named is the kernel's own
TORCH = "torch"  # the choice of torch's own code
RECORD = Path(__file__).with_name("choices.json")  # card -> kernel -> case -> choice, written by `prm bench kernels`

# Kernel -> name -> blocks and compiler's options. "small" has blocks so small that little maps take several of them.
CONFIGURATIONS: dict[str, dict[str, dict[str, int]]] = {
    "find_peaks": {
        "default": {"BLOCK": 2048, "num_warps": 16},
        "small": {"BLOCK": 64, "num_warps": 2},
    },
    "list_peaks": {
        "default": {"BLOCK": 256, "num_warps": 4},
        "small": {"BLOCK": 32, "num_warps": 1},
    },
    "scatter_shares": {
        "default": {"BLOCK": 1024, "num_warps": 4},
        "small": {"BLOCK": 32, "num_warps": 1},
    },
    "spread_shares": {
        "default": {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 16, "BLOCK_PEAKS": 32, "num_warps": 4},
        "small": {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 16, "BLOCK_PEAKS": 16, "num_warps": 4},
    },
    "walk_conv2d": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
        "matrix units": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
        "wide": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
        "few": {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
        "small": {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
    },
    "walk_ratio": {
        "default": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
        "wide": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 3},
        "small": {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
    },
    "walk_windows": {
        "default": {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4},
        "small": {"BLOCK_M": 16, "BLOCK_N": 8, "num_warps": 1},
    },
    "walk_max_pool": {
        "default": {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4},
        "small": {"BLOCK_M": 32, "BLOCK_N": 8, "num_warps": 1},
    },
    "run_sums": {
        "default": {"BAND": 8192, "BLOCK": 1024, "BLOCK_MASKS": 128, "BLOCK_RUNS": 8, "num_warps": 4},
        "small": {"BAND": 192, "BLOCK": 64, "BLOCK_MASKS": 8, "BLOCK_RUNS": 4, "num_warps": 1},
    },
    "best_proposal": {
        "default": {"BLOCK": 1024, "num_warps": 4},
        "small": {"BLOCK": 16, "num_warps": 1},
    },
}

launches: Counter[str] = Counter()
"""How often each kernel was launched by this process, by the kernel's name."""

LAUNCHERS: list[tuple[torch.library.CustomOpDef, Callable]] = []
"""The operators that have kernels, and what launches them."""

_overrides: list[tuple[str, str]] = []  # (kernel, or "" for all; name), the last first
_recorders: list[list[Launch]] = []
_listeners: list[dict[tuple[str, str], str]] = []


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's run-time arguments in order, its constants by name, the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


def launch(kernel, grid: tuple[int, ...], *arguments, **named) -> None:
    """kernel[grid](*arguments, **named) on the device of the first tensor, unless nothing is to be done."""
    launches[kernel.__name__] += 1
    if _recorders:
        constants = {key: value for key, value in named.items() if key not in OPTIONS}
        options = {key: value for key, value in named.items() if key in OPTIONS}
        _recorders[-1].append(Launch(kernel, grid, arguments, constants, options))
        return
    if 0 in grid:
        return
    with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, **named)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are kept instead of run, and what launchers return is not filled in: for compilation alone."""
    kept: list[Launch] = []
    _recorders.append(kept)
    try:
        yield kept
    finally:
        _recorders.remove(kept)


def register(operator: torch.library.CustomOpDef, launcher: Callable) -> None:
    """The launcher answers for the operator on GPUs of NVIDIA and AMD, and on the CPU where kernels are interpreted."""
    LAUNCHERS.append((operator, launcher))
    operator.register_kernel("cuda")(launcher)
    if INTERPRETED:
        operator.register_kernel("cpu")(launcher)


# ---- which configuration, or torch


def chosen(kernel: str, case: str, device: torch.device, default: str = "default") -> str:
    """A name in CONFIGURATIONS[kernel], or "torch": what runs for this case, a string that names shapes and dtype.

    By `using`, else by the environment's PRM_KERNELS, else as measured on this card (choices.json), else `default`.
    """
    choice = next((choice for name, choice in reversed(_overrides) if name in ("", kernel)), None)
    choice = choice or os.environ.get("PRM_KERNELS") or _recorded(device).get(kernel, {}).get(case, default)
    if choice != TORCH and choice not in CONFIGURATIONS[kernel]:
        known = ", ".join([*CONFIGURATIONS[kernel], TORCH])
        raise ValueError(f"PRM_KERNELS or {RECORD.name}: {kernel} has no configuration {choice!r}; known are {known}")
    for listener in _listeners:
        listener[kernel, case] = choice
    return choice


@contextmanager
def listening() -> Iterator[dict[tuple[str, str], str]]:
    """What is chosen inside: (kernel, case) -> choice."""
    kept: dict[tuple[str, str], str] = {}
    _listeners.append(kept)
    try:
        yield kept
    finally:
        _listeners.remove(kept)


@contextmanager
def using(choice: str, kernel: str = "") -> Iterator[None]:
    """Inside, `choice` (a configuration's name or "torch") is what runs, for one kernel or for all."""
    _overrides.append((kernel, choice))
    try:
        yield
    finally:
        _overrides.pop()


def _recorded(device: torch.device) -> Mapping[str, Mapping[str, str]]:
    return _record().get(torch.cuda.get_device_name(device), {}) if device.type == "cuda" else {}


@cache
def _record() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


# ---- what launchers are given


def short(dtype: torch.dtype) -> str:
    """A dtype's name, for names of cases and messages."""
    return str(dtype).removeprefix("torch.")


def expect(operator: str, device: torch.device, **tensors: tuple[Tensor, tuple[torch.dtype, ...], tuple]) -> None:
    """Raise a ValueError that names the first tensor whose dtype, shape or device is wrong.

    tensors: name = (tensor, allowed dtypes, shape); None in a shape for any length.
    """
    for name, (tensor, dtypes, shape) in tensors.items():
        fits = tensor.dim() == len(shape) and all(n in (None, have) for n, have in zip(shape, tensor.shape))
        if not fits or tensor.dtype not in dtypes or tensor.device != device:
            kinds = " or ".join(map(short, dtypes))
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            found = f"{short(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{operator}: {name} must be {kinds} ({wanted}) on {device}, not {found}")
