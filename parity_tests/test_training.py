"""The loss, the training loop and its checkpoints: exact resumption, and what is refused in one line."""

import dataclasses
import json
import math
import os
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from prm import InputError
from prm.accelerated import Segmenter, training
from prm.accelerated.checkpoint import Checkpoint, load_checkpoint, random_checkpoint, save_checkpoint
from prm.accelerated.networks import NETWORKS
from prm.accelerated.training import TrainingSettings, learning_rate_factor, parameter_groups, soft_margin_loss, train
from prm.parity_tests.checks import assert_same_tensors, refused
from prm.parity_tests.tolerances import assert_close
from prm.parity_tests.zoo import Model


@dataclass
class Sample:
    image: np.ndarray
    labels: tuple[int, ...]
    name: str
    difficult: tuple[int, ...] = ()


def samples(count=12, side=24):
    """A red square is class 0, a green one class 1; some pictures hold both, some neither."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        image = rng.integers(0, 60, (side + k % 3, side, 3)).astype(np.uint8)
        labels = [(0,), (1,), (0, 1), ()][k % 4]
        for c in labels:
            i, j = rng.integers(0, side - 9, 2)
            image[i : i + 9, j : j + 9, c] = 250
        found.append(Sample(image, labels, f"picture {k}.png"))
    return found


def fresh(seed=0, **options):
    """A small network, as given to `train`."""
    checkpoint = random_checkpoint("smallnet", ["red", "green"], seed, widths=[4, 6], pools=1, depth=1)
    checkpoint.input = {"mean": [0.2, 0.2, 0.2], "std": [0.3, 0.3, 0.3], "size": 24}
    return dataclasses.replace(checkpoint, **options)


SMALL = TrainingSettings(epochs=4, batch_size=5, size=24, lr_features=0.05, lr_classifier=0.1)


def run(out, start=None, some=None, device="cpu", resume=False, on_step=None, on_epoch=None, **changes):
    """`train` in the folder `out`, with the small settings but for the changes."""
    some, settings = samples() if some is None else some, dataclasses.replace(SMALL, **changes)
    called = {"on_step": on_step, "on_epoch": on_epoch}
    return train(start or fresh(), some, out, settings, resume=resume, device=str(device), **called)


def weights(out):
    return load_checkpoint(out).state


# ---- the loss


def test_the_loss_is_torchs_multi_label_soft_margin_loss(device):
    draw = torch.Generator().manual_seed(0)
    scores = (10 * torch.randn(7, 5, dtype=torch.float64, generator=draw)).to(device).requires_grad_()
    labels = torch.randint(0, 2, (7, 5), generator=draw).double().to(device)
    mine = soft_margin_loss(scores, labels, torch.ones_like(labels))
    theirs = nn.MultiLabelSoftMarginLoss()(scores, labels)
    assert_close(mine, theirs, torch.float64, "loss")
    grads = (torch.autograd.grad(loss, scores)[0] for loss in (mine, theirs))
    assert_close(*grads, torch.float64, "gradient")


def test_difficult_labels_take_no_part(device):
    scores = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, device=device).requires_grad_()
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, device=device)
    counted = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64, device=device)
    loss = soft_margin_loss(scores, labels, counted)
    terms = [math.log1p(math.exp(-1)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    (grad,) = torch.autograd.grad(loss, scores)
    assert grad[0, 1] == 0
    assert torch.equal(soft_margin_loss(scores, labels + (1 - counted), counted), loss)


def test_the_loss_at_its_ends(device):
    zeros = torch.zeros(2, 2, device=device)
    scores = torch.ones(2, 2, device=device, requires_grad=True)
    nothing = soft_margin_loss(scores, zeros + 1, zeros)  # all labels are difficult
    assert nothing.item() == 0 and torch.equal(torch.autograd.grad(nothing, scores)[0], zeros)
    assert soft_margin_loss(torch.tensor([[1e4, -1e4]], device=device), zeros[:1], zeros[:1] + 1).item() == 5e3


# ---- the loop


@pytest.mark.parametrize("pool", ["peak", "average"])
def test_the_loss_falls(pool, tmp_path, device):
    start = fresh(aggregation={"name": pool, "options": {}})
    rows = run(tmp_path, start, samples(16), device, epochs=30, batch_size=4, jitter=1.1)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"], (rows[0]["loss"], rows[-1]["loss"])
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == rows
    found = load_checkpoint(tmp_path)
    assert (found.epoch, found.aggregation["name"], found.training["lr_classifier"]) == (30, pool, 0.1)
    assert not found.model().training


def test_what_the_callbacks_are_told(tmp_path, device):
    steps, seen = [], []

    def on_epoch(model, rows):
        assert not model.training
        seen.append([row["epoch"] for row in rows])
        return {"figure": len(rows)}

    told = {"on_step": lambda *said: steps.append(said), "on_epoch": on_epoch}
    rows = run(tmp_path, device=device, epochs=2, batch_size=1, **told)
    assert training.CHECK_EVERY == 10  # on which the number of steps told depends
    assert seen == [[1], [1, 2]] and [row["figure"] for row in rows] == [1, 2]
    assert [said[:2] for said in steps] == [(10, 12), (12, 12)] * 2
    assert all(math.isfinite(said[2]) and said[3] > 0 for said in steps)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, epochs=2, seed=seed)
    assert_same_tensors(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert any(not torch.equal(v, weights(tmp_path / "c")[k]) for k, v in weights(tmp_path / "a").items())


def test_pictures_are_scaled_down_before_the_crop(tmp_path):
    """A crop of a large picture lies in one half of it; one of the picture scaled down sees both."""
    image = np.zeros((240, 240, 3), np.uint8)
    image[:120, :, 0], image[120:, :, 1] = 255, 255
    start = {"mean": [0.0] * 3, "std": [1.0] * 3}
    for resize, seen in [(24, 2), (None, 1)]:
        settings = dataclasses.replace(SMALL, resize=resize, jitter=1, seed=3)
        crop = training._Crops([Sample(image, (0, 1), "large")], 2, start, settings)[0][0]
        assert crop.shape == (3, 24, 24)
        assert int(crop[0].max() > 0.9) + int(crop[1].max() > 0.9) == seen


def test_a_run_from_before_a_setting_goes_on(tmp_path):
    run(tmp_path, epochs=1)
    page = page_of(tmp_path)
    del page["training"]["resize"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(page))
    assert len(run(tmp_path, resume=True, epochs=1)) == 1
    refused(lambda: run(tmp_path, resume=True, epochs=1, resize=20), "cannot resume", "resize")


def test_a_difficult_label_does_not_teach(tmp_path):
    # the same pictures, the class's labels right in one run and wrong in the other, but difficult in both
    right = [dataclasses.replace(s, difficult=(1,)) for s in samples(6)]
    wrong = [dataclasses.replace(s, labels=tuple({0} & set(s.labels)), difficult=(1,)) for s in samples(6)]
    for name, some in (("right", right), ("wrong", wrong)):
        run(tmp_path / name, some=some, epochs=2)
    assert_same_tensors(weights(tmp_path / "right"), weights(tmp_path / "wrong"))


def test_learning_rates():
    model = fresh().model()
    features, classifier = parameter_groups(model, SMALL)
    assert (features["lr"], classifier["lr"]) == (0.05, 0.1)
    assert [p.shape for p in classifier["params"]] == [(2, 6, 1, 1), (2,)]
    assert len(features["params"]) + 2 == len(list(model.parameters()))
    cosine = TrainingSettings(epochs=10)
    assert [learning_rate_factor(cosine, step, 2) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    step = TrainingSettings(epochs=20, schedule="step")
    factors = [learning_rate_factor(step, 3 * epoch, 3) for epoch in (0, 11, 12, 16, 17, 19)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 0}, {"size": -1}, {"schedule": "linear"}, {"jitter": 0.5}, {"resize": 0}]
)
def test_bad_settings(options):
    refused(lambda: TrainingSettings(**options), *options)


def test_no_pictures(tmp_path):
    refused(lambda: run(tmp_path, some=[]), "picture")


# ---- interrupted and resumed


class Stopped(Exception):
    """What happens to a run from outside."""


def run_until(epochs, out, *given, **options):
    """A run that is stopped in the epoch after `epochs`; the checkpoint that it leaves is of that epoch."""

    def on_epoch(model, rows):
        if len(rows) > epochs:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        run(out, *given, on_epoch=on_epoch, **options)
    assert load_checkpoint(out).epoch == epochs


def drop_net(num_classes):
    features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
    return Model(lambda m, x: m.classifier(m.features(x)), features=features, classifier=nn.Conv2d(6, num_classes, 1))


def dropping(seed=0):
    torch.manual_seed(seed)
    return fresh(network={"name": "dropnet", "options": {}}, state=drop_net(2).state_dict())


@pytest.mark.parametrize(("build", "schedule"), [(fresh, "cosine"), (dropping, "step")])
def test_a_resumed_run_equals_an_uninterrupted_one(build, schedule, tmp_path, monkeypatch, device):
    monkeypatch.setitem(NETWORKS, "dropnet", drop_net)
    options = {"device": device, "schedule": schedule, "vertical_flip": True}
    torch.manual_seed(11)
    whole = run(tmp_path / "whole", build(), **options)
    for seed, until in ((22, 1), (33, 3)):  # a new process begins wherever it begins
        torch.manual_seed(seed)
        run_until(until, tmp_path / "cut", build(), resume=until > 1, **options)
    torch.manual_seed(44)
    # the start's own weights count for nothing on resumption
    rows = run(tmp_path / "cut", build(seed=5), resume=True, **options)

    one, other = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "cut")
    assert_same_tensors(one.state, other.state)
    assert_same_tensors(one.momentum, other.momentum)
    assert one.momentum
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in some] for some in (whole, rows)]
    assert untimed[0] == untimed[1]
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == SMALL.epochs


def test_a_finished_run_is_not_trained_further(tmp_path):
    rows = run(tmp_path, resume=True)  # where there is nothing, a run begins anew
    assert len(rows) == SMALL.epochs
    before = (tmp_path / "checkpoint.json").read_bytes()
    assert run(tmp_path, resume=True) == rows
    assert (tmp_path / "checkpoint.json").read_bytes() == before


SMALLNET = {"name": "smallnet"}
CHANGES = {  # settings, fields of the checkpoint, number of pictures
    "training, learning rate": ({"lr_features": 0.04}, {}, 12),
    "training, seed": ({"seed": 1}, {}, 12),
    "training, epochs": ({"epochs": 9}, {}, 12),
    "training, pictures": ({}, {}, 11),
    "class_names": ({}, {"class_names": ["red", "blue"]}, 12),
    "aggregation": ({}, {"aggregation": {"name": "average", "options": {}}}, 12),
    "network": ({}, {"network": SMALLNET | {"options": {"widths": [4, 8], "pools": 1, "depth": 1}}}, 12),
    "input": ({}, {"input": {"mean": [0.0] * 3, "std": [1.0] * 3, "size": 24}}, 12),
}


@pytest.mark.parametrize("what", CHANGES)
def test_resume_with_other_settings_is_refused(what, trained):
    settings, fields, count = CHANGES[what]
    again = {"resume": True, "epochs": 2} | settings
    refused(
        lambda: run(trained, fresh(**fields), samples(count), **again), "cannot resume", what.split(",")[0], trained
    )
    assert load_checkpoint(trained).epoch == 2


def test_the_number_of_workers_may_change(tmp_path):
    run_until(1, tmp_path)
    run(tmp_path, resume=True, workers=1)
    assert load_checkpoint(tmp_path).epoch == 4


@pytest.mark.parametrize("content", [None, b"", b"{not json}\n", b"\xff\xfe"])
def test_a_log_that_is_gone_or_damaged_stops_no_resumption_with_a_traceback(content, trained):
    log = trained / "log.jsonl"
    log.unlink() if content is None else log.write_bytes(content)
    try:
        run(trained, resume=True, epochs=2)
    except InputError as error:
        assert "\n" not in str(error)
        assert "log.jsonl" in str(error)


# ---- a loss that is not finite


class Spoilt(Sample):
    """A picture whose pixels become NaN, as a broken decoder's might, once the switch is thrown."""

    broken = False

    def __getattribute__(self, name):
        if name == "image" and type(self).broken:
            return np.full((24, 24, 3), np.nan, np.float32)
        return super().__getattribute__(name)


