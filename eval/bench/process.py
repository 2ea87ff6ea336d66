"""A case of `prm bench` in a process of its own, and what its figures depend on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prm import InputError

# How glibc gives memory back. By default a large block is borrowed from the system, and every new one is cleared page
# by page as it is first touched; "tuned" keeps all blocks in the process, "huge" asks for large pages on top of that.
# (The threshold from which blocks are borrowed cannot be set above 32 MiB: any larger value is passed over in silence.)
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
MALLOC = {"default": "", "tuned": KEEP, "huge": f"{KEEP}:glibc.malloc.hugetlb=1"}


def measure(kind: str, arguments: dict, malloc: str = "default", threads: int | None = None) -> dict:
    """The row of one case, `__main__.MEASURES[kind](**arguments)`, measured in a process of its own.

    malloc: a key of MALLOC. Raises InputError with what the process said last where it fails.
    """
    if malloc not in MALLOC:
        raise InputError(f"--malloc {malloc}: known are {', '.join(MALLOC)} and both")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    if MALLOC[malloc]:
        environment["GLIBC_TUNABLES"] = MALLOC[malloc]
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    command = [sys.executable, "-m", "prm.eval.bench", json.dumps([kind, arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"stopped by signal {-done.returncode}: out of memory?"])[-1]
        raise InputError(re.sub(r"^(prm\.InputError|ValueError|RuntimeError): ", "", said))
    return json.loads(done.stdout.splitlines()[-1]) | {"malloc": malloc}


def machine(device: str = "cpu") -> dict:
    """What the figures depend on: machine, versions, date."""
    import numpy as np
    import torch

    cpu = _cpu()
    found = {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__, "numba": _version("numba"), "zennit": _version("zennit"),
        "onednn": torch.backends.mkldnn.is_available(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn_settings": {k: v for k, v in os.environ.items() if k.startswith(("ONEDNN_", "DNNL_"))},
        "malloc": MALLOC, "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    """Name of the processor; cloud machines shorten it, so its family and model tell the generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entry = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    name, family, model = (entry.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
