"""Every family of classifiers, made fully convolutional and walked like the oracle walks; rules that users register."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prm.accelerated import PeakBackprop, fully_convolutional, register_rule
from prm.accelerated.peak_backprop.rules import custom
from prm.parity_tests.architectures import (
    CLASSES,
    FAMILIES,
    REFUSED,
    ConvNextPaper,
    LayerNorm2d,
    WrittenOutNorm,
    family,
)
from prm.parity_tests.convert import to_reference
from prm.parity_tests.strategies import randomise
from prm.parity_tests.test_peak_backprop import assert_walks_agree, model, pictures, some_peaks
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.reference.network import plan

PAGE = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text(encoding="utf-8")
SIZES = [(33, 37), (47, 35)]
BASIC = {"input", "conv2d", "relu", "max_pool2d", "avg_pool2d"}
# The first three repeat small features to fill their 6 x 6 or 7 x 7; an instance norm takes no single position.
NEVER_ONE = ("AlexNet", "VGG", "VGG with batch norm", "ResNet v2 with group norm (BiT)")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(custom, "REGISTERED", {})


# ---- families


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_every_family_walks_like_the_oracle(name, size, device):
    module = fully_convolutional(family(name, seed=size[0])).to(device)
    found = assert_walks_agree(module, pictures(*size).to(device))
    assert not found.empty.all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NEVER_ONE])
def test_the_only_position_of_every_family_holds_the_logits(name, device):
    classifier = family(name).to(device)
    made = fully_convolutional(classifier)
    for side in range(4, 40):
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
def test_every_family_takes_another_number_of_classes(name):
    classifier = family(name)
    made = fully_convolutional(classifier, num_classes=9)
    assert made(pictures(33, 37)).shape[:2] == (2, 9)
    kept = {tensor.flatten().numpy().tobytes() for tensor in made.state_dict().values()}
    new = [n for n, t in classifier.state_dict().items() if t.flatten().numpy().tobytes() not in kept]
    # All but the last layer's weight and bias, and an auxiliary head that is gone.
    assert len([n for n in new if not n.startswith("aux.")]) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_training_mode_comes_back_in_training_mode(name):
    classifier = family(name).train()
    made = fully_convolutional(classifier)
    assert made.training
    assert all(part.training for part in made.modules())
    PeakBackprop(made.eval())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_any_forward_pass(name):
    classifier = family(name)
    ran = []
    for part in classifier.modules():
        part.register_forward_pre_hook(lambda part, args: ran.extend(a for a in args if type(a) is torch.Tensor))
    with pytest.raises(NotImplementedError, match="register_rule") as caught:
        PeakBackprop(classifier)
    assert not ran
    assert "\n" not in str(caught.value)
    where = {"ViT": "MultiheadAttention at 'attention'", "ConvNeXt, norm written out": "in 'stem.1'"}[name]
    assert where in str(caught.value)


def test_a_transformer_has_no_fully_convolutional_form():
    with pytest.raises(ValueError, match="VisionTransformer has no global pooling"):
        fully_convolutional(family("ViT"))


# ---- the page


def table(heading):
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_lists_every_family_and_says_what_the_tests_found():
    rows = {name: (verdict, set(re.findall("`([^`]+)`", text))) for name, verdict, text in table("Families")}
    assert list(rows) == [*FAMILIES, *REFUSED]
    for name, (verdict, quoted) in rows.items():
        module = family(name)
        try:
            module = fully_convolutional(module) if name in FAMILIES else module
            PeakBackprop(module)
        except NotImplementedError as error:
            assert verdict == "refused", name
            assert quoted
            assert all(text in str(error) for text in quoted), name
        else:
            assert verdict == "passes", name
            assert quoted == {node.op for node in plan(to_reference(module))} - BASIC, name


def test_the_page_explains_every_rule_that_a_family_needs():
    needed = {
        op for _, verdict, text in table("Families") if verdict == "passes" for op in re.findall(r"`(\w+)`", text)
    }
    explained = {
        op for operators, _ in table("How each operator is treated") for op in re.findall(r"`(\w+)`", operators)
    }
    assert needed | BASIC <= explained | {"input"}


def test_the_code_on_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


# ---- one network, four ways to write it


def test_the_style_of_the_code_changes_nothing(device):
    """Functions, modules, one module called twice, and nested nn.Sequential, all with the same weights."""
    conv, norm = nn.Conv2d, nn.BatchNorm2d
    parts = {"a": conv(3, 4, 3, 2), "n": norm(4), "b": conv(4, 4, 3, padding=1), "c": conv(8, 3, 1)}

    def functions(m, x):
        def convolved(layer, x, **options):
            return F.conv2d(x, layer.weight, layer.bias, **options)

        x = convolved(m.a, x, stride=2)
        x = F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias, training=False).relu_()
        y = torch.add(F.relu(convolved(m.b, x, padding=1)), x)
        y = torch.relu(convolved(m.b, y, padding=1)).add(y)
        return convolved(m.c, torch.cat((y, F.avg_pool2d(F.dropout(y, training=m.training), 3, 1, 1)), dim=1))

    def modules(m, x):
        x = m.r(m.n(m.a(x)))
        y = m.r(m.b(x)) + x
        z = m.r(m.d(y))
        z += y
        return m.c(torch.cat([z, m.p(m.o(z))], 1))

    class Plus(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x

    class WithPool(nn.Sequential):
        def forward(self, x):
            return torch.cat([x, super().forward(x)], 1)

    others = {"r": nn.ReLU(inplace=True), "p": nn.AvgPool2d(3, 1, 1), "o": nn.Dropout()}
    written = {
        "functions": model(functions, **parts),
        "modules": model(modules, **parts, **others, d=conv(4, 4, 3, padding=1)),
        "one module twice": model(modules, **parts, **others, d=parts["b"]),
    }
    randomise(written["functions"], seed=4)
    written["modules"].d.load_state_dict(parts["b"].state_dict())
    block = nn.Sequential(nn.Sequential(parts["b"]), nn.Sequential(nn.Sequential(nn.ReLU())))
    written["nested"] = nn.Sequential(
        nn.Sequential(nn.Sequential(parts["a"], nn.Sequential(parts["n"])), nn.ReLU()),
        nn.Sequential(nn.Sequential(Plus(block)), nn.Sequential(nn.Sequential(Plus(*block)))),
        nn.Sequential(WithPool(nn.Sequential(nn.Dropout()), nn.AvgPool2d(3, 1, 1)), nn.Sequential(parts["c"])),
    ).eval()
    images = pictures(15, 17).to(device)
    found = {style: assert_walks_agree(written[style].to(device), images) for style in written}
    for style, run in found.items():
        assert_close(run.prms, found["functions"].prms, torch.float64, style)
        assert_close(run.leaked, found["functions"].leaked, torch.float64, style)


# ---- rules of the user's


class Merge(nn.Module):
    """Adds, in a way that torch.fx cannot trace."""

    def forward(self, a, b):
        if float(a.sum()) == 0.25:
            return b
        return a + b


def merging(device):
    parts = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), "c": nn.Conv2d(4, 2, 3, 2)}
    plain = model(lambda m, x: (lambda y: m.c(m.b(y) + y))(F.relu(m.a(x))), **parts)
    return plain.to(device), model(lambda m, x: (lambda y: m.c(m.m(m.b(y), y)))(F.relu(m.a(x))), **parts, m=Merge())


def test_a_registered_rule_with_two_inputs(device):
    plain, merged = merging(device)
    images = pictures(11, 13).to(device)
    with pytest.raises(ValueError, match="trace"):
        PeakBackprop(merged)
    seen = []

    @register_rule(Merge)
    def rule(module, P, *U):
        assert isinstance(module, Merge)
        seen.append(tuple(P.shape))
        assert all(u.shape == P.shape for u in U)
        a, b = (u.clamp(min=0) for u in U)
        to_a = P * torch.where(a + b > 0, a / (a + b), 0.5)
        return to_a, P - to_a

    assert callable(rule)  # the function itself comes back
    for max_memory in (1, 2**29):
        runs = [PeakBackprop(m.to(device), max_memory=max_memory).prepare(images) for m in (plain, merged)]
        expected, found = (run.prms(some_peaks(run.maps).to(device)) for run in runs)
        assert_close(found.prms, expected.prms, torch.float64, "PRMs")
        assert_close(found.leaked + 1, expected.leaked + 1, torch.float64, "leaked")
    assert (1, 4, 11, 13) in seen  # whole maps, one row a peak, in passes of one peak and of several
    assert max(shape[0] for shape in seen) > 1


def test_a_registered_rule_survives_fully_convolutional(device):
    paper = randomise(ConvNextPaper(WrittenOutNorm).double(), 1).to(device)
    with pytest.raises(NotImplementedError, match="only division"):
        PeakBackprop(fully_convolutional(paper))
    register_rule(WrittenOutNorm)(lambda module, P, U: P)
    same = randomise(ConvNextPaper(lambda c: LayerNorm2d(c, eps=1e-6)).double(), 1).to(device)
    images = pictures(33, 37).to(device)
    runs = [PeakBackprop(fully_convolutional(m)).prepare(images) for m in (paper, same)]
    peaks = some_peaks(runs[0].maps).to(device)
    assert_close(runs[0].prms(peaks).prms, runs[1].prms(peaks).prms, torch.float64, "PRMs", NETWORK)


def positive(net):
    """Weights of 1 and no bias: nothing leaks of itself."""
    for name, parameter in net.named_parameters():
        nn.init.constant_(parameter, float(name.endswith("weight")))
    return net.eval()


def test_a_registered_rule_sees_the_tensors_among_the_arguments(device):
    class Resize(nn.Module):
        def forward(self, x, size, weight=None, twice=None):
            return F.interpolate(x, size=size) * weight + twice

    @register_rule(Resize)
    def _(module, P, *U):
        assert [tuple(u.shape[1:]) for u in U] == [(4, 6, 7), (4, 12, 14)]
        return F.avg_pool2d(P, 2) * 2, P / 4

    net = model(
        lambda m, x: (lambda y: m.c(m.r(F.max_pool2d(y, 2), size=y.shape[2:], weight=m.w, twice=y)))(m.a(x)),
        a=nn.Conv2d(3, 4, 1), r=Resize(), c=nn.Conv2d(4, 2, 1), w=nn.Parameter(torch.tensor(2.0)),
    ).to(device)  # fmt: skip
    run = PeakBackprop(net).prepare(pictures(12, 14).to(device))
    assert_close(run.maps, net(pictures(12, 14).to(device)), torch.float64, "maps", NETWORK)
    found = run.prms(some_peaks(run.maps).to(device))
    assert ((found.leaked > 0.24) & (found.leaked <= 1)).all()


def test_what_a_registered_rule_does_not_pass_on_leaks(device):
    # It comes before the built-in rule and holds for subclasses, and a second one replaces the first.
    class Half(nn.ReLU):
        pass

    net = positive(nn.Sequential(nn.Conv2d(3, 4, 1), Half(), nn.Conv2d(4, 2, 1))).double().to(device)
    images = torch.ones(1, 3, 5, 5, dtype=torch.float64, device=device)
    for share in (0.5, 0.25):
        register_rule(nn.ReLU)(lambda module, P, U, share=share: share * P)
        found = PeakBackprop(net).prepare(images).prms(torch.tensor([[0, 1, 2, 2]]))
        assert float(found.leaked[0]) == pytest.approx(1 - share)
        assert float(found.prms.sum()) == pytest.approx(1)
    register_rule(Half)(lambda module, P, U: P)  # the nearest type counts
    assert float(PeakBackprop(net).prepare(images).prms(torch.tensor([[0, 1, 2, 2]])).leaked[0]) < 1e-12


def test_a_registered_rule_comes_before_what_is_merged(device):
    # The batch norm behind a convolution, and the pad before it, are then steps of their own.
    calls = []

    @register_rule(nn.BatchNorm2d, nn.ZeroPad2d)
    def _(module, P, U):
        calls.append(type(module))
        return P if isinstance(module, nn.BatchNorm2d) else P[:, :, 1:-1, 1:-1]

    net = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    randomise(net.double(), 0).to(device)
    run = PeakBackprop(net).prepare(pictures(7, 8).to(device))
    assert_close(run.maps, net(pictures(7, 8).to(device)), torch.float64, "maps", NETWORK)
    run.prms(torch.tensor([[0, 0, 3, 3]]))
    assert calls == [nn.BatchNorm2d, nn.ZeroPad2d]


WRONG = {
    "shape": (lambda module, P, U: P[:, :, 1:], r"shape \(1, 4, 5, 5\), not \(1, 4, 4, 5\)"),
    "no tensor": (lambda module, P, U: None, "not NoneType"),
    "two answers": (lambda module, P, U: (P, P), "1 tensors.*not 2"),
    "negative": (lambda module, P, U: -P, "negative"),
    "not a number": (lambda module, P, U: P * float("nan"), "negative or not a number"),
    "growing": (lambda module, P, U: 2 * P, "made mass grow, from 1 to 2"),
    "infinite": (lambda module, P, U: P.masked_fill(P > 0, float("inf")), "made mass grow"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_of_a_registered_rule_is_named(kind, device):
    function, message = WRONG[kind]
    register_rule(nn.Tanh)(function)
    net = positive(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh()), nn.Conv2d(4, 2, 1))).to(device)
    run = PeakBackprop(net).prepare(torch.rand(1, 3, 5, 5, device=device))
    with pytest.raises(ValueError, match=rf"Tanh at '0\.1'.*{message}") as caught:
        run.prms(torch.tensor([[0, 1, 2, 2]]))
    assert "\n" not in str(caught.value)


class Odd(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: (x, x), "one tensor"),
        (lambda x: x.mean(0, keepdim=True), "a row for each image"),
        (lambda x: x.mul_(2), "overwrites its input"),
    ],
)
def test_modules_that_no_rule_can_stand_for(f, message):
    register_rule(Odd)(lambda module, P, U: P)
    walk = PeakBackprop(nn.Sequential(nn.Conv2d(3, 2, 1), Odd(f)).eval())
    with pytest.raises(ValueError, match=f"Odd at '1'.*{message}"):
        walk.prepare(torch.rand(2, 3, 5, 5))


def test_register_rule_takes_types_of_modules():
    for wrong in (nn.ReLU(), torch.relu, int, lambda module, P, U: P):
        with pytest.raises(TypeError, match=r"types of nn\.Module"):
            register_rule(wrong)
    with pytest.raises(TypeError, match="needs the type"):
        register_rule()
