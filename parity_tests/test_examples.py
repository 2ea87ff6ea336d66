"""`prm.Segmenter`, and the examples of docs/examples, which run as they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prm
from prm import InputError
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.eval.proposals import proposals_for
from prm.parity_tests.checks import needs_weights

EXAMPLES = sorted((Path(prm.__file__).parent / "docs" / "examples").glob("*.py"))


@needs_weights
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(file)])
    exec(compile(file.read_text(), file, "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("espresso (") and set(lines[-2].split(", ")) == {"cat"} and lines[-1] == "no animal"


def test_the_name_is_lazy():
    code = "import sys, prm\nassert 'torch' not in sys.modules and 'Segmenter' not in vars(prm)\n"
    code += "try: prm.nothing\nexcept AttributeError as error: print(error)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           cwd=Path(prm.__file__).parent.parent)  # fmt: skip
    assert ended.stdout == "module 'prm' has no attribute 'nothing'\n", ended.stderr
    assert prm.Segmenter.__module__ == "prm.eval.segmenter"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("net")
    checkpoint = random_checkpoint("smallnet", ["thing", "other"], widths=(8, 8), pools=2, depth=1)
    checkpoint.segmentation = {"class_threshold": 0.0, "max_peaks": 4}
    save_checkpoint(checkpoint, folder / "checkpoint.json")
    return prm.Segmenter.from_pretrained(folder, limit=30, max_peaks=3)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 60, 3), np.uint8)


def test_one_in_one_out_and_a_list_for_a_list(segmenter, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    one, image, file = segmenter(picture()), segmenter(Image.fromarray(picture())), segmenter(tmp_path / "a.png")
    both = segmenter([picture(), picture(1)])
    given = segmenter(picture(), proposals_for(picture(), None, 30))
    assert len(both) == 2 and one.instances and segmenter([]) == []
    scores = [i.score for i in one.instances]
    assert all([i.score for i in other.instances] == scores for other in (image, file, given))
    assert [i.score for i in both[0].instances] == pytest.approx(scores)  # which share a forward pass
    assert {i.name for i in one.instances} <= set(segmenter.class_names) == {"thing", "other"}
    assert all(i.name == segmenter.class_names[i.label] for i in one.instances) and one.peaks <= 3
    grey = segmenter(picture()[:, :, 0])
    assert grey.size == (48, 60)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "P", "L"])
def test_an_image_is_seen_as_its_file_is(segmenter, tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(picture()).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(picture(1)[:, :, 0]))
    image.save(tmp_path / "a.png")
    scores = [[one.score for one in segmenter(given).instances] for given in (image, tmp_path / "a.png")]
    assert scores[0] == scores[1] != []


@pytest.mark.parametrize(
    "wrong, words",
    [(np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\)"), (np.zeros((9, 9, 4), np.uint8), "3 channels, not 4"),
     (np.zeros(4, np.uint8), r"uint8 \(4,\)"), ([3], "not int"), ("nowhere.png", "nowhere.png")],
)  # fmt: skip
def test_what_is_no_picture(segmenter, wrong, words):
    with pytest.raises(InputError, match=words):
        segmenter(wrong)


def test_bad_settings():
    with pytest.raises(InputError, match="a setting cannot be used"):
        prm.Segmenter.from_pretrained("nuclei-prm", alfa=1)
    with pytest.raises(InputError, match="nuclei: a student has no such setting"):
        prm.Segmenter.from_pretrained(alpha=1.0)
    with pytest.raises(InputError, match="knows no class 'cat'"):
        prm.Segmenter.from_pretrained(classes=["cat"])
