"""The golden vectors: complete, the oracle's own, anchored by hand, and judged rightly by their stand-alone checker."""

import inspect
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prm import InputError
from prm.reference import golden, network, peak_backprop, peak_stimulation, pseudo_labels, retrieval

REFERENCE = Path(peak_stimulation.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "vectors"
    assert golden.write(path) == len(list(golden.cases()))
    return path


@pytest.fixture(scope="module")
def records(folder):
    return json.loads((folder / "cases.json").read_text("utf-8"))["cases"]


@pytest.fixture(scope="module")
def answers(folder):
    with np.load(folder / "answers.npz") as archive:
        return dict(archive)


def inputs(folder):
    with np.load(folder / "inputs.npz") as archive:
        return dict(archive)


# ---- the set


def test_the_oracle_passes(folder, answers):
    rows = golden.check(folder)
    assert {row.key for row in rows} == set(answers)
    assert [row for row in rows if row.state != "right" or row.text] == []


def test_files_are_small_and_the_same_every_time(folder, tmp_path):
    golden.write(tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "answers.npz", "cases.json", "check_answers.py", "inputs.npz"]
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert sum((folder / name).stat().st_size for name in names) < 400_000


def test_records_describe_the_files(folder, records, answers):
    stored = inputs(folder)
    names = [record["name"] for record in records]
    assert len(set(names)) == len(names)
    keys = set()
    for record in records:
        assert re.fullmatch(r"[a-z0-9_]+", record["name"])
        assert record["sentence"].isascii() and record["sentence"].endswith(".")
        assert record["equation"].startswith(("Eq. ", "Algorithm 1", "second choice", "WISE"))
        for key in record["arrays"].values():
            keys.update([key] if isinstance(key, str) else key)
        for one in record["answers"]:
            value = answers[one["key"]]
            assert one["key"] == f"{record['name']}.{one['name']}"
            assert (list(value.shape), str(value.dtype)) == (one["shape"], one["dtype"])
            assert (one["compare"] == "exact") == (value.dtype != np.float64), one
    written = (folder / "cases.json").read_text("utf-8")
    assert keys | set(re.findall(r'\{"array": "([^"]+)"\}', written)) == set(stored)
    for key, value in {**stored, **answers}.items():
        assert value.dtype in (np.float64, np.int64, np.uint8), key
        assert np.isfinite(value).all(), key


def test_members_can_be_read_by_the_simplest_reader(folder):
    # stored, no data descriptor (flag 8), one version of npy, little endian, C order
    for name in ("inputs.npz", "answers.npz"):
        with zipfile.ZipFile(folder / name) as archive:
            for entry in archive.infolist():
                assert (entry.compress_type, entry.flag_bits, entry.extra) == (0, 0, b""), entry.filename
                data = archive.read(entry)
                assert data[:8] == b"\x93NUMPY\x01\x00"
                length = int.from_bytes(data[8:10], "little")
                assert (10 + length) % 64 == 0
                assert re.match(rb"\{'descr': '(<f8|<i8|\|u1)', 'fortran_order': False, 'shape': ", data[10:])


# Public functions that no case calls by name, and why.
NOT_ALONE = {
    "peak_stimulation.find_peaks": "step of forward", "peak_stimulation.threshold_value": "step of forward",
    "peak_stimulation.valid_peaks": "step of forward", "peak_stimulation.sampling_function": "step of forward",
    "peak_stimulation.sampling_kernel": "step of forward, answer G", "peak_stimulation.scores": "step of forward",
    "peak_stimulation.source": "step of enlarge", "peak_stimulation.enlarge_transposed": "step of backward",
    "peak_backprop.convolve": "inside conv2d and network.forward",
    "peak_backprop.convolve_transposed": "inside conv2d", "peak_backprop.pool_windows": "inside avg_pool2d",
    "peak_backprop.bin_of": "inside the adaptive poolings",
    "peak_backprop.interpolation_weights": "inside interpolate", "peak_backprop.sum_to": "inside add and multiply",
    "peak_backprop.pair": "reads arguments", "peak_backprop.sides": "reads arguments",
    "peak_backprop.pooled_size": "inside max_pool2d: checks sizes",
    "network.as_network": "reads arguments", "network.plan": "step of walk",
}  # fmt: skip


def test_every_function_has_a_case(records):
    public = set()
    for module in (peak_stimulation, peak_backprop, retrieval, network, pseudo_labels):
        for name, one in vars(module).items():
            own = inspect.isfunction(one) and f"{one.__module__}.".startswith(f"{module.__name__}.")
            if own and not name.startswith("_"):
                public.add(f"{module.__name__.rpartition('.')[2]}.{one.__name__}")
    covered = {record["function"] for record in records}
    assert covered & NOT_ALONE.keys() == set()
    assert public - covered - NOT_ALONE.keys() == set(), "public functions of the oracle without a golden case"
    assert covered | NOT_ALONE.keys() <= public


def test_every_option_is_used(records):
    # an option whose every case has the default is not covered
    for function in golden.FUNCTIONS:
        cases = [record for record in records if record["function"] == function]
        for name, default in golden.defaults(function).items():
            if function != "retrieval.segment":
                default = json.loads(json.dumps(default))
                assert any(record["params"].get(name) != default for record in cases), (function, name)


def test_the_page_names_every_function_argument_and_answer(folder, records):
    page = (folder / "README.md").read_text("utf-8")
    assert page == (REFERENCE / "golden.md").read_text("utf-8")
    sections = dict(re.findall(r"^### `([\w.]+)`\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    for record in records:
        text = sections[record["function"]]
        for name in [*record["arrays"], *record["params"], *(one["name"] for one in record["answers"])]:
            assert f"`{name}`" in text, (record["function"], name)
    networks = json.loads((folder / "cases.json").read_text("utf-8"))["networks"].values()
    nodes = [node for one in networks for node in one]
    table = page[page.index("| op | Forward |") :]
    for name in {node["op"] for node in nodes} | {name for node in nodes for name in node["params"]}:
        assert f"`{name}`" in table, name
    order = list(dict.fromkeys(record["function"] for record in records))
    assert set(order) == set(golden.FUNCTIONS) and order == list(golden.FUNCTIONS)


def test_the_page_is_in_the_wheel():
    settings = tomllib.loads((REFERENCE.parent / "pyproject.toml").read_text("utf-8"))
    assert "golden.md" in settings["tool"]["setuptools"]["package-data"]["prm.reference"]


def test_no_decision_hangs_on_rounding(folder, records):
    # what is decided by > must differ clearly, or be equal by construction
    def clear(differences, scale):
        sizes = np.abs(differences)
        return bool(((sizes == 0) | (sizes > 1e-4 * scale)).all())

    stored = inputs(folder)
    for record in records:
        arguments = record["params"]
        if record["function"] == "peak_stimulation.forward" and stored[record["arrays"]["M"]].size:
            M = peak_stimulation.enlarge(stored[record["arrays"]["M"]], arguments["upsample"])
            reach = arguments["window"] // 2
            for i, j in np.ndindex(2 * reach + 1, 2 * reach + 1):
                a = M[..., max(i - reach, 0) :, max(j - reach, 0) :]
                b = M[..., max(reach - i, 0) :, max(reach - j, 0) :]
                rows, columns = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
                assert clear(a[..., :rows, :columns] - b[..., :rows, :columns], np.abs(M).max()), record["name"]
            peaks = peak_stimulation.find_peaks(M, arguments["window"])
            for n, c in np.ndindex(M.shape[:2]):
                value = peak_stimulation.threshold_value(M[n, c], arguments["threshold"])
                if np.isfinite(value):
                    assert clear(M[n, c][peaks[n, c]] - value, np.abs(M).max()), record["name"]
        if record["function"] == "retrieval.background":
            M = stored[record["arrays"]["M"]]
            if M.min() < M.max():
                M = (M - M.min()) / (M.max() - M.min())
                rows, columns = (peak_backprop.interpolation_weights(n, out, "bilinear")
                                 for n, out in zip(M.shape, arguments["shape"]))  # fmt: skip
                M = rows @ M @ columns.T
                assert np.abs(M - arguments["bias"] * M.mean()).min() > 1e-4, record["name"]


# ---- anchors: worked out by hand


@pytest.mark.parametrize(
    "key, expected",
    [
        # maps 2 0 3 4 3 1, sorted 0 1 2 3 3 4: median 2, peaks 2 and 4 reach it; the mean 13 / 6 is above 2
        ("forward_lower_median.peaks", [[0, 0, 0, 0], [0, 0, 0, 3]]),
        ("forward_lower_median.scores", [[3]]),
        ("forward_mean.scores", [[4]]),
        # 2s in two corners, none reaches 100: the first
        ("forward_unreachable.peaks", [[0, 0, 0, 2]]),
        # rows 0 1 .5 / 2 .25 0 / .5 3 1.25 by 3: positions 0, 4, 8 are the sources; peaks 1, 2 and 3
        ("forward_upsample_3.peaks", [[0, 0, 0, 4], [0, 0, 4, 0], [0, 0, 8, 4]]),
        ("forward_upsample_3.scores", [[2]]),
        # 0 2 -1 by 2: sources 0, .4, .8, 1.2, 1.6, 2
        ("enlarge_one_column_by_2.enlarged", [[[[0, 0], [0.8, 0.8], [1.6, 1.6], [1.4, 1.4], [0.2, 0.2], [-1, -1]]]]),
        # 6 over two peaks
        ("backward_two_peaks.grad_M", [[[[3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]]]),
        # row 1 of 3 with H = 1; column 4 of 9: 4 * 2 / 8 = 1
        ("start_upsample_3_one_row.P", [[[0, 1, 0]]]),
        # products 1 * 1, 2 * 0 (W = -5), 3 * 2, 4 * 1: Z = 11; 22 * (1, 0, 6, 4) / 11
        ("conv2d_by_hand.P_U", [[[2, 0], [12, 8]]]),
        # window (0, 0) leaks 5, the second filter 7 + 1
        ("conv2d_leak.P_U", [[[0, 0, 3]]]),
        ("conv2d_leak.leaked", 13),
        # 2^-25 = 3.0e-8 < 1e-7 < 2^-22 = 2.4e-7
        ("conv2d_leak_bound.P_U", [[[1, 0, 4]]]),
        # first window: -1 under 2, -2 under -1 (Z = 2, all to -2); second: -2 under 2, 4 under -1: leaks
        ("conv2d_signed_leak.P_U", [[[0, 3, 0]]]),
        ("conv2d_signed_leak.leaked", 1),
        # windows (0 5 1), (5 1 5), (1 5 2): 1 and 2 to the first 5, 4 to the second
        ("max_pool2d_overlapping.P_U", [[[0, 3, 0, 4, 0]]]),
        # 6 split as 1 : 2, all to the positive one, halves, all to 4 against 0
        ("add_by_sign.P_U_0", [[[2, 6, 3, 0]]]),
        ("add_by_sign.P_U_1", [[[4, 0, 3, 6]]]),
        # hidden = (3, 1, 0) and its negative, minimum -3: U_hat of column 1 is 4 and 2; the 2 has no way on: 1/3 leaks
        ("network_walk_part_leaks.leaked", 1 / 3),
        ("network_walk_part_leaks.prm", [[0, 1, 0, 0]]),
        # the square's pixels and those around it, less its centre
        ("contour_width_3.S_hat", [[0, 1, 1, 1, 1, 1, 0]] * 2 + [[0, 1, 1, 0, 1, 1, 0]] + [[0, 1, 1, 1, 1, 1, 0]] * 2),
        # rows 0 0 1 2 2 of 3, columns 0 0 0 1 1 1 1 of 2 (centre 3.5 / 7 * 2 = 1)
        ("resize_nearest_larger.resized", [[1, 1, 1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1, 1]] + [[1] * 7] * 2),
        # row (1 + .5) * 96 / 3 - .5, column (2 + .5) * 64 / 4 - .5
        ("image_position_plain.row", 47.5),
        ("image_position_plain.column", 39.5),
        # 1 and 2 overlap 0 by 4 / 8 and 2 / 4; of 3 and 4 (2 / 5) the earlier column first; 5 is 0 again, 6 overlaps
        # only 1, which is dropped; 7 overlaps 0 first
        ("nms_across_classes.kept", [0, 4, 3, 6]),
    ],
)
def test_answers_by_hand(answers, key, expected):
    np.testing.assert_allclose(answers[key], expected, rtol=0, atol=1e-14)


# ---- check: implementations


def test_lacking_functions_are_absent_not_right(folder, records):
    layers = {name: getattr(peak_backprop, name) for name in ("conv2d", "linear")}
    layers["linear"] = lambda **arguments: [part * 2 for part in peak_backprop.linear(**arguments)]

    def refuses(**arguments):
        raise NotImplementedError("no grouped convolution") if arguments["groups"] > 1 else ValueError("a bug")

    def forward(**arguments):
        return SimpleNamespace(scores=peak_stimulation.forward(**arguments).scores, peaks=None)

    port = SimpleNamespace(
        peak_backprop=SimpleNamespace(**layers, max_pool2d=lambda **a: 1 / 0),
        peak_stimulation=SimpleNamespace(forward=forward),
    )
    rows = golden.check(folder, port)
    functions = {record["name"]: record["function"] for record in records}
    states = {}
    for row in rows:
        states.setdefault((functions[row.case], row.key.rpartition(".")[2]), set()).add(row.state)
    assert states["peak_backprop.conv2d", "P_U"] == {"right"}
    assert states["peak_backprop.linear", "P_U"] == {"wrong"}
    assert states["peak_backprop.max_pool2d", "P_U"] == {"wrong"}
    assert states["peak_backprop.mean", "P_U"] == states["retrieval.nms", "kept"] == {"absent"}
    assert states["peak_stimulation.forward", "scores"] == {"right"}
    assert states["peak_stimulation.forward", "peaks"] == {"wrong"}  # an answer that was forgotten
    assert states["peak_stimulation.forward", "G"] == {"absent"}
    assert states["network.walk", "P"] == {"absent"}
    text = next(row.text for row in rows if row.case == "max_pool2d_ties")
    assert text.startswith("peak_backprop.max_pool2d raised ZeroDivisionError: division by zero. Ties go")
    rows = golden.check(folder, SimpleNamespace(peak_backprop=SimpleNamespace(conv2d=refuses)))
    found = {row.case: (row.state, row.text) for row in rows}
    assert found["conv2d_grouped"] == ("absent", "peak_backprop.conv2d: no grouped convolution")
    assert found["conv2d_plain"][0] == "wrong"


def test_an_input_that_changed_is_noticed(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = inputs(folder)
    changed["conv2d_by_hand.U"][0, 0, 0] += 1
    np.savez(tmp_path / "inputs.npz", **changed)
    assert {row.case for row in golden.check(tmp_path) if row.state != "right"} == {"conv2d_by_hand"}
    del changed["conv2d_by_hand.U"]
    np.savez(tmp_path / "inputs.npz", **changed)
    with pytest.raises(InputError, match="do not fit"):
        golden.check(tmp_path)


def test_check_of_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"answers.npz: not a readable npz file \(No such file or directory\)"):
        golden.check(tmp_path / "missing")


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        golden.write(tmp_path / "file")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "answers.npz").write_bytes(b"old")
    monkeypatch.setattr("prm.files.os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        golden.write(tmp_path / "old")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "old").iterdir()] == [("answers.npz", b"old")]


# ---- the stand-alone checker


def run(folder, given, *options):
    """The copy in the folder, in a Python that sees neither this package nor the environment."""
    script = [sys.executable, "-I", str(folder / "check_answers.py"), str(folder), str(given), *options]
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def judged(folder, answers, tmp_path, *options, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    np.savez_compressed(tmp_path / "mine.npz", **{**answers, **changes})
    return run(folder, tmp_path / "mine.npz", *options)


def test_the_script_stands_alone():
    source = (REFERENCE / "check_answers.py").read_text("utf-8")
    assert len(source.splitlines()) < 80
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.M))
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_right_answers(folder, answers):
    assert run(folder, folder / "answers.npz") == (0, [f"{len(answers)} of {len(answers)} arrays right"], [])


def test_one_wrong_number(folder, answers, tmp_path):
    wrong = answers["conv2d_by_hand.P_U"].copy()
    wrong[0, 1, 0] += 1e-6
    code, out, _ = judged(folder, answers, tmp_path, conv2d_by_hand__P_U=wrong)
    assert (code, len(out)) == (1, 2)
    assert out[0] == (
        "conv2d_by_hand.P_U: at (0, 1, 0) got 12.000001, expected 12.0, allowed error 1.2e-08. "
        "One window; a negative weight takes nothing."
    )
    assert out[1] == f"{len(answers) - 1} of {len(answers)} arrays right"
    assert judged(folder, answers, tmp_path, "--rtol", "1e-6", conv2d_by_hand__P_U=wrong)[0] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_wrong(folder, answers, tmp_path, value):
    wrong = answers["conv2d_by_hand.P_U"].copy()
    wrong[0, 1, 1] = value
    code, out, _ = judged(folder, answers, tmp_path, "--rtol", "1", conv2d_by_hand__P_U=wrong)
    assert code == 1
    assert out[0].startswith(f"conv2d_by_hand.P_U: at (0, 1, 1) got {value}, expected 8.0")


def test_peaks_are_compared_exactly(folder, answers, tmp_path):
    wrong = answers["forward_two_peaks.peaks"].copy()
    wrong[1, 3] -= 1
    code, out, _ = judged(folder, answers, tmp_path, "--rtol", "1", forward_two_peaks__peaks=wrong)
    assert code == 1
    assert out[0].startswith("forward_two_peaks.peaks: at (1, 3) got 2, expected 3, allowed error 0. Two peaks")


def test_shapes_and_types(folder, answers, tmp_path):
    code, out, _ = judged(
        folder, answers, tmp_path, conv2d_by_hand__P_U=np.zeros((2, 2)), conv2d_by_hand__leaked=np.zeros(1),
        forward_two_peaks__peaks=np.zeros((3, 4), int), forward_no_images__peaks=np.zeros((0, 3)),
        overlap__iou=np.array("0.5"),
    )  # fmt: skip
    assert code == 1
    assert [line.split(" ", 1)[0] for line in out[:-1]] == [
        "forward_two_peaks.peaks:", "forward_no_images.peaks:", "conv2d_by_hand.P_U:", "conv2d_by_hand.leaked:",
        "overlap.iou:",
    ]  # fmt: skip
    assert "dtype and shape float64 (2, 2), expected float64 (1, 2, 2)" in out[2]


def test_missing_and_unknown_keys(folder, answers, tmp_path):
    given = dict(answers)
    del given["nms_per_class.kept"]
    code, out, _ = judged(folder, given, tmp_path, extra=np.zeros(2))
    assert code == 1
    assert out[0].startswith("nms_per_class.kept: missing. ")
    assert out[1] == "unknown key: extra"
    assert judged(folder, answers, tmp_path, extra=np.zeros(2))[0] == 0


def test_other_types_that_hold_the_same_numbers(folder, answers, tmp_path):
    # masks as bool, indices as int32, everything in Fortran order
    kinds = {"u": bool, "i": np.int32, "f": np.float64}
    given = {key: np.array(value, kinds[value.dtype.kind], order="F") for key, value in answers.items()}
    assert judged(folder, given, tmp_path)[0] == 0


def test_layers_in_single_precision(folder, records, answers, tmp_path):
    layers = {one["key"] for record in records for one in record["answers"] if "backprop" in record["function"]}
    given = {key: value.astype(np.float32) if key in layers else value for key, value in answers.items()}
    assert judged(folder, given, tmp_path, "--rtol", "1e-6")[0] == 0
    assert judged(folder, given, tmp_path)[0] == 1


def test_bad_input_is_one_line(folder, tmp_path):
    text, single = tmp_path / "text.npz", tmp_path / "single.npz"
    text.write_text("not a zip archive")
    with open(single, "wb") as file:
        np.save(file, np.zeros(3))
    broken = tmp_path / "broken.npz"
    content = bytearray((folder / "answers.npz").read_bytes())
    content[200:400] = bytes(200)
    broken.write_bytes(content)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, a=np.array([{}], object))
    for given in (tmp_path / "missing.npz", tmp_path, text, single, broken, pickled):
        code, out, err = run(folder, given)
        assert (code, out, len(err)) == (2, [], 1), (given, err)
        assert err[0].startswith(f"check_answers: error: {given}: ")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "Expecting property name"),
        ('{"format": 2, "cases": []}', "format 2, where 1 is read"),
        ('{"format": 1, "cases": []}', "not the answers of answers.npz"),
        ('{"cases": []}', "'format'"),
        ("[]", "TypeError"),
        ('{"format": 1, "cases": [{"name": "a", "sentence": "A.", "answers": [{"key": "c"}]}]}', "'compare'"),
        (None, "No such file"),
    ],
)
def test_broken_cases_are_one_line(folder, tmp_path, content, message):
    for name in ("check_answers.py", "answers.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if content is not None:
        (tmp_path / "cases.json").write_text(content)
    code, out, err = run(tmp_path, tmp_path / "answers.npz")
    assert (code, out, len(err)) == (2, [], 1), err
    assert "cases.json: not usable" in err[0] and message in err[0]
