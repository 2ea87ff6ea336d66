"""`prm label`: pseudo labels against the oracle's, the files that they are kept in, and what may go wrong."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pycocotools")

from prm import InputError
from prm.accelerated import Segmenter
from prm.accelerated.checkpoint import load_checkpoint, random_checkpoint, save_checkpoint
from prm.eval import cli, label
from prm.eval.datasets import make_synthetic, open_dataset, open_labels
from prm.eval.datasets.pseudo_labels import Drawable, load_labels, picture_file
from prm.eval.proposals import Source
from prm.reference import pseudo_labels as oracle
from prm.settings import LabelSettings

COUNT = 5
LIMIT = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Drawn scenes and a network of random weights that finds peaks of every class."""
    place = tmp_path_factory.mktemp("label")
    make_synthetic(place / "scenes", train=COUNT, val=1, seed=3, size=96)
    found = random_checkpoint("smallnet", list(open_dataset(place / "scenes").class_names), 2, widths=[8, 8], pools=2)
    found.segmentation = {"class_threshold": 0.0, "peak_threshold": 0.6}
    save_checkpoint(found, place / "net.json")
    return place


@pytest.fixture(scope="module")
def segmenter(place):
    return Segmenter.from_checkpoint(load_checkpoint(place / "net.json"))


@pytest.fixture(scope="module")
def propose():
    return Source(None, LIMIT, None)()


def run(place, *options, out="labels"):
    """The command's exit code; labels of the drawn scenes."""
    given = [str(option) for option in options]
    base = ["label", "--data", str(place / "scenes"), "-o", str(place / out), "--limit", str(LIMIT)]
    net = [] if "--seeds" in given else ["-c", str(place / "net.json")]
    return cli.app([*base, *net, *given], standalone_mode=False) or 0


@pytest.fixture(scope="module")
def made(place):
    run(place)
    return place / "labels"


@pytest.fixture
def copy(place, tmp_path):
    """Scenes and labels to be spoilt, the labels' path to the scenes absolute and true."""
    shutil.copytree(place / "scenes", tmp_path / "scenes")
    run(tmp_path_with_net(place, tmp_path))
    return tmp_path


