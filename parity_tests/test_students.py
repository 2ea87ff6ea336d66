"""Students: the U-Net for crowds, the training loop, the place of a segmenter, and the one that ships."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

import prm
from prm import InputError
from prm.accelerated import Proposals
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.accelerated.pseudo_labels import refine
from prm.accelerated.students.cells import Cells, _regions
from prm.accelerated.students.checkpoint import SHIPPED, StudentCheckpoint, load_student, student_page
from prm.accelerated.students.registry import student
from prm.accelerated.students.segmenter import StudentSegmenter, middle
from prm.accelerated.students.training import _Order, learning_rate_factor, train_student
from prm.eval import cli
from prm.eval.datasets import make_synthetic, open_dataset
from prm.eval.datasets.synthetic import CLASS_NAMES
from prm.eval.judging.record import ANSWER
from prm.settings import AnswerSettings, StudentSettings

TINY = {"widths": [4, 6], "crop": 32, "views": 2, "least": 5}
QUICK = dict(steps=6, batch_size=2, lr=0.01, schedule="linear", warm_up=0, optimizer="adamw", save_every=2)


def discs(*circles, size=(60, 70)):
    """(picture, masks) of bright discs (row, column, radius) on dark ground."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    masks = np.array([(rows - y) ** 2 + (columns - x) ** 2 <= r * r for y, x, r in circles]).reshape(-1, *size)
    noise = np.random.default_rng(0).normal(0, 5, (*size, 1))
    return np.clip(np.where(masks.any(0)[..., None], 190, 40) + noise, 0, 255).repeat(3, 2).astype(np.uint8), masks


def samples(count=5):
    found = []
    for k in range(count):
        image, masks = discs((12 + k, 14, 9), (40, 30 + 4 * k, 12))
        found.append(SimpleNamespace(image=image, masks=masks, mask_labels=np.zeros(2, np.int64), name=f"{k}.png"))
    return found


def start(**options):
    torch.manual_seed(0)
    model = student("cells", 1, **(TINY | options))
    return StudentCheckpoint({"name": "cells", "options": TINY | options}, ["disc"], state=model.state_dict())


# ---- the U-Net for crowds


def test_what_is_learnt_of_a_mask():
    """A square of 3 x 3 and a smaller mask on its corner: the centre is a diagonal from there, the edge one pixel."""
    masks = np.zeros((2, 7, 9), bool)
    masks[0, 1:4, 1:4], masks[1, 3, 3:5] = True, True
    _, known = Cells(4, **TINY).prepare(np.zeros((7, 9, 3), np.uint8), masks, np.array([3, 1]))
    expected = np.zeros((7, 9), int)
    expected[1:4, 1:4], expected[3, 3:5] = 4, 2
    assert (known[..., 0] == expected).all()
    assert known[2, 2, 1] == 255 and known[1, 1:4, 1].tolist() == [180, 180, 180] and (known[3, 3:5, 1] == 255).all()
    assert not Cells(1).prepare(np.zeros((7, 9, 3), np.uint8), masks[:0], np.zeros(0, int))[1].any()


def test_an_example_is_turned_and_scaled_as_one():
    cells = Cells(1, **(TINY | {"crop": 48}))
    image, masks = discs((20, 20, 14), (40, 48, 10))
    prepared = cells.prepare(image, masks, np.zeros(2, np.int64))
    shown = (np.repeat(prepared[1][..., 1:], 3, 2), prepared[1])  # a picture that shows the depth
    for k in range(12):
        x, target = cells.example(shown, np.random.default_rng(k))
        again, _ = cells.example(shown, np.random.default_rng(k))
        assert (x == again).all() and x.shape == (3, 48, 48)
        seen, depth = x[0][target["inside"] > 0], target["depth"][target["inside"] > 0]
        if depth.std() > 0.1:
            assert np.corrcoef(seen, depth)[0, 1] > 0.97
        assert not target["classes"][target["inside"] == 0].any()


def test_tiles_change_nothing():
    torch.manual_seed(0)
    cells = Cells(3, widths=[4, 6, 8], crop=32, views=8).eval()
    image = np.random.default_rng(0).integers(0, 255, (83, 101, 3)).astype(np.uint8)
    whole = cells.maps(image).detach()
    assert whole.shape == (5, 83, 101) and torch.allclose(whole[2:].sum(0), torch.ones(83, 101), atol=1e-5)
    cells.tile = 32
    assert (cells.maps(image).detach() - whole).abs().max() < 1e-5


