"""`prm bench kernels`: cases are those of real walks, a dry run misses nothing, and what is wrong has no speed."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from prm.accelerated import PeakBackprop, network
from prm.accelerated.kernels import launching
from prm.accelerated.peak_backprop import shared
from prm.eval.bench.kernels import bench as kernel_bench
from prm.eval.bench.kernels import cases as kernel_cases
from prm.eval.bench.kernels import report as kernel_report
from prm.eval.bench.kernels import table as kernel_table
from prm.eval.bench.kernels.case import Case, Work
from prm.eval.bench.kernels.cases import cases
from prm.eval.bench.kernels.table import TARGETS
from prm.parity_tests import command

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results.md"


KERNELS = ("bench", "kernels")


# ---- the cases


class Recorder(TorchDispatchMode):
    """Keeps the geometry of the operators that a walk calls, as `kernel_cases` writes it."""

    def __init__(self):
        super().__init__()
        self.found = {"walk_conv2d": set(), "walk_max_pool": set(), "walk_windows": set()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "prm" and function._opname in self.found:
            self.found[function._opname].add(getattr(self, function._opname)(*args))
        return function(*args, **(kwargs or {}))

    def _begin(self, origin, to, stride, padding):
        row, col = (to - (origin * stride[0] - padding[0]))[0].tolist()
        assert row == col  # the peak is on the diagonal
        return row

    def walk_conv2d(self, G, image, origin, ratio, turned, stride, padding, dilation, groups, to, size, *_):
        begin = self._begin(origin, to, stride, padding)
        kernel = turned.shape[0], G.shape[1], turned.shape[2], stride[0], padding[0]
        return *kernel, ratio.shape[2], G.shape[2], size[0], begin

    def walk_max_pool(self, values, image, origin, indices, columns, kernel, stride, padding, dilation, to, size):
        begin = self._begin(origin, to, stride, padding)
        geometry = values.shape[1], kernel[0], stride[0], padding[0]
        return *geometry, indices.shape[2], values.shape[2], size[0], begin

    def walk_windows(self, values, image, origin, offset, maps, out, add):
        side = maps[0].shape[2] if maps else None
        return values.shape[1], side, values.shape[2], out.shape[2], int(offset[0, 0]), len(maps), add


@pytest.fixture(params=["resnet50", "vgg16"], scope="module")
def walked(request):
    """The geometry that a walk from a central peak at 448 x 448 has, all windows at once as on a GPU."""
    torch.manual_seed(0)  # where a layer leaks, which random weights may do, there is one product more
    with pytest.MonkeyPatch.context() as patch, Recorder() as recorder:
        patch.setattr(shared, "INTERPRETED", True)
        run = PeakBackprop(network(request.param, 20).eval()).prepare(torch.rand(1, 3, 448, 448))
        run.prms(torch.tensor([[0, 0, 7, 7]]))
    return request.param, recorder.found


def test_convolutions_are_those_of_a_real_walk_the_widest_of_each(walked):
    name, found = walked
    widest = {}
    for geometry in sorted(found["walk_conv2d"], key=lambda one: one[6:8]):
        widest[geometry[:6]] = geometry
    assert set(kernel_cases.CONVOLUTIONS[name]) == set(widest.values())


def test_poolings_and_windows_are_those_of_a_real_walk(walked):
    name, found = walked
    assert set(kernel_cases.POOLINGS[name]) == found["walk_max_pool"]
    widest = {}
    for geometry in sorted(found["walk_windows"], key=lambda one: one[2:4]):
        channels, _, _, _, _, maps, add = geometry
        widest[channels, maps, add] = geometry
    # What is only placed or added has no shared map, and so no side of one.
    listed = {(channels, side if maps else None, window, out, begin, maps, add)
              for channels, side, window, out, begin, maps, add in kernel_cases.WINDOWS[name]}  # fmt: skip
    assert listed == set(widest.values())


def test_every_kernel_is_named_and_every_case_once():
    assert {kernel for case in cases() for kernel in case.kernels} == set(launching.CONFIGURATIONS)
    assert len({case.name for case in cases()}) == len(cases())
    for network_, listed in kernel_cases.CONVOLUTIONS.items():
        # The same convolution may be in both networks.
        names = {
            kernel_cases.WalkConvolution(*geometry, peaks, dtype, precision).name
            for geometry in listed for peaks in (1, 8, 32, 128) for dtype, precision in kernel_cases.PRECISIONS
        }  # fmt: skip
        assert len(names) == 16 * len(listed) and names <= {case.name for case in cases()}, network_
    walks = {(c.network, c.height, c.width, c.peaks) for c in cases() if c.group == "walk"}
    assert walks == {
        (name, *size, peaks) for name in ("resnet50", "vgg16") for size in ((448, 448), (800, 1333))
        for peaks in (1, 8, 32)
    }  # fmt: skip


def test_reduced_cases_are_small_and_keep_what_counts():
    for case in cases():
        small = case.reduced()
        assert type(small) is type(case) and small.kernels == case.kernels and small.dtype == case.dtype
        assert small.precision == case.precision
        for name in ("kernel", "stride", "padding", "maps" if case.group == "walk_windows" else "stride", "add"):
            assert getattr(small, name, None) == getattr(case, name, None), case.name
        if case.group in ("walk", "run_sums"):
            continue  # their reduced form has a network, or masks of its own
        tensors = [x for x in small.inputs("cpu") if isinstance(x, torch.Tensor)]
        assert all(size <= 40 for x in tensors for size in x.shape), case.name


def test_work_counts_bytes_and_products_by_hand():
    case = kernel_cases.WalkConvolution(2, 3, 3, 1, 1, 14, 4, 6, 0, 5, "float32")
    held, written, shared, weights = 5 * 3 * 16, 5 * 2 * 36, 3 * 80, 2 * 3 * 9
    assert case.work() == Work(4 * (held + written + shared + weights), 2 * 5 * 16 * weights, "ieee")
    assert kernel_cases.PeakPooling((2, 3, 4, 5), 1, "bfloat16").work() == Work(2 * 120 * 2)
    assert kernel_cases.BestProposal(3, 7).work() == Work(8 * 21 + 7 + 8 * 3)


# ---- without a GPU


def test_help_names_what_can_be_done_without_a_gpu():
    shown = re.sub(r"[\s│]+", " ", command.done(*KERNELS, "--help"))
    options = "--compile-only", "--dry-run", "--target", "--record", "--readme", "--only", "--json"
    assert all(word in shown for word in (*options, *TARGETS))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_a_gpu_it_says_what_can_be_done(device):
    error = command.error(*KERNELS, "--device", device)
    assert "--compile-only" in error and "--dry-run" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--compile-only", "--dry-run"), "two things"),
        (("--compile-only", "--only", "nothing"), "no kernel has that in its name"),
        (("--compile-only", "--target", "sm_1"), "known are sm_80"),
        (("--dry-run", "--only", "nothing"), "no case has that in its name"),
        (("--dry-run", "--json", "/"), "/: a folder"),
    ],
)
def test_bad_input(arguments, message):
    assert message in command.error(*KERNELS, *arguments)


def test_compile_only_for_one_target_and_kernel(monkeypatch, tmp_path):
    """The interpreter's flag does not reach the compiler, and where there is no TF32 the row says what is used."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    one = partial(kernel_table.compile_table, only="float32 tf32")  # of the kernel's forms
    monkeypatch.setattr(kernel_table, "compile_table", one)
    wanted = "--target", "gfx1100", "--only", "walk_conv2d"
    command.done(*KERNELS, "--compile-only", *wanted, "--json", tmp_path / "table.json")
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (row["kernel"], row["target"], row["note"]) == ("walk_conv2d", "gfx1100", kernel_table.NOT_SUPPORTED)
    assert row["registers"] > 0 and row["spill_bytes"] == 0