def tmp_path_with_net(place, tmp_path):
    for file in place.glob("net*"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.mark.parametrize("maps", ["prm", "gradient"])
@pytest.mark.parametrize("ungated", [False, True])
def test_a_picture_against_the_oracle(place, segmenter, propose, maps, ungated):
    """Peaks of the labelled classes, whatever their scores; the seeds, proposals and law of the oracle on these."""
    for sample in (open_dataset(place / "scenes")[k] for k in range(3)):
        proposals = propose(sample)
        found = label.label_picture(segmenter, sample, proposals, LabelSettings("wise", ungated, maps))
        walked = segmenter.look(sample.image)
        labels = walked.peaks[:, 0].numpy()
        own = np.ones(len(labels), bool) if ungated else np.isin(labels, sample.labels)
        peaks, prms = walked.peaks.numpy()[own], walked.prms.double().numpy()[own]
        if maps == "gradient":
            inputs = segmenter.network_input(sample.image).requires_grad_()
            responses = segmenter.backprop.model(inputs)[0]
            prms = [torch.autograd.grad(responses[tuple(p)], inputs, retain_graph=True)[0][0] for p in peaks.tolist()]
            prms = np.array([g.sum(0).relu().double().numpy() for g in prms])
        image = oracle.seed_map(peaks, prms, walked.size)
        seeds = oracle.seeds_of(image)
        masks = proposals.masks().numpy()
        wanted = oracle.assign(masks, proposals.objectness.numpy(), seeds)
        assert len(wanted) > 1 and found.found == len(seeds)
        assert found.seeds.tolist() == [seeds[s].tolist() for s, *_ in wanted]
        assert (found.masks(found.best, sample.image.shape[:2]) == masks[[k for _, k, *_ in wanted]]).all()
        assert found.scores.tolist() == [score for *_, score, _, _ in wanted]
        for n, (*_, law) in enumerate(wanted):
            own = slice(found.law[n], found.law[n + 1])
            assert np.allclose(found.probabilities[own], law[law > 0], rtol=1e-12)
            candidates = found.masks(found.candidates[own], sample.image.shape[:2])
            assert (candidates == masks[law > 0]).all()


def test_instances_of_algorithm_1(place, propose):
    # So that classes of no label suppress nothing of the others.
    segmenter = Segmenter.from_checkpoint(load_checkpoint(place / "net.json"), nms_per_class=True)
    for sample in (open_dataset(place / "scenes")[k] for k in range(3)):
        proposals = propose(sample)
        found = label.label_picture(segmenter, sample, proposals, LabelSettings("prm"))
        (answer,) = segmenter([sample.image], [proposals])
        own = [one for one in answer.instances if one.label in sample.labels]
        assert len(own) > 1 and found.scores.tolist() == [one.score for one in own]
        assert (found.seeds[:, 2] - 1).tolist() == [one.label for one in own]
        masks = found.masks(found.best, sample.image.shape[:2])
        assert (masks == np.stack([one.mask.masks()[0].numpy() for one in own])).all()
        maps = segmenter.look(sample.image).prms  # at the picture's size
        strongest = {divmod(int(prm.argmax()), prm.shape[1]) for prm in maps}
        assert {(row, column) for row, column, _ in found.seeds.tolist()} <= strongest
        assert (found.drawn(np.random.default_rng(0)) == found.best).all()


def test_what_is_written_is_read_back(place, made):
    source, truth = open_dataset(place / "scenes", "train"), open_dataset(made)
    assert truth.class_names == source.class_names and len(truth) == COUNT
    coco = json.loads((made / "labels.json").read_text())
    assert Counter(one["image_id"] for one in coco["annotations"]) == {
        k + 1: len(load_labels(picture_file(made, k)).drawable.best) for k in range(COUNT)
    }
    for k in range(COUNT):
        one = load_labels(picture_file(made, k))
        sample = truth[k]
        assert sample.name == source[k].name and (sample.image == source[k].image).all()
        assert (sample.masks == one.drawable.masks(one.drawable.best, one.size)).all()
        assert sample.mask_labels.tolist() == (one.drawable.seeds[:, 2] - 1).tolist()
        assert set(sample.labels) == set(sample.mask_labels.tolist()) <= set(source[k].labels)
    assert len(list((made / "drawings").glob("*.png"))) == COUNT


def test_labels_are_drawn_by_the_law():
    """Masks 0 and 2 hold the first seed with 1/4 and 3/4, mask 1 alone holds the second."""
    runs = np.array([0, 4, 8]), np.array([2, 6, 12]), np.arange(4)
    drawable = Drawable(np.array([[0, 0, 1], [0, 1, 2]]), np.ones(2), np.array([2, 1]), *runs, np.array([0, 2, 3]),
                        np.array([0, 2, 1]), np.array([0.25, 0.75, 1.0]), np.array(2))  # fmt: skip
    drawn = np.array([drawable.drawn(np.random.default_rng(k)) for k in range(2000)])
    assert (drawn[:, 1] == 1).all() and set(drawn[:, 0]) == {0, 2}
    assert abs((drawn[:, 0] == 0).mean() - 0.25) < 0.03
    assert (drawable.masks(np.array([2]), (3, 4))[0].nonzero()[0] == 2).all()


def test_sampled_labels_depend_on_the_generator_alone(made):
    dataset = open_labels(made)
    for k in range(2):
        one, other = (dataset.sampled(k, np.random.default_rng((7, 1, k))) for _ in range(2))
        assert (one.masks == other.masks).all() and (one.labels == other.labels).all()
        seeds = load_labels(picture_file(made, k)).drawable.seeds
        assert all(mask[row, column] for mask, (row, column, _) in zip(one.masks, seeds))
        others = [dataset.sampled(k, np.random.default_rng(n)).masks for n in range(5)]
        assert any((mask != one.masks).any() for mask in others)


def test_an_interrupted_run_goes_on(copy, capsys):
    out = copy / "labels"
    before = {file.name: file.read_bytes() for file in (out / "pictures").iterdir()}
    whole = (out / "labels.json").read_bytes()
    picture_file(out, 1).unlink()
    picture_file(out, 3).write_bytes(before["000003.npz"][:100])  # a file that was cut short is no file
    (out / "source.json").write_text(json.dumps(
        {k: v for k, v in json.loads((out / "source.json").read_text()).items() if k != "pictures"}))  # fmt: skip
    with pytest.raises(InputError, match="is not finished; run prm label again"):
        open_dataset(out)
    stamps = {file.name: file.stat().st_mtime_ns for file in (out / "pictures").iterdir()}
    assert run(copy) == 0
    after = {file.name: file.stat().st_mtime_ns for file in (out / "pictures").iterdir()}
    assert {name for name in after if stamps.get(name) != after[name]} == {"000001.npz", "000003.npz"}
    assert (out / "labels.json").read_bytes() == whole
    with pytest.raises(InputError, match="holds labels made with other network; name another folder"):
        run(copy, "--peak-threshold", 0.5)
    with pytest.raises(InputError, match="holds labels made with other labels"):
        run(copy, "--method", "prm")


def test_processes_share_the_pictures(copy, monkeypatch):
    whole = (copy / "labels" / "labels.json").read_bytes()
    monkeypatch.setattr(label, "wait_for_all", lambda processes: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(copy, out="shared") == 0
    assert [int(file.stem) for file in sorted((copy / "shared" / "pictures").iterdir())] == [1, 3]
    assert not (copy / "shared" / "labels.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert run(copy, out="shared") == 0
    assert (copy / "shared" / "labels.json").read_bytes() == whole


def test_pictures_that_were_moved_or_changed(copy):
    out, scenes = copy / "labels", copy / "scenes"
    scenes.rename(copy / "elsewhere")
    with pytest.raises(InputError, match="labels pictures there: name their place, --pictures DIR"):
        _ = open_dataset(out)[0].image
    expected = open_dataset(copy / "elsewhere")[0].image
    assert (open_labels(out, pictures=copy / "elsewhere")[0].image == expected).all()
    plain = copy / "plain"  # the pictures alone
    (plain / "train").mkdir(parents=True)
    name = open_dataset(copy / "elsewhere")[0].name
    target = plain / name
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(expected).save(target)
    assert (open_labels(out, pictures=plain)[0].image == expected).all()
    spoilt = expected.copy()
    spoilt[0, 0] ^= 1
    Image.fromarray(spoilt).save(target)
    with pytest.raises(InputError, match=r"is not the picture that was labelled .*--pictures DIR"):
        _ = open_labels(out, pictures=plain)[0].image


def test_seeds_go_to_a_file_and_come_back(place, made, capsys):
    page = json.loads((made / "seeds.json").read_text())
    assert run(place, "--seeds", made / "seeds.json", out="again") == 0
    for name in ("labels.json", "seeds.json"):
        assert (place / "again" / name).read_bytes() == (made / name).read_bytes()
    for records in page["pictures"].values():
        for one in records:
            assert one["x"] == one["column"] / one["W"] and one["y"] == one["row"] / one["H"]
            del one["row"], one["column"]  # as others write them
    (place / "shares.json").write_text(json.dumps(page))
    assert run(place, "--seeds", place / "shares.json", out="shares") == 0
    assert (place / "shares" / "labels.json").read_bytes() == (made / "labels.json").read_bytes()


def test_seeds_that_cannot_be(place, made, capfd):
    page = json.loads((made / "seeds.json").read_text())
    name = next(iter(page["pictures"]))
    for change, said in (({"row": 10**6}, "lies outside of the picture"), ({"class": 9}, "has a class not from 1 on")):
        page["pictures"][name][0] |= change
        (place / "bad.json").write_text(json.dumps(page))
        shutil.rmtree(place / "bad", ignore_errors=True)
        assert run(place, "--seeds", place / "bad.json", out="bad") == 2
        error = capfd.readouterr().err
        assert name in error and said in error
        assert len(json.loads((place / "bad" / "labels.json").read_text())["images"]) == COUNT - 1
    for text, said in (("[]", "not a file of seeds"), ('{"pictures": {"a.png": [{"x": 0}]}}', "in a.png")):
        (place / "bad.json").write_text(text)
        with pytest.raises(InputError, match=said):
            run(place, "--seeds", place / "bad.json", out="worse")
    with pytest.raises(InputError, match="leave out --method or --model"):
        run(place, "--seeds", made / "seeds.json", "--method", "prm", out="worse")


def test_a_picture_that_cannot_be_read_is_a_line(copy, capfd):
    file = sorted((copy / "scenes").rglob("*.png"))[2]
    file.write_bytes(b"no picture")
    assert run(copy, "--json", copy / "figures.json", out="others") == 2
    assert f"prm: error: {file}" in capfd.readouterr().err
    figures = json.loads((copy / "figures.json").read_text())
    assert figures["pictures"] == COUNT - 1 and len(figures["failed"]) == 1
    assert len(open_dataset(copy / "others")) == COUNT - 1


def test_what_is_counted(place, made, tmp_path):
    run(place, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    drawables = [load_labels(picture_file(made, k)) for k in range(COUNT)]
    assert figures["seeds"] == sum(int(one.drawable.found) for one in drawables)
    assert sum(figures["labels"].values()) == sum(len(one.drawable.best) for one in drawables)
    assert figures["pairs"] == sum(len(one.labels) for one in drawables)
    lacking = [set(one.labels) - set((one.drawable.seeds[:, 2] - 1).tolist()) for one in drawables]
    assert figures["pairs_without_seed"] == sum(map(len, lacking))


def test_the_released_preset(place):
    assert run(place, "--preset", "released", "--peak-minimum", -10, out="released") == 0
    page = json.loads((place / "released" / "source.json").read_text())
    assert page["labels"] == {"method": "wise", "ungated": True, "maps": "gradient"}
    assert {k: page["network"]["settings"][k] for k in ("upsample", "class_threshold", "peak_minimum")} == {
        "upsample": 8, "class_threshold": 0.5, "peak_minimum": -10.0}  # fmt: skip
    with pytest.raises(InputError, match="--preset poster: known are released"):
        run(place, "--preset", "poster", out="other")


def test_labels_of_nothing(place):
    """No peak anywhere: no label, which is an answer; a student cannot be trained on it."""
    assert run(place, "--peak-minimum", 1e9, out="none") == 0
    with pytest.raises(InputError, match="no picture has a label"):
        open_dataset(place / "none")