def test_a_turned_picture_gets_a_turned_answer():
    torch.manual_seed(0)
    cells = Cells(1, widths=[4, 6], crop=32, views=8).eval()
    image = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    maps = cells.maps(image).detach()
    assert (cells.maps(image[:, ::-1].copy()).detach() - maps.flip(2)).abs().max() < 1e-6
    assert (cells.maps(image.transpose(1, 0, 2).copy()).detach() - maps.transpose(1, 2)).abs().max() < 1e-6


def test_depth_tells_apart_what_touches():
    cells = Cells(1, least=30)
    rows, columns = np.mgrid[:40, :80]
    hill = lambda x: np.clip(1 - np.hypot(rows - 20, columns - x) / 14, 0, 1)  # noqa: E731
    depth = np.maximum(hill(25), hill(48))
    there = (depth > 0).astype(float)
    regions = cells.split(there, depth)
    assert regions.max() == 2 and regions[20, 25] != regions[20, 48] and ((regions > 0) == (there > 0)).all()
    shallow = 0.9 + 0.1 * depth  # the pass between them is lower by less than a tenth
    assert cells.split(there, shallow * there).max() == 1
    assert cells.split(there * 0.6, depth).max() == 0  # not above the threshold
    small = np.zeros((40, 80))
    small[3:8, 3:9] = 1
    assert cells.split(small, small).max() == 0
    small[8, 3] = 1
    assert cells.split(small, small).max() == 1


def test_regions_become_masks():
    regions = np.array([[1, 1, 0, 2], [2, 0, 1, 1]], np.int32)
    masks = _regions(regions, 2)
    assert (masks.masks().numpy() == np.stack([regions == 1, regions == 2])).all()
    assert len(_regions(np.zeros((2, 3), np.int32), 0)) == 0
    assert [middle(masks, k) for k in range(2)] == [(1.0, 2.0), (1.0, 0.0)]


@pytest.mark.parametrize("options", [{"widths": [8]}, {"crop": 33}, {"views": 3}, {"scale": 0.5}, {"tile": 5}])
def test_options_that_cannot_be(options):
    with pytest.raises(InputError, match="cells: "):
        Cells(1, **(TINY | options))


# ---- training


def test_a_student_learns_discs(tmp_path):
    settings = StudentSettings(**(QUICK | dict(steps=120, batch_size=4, save_every=120)))
    rows = train_student(start(widths=[8, 12, 16]), samples(), tmp_path, settings)
    assert rows[-1]["loss"] < 0.6
    image, masks = discs((15, 20, 10), (40, 45, 11))
    found = load_student(tmp_path).model().answer(image)
    ious = found.masks.ious(Proposals.from_masks(torch.from_numpy(masks))).numpy()
    assert len(found.masks) == 2 and (ious.max(0) > 0.7).all() and (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_stops_goes_on_to_the_bit(tmp_path, optimizer):
    settings = StudentSettings(**(QUICK | {"optimizer": optimizer}))
    rows = train_student(start(), samples(), tmp_path / "whole", settings)
    assert [row["step"] for row in rows] == [2, 4, 6]

    def stop(done, loss):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(start(), samples(), tmp_path / "halves", settings, on_step=stop)
    assert load_student(tmp_path / "halves").step == 4
    train_student(start(), samples(), tmp_path / "halves", settings, resume=True)
    whole, halves = load_student(tmp_path / "whole"), load_student(tmp_path / "halves")
    for name in ("state", "optimizer"):
        ours, theirs = getattr(whole, name), getattr(halves, name)
        assert ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)
    with pytest.raises(InputError, match=r"cannot resume, training was .*'lr': 0\.01"):
        train_student(start(), samples(), tmp_path / "halves", StudentSettings(**(QUICK | {"lr": 1.0})), resume=True)


def test_the_number_of_workers_changes_nothing(tmp_path):
    drawn = []

    def redraw(index, draw):
        drawn.append(index)
        masks = samples()[index].masks
        return masks[draw.integers(2, size=1)], np.zeros(1, np.int64)

    state = []
    for workers in (0, 2):
        settings = StudentSettings(**(QUICK | {"labels": "sampled", "workers": workers}))
        train_student(start(), samples(), tmp_path / str(workers), settings, redraw=redraw)
        state.append(load_student(tmp_path / str(workers)).state)
    assert all((state[0][k] == state[1][k]).all() for k in state[0])
    assert len(drawn) == QUICK["steps"] * QUICK["batch_size"]  # anew, whenever a picture is loaded