def test_dry_run(tmp_path):
    only = "walk_conv2d 20 to 2048, 1x1/1, 2x2 to 2x2, 8 peaks float32"
    command.done(*KERNELS, "--dry-run", "--only", only, "--json", tmp_path / "dry.json")
    page = json.loads((tmp_path / "dry.json").read_text())
    assert page["wrong"] == [] and [row["name"] for row in page["rows"]] == [
        case.name for case in cases() if only in case.name
    ]
    for row in page["rows"]:
        assert row["launched"] == {"walk_conv2d": 1} and row["passed"] and row["size"] != row["reduced"]


def made_row(**fields):
    row = {"name": "a case", "kernels": ["walk_conv2d"], "launched": {"walk_conv2d": 1}, "by_torch": [],
           "passed": True, "difference": 0.0, "note": "", "reduced": "small", "size": "large"}  # fmt: skip
    return row | fields


@pytest.mark.parametrize("row, said", [
    (made_row(launched={}), "a case: walk_conv2d was not launched"),
    (made_row(passed=False, difference=0.5), "a case: differs by 5.0e-01"),
    (made_row(passed=False, difference=None, note="boom"), "a case: boom"),
])  # fmt: skip
def test_a_dry_run_fails(monkeypatch, row, said):
    monkeypatch.setattr(kernel_bench, "dry_run", lambda only: [made_row(name="another"), row])
    done = command.run(*KERNELS, "--dry-run")
    assert done.returncode == 1 and said in done.stdout and "another:" not in done.stdout


