"""What the tests of kernels share: where they run, in which configurations, on how many generated cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

launching = pytest.importorskip("prm.accelerated.kernels.launching")


@pytest.fixture(autouse=True)
def where_kernels_run(device):
    """Kernels run on a GPU (--device cuda) or, where TRITON_INTERPRET=1, step by step on the CPU."""
    if not launching.INTERPRETED and device.type != "cuda":
        pytest.skip("needs --device cuda or TRITON_INTERPRET=1")


# Every kernel's blocks: as they ship, and so small that little maps take several of them on every axis.
CONFIGURATIONS = ("default", "small")


def hold(request, case, share: int = 1, **strategies) -> None:
    """`case` holds for as many generated examples as the option says, or for a share of them, in any configuration."""

    def in_a_configuration(configuration, **arguments):
        with launching.using(configuration):
            case(**arguments)

    examples = max(1, request.config.getoption("--kernel-examples") // share)
    drawn = {"configuration": st.sampled_from(CONFIGURATIONS), **strategies}
    settings(max_examples=examples)(given(**drawn)(in_a_configuration))()


@contextmanager
def launched(*kernels: str) -> Iterator[None]:
    """These kernels are launched inside, and no others."""
    before = launching.launches.copy()
    yield
    ran = set(launching.launches - before)
    assert ran == set(kernels), f"launched {sorted(ran)}, expected {sorted(kernels)}"
