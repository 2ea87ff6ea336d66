"""Options and settings that all tests share."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# Derandomised: the same examples everywhere, so that a red run can be repeated. No deadline: the first example of a
# test may compile the oracle's loops.
settings.register_profile(
    "prm",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
settings.load_profile("prm")
# Threads that wait for each other cost a tiny network more than they save.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device type that the fast path is tested on (default: cpu)")
    parser.addoption("--examples", type=int, default=80, help="cases for an operator and dtype (default: 80)")
    parser.addoption("--kernel-examples", type=int, default=25, help="cases for a GPU kernel (default: 25)")
    parser.addoption("--all-targets", action="store_true", help="compile the GPU kernels for six GPUs, not for two")
    parser.addoption("--networks", type=int, default=100, help="random networks for a dtype (default: 100)")


@pytest.fixture(scope="session")
def device(request):
    """Where the fast path runs; the oracle always runs on the host."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def where_kernels_run(device):
    """Skips unless kernels run: on a GPU (--device cuda), or where TRITON_INTERPRET=1, step by step on the CPU."""
    launching = pytest.importorskip("prm.accelerated.kernels.launching")
    if not launching.INTERPRETED and device.type != "cuda":
        pytest.skip("needs --device cuda or TRITON_INTERPRET=1")


@pytest.fixture(params=["default", "small"])
def configuration(request, where_kernels_run):
    """Every kernel's blocks: as they ship, and so small that little maps take several of them on every axis."""
    from prm.accelerated.kernels.launching import using

    with using(request.param):
        yield request.param
