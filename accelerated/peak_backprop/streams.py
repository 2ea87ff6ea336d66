"""In which order a device does what the walks of one forward pass ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Stream:
    """The stream that a forward pass ran on, where all its walks are to run too.

    Memory that is let go is given to the next who asks on the same stream, while kernels that read it may still wait
    their turn. Here they have had it: whatever belongs to a pass is written, read and let go on one stream.
    """

    def __init__(self, device: torch.device):
        self._device, self._of = device, torch.get_device_module(device)
        self._own = self._current()

    def _current(self):
        # Some devices have no streams.
        return self._of.current_stream(self._device) if hasattr(self._of, "current_stream") else None

    def run(self, work: Callable[[Tensor], tuple[Tensor, ...]], given: Tensor) -> tuple[Tensor, ...]:
        """work(given) on this stream; `given` comes from the caller's stream, which waits for what it gets."""
        caller = self._current()
        if caller == self._own:
            return work(given)
        self._own.wait_stream(caller)
        given.record_stream(self._own)
        with self._of.stream(self._own):
            answer = work(given)
        caller.wait_stream(self._own)
        for tensor in answer:
            tensor.record_stream(caller)
        return answer
