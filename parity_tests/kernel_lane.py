"""What the tests of kernels share: on how many generated cases, in which configurations, and what they launch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

launching = pytest.importorskip("prm.accelerated.kernels.launching")


def hold(request, case, share: int = 1, **strategies) -> None:
    """`case` holds for as many generated examples as the option says, or for a share of them.

    One that fails is not made smaller: under the interpreter that takes minutes, and seeds have no smaller ones.
    """
    examples = max(1, request.config.getoption("--kernel-examples") // share)
    with ThreadPoolExecutor(1) as pool:

        def alone(**arguments):
            # On a stack of its own: as deep as pytest's and hypothesis's, CPython 3.11 may stand at the end of a chunk
            # and map and unmap the next one at every call, which takes as long as the interpreter itself.
            pool.submit(case, **arguments).result()

        settings(max_examples=examples, phases=[Phase.generate])(given(**strategies)(alone))()


def hold_in_some_configuration(request, case, share: int = 1, **strategies) -> None:
    """As `hold`, each example in a configuration that is drawn."""

    def configured(configuration, **arguments):
        with launching.using(configuration):
            case(**arguments)

    hold(request, configured, share, configuration=st.sampled_from(["default", "small"]), **strategies)


@contextmanager
def launched(*kernels: str) -> Iterator[None]:
    """These kernels are launched inside, and no others."""
    before = launching.launches.copy()
    yield
    ran = set(launching.launches - before)
    assert ran == set(kernels), f"launched {sorted(ran)}, expected {sorted(kernels)}"