def test_a_case_that_was_not_executed_fails():
    rows = kernel_bench._in_order(["a case", "lost"], [made_row()], "Killed")
    assert kernel_bench.failures(rows) == ["lost: not executed: the process ended with: Killed"]
    assert kernel_bench.failures([made_row(launched={}, by_torch=["walk_conv2d"])]) == []


# ---- with one, made up


@dataclass(frozen=True)
class MadeUp(Case):
    """Twice the input, if right; asks for a configuration of two kernels, and takes what it is told."""

    right: bool = True
    taken: tuple = ()
    dtype: str = "float32"
    size: str = "4"
    kernels = ()
    group = "made up"

    def inputs(self, device):
        return (torch.arange(4.0, device=device),)

    def run(self, x):
        choices = [launching.chosen(kernel, "4 float32", x.device) for kernel in ("find_peaks", "list_peaks")]
        if self.taken != ():
            self.taken[0].append(choices)
        return (x * 2 if self.right or "torch" in choices else x,)

    def plain(self, x):
        return (x * 2,)

    def answers(self, *found):
        return found

    def others(self, x):
        return {"slow": lambda: (x * 2,), "broken": lambda: 1 / 0}

    def work(self):
        return Work(32, 8)


RATES = {"copy": 1e6, "ieee": 1e6, "tf32": 1e6, "bf16": 1e6}


def test_measured_fields_and_what_is_wrong_has_no_speed(monkeypatch):
    monkeypatch.setattr(MadeUp, "worth_compiling", False)
    clock = lambda function: 2.0 if function() else 0.0  # noqa: E731
    good, bad = (
        kernel_bench.measure_case(case, case.inputs("cpu"), 3, clock, RATES) for case in (MadeUp(), MadeUp(right=False))
    )
    assert good["passed"] and good["floor_ms"] == pytest.approx(0.032) and good["difference"] == 0
    assert [one["name"] for one in good["variants"]] == ["kernels", "torch", "slow"]
    assert good["variants"][1]["ms"]["rounds"] == [2.0] * 3 and good["variants"][1]["ratio"]["median"] == 1
    assert "ZeroDivisionError" in good["not_measured"]["broken"]
    assert not bad["passed"] and bad["variants"] == [] and bad["difference"] == pytest.approx(0.5)
    # A kernel that was passed over has no speed either, unless the record says torch.
    monkeypatch.setattr(MadeUp, "kernels", ("find_peaks",))
    assert kernel_bench.measure_case(MadeUp(), MadeUp().inputs("cpu"), 1, lambda f: 2.0, RATES)["variants"] == []


@pytest.fixture
def quick(monkeypatch):
    """One made-up case, rates from small arrays, and every time is 1 ms."""
    fields = {"Clock": lambda device: lambda function: function() is None or 1.0, "LARGE": 16, "SIDE": 4,
              "wanted": lambda only: [MadeUp()]}  # fmt: skip
    for name, value in fields.items():
        monkeypatch.setattr(kernel_bench, name, value)
    monkeypatch.setattr(MadeUp, "worth_compiling", False)


def test_everything_that_one_command_writes(quick):
    found = kernel_bench.measure("", "cpu", rounds=2, record=True, report=lambda name: None)
    assert set(found) == {"machine", "rates", "rounds", "rows", "choices"}
    assert {"cpu", "torch", "triton", "python", "date"} <= set(found["machine"])
    assert set(found["rates"]) == {"copy", "ieee", "tf32", "bf16"} and all(r > 0 for r in found["rates"].values())
    assert set(found["choices"]) == {"find_peaks", "list_peaks"}
    json.dumps(found)