def test_every_picture_once_an_epoch_and_each_process_its_share():
    settings = StudentSettings(steps=10, batch_size=4)
    whole = list(_Order(5, settings, 0, 0, 1))
    assert len(whole) == 40
    for epoch in range(8):
        assert sorted(k for e, k in whole if e == epoch) == list(range(5))
    assert list(_Order(5, settings, 3, 0, 1)) == whole[12:]
    shares = [list(_Order(5, settings, 3, rank, 2)) for rank in range(2)]
    assert [pair for both in zip(*shares) for pair in both] == whole[12:]


def test_the_learning_rate():
    s = StudentSettings(steps=100, schedule="step", warm_up=10)
    assert learning_rate_factor(s, 0) == pytest.approx(1 / 3 + 2 / 30) and learning_rate_factor(s, 9) == 1
    assert learning_rate_factor(s, 60) == pytest.approx(0.1) and learning_rate_factor(s, 85) == pytest.approx(0.01)
    s = StudentSettings(steps=100, schedule="linear", warm_up=0)
    assert [learning_rate_factor(s, k) for k in (0, 25, 99)] == pytest.approx([1, 0.75, 0.01])


def test_a_loss_that_is_not_finite_names_its_pictures(tmp_path):
    with pytest.raises(InputError, match=r"in step 2 on the batch \[\d.png, \d.png\]; try a lower --lr"):
        train_student(start(), samples(), tmp_path, StudentSettings(**(QUICK | {"lr": 1e30, "optimizer": "sgd"})))


TOGETHER = """
import sys, torch
from prm.accelerated.students import checkpoint, training
from prm.parity_tests.test_students import QUICK, samples, StudentCheckpoint, StudentSettings

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
    def prepare(self, image, masks, labels):
        return (image,)
    def example(self, prepared, draw):
        return torch.from_numpy(prepared[0]).float().mean((0, 1)) / 255 + float(draw.random()), {}
    def losses(self, examples):
        return {"square": ((torch.stack([x for x, _ in examples]) @ self.weight - 1) ** 2).mean()}
    def groups(self, lr, weight_decay):
        return [{"params": [self.weight], "lr": lr, "weight_decay": weight_decay}]

checkpoint.student = lambda name, count, **options: Linear()
start = StudentCheckpoint({"name": "linear", "options": {}}, ["disc"], state=Linear().state_dict())
training.train_student(start, samples(), sys.argv[1], StudentSettings(**(QUICK | {"batch_size": 4})))
"""