@pytest.mark.parametrize("pool", ["peak", "average"])
def test_a_non_finite_loss_names_the_pictures_and_keeps_the_checkpoint(pool, tmp_path, monkeypatch, device):
    monkeypatch.setattr(Spoilt, "broken", False)
    some = samples(11)
    some.append(Spoilt(some[0].image, (0,), "spoilt one.png"))

    def on_epoch(model, rows):
        monkeypatch.setattr(Spoilt, "broken", True)
        return {}

    start = fresh(aggregation={"name": pool, "options": {}})
    spoil = {"on_epoch": on_epoch, "batch_size": 3}
    message = refused(lambda: run(tmp_path, start, some, device, **spoil), "nan", "epoch 2", "spoilt one.png")
    assert message.count(".png") == 3  # its batch, no other
    kept = load_checkpoint(tmp_path)
    assert kept.epoch == 1
    assert all(tensor.isfinite().all() for tensor in kept.state.values())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_learning_rates_that_are_too_high(tmp_path, device):
    rates = {"lr_features": 1e30, "lr_classifier": 1e30, "epochs": 3, "batch_size": 2}
    refused(lambda: run(tmp_path, device=device, **rates), "loss", "picture ")


# ---- checkpoints


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    run(out, epochs=2)
    return out


@pytest.fixture
def trained(trained_once, tmp_path):
    """A folder with the checkpoint of two epochs."""
    copy = tmp_path / "run"
    shutil.copytree(trained_once, copy)
    return copy


