"""Triton kernels for GPUs (NVIDIA and AMD), one module a stem, and their launchers.

Importing this package registers the launchers with the operators of `torch.ops.prm`: for "cuda", which both makers'
devices answer to, and under TRITON_INTERPRET=1 for "cpu" as well.
"""

from . import peak_backprop, peak_stimulation, retrieval  # noqa: F401
