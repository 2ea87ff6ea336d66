"""Every family of classifiers, made fully convolutional and walked like the oracle walks, and the page about them."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from prm.accelerated import PeakBackprop, fully_convolutional
from prm.accelerated.peak_backprop.rules import custom
from prm.parity_tests import survey
from prm.parity_tests.architectures import CLASSES, FAMILIES, REFUSED, family
from prm.parity_tests.checks import assert_same_tensors, refused
from prm.parity_tests.convert import to_reference
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import assert_walks_agree, pictures
from prm.reference.network import plan

pytest.importorskip("torchvision")

PLACE = Path(__file__).parent.parent
PAGE = (PLACE / "docs" / "architectures.md").read_text(encoding="utf-8")
BASIC = {"input", "conv2d", "relu", "max_pool2d", "avg_pool2d"}
SIZES = [(33, 37), (47, 35)]
LARGER = {"AlexNet": 34, "Inception v3": 60}  # pixels that their strides need more
# The first three repeat small features to fill their 6 x 6 or 7 x 7; an instance norm takes no single position.
NEVER_ONE = ("AlexNet", "VGG", "VGG with batch norm", "ResNet v2 with group norm (BiT)")


def table(heading):
    """The rows of the page's table under a heading, as lists of cells."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ROWS = {name: (verdict, set(re.findall("`([^`]+)`", text))) for name, verdict, text in table("Families")}


# ---- families


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_every_family_walks_like_the_oracle(name, size, device):
    module = fully_convolutional(family(name, seed=size[0])).to(device)
    images = pictures(*(side + LARGER.get(name, 0) for side in size)).to(device)
    assert not assert_walks_agree(module, images).empty.all()
    assert ROWS[name] == ("passes", {node.op for node in plan(to_reference(module))} - BASIC)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NEVER_ONE])
def test_the_only_position_of_every_family_holds_the_logits(name, device):
    classifier = family(name).to(device)
    made = fully_convolutional(classifier)
    for side in range(4 + LARGER.get(name, 0), 99):
        images = pictures(side, side).to(device)
        try:
            maps = made(images)
        except RuntimeError:  # smaller than a kernel
            continue
        if maps.shape[2:] == (1, 1):
            break
    assert maps.shape == (2, CLASSES, 1, 1)
    assert_close(maps[:, :, 0, 0], classifier(images), torch.float64, "responses against logits", NETWORK)


@pytest.mark.parametrize("name", ["ResNet v2 with group norm (BiT)", "SqueezeNet", "DenseNet", "MobileNet v2"])
def test_mean_responses_are_the_logits_where_a_single_layer_follows_the_mean(name, device):
    classifier, images = family(name).to(device), pictures(33, 37).to(device)
    mean = fully_convolutional(classifier)(images).mean((2, 3))
    assert_close(mean, classifier(images), torch.float64, "mean responses against logits", NETWORK)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_training_mode_and_with_another_number_of_classes(name):
    classifier = family(name).train()
    before = copy.deepcopy(classifier.state_dict())
    made = fully_convolutional(classifier, num_classes=9)
    assert all(part.training for part in (*made.modules(), *classifier.modules()))
    PeakBackprop(made.eval())
    assert made(pictures(*2 * [37 + LARGER.get(name, 0)])).shape[:2] == (2, 9)
    kept = {tensor.flatten().numpy().tobytes() for tensor in made.state_dict().values()}
    new = [n for n, t in classifier.state_dict().items() if t.flatten().numpy().tobytes() not in kept]
    # All but the last layer's weight and bias, and an auxiliary head that is gone.
    assert len([n for n in new if not n.lower().startswith("aux")]) == 2
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert_same_tensors(classifier.state_dict(), before)  # nothing is shared


@pytest.mark.parametrize(("name", "image", "side"), [("VGG", 28, 7), ("AlexNet", 224, 6)])
def test_flattened_positions_become_a_convolution(name, image, side, device):
    # features of so many positions the pooling leaves alone; an even side has no middle, yet some position sees all
    classifier, images = family(name).to(device), pictures(image, image).to(device)
    maps = fully_convolutional(classifier)(images)
    assert maps.shape == (2, CLASSES, side, side)
    apart = (maps - classifier(images)[:, :, None, None]).detach().abs().amax((0, 1)) / maps.detach().abs().max()
    assert float(apart.min()) < 1e-9
    assert side == 6 or apart.argmin() == 3 * 7 + 3


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_any_forward_pass(name):
    classifier = family(name)
    ran = []
    for part in classifier.modules():
        part.register_forward_pre_hook(lambda part, args: ran.extend(a for a in args if type(a) is torch.Tensor))
    verdict, quoted = ROWS[name]
    where = {"ViT": "class_token"}[name]
    refused(lambda: PeakBackprop(classifier), *quoted, where, "register_rule", error=NotImplementedError)
    assert verdict == "refused" and quoted and not ran


def test_a_transformer_has_no_fully_convolutional_form():
    with pytest.raises(ValueError, match="VisionTransformer has no global pooling"):
        fully_convolutional(family("ViT"))


# ---- the page


def test_the_page_shows_what_was_tried_last():
    found = json.loads((PLACE / "eval" / "results" / "architectures.json").read_text())
    assert survey.page(found) in PAGE
    rows = {library: [r for r in found["rows"] if r["library"] == library] for library in survey.LIBRARIES}
    assert [row["family"] for row in rows["timm"]] == list(survey.TIMM)
    refused = {row["family"] for row in rows["torchvision"] if row["refused"]}
    assert refused == set(survey.TRANSFORMERS)  # and so every convolutional family passes


def test_a_classifier_that_passes_and_one_that_is_refused():
    assert survey.tried(lambda: family("SqueezeNet").float()) == ""
    assert "no global pooling" in survey.tried(lambda: family("ViT").float())


def test_timms_files_are_all_listed():
    """Of the version that is installed; a file that came since is to be tried, or its reason to be named."""
    timm = pytest.importorskip("timm")
    left_out = {name for names in survey.OTHERS.values() for name in names.split()}
    assert not left_out & set(survey.TIMM) and left_out | set(survey.TIMM) >= set(timm.list_modules())


def test_the_page_lists_every_family_and_explains_every_rule_that_one_needs():
    assert list(ROWS) == [*FAMILIES, *REFUSED]
    needed = {op for verdict, quoted in ROWS.values() if verdict == "passes" for op in quoted}
    explained = {
        op for operators, _ in table("How each operator is treated") for op in re.findall(r"`(\w+)`", operators)
    }
    assert needed | BASIC <= explained | {"input"}


def test_the_code_on_the_page_runs(monkeypatch):
    monkeypatch.setattr(custom, "REGISTERED", {})
    _, *blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
        found = names["found"]
        assert abs(float(found.prms.sum()) - 1) < 1e-5
        assert 0 <= float(found.leaked[0]) < 1
    # Position (10, 20) of the transposed convolution reads (5, 10), and that rows 10 to 12 and columns 20 to 22.
    rows, columns = torch.nonzero(found.prms[0], as_tuple=True)
    assert (10 <= rows).all() and (rows <= 12).all()
    assert (20 <= columns).all() and (columns <= 22).all()