def use(path):
    """What every command does with a checkpoint."""
    checkpoint = load_checkpoint(path)
    checkpoint.model()
    return Segmenter.from_checkpoint(checkpoint)


def test_round_trip(trained, tmp_path):
    found = load_checkpoint(trained)
    assert set(os.listdir(trained)) == {"checkpoint.json", "log.jsonl", *page_of(trained, "names")}
    found.segmentation, found.figures = {"alpha": 0.5}, {"mAP": 0.25}
    save_checkpoint(found, tmp_path / "copy" / "named.json")
    again = load_checkpoint(tmp_path / "copy" / "named.json")
    for field in dataclasses.fields(Checkpoint):
        if field.name in ("state", "momentum"):
            assert_same_tensors(getattr(again, field.name), getattr(found, field.name))
        else:
            assert getattr(again, field.name) == getattr(found, field.name)
    images = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.model()(images), again.model()(images))
    assert use(trained).settings == use(trained / "checkpoint.json").settings


def page_of(trained, what="page"):
    page = json.loads((trained / "checkpoint.json").read_text())
    return [file["name"] for file in page["files"].values()] if what == "names" else page


def test_saving_again_leaves_no_old_weights_behind(trained):
    found = load_checkpoint(trained)
    old = page_of(trained, "names")
    found.state = {name: tensor + 1 for name, tensor in found.state.items()}
    save_checkpoint(found, trained / "checkpoint.json")
    new = page_of(trained, "names")
    assert set(os.listdir(trained)) == {"checkpoint.json", "log.jsonl", *new}
    assert old != new


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_full_disk_leaves_the_old_checkpoint_whole(name, allowed, trained, monkeypatch):
    before, real, calls = load_checkpoint(trained), getattr(os, name), []

    def full(*args):
        calls.append(args)
        if len(calls) > allowed:
            raise OSError(28, "No space left on device")
        return real(*args)

    changed = load_checkpoint(trained)
    changed.epoch = 99
    changed.state = {name: tensor + 1 for name, tensor in changed.state.items()}
    changed.momentum = {name: tensor + 1 for name, tensor in changed.momentum.items()}
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        refused(lambda: save_checkpoint(changed, trained / "checkpoint.json"), "No space left on device", trained)
    after = load_checkpoint(trained)
    assert after.epoch == before.epoch
    assert_same_tensors(after.state, before.state)
    assert_same_tensors(after.momentum, before.momentum)
    assert not [name for name in os.listdir(trained) if name.endswith(".tmp")]
    save_checkpoint(changed, trained / "checkpoint.json")  # and once there is room again
    assert load_checkpoint(trained).epoch == 99