def test_processes_of_torchrun_average_their_gradients(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    script = [str(tmp_path / "together.py")]
    runs = {"one": [sys.executable], "two": [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                             "--nproc-per-node", "2"]}  # fmt: skip
    weights = []
    for name, command in runs.items():
        told = subprocess.run([*command, *script, str(tmp_path / name)], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        weights.append(load_student(tmp_path / name).state["weight"])
    assert torch.allclose(*weights, rtol=1e-5) and not torch.allclose(weights[0], torch.ones(3), atol=1e-3)


# ---- in a segmenter's place


class Fixed(torch.nn.Module):
    """A student that always sees the same."""

    def __init__(self, masks, labels, scores):
        super().__init__()
        self.found = SimpleNamespace(masks=masks, labels=np.array(labels), scores=np.array(scores))

    def answer(self, image):
        return self.found


def test_what_is_kept_of_an_answer():
    image, masks = discs((15, 20, 10), (40, 45, 11), (20, 50, 6))
    found = Fixed(Proposals.from_masks(torch.from_numpy(masks)), [1, 0, 1], [0.9, 0.6, 0.2])
    (answer,) = StudentSegmenter(found, ["a", "b"])([image], [None])
    instances = [(one.label, one.score, one.name) for one in answer.instances]
    assert instances == [(1, 0.9, "b"), (0, 0.6, "a"), (1, 0.2, "b")]
    for one in answer.instances:
        assert one.mask.masks()[0][int(one.peak[0]), int(one.peak[1])]
    (answer,) = StudentSegmenter(found, ["a", "b"], AnswerSettings(min_score=0.5), words=["b"])([image], [None])
    assert [(one.label, one.score) for one in answer.instances] == [(0, 0.9)]
    with pytest.raises(InputError, match="knows no class 'c'; it knows a, b"):
        StudentSegmenter(found, ["a", "b"], words=["c"])


def test_masks_are_refined():
    image, masks = discs((15, 20, 10), (40, 45, 11))
    found = Fixed(Proposals.from_masks(torch.from_numpy(masks)), [0, 0], [0.9, 0.6])
    _, others = discs((16, 20, 9), (40, 45, 12), (40, 44, 11))
    proposals = Proposals.from_masks(torch.from_numpy(others))
    proposals = Proposals(proposals.height, proposals.width, proposals.starts, proposals.ends, proposals.offsets,
                          torch.tensor([0.9, 0.8, 0.3]))  # fmt: skip
    for least in (None, 0.75, 0.85):
        segmenter = StudentSegmenter(found, ["a"], AnswerSettings(refine=True, refine_minimum=least))
        ours = segmenter.find(image, proposals).masks.masks()
        assert (ours == refine(found.found.masks, proposals, least).masks()).all()
    assert (ours[1] == torch.from_numpy(masks[1])).all() and (ours[0] == torch.from_numpy(others[0])).all()
    with pytest.raises(InputError, match="needs proposals"):
        segmenter.find(image)


# ---- the one that ships, and the command line


def test_the_nuclei_student():
    page = json.loads(SHIPPED.read_text())
    assert sum((SHIPPED.parent / f["name"]).stat().st_size for f in page["files"].values()) < 5e6
    assert student_page("nuclei") == SHIPPED and student_page("nuclei-prm") is None
    image, masks = discs((30, 30, 12), (60, 90, 14), (90, 40, 10), size=(128, 128))
    answer = prm.Segmenter.from_pretrained()(image)
    found = Proposals.concatenate([one.mask for one in answer.instances])
    assert len(found) == 3
    assert (found.ious(Proposals.from_masks(torch.from_numpy(masks))).amax(0) > 0.7).all()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("students")
    make_synthetic(place / "scenes", train=4, val=3, seed=1, size=96)
    run("student", "train", "--data", place / "scenes", "--preset", "cells", "-o", place / "student", *TRAIN)
    return place


TRAIN = ["--student-options", json.dumps(TINY | {"foreground": 0.3, "depth": 0.01}), "--steps", 30, "--save-every", 15]


def run(*arguments):
    return cli.app([str(a) for a in arguments], standalone_mode=False) or 0


def test_an_evaluation_is_that_of_what_was_segmented(place, tmp_path, capsys):
    """The masks that `prm segment` writes, judged as files, get the figures that `prm eval` gives the student."""
    scenes = place / "scenes"
    run("eval", "--data", scenes, "-m", place / "student", "--json", tmp_path / "direct.json")
    run("segment", scenes / "val", "-r", "-m", place / "student", "-o", tmp_path / "out")
    run("eval", "--data", scenes, "--predictions", tmp_path / "out", "--json", tmp_path / "files.json")
    direct, files = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("direct", "files"))
    (one,), (other,) = direct.values(), files.values()
    assert one["predicted_instances"] > 3
    for name in ("mAP^r_0.25", "mAP^r_0.5", "ABO", "true_instances", "predicted_instances"):
        assert one[name] == pytest.approx(other[name], abs=1e-12), name
    assert "index.html" in capsys.readouterr().out and (tmp_path / "out" / "index.html").is_file()


def test_a_student_goes_on_or_starts_another(place, tmp_path):
    scenes = place / "scenes"
    with pytest.raises(InputError, match="holds a checkpoint already; add --resume"):
        run("student", "train", "--data", scenes, "--preset", "cells", "-o", place / "student", *TRAIN)
    run("student", "train", "--data", scenes, "--preset", "cells", "-o", tmp_path / "next", *TRAIN,
        "--weights", place / "student", "--val", scenes, "--val-every", 3)  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "next" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [15, 30] and "mAP^r_0.5" in rows[0]
    page = tmp_path / "other.json"
    earlier = load_student(place / "student")
    assert earlier.training["steps"] == 30 and len(earlier.class_names) == 5
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["student", "train", "--data", "SCENES", "-o", "OUT", "--preset", "large"], "--preset large: known are small"),
        (["student", "train", "--data", "SCENES", "-o", "OUT", "--student-options", '{"a": 1}'], "--student-options: "),
        (["student", "train", "--data", "SCENES", "-o", "OUT", "--preset", "cells", "--labels", "sampled"],
         "of its own"),
        (["student", "train", "--data", "SCENES", "-o", "OUT", "--pictures", "SCENES"], "labels that prm label wrote"),
        (["student", "train", "--data", "SCENES", "-o", "OUT", "--preset", "cells", "--weights", "imagenet"],
         "starts from random weights"),
        (["segment", "SCENES", "-r", "-m", "STUDENT", "--alpha", "1"], "--alpha: of Algorithm 1"),
        (["segment", "SCENES", "-r", "-m", "STUDENT", "--save", "prms"], "no Peak Response Maps"),
        (["segment", "SCENES", "-r", "-m", "STUDENT", "--proposals", "SCENES"], "add --refine"),
        (["segment", "SCENES", "-r", "-m", "nuclei-prm", "--refine"], "--refine: for students"),
        (["tune", "--data", "SCENES", "-c", "STUDENT"], "a student, which has no response maps"),
        (["label", "--data", "SCENES", "-o", "OUT", "-c", "STUDENT"], "a student, which has no response maps"),
        (["label", "--data", "SCENES", "-o", "OUT", "-c", "nuclei"], "a student, which has no response maps"),
        (["eval", "report", "--data", "SCENES", "-c", "STUDENT", "-o", "OUT"], "a student, which has no response maps"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(place, tmp_path, arguments, said):
    paths = {"SCENES": place / "scenes", "STUDENT": place / "student", "OUT": tmp_path / "out"}
    with pytest.raises(InputError) as error:
        run(*(paths.get(word, word) for word in arguments))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_student_of_other_classes(place, tmp_path):
    other = load_student(place / "student")
    with pytest.raises(InputError, match=r"a student of .*; the labels are of"):
        from prm.eval.cli.students import _start

        _start("cells", {}, ["cat"], str(place / "student"), 0)
    other.class_names = ["cat", "dog"]
    with pytest.raises(InputError, match="weights and network do not fit"):
        other.model()


def test_masks_are_read_back_by_a_dataset(place):
    """A further round: the student's own answers as labels."""
    out = place / "round"
    assert run("label", "--data", place / "scenes", "--method", "student", "-m", place / "student", "-o", out) == 0
    found = load_student(place / "student").model()
    for k, sample in enumerate(open_dataset(place / "scenes", "train")[k] for k in range(2)):
        answer = found.answer(sample.image)
        own = np.isin(answer.labels, sample.labels)
        labelled = {one.name: one for one in (open_dataset(out)[i] for i in range(len(open_dataset(out))))}
        if own.any():
            assert (labelled[sample.name].masks == answer.masks.masks().numpy()[own]).all(), k


def test_the_table_of_students(place, tmp_path, capsys):
    """A classifier, a student, and the same refined: a row each, with the figures of `prm eval`."""
    scenes, net = place / "scenes", random_checkpoint("smallnet", list(CLASS_NAMES), 1, widths=[4, 4], pools=1)
    save_checkpoint(net, tmp_path / "net.json")
    judged = ["eval", "tables", "--data", scenes, "--bootstrap", 20, "--limit", 40]
    run(*judged, "-c", tmp_path / "net.json", "-c", place / "student", "-o", tmp_path / "plain")
    text = capsys.readouterr().out
    run(*judged, "-c", place / "student", "--refine", "-o", tmp_path / "refined")
    run("eval", "--data", scenes, "-m", place / "student", "--json", tmp_path / "short.json")
    page = json.loads((tmp_path / "plain" / "student.json").read_text())
    short = json.loads((tmp_path / "short.json").read_text())["rows"]["prm"]
    assert page["run"]["student"] == {"learnt_from": "masks", "refined": False} and "Table 4" in text
    assert page["instances"][ANSWER]["mAP^r_0.5"] == short["mAP^r_0.5"]
    assert page["coco25"]["AP50"] == pytest.approx(page["coco"]["AP50"], nan_ok=True)
    capsys.readouterr()
    run("eval", "tables", tmp_path / "plain" / "net.json", tmp_path / "plain" / "student.json",
        tmp_path / "refined" / "student.json")  # fmt: skip
    lines = capsys.readouterr().out.partition("WISE. Students")[2].splitlines()
    rows = [line for line in lines if line.startswith(("| PRM", "| student of", "| masks"))]
    assert [row.split(" | ")[0][2:] for row in rows] == [
        "PRM", "student of sampled labels", "student of sampled labels, refined", "student of masks",
        "student of masks, refined", "PRM, here", "masks, here", "masks, refined, here"]  # fmt: skip
    assert "| 58.9 | 51.4 | 32.4 |  |" in rows[3] and f"{100 * short['mAP^r_0.5']:.1f} [" in rows[3]
