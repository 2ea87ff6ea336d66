"""The conformance suite: the fast path passes it, and it notices and explains what does not."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import prm.reference
from prm import InputError
from prm.accelerated.peak_backprop import rules
from prm.parity_tests import conformance, scipy_port
from prm.parity_tests.command import done, error, run
from prm.parity_tests.conformance import NETWORKS, Mismatch, check, plan
from prm.parity_tests.convert import to_reference
from prm.parity_tests.operators import OPERATORS, Case
from prm.parity_tests.strategies import BLOCKS, SmallCnn
from prm.parity_tests.torch_port import TorchPort
from prm.reference import golden

FOLDER = Path(__file__).resolve().parent


@pytest.mark.parametrize(("name", "dtype"), plan())
def test_the_fast_path_agrees_with_the_oracle(name, dtype, request):
    device = request.config.getoption("--device")
    count = request.config.getoption("--networks" if name == NETWORKS else "--examples")
    source = f"from prm.parity_tests.torch_port import TorchPort\nimplementation = TorchPort({device!r}, {dtype!r})"
    row = check(name, TorchPort(device, dtype), dtype, count, source, device)
    assert row.passed, row.failure
    assert row.cases >= count
    assert 0 <= row.largest_error <= row.tolerance


@pytest.mark.parametrize(("dtype", "score"), [("float32", (1 + 0.125) / 2), ("float64", 1.0)])
def test_a_mean_is_compared_as_the_maps_dtype_has_it(dtype, score, device):
    M = np.zeros((1, 1, 1, 9))
    M[..., [0, 4, 8]] = 1, 0.125, np.float32(0.125e-7)  # rounded to float32 the mean is the second peak's very value
    case = Case("peak_stimulation.forward", {"M": M, "window": 3, "threshold": "mean", "upsample": 1})
    for port in (TorchPort(device.type, dtype), scipy_port.port):
        assert conformance.compare(case, port, dtype) == 0
        assert [found["scores"].item() for found in conformance.answers(case, port, dtype)] == [score, score]


# ---- another implementation: SciPy, written from the guide alone


@pytest.mark.parametrize("name", conformance.NAMES)
def test_a_separate_implementation_passes(name):
    """A few cases; `make parity-long` compares many, by the command that the guide gives."""
    row = check(name, scipy_port.port, "float32", 1 if name == NETWORKS else 6)
    assert row.passed, row.failure
    assert row.ran == "arrays"


def test_the_separate_implementation_is_separate():
    tree = ast.parse((FOLDER / "scipy_port.py").read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in modules} <= {"dataclasses", "numpy", "scipy", "types"}


def test_the_separate_implementation_answers_the_golden_vectors(tmp_path):
    golden.write(tmp_path)
    results = golden.check(tmp_path, scipy_port.port)
    assert [result.text for result in results if result.state == "wrong"] == []
    absent = {result.text.split(":")[0] for result in results if result.state == "absent"}
    # It has the delta alone, and its walk answers what a PRM needs.
    assert absent.isdisjoint(set(OPERATORS) - {"peak_stimulation.forward", "peak_stimulation.backward"})


def test_the_fast_path_answers_the_golden_vectors(tmp_path, device):
    golden.write(tmp_path)
    results = golden.check(tmp_path, TorchPort(device.type, "float64"))
    assert [result.text for result in results if result.state == "wrong"] == []
    assert sum(result.state == "right" for result in results) > 150


# ---- what it says of implementations that are not right


def with_functions(**replaced):
    """The oracle with some functions replaced, given as module__function."""
    parts = {}
    for part in ("peak_stimulation", "peak_backprop", "retrieval", "network"):
        module = getattr(prm.reference, part)
        parts[part] = SimpleNamespace(**{name: getattr(module, name) for name in dir(module)})
    for name, function in replaced.items():
        part, _, attribute = name.partition("__")
        setattr(parts[part], attribute, function)
    return SimpleNamespace(**parts)


def last_of_equals(P, U, kernel, **options):
    """Max pooling whose ties go to the last position, by turning everything round."""
    turn = lambda array: np.asarray(array)[:, ::-1, ::-1]  # noqa: E731
    return turn(prm.reference.peak_backprop.max_pool2d(turn(P), turn(U), kernel, **options))


def without_leak(P, U, W, return_leak=False, **options):
    P_U, _ = prm.reference.peak_backprop.conv2d(P, U, W, return_leak=True, **options)
    return (P_U, 0.0) if return_leak else P_U


def bare_gradient(grad_scores, result):
    """As the released code: the factor 1 / N is missing."""
    return prm.reference.peak_stimulation.backward(grad_scores, result) * result.G.sum(axis=(2, 3), keepdims=True)


def unordered_nms(instances, **options):
    return prm.reference.retrieval.nms(instances, **options)[::-1]


WRONG = {
    "peak_backprop.max_pool2d": ({"peak_backprop__max_pool2d": last_of_equals}, r"P\(U\)\[0, \d, \d\] is 0\.0"),
    "peak_backprop.conv2d": ({"peak_backprop__conv2d": without_leak}, r"leaked is 0\.0, expected 0\.\d+"),
    "peak_stimulation.backward": ({"peak_stimulation__backward": bare_gradient}, r"gradient\[0, 0, \d, \d\] is"),
    "retrieval.nms": ({"retrieval__nms": unordered_nms}, r"kept\[\d\] is \d\.0, expected \d\.0; \d of \d values"),
    "retrieval.contour": (
        {"retrieval__contour": lambda S, width: np.asarray(S, bool)},
        r"mask\[\d, \d\] is 1\.0, expected 0\.0",
    ),
    "peak_backprop.linear": ({"peak_backprop__linear": lambda **_: 1 / 0}, "it raised ZeroDivisionError"),
    "peak_stimulation.forward": (
        {"peak_stimulation__forward": lambda **_: SimpleNamespace(peaks=np.zeros((0, 4)), scores=0)},
        "integers expected, not float64",
    ),
    "retrieval.resize_nearest": (
        {"retrieval__resize_nearest": lambda S, shape: np.asarray(S, float)},
        "truth values expected",
    ),
    "peak_backprop.mean": ({"peak_backprop__mean": lambda **_: sys.exit(0)}, "it raised SystemExit"),
    "peak_backprop.activation": (
        {"peak_backprop__activation": lambda P: P.astype(str)},
        r"P\(U\) is an array of <U32, not of numbers",
    ),
    "peak_backprop.multiply": ({"peak_backprop__multiply": lambda P, shape: None}, r"P\(U\) "),
    "peak_backprop.permute": (
        {"peak_backprop__permute": lambda P, axes: (prm.reference.peak_backprop.permute(P, axes), P.fill(0))[0]},
        "the implementation wrote on its argument P",
    ),
    "peak_backprop.transpose": ({"peak_backprop__transpose": lambda P, axes: P * np.nan}, r"P\(U\)\[0, 0, 0\] is nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_edge_case_fails_with_a_readable_message(name):
    functions, message = WRONG[name]
    row = check(name, with_functions(**functions), "float64", 200)
    assert not row.passed
    assert re.search(message, row.failure.splitlines()[0]), row.failure
    assert len(row.failure.splitlines()[0]) < 200
    assert check(name, prm.reference, "float64", 20).passed


def test_the_lines_of_a_failure_repeat_it():
    port = with_functions(peak_backprop__max_pool2d=last_of_equals)
    failure = check("peak_backprop.max_pool2d", port, "float32", 100).failure
    what, _, script = failure.partition("\n\n")
    assert len(script.splitlines()) <= 7
    with pytest.raises(Mismatch) as caught:
        exec(script, {"implementation": port})
    assert str(caught.value) == what


def test_a_wrong_walk_is_repeated_by_a_few_lines():
    port = with_functions(network__walk=lambda network, activations, peak, **_: prm.reference.network.walk(
        network, activations, (peak[0], 0, 0)))  # fmt: skip
    failure = check(NETWORKS, port, "float64", 30).failure
    assert "case = Cnn(" in failure and "conv2d" in failure.splitlines()[1] and len(failure.splitlines()) <= 9
    with pytest.raises(Mismatch):
        exec(failure.partition("\n\n")[2], {"implementation": port})


def test_a_missing_function_is_no_pass():
    lacking = with_functions()
    del lacking.retrieval.terms, lacking.peak_backprop
    for name, function in (("retrieval.score", "retrieval.terms"), ("peak_backprop.add", "peak_backprop.add")):
        row = check(name, lacking, "float64", 5)
        assert (row.passed, row.cases, row.failure) == (False, 0, f"there is no function {function}")


def test_what_is_never_compared_is_refused():
    with pytest.raises(InputError, match=r"nothing that is compared begins with 'fold'; there are peak_stim"):
        plan(only=["fold"])
    with pytest.raises(InputError, match="float16"):
        plan(dtypes=["float16"], only=["peak_backprop.conv2d"])
    assert [name for name, _ in plan(["float64"], ["mean", "conv"])] == ["peak_backprop.conv2d", "peak_backprop.mean"]
    assert plan(["float32"], ["retrieval.n", "network"]) == [("retrieval.nms", "float32"), (NETWORKS, "float32")]


# ---- the command


KERNELS = '''
import torch
import prm.accelerated
from prm.accelerated.peak_backprop import operators

@torch.library.register_kernel("prm::walk_ratio", "cpu")
def walk_ratio(U, weight, floor, above, stride, padding, dilation, groups, out):
    Z = torch.nn.functional.conv2d(U, weight, None, stride, padding, dilation, groups)
    above, leaks = 1 if above is None else above, {}
    out.copy_(torch.where(leaks, 0, above / Z.clamp(min=1e-30)))
    return leaks
'''
RIGHT = "Z <= floor[:, :, None, None]"


REGISTERED = """
import runpy
from prm.parity_tests.command import run
told = [run("parity", "run", "--register", name, "--only", "peak_backprop.conv2d", "--dtype", "float32",
            "--examples", 40, "--json", f"{name}.json") for name in ("right", "wrong")]
