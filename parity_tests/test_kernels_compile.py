"""Every kernel compiles for GPUs of two makers on a machine that has none, and keeps to the registers there are."""

import importlib
import pkgutil

import pytest

pytest.importorskip("triton")
from triton.runtime.jit import KernelInterface

from prm import InputError
from prm.accelerated import kernels
from prm.accelerated.kernels import launching, peak_backprop, peak_stimulation, retrieval
from prm.eval.bench.kernels.cases import PRECISIONS
from prm.eval.bench.kernels.table import NOT_SUPPORTED, TARGETS, compile_table, spills

USUAL = ("sm_90", "gfx942")  # one of each maker; the others with --all-targets
SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx90a": 64, "gfx942": 64, "gfx1100": 64}  # KiB of a program


@pytest.fixture(scope="module")
def targets(request):
    return tuple(TARGETS) if request.config.getoption("--all-targets") else USUAL


@pytest.fixture(scope="module")
def table(targets):
    return compile_table(targets)


def test_everything_compiles_and_nothing_spills(table):
    assert not spills(table), "\n".join(spills(table))


def test_every_kernel_is_in_the_table_for_every_target(table, targets):
    assert {(row["kernel"], row["target"]) for row in table} == {
        (kernel, target) for kernel in launching.CONFIGURATIONS for target in targets
    }
    assert {row["configuration"] for row in table} == {"default", "matrix units"}


def test_every_kernel_that_is_defined_has_configurations():
    defined = set()
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        held = vars(importlib.import_module(module.name))
        defined |= {name for name, value in held.items() if isinstance(value, KernelInterface) and name[0] != "_"}
    assert defined == set(launching.CONFIGURATIONS)


def test_every_dtype_that_launchers_take_is_in_the_table(table, targets):
    names = lambda dtypes: {str(dtype).removeprefix("torch.") for dtype in dtypes}  # noqa: E731
    expected = {"find_peaks": names(peak_stimulation.PASSES)}
    walked = ("walk_conv2d", "walk_ratio", "walk_windows", "walk_max_pool")
    expected |= dict.fromkeys(walked, names(peak_backprop.COMPUTED))
    expected |= dict.fromkeys(("run_sums", "best_proposal"), names(retrieval.FLOATS))
    for kernel, dtypes in expected.items():
        for target in targets:
            found = {row["dtype"] for row in table if (row["kernel"], row["target"]) == (kernel, target)}
            assert found == dtypes, (kernel, target)


def test_every_precision_of_the_matrix_products(table, targets):
    for target in targets:
        rows = [row for row in table if (row["kernel"], row["target"]) == ("walk_conv2d", target)]
        # What is exact in bfloat16 is one kernel, however it was asked for.
        assert {(row["dtype"], row["precision"]) for row in rows} == set(PRECISIONS)
        without = {(row["dtype"], row["precision"]) for row in rows if row["note"] == NOT_SUPPORTED}
        assert without == ({("float32", "tf32")} if target in ("gfx90a", "gfx1100") else set())
        assert {row["note"] for row in rows} <= {NOT_SUPPORTED, ""}


def test_the_numbers_are_of_this_world(table):
    for row in table:
        assert 8 <= row["registers"] <= 512 and row["stack_bytes"] >= row["spill_bytes"] >= 0, row
        assert 0 <= row["shared_bytes"] <= 1024 * SHARED[row["target"]], row


def test_what_spills_and_what_does_not_compile_is_a_row_that_says_so():
    added = {
        "walk_conv2d": {"huge": {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}},
        "best_proposal": {"odd": {"BLOCK": 24, "num_warps": 1}},
    }
    huge, odd = compile_table(["sm_80"], list(added), ["huge", "odd"], added, only="bfloat16")
    assert huge["spill_bytes"] > 100 and huge["stack_bytes"] > 100
    assert odd["registers"] is None and "power of 2" in odd["note"]
    spilled, failed = spills([huge, odd])
    assert "spills" in spilled and "power of 2" in failed


def test_names_that_nothing_has():
    with pytest.raises(InputError, match="sm_1: known are sm_80"):
        compile_table(["sm_1"])
    with pytest.raises(InputError, match="no kernel is called nothing"):
        compile_table(["sm_90"], ["nothing"])
    with pytest.raises(InputError, match="has a configuration vast"):
        compile_table(["sm_90"], ["list_peaks"], ["vast"])