def test_a_disk_that_fills_up_in_training(tmp_path, monkeypatch):
    def fill(model, rows):
        if len(rows) == 2:
            monkeypatch.setattr(os, "fsync", full)
        return {}

    def full(*args):
        raise OSError(28, "No space left on device")

    refused(lambda: run(tmp_path, on_epoch=fill), "No space left on device")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).epoch == 1
    assert len(run(tmp_path, resume=True)) == SMALL.epochs


NO_PAGE = [b"", b"[]", b"3", b"null", b'"a"', b"{}", b"{", b'{"format": "other"}', b"\x89PNG\r\n\x1a\n\xff", b"\0" * 9]


@pytest.mark.parametrize("content", [None, *NO_PAGE])
def test_files_that_are_no_checkpoint(content, tmp_path):
    path = tmp_path / "checkpoint.json"
    if content is None:
        refused(lambda: use(path), path)
        refused(lambda: use(tmp_path), tmp_path)
        refused(lambda: use(tmp_path / "nowhere"), tmp_path / "nowhere")
        return
    path.write_bytes(content)
    refused(lambda: use(path), path)
    # nor does a run that is told to resume, or one that would write there, end in a traceback
    refused(lambda: run(tmp_path, resume=True), path)


def test_damaged_and_missing_weights(trained):
    path = trained / page_of(trained)["files"]["weights"]["name"]
    content = path.read_bytes()
    for damaged in (content[:-9], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        refused(lambda: use(trained), path.name)
    for put in (lambda: None, path.mkdir):
        path.unlink(missing_ok=True)
        put()
        refused(lambda: use(trained), path.name)


# what a page's field may not be; LACKING: the field is not there at all
LACKING = "lacking"
FIELDS = {
    "files": [LACKING, [], {}, 3, None, {"weights": {}}, {"weights": "name"}, {"weights": {"name": 3, "sha256": "x"}}],
    "input": [LACKING, {}, [], {"mean": [0.0] * 3}, {"mean": 3, "std": 4}, {"mean": ["a", "b", "c"], "std": [1.0] * 3}],
    "aggregation": [
        LACKING, {}, [], {"name": "median"}, {"name": "peak", "options": {"windw": 3}},
        {"name": "peak", "options": {"window": 4}}, {"name": ["peak"]},
    ],
    "network": [
        LACKING, {}, [], {"name": "alexnet"}, {"name": "resnet18", "options": {}}, SMALLNET | {"options": {"depht": 2}},
        SMALLNET | {"options": {"widths": "wide"}}, SMALLNET | {"options": []},
    ],
    "class_names": [LACKING, 3, None, ["one"], []],
    "segmentation": [{"aplha": 1}, [], 3],
    "unknown": [1],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in FIELDS[name]])
def test_pages_with_bad_fields(name, value, trained):
    page = page_of(trained) | {name: value}
    if value == LACKING:
        del page[name]
    (trained / "checkpoint.json").write_text(json.dumps(page))
    refused(lambda: use(trained), *([trained / "checkpoint.json"] if value == LACKING else []))


@pytest.mark.parametrize("fields", [{"epoch": "three"}, {"epoch": None}, {"training": []}, {"training": None}])
def test_resuming_from_a_page_with_bad_fields(fields, trained):
    (trained / "checkpoint.json").write_text(json.dumps(page_of(trained) | fields))
    refused(lambda: run(trained, resume=True, epochs=2), trained)