def test_what_does_not_fit_the_cards_memory_is_a_row_that_says_so(quick, monkeypatch):
    def too_large(self, device):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(MadeUp, "inputs", too_large)
    found = kernel_bench.measure("", "cpu", rounds=1, record=True, report=lambda name: None)
    assert kernel_bench.failures(found["rows"]) == ["made up 4 float32: no room"]
    kernel_report.bench_table(found["rows"])


def test_the_fastest_choice_is_recorded_and_read_back(monkeypatch, tmp_path):
    """Measurements made up: each choice of find_peaks has its time, list_peaks is fastest by torch."""
    taken = []
    case, milliseconds = MadeUp(taken=(taken,)), {"default": 5.0, "small": 3.0, "torch": 4.0}

    def clock(function):
        function()
        find, gather = taken[-1]
        return milliseconds[find] + (2.0 if gather != "torch" else 0.0)

    choices = kernel_bench.fastest(case, case.inputs("cpu"), 3, clock)
    assert choices == {"find_peaks": {"4 float32": "small"}, "list_peaks": {"4 float32": "torch"}}

    record = tmp_path / "choices.json"
    record.write_text(json.dumps({"other": {"find_peaks": {"4 float32": "default"}},
                                  "card": {"find_peaks": {"9 float32": "torch", "4 float32": "torch"}}}))  # fmt: skip
    monkeypatch.setattr(launching, "RECORD", record)
    kernel_bench.write_choices("card", choices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "card")
    asked = [launching.chosen("find_peaks", name, torch.device("cuda")) for name in ("4 float32", "9 float32", "new")]
    launching._record.cache_clear()
    assert asked == ["small", "torch", "default"]
    assert json.loads(record.read_text())["other"] == {"find_peaks": {"4 float32": "default"}}


def test_a_wrong_configuration_is_never_the_fastest():
    case = MadeUp(right=False)
    choices = kernel_bench.fastest(case, case.inputs("cpu"), 1, lambda f: f() and 1.0)
    assert choices == {kernel: {"4 float32": "torch"} for kernel in ("find_peaks", "list_peaks")}


def test_the_default_stays_where_nothing_is_clearly_faster():
    assert kernel_bench.least({"default": [1.01, 1.0, 1.02], "wide": [1.0]}) == "default"
    assert kernel_bench.least({"default": [1.1], "wide": [1.0], "torch": [3.0]}) == "wide"
    assert kernel_bench.least({"wide": [2.0], "torch": [3.0]}) == "wide"


# ---- the block of docs/results.md


def test_the_page_of_results_says_what_the_files_say():
    text = RESULTS.read_text()
    begin, end = text.index(kernel_report.BEGIN), text.index(kernel_report.END) + len(kernel_report.END)
    assert text[begin:end] == kernel_report.readme_block()


def test_the_block_is_made_from_the_files(tmp_path):
    summary = lambda ms: {"median": ms, "min": ms, "max": ms, "rounds": [ms]}  # noqa: E731
    variants = [{"name": name, "ms": summary(ms), "ratio": summary(ms / 2)} for name, ms in
                (("kernels", 2.0), ("torch", 7.0))]  # fmt: skip
    right = {"passed": True, "floor_ms": 0.5, "variants": variants}
    rows = [
        right | {"name": "walk resnet50 448x448, 8 peaks float32", "group": "walk", "floor_ms": None},
        right | {"name": "walk_ratio one", "group": "walk_ratio"},
        {"name": "walk_ratio two", "group": "walk_ratio", "passed": False, "floor_ms": 1.0, "variants": []},
    ]
    machine = {"gpu": "A Card", "torch": "2.13", "triton": "3.7", "date": "2026-01-02T03:04:05"}
    page = {"machine": machine, "command": "prm bench kernels", "rows": rows}
    block = kernel_report.readme_block(tmp_path)  # without a file
    assert "No GPU figure exists yet" in block and "prm bench kernels --device cuda --json" in block
    (tmp_path / "card.json").write_text(json.dumps(page))
    block = kernel_report.readme_block(tmp_path)
    assert block.startswith(kernel_report.BEGIN) and block.endswith(kernel_report.END)
    assert "**A Card** (2026-01-02, torch 2.13, triton 3.7, `prm bench kernels`)" in block
    assert "| walk resnet50 448x448, 8 peaks float32 | 2 | 7 | 3.5 | |" in block
    assert "| walk_ratio, 1 cases | | | 3.5 (3.5 .. 3.5) | 0.25 (0.25 .. 0.25) |" in block
    assert "walk_ratio: 1 of 2 cases wrong, no speed" in block