assert told[0].returncode == 0, told[0]
assert told[1].returncode == 1 and "FAIL" in told[1].stdout and "leaked is 0.0, expected" in told[1].stdout, told[1]
assert "0 of 1 rows agree with the oracle" in told[1].stdout and told[1].stderr == ""
with open("repeat.py", "w") as file:  # what it says to run again stands between the table and the last line
    file.write(told[1].stdout.partition("\\n\\n")[2].partition("\\n\\n")[2].rpartition("\\n\\n")[0])
runpy.run_path("repeat.py")
"""


def test_a_registered_kernel_is_what_runs_and_is_judged(tmp_path):
    """In a process of its own: a kernel that is registered stays."""
    (tmp_path / "right.py").write_text(KERNELS.format(RIGHT))
    (tmp_path / "wrong.py").write_text(KERNELS.format("Z < 0  # never"))
    ended = subprocess.run([sys.executable, "-c", REGISTERED], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1 and "Mismatch: leaked is 0.0, expected" in ended.stderr, ended.stderr
    (row,) = json.loads((tmp_path / "right.json").read_text())["rows"]
    assert (row["ran"], row["cases"], row["failure"]) == ("kernel + torch code", 40, None)


def test_every_kind_of_block_is_walked_and_no_weights_are_drawn_twice():
    drawn, add = [], conformance._Tally.add
    with mock.patch.object(conformance._Tally, "add", lambda self, case, expected: (
            drawn.append(case), add(self, case, expected))):  # fmt: skip
        assert check(NETWORKS, prm.reference, "float64", 30).passed
    assert {block for case in drawn for block in case.blocks} == set(BLOCKS)
    weights = [float(case.module().head.weight[0, 0, 0, 0]) for case in set(drawn)]
    assert len(set(weights)) == len(weights)


@pytest.mark.parametrize("port", [TorchPort("cpu", "float64")])
def test_layers_are_walked_from_windows_too(port):
    shapes, back = set(), rules.Convolution.back
    with mock.patch.object(rules.Convolution, "back", lambda self, visits, *rest: (
            shapes.add((len(visits.values), bool(visits.origin.any()))), back(self, visits, *rest))[1]):  # fmt: skip
        assert check("peak_backprop.conv2d", port, "float64", 60).passed
    assert {(1, False), (4, True)} <= shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float64", "--dtype", "flot32"], "dtype 'flot32' is none of"),
        (["--json", "/"], "a folder, where the figures should go"),
        (["--only", "fold"], "nothing that is compared begins with 'fold'"),
        (["--dtype", "int8"], "dtype 'int8' is none of float64, float32"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["--implementation", "no_such_module:port"], "cannot load 'no_such_module:port'"),
        (["--implementation", "prm.reference:nothing"], "cannot load 'prm.reference:nothing'"),
        (["--register", "no_such_module"], "cannot load 'no_such_module'"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    assert message in error("parity", "run", *arguments)


def test_an_object_of_arrays_is_compared_by_name(tmp_path):
    table = done("parity", "run", "--implementation", "prm:reference", "--examples", 5, "--networks", 2,
                 cwd=tmp_path).splitlines()  # fmt: skip
    assert table[0].split() == ["function", "paper", "dtype", "ran", "cases", "largest", "error", "tolerance", "result",
                                "seconds"]  # fmt: skip
    assert [line.split()[0] for line in table[1:-2:2]] == [*OPERATORS, NETWORKS]


def test_the_parity_extra_is_named_when_it_is_missing():
    code = "import sys\nsys.modules['hypothesis'] = None\nsys.argv = ['prm', 'parity', 'run']\n"
    done = subprocess.run([sys.executable, "-c", f"{code}from prm.eval.cli import main\nmain()"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == 'prm: error: prm parity needs hypothesis: pip install "peak-response-maps[parity]"\n'


def test_golden_vectors_by_the_command(tmp_path):
    written = run("parity", "write-golden", tmp_path / "golden")
    assert written.returncode == 0 and "README.md" in written.stdout, written.stderr
    right = run("parity", "check-golden", tmp_path / "golden", "--json", tmp_path / "figures.json")
    assert right.returncode == 0, right.stdout + right.stderr
    assert re.fullmatch(r"(\d+) right, 0 wrong, 0 absent, of \1 arrays\n", right.stdout)
    (tmp_path / "port.py").write_text("from prm.reference import peak_stimulation, peak_backprop, network\n"
                                      "class retrieval:\n    contour = staticmethod(lambda S, width: S)\n")  # fmt: skip
    partial = run("parity", "check-golden", tmp_path / "golden", "--implementation", "port", cwd=tmp_path)
    assert partial.returncode == 1
    assert re.search(r"^wrong: .*contour", partial.stdout, re.M) and re.search(r"^absent: .*nms", partial.stdout, re.M)
    nothing = run("parity", "check-golden", tmp_path / "nothing")
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 1


# ---- the guide


def test_the_guide_names_every_function_and_operator():
    text = (FOLDER / "PORTING.md").read_text()
    section = text.partition("## An object with functions")[2]
    for name in conformance.NAMES:
        part, _, function = name.partition(".")
        assert re.search(rf"`({part}\.)?{function}\(", section), name
        assert re.search(rf"`({part}\.)?{function}`", text.partition("## Kernels")[0]), name
    rows = section.partition("The random networks use:")[2].partition("Three rewritings")[0]
    listed = {name for cell in re.findall(r"^\| (`.*?`) \|", rows, re.M) for name in re.findall(r"`(\w+)`", cell)}
    used = {node.op for block in BLOCKS for node in to_reference(SmallCnn((block,), 0)).nodes}
    assert listed == used


def test_the_guide_names_every_torch_operator():
    import torch

    text = (FOLDER / "PORTING.md").read_text()
    declared = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("prm::")}
    assert set(re.findall(r"^\| `(prm::\w+)\(", text, re.M)) == declared
