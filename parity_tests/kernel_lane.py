"""What the tests of kernels share: rows of the conformance table, generated cases, configurations, what they launch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from prm.parity_tests.conformance import check
from prm.parity_tests.torch_port import TorchPort

launching = pytest.importorskip("prm.accelerated.kernels.launching")


def assert_row(request, name: str, dtype: str, kernels: set[str], share: int = 1) -> None:
    """A row of the conformance table, on as many cases as the option says or a share of them: these kernels answer."""
    device = request.config.getoption("--device")
    examples = max(1, request.config.getoption("--kernel-examples") // share)
    before = launching.launches.copy()
    row = check(name, TorchPort(device, dtype), dtype, examples, device=device, quick=True)
    assert row.passed, row.failure
    ran = set(launching.launches - before)
    assert "kernel" in row.ran and kernels <= ran, f"{row.ran}, launched {sorted(ran)}, expected {sorted(kernels)}"


def hold_in_some_configuration(request, case, share: int = 1, **strategies) -> None:
    """`case` holds for as many generated examples as the option says, or for a share of them, each in a configuration
    that is drawn.

    One that fails is not made smaller: under the interpreter that takes minutes, and seeds have no smaller ones.
    """
    examples = max(1, request.config.getoption("--kernel-examples") // share)

    def configured(configuration, **arguments):
        with launching.using(configuration):
            case(**arguments)

    with ThreadPoolExecutor(1) as pool:

        def alone(**arguments):
            # On a stack of its own: as deep as pytest's and hypothesis's, CPython 3.11 may stand at the end of a chunk
            # and map and unmap the next one at every call, which takes as long as the interpreter itself.
            pool.submit(configured, **arguments).result()

        drawn = given(configuration=st.sampled_from(["default", "small"]), **strategies)(alone)
        settings(max_examples=examples, phases=[Phase.generate])(drawn)()


@contextmanager
def launched(*kernels: str) -> Iterator[None]:
    """These kernels are launched inside, and no others."""
    before = launching.launches.copy()
    yield
    ran = set(launching.launches - before)
    assert ran == set(kernels), f"launched {sorted(ran)}, expected {sorted(kernels)}"


def by_torch(operator, *arguments):
    """The operator's answer by torch's code, which the conformance table compares with the oracle."""
    with launching.using("torch"), launched():
        return operator(*arguments)
