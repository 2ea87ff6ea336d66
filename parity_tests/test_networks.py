"""The networks: VGG16 and ResNet-18 walked whole against the oracle, weight files, classifiers made convolutional."""

import copy
import hashlib
import http.server
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from prm import InputError
from prm.accelerated import PeakBackprop, fully_convolutional, network, peak_stimulation
from prm.accelerated.checkpoint import load_checkpoint, random_checkpoint, save_checkpoint
from prm.accelerated.networks import NETWORKS, PRETRAINED, load_pretrained, resnet18, vgg16
from prm.accelerated.networks.resnet50 import ResNet50
from prm.accelerated.networks.weights import checkpoint_page, load_features
from prm.parity_tests.convert import to_reference
from prm.parity_tests.strategies import randomise
from prm.parity_tests.tolerances import NETWORK, as_array, assert_close
from prm.reference.network import forward, walk

vision = pytest.importorskip("torchvision.models")

SIDE = 96  # VGG16 and ResNet-18 have maps of 3 x 3


def image(size=SIDE, count=1, seed=0):
    """Exact in float32, so that both precisions see the same picture."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- whole networks against the oracle

# head="fc" costs the oracle some 15 s a peak
WHOLE = {
    "resnet18": (lambda: resnet18(3), 3),
    "vgg16 conv": (lambda: vgg16(3), 3),
    "vgg16 fc": (lambda: vgg16(3, head="fc"), 1),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request):
    """A network with random float32 weights, and the oracle's maps, peaks and walks of one picture."""
    build, count = WHOLE[request.param]
    module = randomise(build(), seed=3)
    plain = to_reference(module)
    activations = forward(plain, as_array(image()[0]))
    maps = activations[plain.output]
    peaks = peak_stimulation(torch.from_numpy(maps)[None], threshold=None)[1][:count]
    return module, maps, peaks, [walk(plain, activations, peak[1:].tolist()) for peak in peaks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_networks_walk_like_the_oracle(whole, dtype, device):
    module, maps, peaks, walks = whole
    module = copy.deepcopy(module).to(device, dtype)
    run = PeakBackprop(module).prepare(image().to(device, dtype))
    assert_close(run.maps[0], maps, dtype, "maps", NETWORK)
    found = run.prms(peaks.to(device))
    assert found.prms.dtype == dtype
    for k, expected in enumerate(walks):
        assert_close(found.prms[k], expected.prm, dtype, f"PRM of peak {peaks[k].tolist()}", NETWORK)
        assert float(found.leaked[k]) == pytest.approx(expected.leaked, abs=NETWORK[dtype])
        assert expected.arrived + expected.leaked == pytest.approx(1, abs=1e-9)
        assert bool(found.empty[k]) == expected.empty
        assert not expected.empty
        assert float(found.prms[k].double().sum()) == pytest.approx(1, abs=NETWORK[dtype])
        assert float(found.prms[k].min()) >= 0


def test_sizes_of_the_maps(device):
    for name, stride in (("smallnet", 4), ("resnet18", 32), ("resnet50", 32), ("vgg16", 32)):
        model = network(name, 2).eval().to(device)
        size = (64, 96)
        with torch.no_grad():
            maps = model(torch.zeros(1, 3, *size, device=device))
        assert maps.shape == (1, 2, size[0] // stride, size[1] // stride)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"unknown network 'vgg19'.*vgg16"):
        network("vgg19", 2)
    with pytest.raises(ValueError, match="head"):
        vgg16(2, head="linear")
    assert set(PRETRAINED) <= set(NETWORKS)


def test_resnet50_without_torchvision_is_the_same_network():
    torch.manual_seed(0)
    mine = ResNet50(3)
    torch.manual_seed(0)
    theirs = network("resnet50", 3)
    assert not isinstance(theirs, ResNet50)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in mine.state_dict().items())
    runs = [PeakBackprop(model.eval()).prepare(image()) for model in (mine, theirs)]
    assert torch.equal(runs[0].maps, runs[1].maps)
    assert torch.equal(*(run.prms(torch.tensor([[0, 1, 2, 0]])).prms for run in runs))


# ---- weight files


def like_torchvision(model):
    """A state dict as torchvision saves it: the last layer is linear."""
    state = dict(model.state_dict())
    state["fc.weight"] = state["fc.weight"].flatten(1)
    return state


@pytest.fixture(scope="module")
def resnet():
    return randomise(resnet18(5), seed=7)


def assert_one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert str(word) in message, message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_linear_classifier_becomes_a_convolution(suffix, resnet, tmp_path):
    path = tmp_path / f"resnet18{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({name: tensor.contiguous() for name, tensor in like_torchvision(resnet).items()}, path)
    model = resnet18(5)
    assert load_pretrained(model, path) == []
    assert all(torch.equal(tensor, resnet.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert load_pretrained(resnet18(5), str(path)) == []


def test_another_number_of_classes_keeps_the_fresh_classifier(resnet, tmp_path):
    path = tmp_path / "weights.pth"
    state = {k: v for k, v in like_torchvision(resnet).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path)  # files from before torch 0.4.1 count no batches
    model = resnet18(8)
    fresh = model.fc.weight.detach().clone()
    left = load_pretrained(model, path)
    assert {name for name in left if not name.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    assert torch.equal(model.fc.weight, fresh)
    name = "layer4.1.bn2.running_var"
    assert torch.equal(model.state_dict()[name], resnet.state_dict()[name])


def vgg_file(path, **changes):
    """torchvision's names and shapes; expanded tensors are saved as the few numbers that they hold."""
    shapes = {name: tensor.shape for name, tensor in vgg16(1).features.state_dict().items()}
    state = {f"features.{name}": torch.full((1,), 0.5).expand(shape) for name, shape in shapes.items()}
    for name, n, source in (("0", 4096, 25088), ("3", 4096, 4096), ("6", 1000, 4096)):
        state[f"classifier.{name}.weight"] = torch.arange(float(source)).expand(n, source)
        state[f"classifier.{name}.bias"] = torch.full((1,), 0.25).expand(n)
    torch.save({k: v for k, v in (state | changes).items() if v is not None}, path)
    assert path.stat().st_size < 2**20


@pytest.fixture(scope="module")
def vgg_fc():
    return vgg16(3, head="fc")


def test_vgg_fully_connected_layers_become_convolutions(vgg_fc, tmp_path):
    vgg_file(tmp_path / "vgg16.pth")
    left = load_pretrained(vgg_fc, tmp_path / "vgg16.pth")
    assert left == ["classifier.6.weight", "classifier.6.bias"]
    # torch flattens (channel, row, column): entry 49 c + 7 i + j
    expected = torch.arange(25088.0).reshape(512, 7, 7)
    found = vgg_fc.state_dict()
    weight = found["classifier.0.weight"]
    assert weight.shape == (4096, 512, 7, 7)
    assert torch.equal(weight[0], expected)
    assert torch.equal(weight[4095], expected)
    assert torch.equal(found["classifier.3.weight"][17, :, 0, 0], torch.arange(4096.0))
    assert (found["classifier.0.bias"] == 0.25).all()
    assert (found["features.0.weight"] == 0.5).all()


def test_vgg_with_a_convolutional_head_takes_the_features(tmp_path):
    vgg_file(tmp_path / "vgg16.pth")
    model = vgg16(3)
    fresh = model.classifier.weight.detach().clone()
    assert load_pretrained(model, tmp_path / "vgg16.pth") == ["classifier.weight", "classifier.bias"]
    assert (model.features[28].weight == 0.5).all()
    assert torch.equal(model.classifier.weight, fresh)


def test_weights_of_another_network(resnet, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(like_torchvision(resnet), path)
    with pytest.raises(InputError) as caught:
        load_pretrained(vgg16(5), path)
    assert_one_line(caught, path, "features.0.weight", "missing")
    vgg_file(path, **{"features.2.weight": torch.zeros(64, 32, 3, 3)})
    with pytest.raises(InputError) as caught:
        load_pretrained(vgg16(5), path)
    assert_one_line(caught, path, "features.2.weight", "(64, 32, 3, 3)", "(64, 64, 3, 3)")


class Surprise:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("unpickled",)


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


BROKEN = {
    "empty.pth": b"",
    "text.pth": b"not weights",
    "page.pth": b"<!DOCTYPE html><html></html>",
    "cut.pth": saved({"a": torch.zeros(99)})[:-300],
    "list.pth": saved([torch.zeros(2), torch.zeros(3)]),
    "tensor.pth": saved(torch.zeros(3)),
    "number.pth": saved(3),
    "numbers.pth": saved({"0.weight": 3, "0.bias": 4, "1.weight": 5, "1.bias": 6}),
    "nested.pth": saved({"state_dict": {"0.weight": torch.zeros(1)}}),
    "none.pth": saved({}),
    "code.pth": pickle.dumps(Surprise(), protocol=2),
    "empty.safetensors": b"",
    "text.safetensors": b"not weights, and longer than the header's eight bytes",
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_hold_no_weights(name, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as caught:
        load_pretrained(model, path)
    assert_one_line(caught, path)
    assert "unpickled" not in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_paths_that_are_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.pth"):
        with pytest.raises(InputError) as caught:
            load_pretrained(tiny(), path)
        assert_one_line(caught, path)


# ---- a network trained here as the start of another


@pytest.mark.parametrize("classes", [2, 5])
def test_the_features_of_a_trained_network_with_a_new_classifier(classes):
    # also where the old classifier would fit
    start = randomise(network("smallnet", 2, widths=(4, 6)), seed=1).state_dict()
    model = network("smallnet", classes, widths=(4, 6))
    fresh = copy.deepcopy(model.classifier.state_dict())
    assert load_features(model, start, "start") == ["classifier.weight", "classifier.bias"]
    assert all(torch.equal(model.classifier.state_dict()[name], tensor) for name, tensor in fresh.items())
    features = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("features.")}
    assert len(features) == len(start) - 2
    assert all(torch.equal(tensor, start[name]) for name, tensor in features.items())


def test_the_features_of_another_network():
    start = network("smallnet", 2, widths=(4, 8)).state_dict()
    with pytest.raises(InputError) as caught:
        load_features(network("smallnet", 2, widths=(4, 6)), start, "runs/start")
    assert_one_line(caught, "runs/start", "features.7.weight is (8, 4, 3, 3), expected (6, 4, 3, 3)")


def test_which_weights_are_a_checkpoint(tmp_path):
    page = tmp_path / "checkpoint.json"
    save_checkpoint(random_checkpoint("smallnet", ["a"], widths=[4]), page)
    (weights,) = tmp_path.glob("*.safetensors")
    for source in (tmp_path, page, weights):
        assert load_checkpoint(checkpoint_page(source)).class_names == ["a"]
    # weights of an earlier epoch, that the page no longer names, and files from elsewhere
    older = weights.with_name("checkpoint.weights.00000000.safetensors")
    others = [older, tmp_path / "w.pth", tmp_path / "w.safetensors", "imagenet", "https://example.org/w.pth"]
    assert [checkpoint_page(source) for source in others] == [None] * 5


# ---- downloads


def tiny(seed=None):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    return model if seed is None else randomise(model, seed)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine for the files in its folder; downloads are kept apart from the user's."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_download_with_the_right_checksum(server):
    folder, address = server
    content = saved(tiny(1).state_dict())
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    model = tiny()
    assert load_pretrained(model, f"{address}/{name}") == []
    assert torch.equal(model[0].weight, tiny(1)[0].weight)


def test_a_download_with_the_wrong_checksum(server, tmp_path):
    folder, address = server
    content = saved(tiny(1).state_dict())
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(saved(tiny(2).state_dict()))
    with pytest.raises(InputError) as caught:
        load_pretrained(tiny(), f"{address}/{name}")
    assert_one_line(caught, f"{address}/{name}", "hash")
    assert not list((tmp_path / "torch").rglob("*.pth"))  # the wrong file is not kept for the next time
    (folder / name).write_bytes(content)
    assert load_pretrained(tiny(), f"{address}/{name}") == []


def test_downloads_that_fail(server):
    _, address = server
    # nobody listens on port 9 of this machine, or whoever does is no web server
    for url in (f"{address}/nowhere-12345678.pth", "http://127.0.0.1:9/x-12345678.pth"):
        with pytest.raises(InputError) as caught:
            load_pretrained(tiny(), url)
        assert_one_line(caught, url)


# ---- any classifier made fully convolutional


class Functional(nn.Module):
    """A body, a pooling and flattening written as code, and a linear layer."""

    def __init__(self, pool, channels=6, joined=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)
        self.pool, self.fc = pool, nn.Linear(joined or channels, 5)

    def forward(self, x):
        return self.fc(self.pool(F.relu(self.norm(self.conv(x)))))


def overwritten(x):
    x.sub_(0.5)
    F.relu_(x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def torchvision_resnet():
    """torchvision's own, with its pooling, flattening and linear layer."""
    return vision.ResNet(vision.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


class VggLike(nn.Module):
    """Pooled to side x side positions, flattened into one vector, three linear layers."""

    def __init__(self, side=7, channels=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(channels * side**2, 12), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


def sequential():
    body = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5))


# name -> the classifier; the picture's side at which its features have one position
ONE_POSITION = {
    "sequential": (sequential, 2),
    "sequential max": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 2), nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(1), nn.Linear(6, 5)), 2
    ),
    "mean": (lambda: Functional(lambda x: x.mean((2, 3))), 1),
    "mean, axes from the end": (lambda: Functional(lambda x: torch.mean(x, dim=[-2, -1])), 1),
    "mean, kept axes": (lambda: Functional(lambda x: x.mean((2, 3), keepdim=True).flatten(1)), 1),
    "function and squeeze": (lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)), 1),
    "function and reshape": (lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)), 1),
    "torchvision's ResNet": (torchvision_resnet, 32),
    "two linear layers": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5),
        ),
        1,
    ),
    "mean of a mean": (lambda: Functional(lambda x: x.mean(3).mean(2)), 1),
    "mean of a mean, axes from the end": (lambda: Functional(lambda x: x.mean(-1).mean(-1)), 1),
    "mean of a mean, kept axes": (lambda: Functional(lambda x: x.mean(2, True).mean(3, True).flatten(1)), 1),
    "mean of flattened positions": (lambda: Functional(lambda x: x.flatten(2).mean(-1)), 1),
    "pooling of the whole size": (lambda: Functional(lambda x: F.avg_pool2d(x, x.size()[2:]).view(-1, 6)), 1),
    "the only position taken": (lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]), 1),
    "view to sizes": (lambda: Functional(lambda x: x.mean((2, 3)).view(x.shape[:2])), 1),
    "two poolings joined": (
        lambda: Functional(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), channels=6, joined=12), 1
    ),
    # a gate's pooling is not the last one, whatever stands after it
    "pooling of a gate": (
        lambda: Functional(lambda x: F.adaptive_avg_pool2d(x * x.mean((2, 3), True).sigmoid(), 1).flatten(1)), 1
    ),
    "norms of vectors": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 7),
            nn.BatchNorm1d(7), nn.PReLU(7), nn.Linear(7, 5), nn.LogSoftmax(1),
        ),
        1,
    ),
    "a convolution after the pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 7, 1), nn.Hardswish(), nn.Conv2d(7, 5, 1),
            nn.Flatten(),
        ),
        1,
    ),
    "a convolution before the pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        1,
    ),
    "in-place calls whose result nobody reads": (lambda: Functional(overwritten), 1),
}  # fmt: skip


def pictures(size, device, count=2):
    return image(size, count).double().to(device)


@pytest.mark.parametrize("kind", ONE_POSITION)
def test_the_only_position_holds_the_logits(kind, device):
    build, side = ONE_POSITION[kind]
    model = randomise(build().double(), seed=2).to(device)
    maps = fully_convolutional(model)(pictures(side, device))
    assert maps.shape == (2, 5, 1, 1)
    assert_close(maps[:, :, 0, 0], model(pictures(side, device)), torch.float64, "responses against logits", NETWORK)
    larger = fully_convolutional(model)(pictures(2 * side + 32, device))
    assert larger.shape[:2] == (2, 5)
    assert min(larger.shape[2:]) > 1


@pytest.mark.parametrize("kind", ["sequential", "mean", "function and squeeze", "torchvision's ResNet"])
def test_after_average_pooling_the_mean_response_is_the_logit(kind, device):
    # an average and a single linear layer commute (CAM)
    model = randomise(ONE_POSITION[kind][0]().double(), seed=2).to(device)
    images = pictures(96, device)
    mean = fully_convolutional(model)(images).mean((2, 3))
    assert_close(mean, model(images), torch.float64, "mean responses against logits", NETWORK)


def test_seven_by_seven_positions_become_a_convolution(device):
    model = randomise(VggLike().double(), seed=2).to(device)
    images = pictures(14, device)  # features of 7 x 7: the pooling leaves them alone
    maps = fully_convolutional(model)(images)
    assert maps.shape == (2, 5, 7, 7)
    assert_close(maps[:, :, 3, 3], model(images), torch.float64, "response in the middle against logits", NETWORK)


def test_six_by_six_positions_keep_the_size(device):
    # AlexNet's pooling: an even side has no middle, yet some position must see all of the features
    model = randomise(VggLike(side=6).double(), seed=2).to(device)
    images = pictures(12, device)
    maps = fully_convolutional(model)(images)
    assert maps.shape == (2, 5, 6, 6)
    nearest = (maps - model(images)[:, :, None, None]).detach().abs().amax((0, 1)).min()
    assert float(nearest) < 1e-9


@pytest.mark.parametrize(
    "build", [sequential, VggLike, torchvision_resnet, lambda: Functional(lambda x: x.mean((2, 3)))]
)
def test_the_result_is_walked_like_the_oracle_walks(build, device):
    model = fully_convolutional(randomise(build().double(), seed=2).to(device))
    images = pictures(40, device, 1)
    run = PeakBackprop(model).prepare(images)
    peaks = peak_stimulation(run.maps)[1][:3]
    found = run.prms(peaks)
    plain = to_reference(model)
    activations = forward(plain, as_array(images[0]))
    for k, peak in enumerate(peaks.tolist()):
        expected = walk(plain, activations, peak[1:])
        assert_close(found.prms[k], expected.prm, torch.float64, f"PRM {k}", NETWORK)
        assert float(found.leaked[k]) == pytest.approx(expected.leaked, abs=1e-9)


@pytest.mark.parametrize("build", [sequential, VggLike, torchvision_resnet])
@pytest.mark.parametrize("training", [False, True])
def test_the_classifier_is_replaced_and_the_model_left_alone(build, training, device):
    model = randomise(build(), seed=2).train(training).to(device)
    before = copy.deepcopy(model.state_dict())
    made = fully_convolutional(model, num_classes=9)
    assert [part.training for part in model.modules()] == [training] * len(list(model.modules()))
    assert made.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    maps = made.eval()(image(64, 1).to(device))
    assert maps.shape[:2] == (1, 9)
    with torch.no_grad():  # nothing is shared with the user's model
        for parameter in made.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_all_but_the_last_layer_keep_their_weights(device):
    model = randomise(VggLike().double(), seed=2).to(device)
    made = fully_convolutional(model, num_classes=9)
    convolutions = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    kept = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert [tuple(part.kernel_size) for part in convolutions] == [(3, 3), (7, 7), (1, 1), (1, 1)]
    for mine, theirs in zip(convolutions[:-1], kept[:-1]):
        assert torch.equal(mine.weight.flatten(), theirs.weight.flatten())
        assert torch.equal(mine.bias, theirs.bias)
    assert convolutions[-1].weight.shape == (9, 8, 1, 1)
    assert convolutions[-1].weight.dtype == torch.float64


class Twice(nn.Module):
    def forward(self, x):
        return x, x


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.mean((2, 3))) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", ["a convolution after the pooling", "a convolution before the pooling"])
def test_a_classifier_that_is_a_convolution_is_replaced(kind, device):
    model = randomise(ONE_POSITION[kind][0](), seed=2).to(device)
    made = fully_convolutional(model, num_classes=9)
    assert made(image(8, 1).to(device)).shape[:2] == (1, 9)
    convolutions = [[part for part in m.modules() if isinstance(part, nn.Conv2d)] for m in (model, made)]
    for theirs, mine in zip(*(parts[:-1] for parts in convolutions)):
        assert torch.equal(mine.weight, theirs.weight)


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_of_vectors_keeps_its_numbers_and_options(track, affine):
    norm = nn.BatchNorm1d(6, eps=0.1, momentum=0.3, affine=affine, track_running_stats=track)
    layers = [nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Linear(6, 2)]
    (made,) = (
        part for part in fully_convolutional(nn.Sequential(*layers).double()).modules()
        if isinstance(part, nn.BatchNorm2d)
    )  # fmt: skip
    assert (made.eps, made.momentum, made.affine, made.track_running_stats) == (0.1, 0.3, affine, track)
    for name, tensor in norm.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
        assert made.state_dict()[name].dtype == tensor.dtype


def head(*layers, side=1):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(side), *layers)


NO_CLASSIFIER = {
    "features": (head(nn.Flatten()), "no linear layer"),
    "control flow": (Branching(), r"torch\.fx cannot trace Branching"),
    "no pooling": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)), "no global pooling"),
    "a gate's pooling alone": (Functional(lambda x: (x * x.mean((2, 3), True)).flatten(1)), "no global pooling"),
    "a pooling that keeps an axis": (
        nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten(), nn.Linear(12, 2)), "no global pooling"
    ),
    "features not flattened": (head(nn.Linear(1, 2)), "Linear at '4'.*not flattened"),
    "features in two groups": (
        Functional(lambda x: x.mean((2, 3)).view(-1, 2, 3).amax(1), joined=3), r"view \(view\).*more than flatten"
    ),
    "one channel": (Functional(lambda x: x.mean((2, 3), True)[:, 0].flatten(1), joined=1), "getitem.*more than"),
    "a part of the map": (Functional(lambda x: x.mean((2, 3), True)[:, :, :1, 0].flatten(1)), "getitem.*more than"),
    "mean of one axis": (Functional(lambda x: x.mean(3).flatten(1)), "no global pooling"),
    "group norm of vectors": (head(nn.Flatten(), nn.GroupNorm(2, 4), nn.Linear(4, 2)), "GroupNorm at '5'.*positions"),
    "layer norm of positions": (head(nn.LayerNorm((4, 1, 1)), nn.Flatten(), nn.Linear(4, 2)), "LayerNorm.*positions"),
    "softmax over what is last": (head(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(-1)), "Softmax at '6'.*no form"),
    "a vector of weights": (
        Functional(lambda x: F.layer_norm(x.mean((2, 3)), (6,))), r"layer_norm \(layer_norm\).*no form for maps"
    ),
    "a convolution of 2 x 2 positions": (head(nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2), side=2), "2 x 2"),
    "features that are no 3 x 3 positions": (head(nn.Flatten(), nn.Linear(35, 2), side=3), "35 features.*3 x 3"),
    "two outputs": (Functional(lambda x: x.mean((2, 3))), "more than one tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_CLASSIFIER)
def test_what_is_no_classifier_is_refused_in_one_line(kind):
    model, message = NO_CLASSIFIER[kind]
    if kind == "two outputs":
        model.fc = Twice()
    with pytest.raises(ValueError, match=message) as caught:
        fully_convolutional(model)
    assert "\n" not in str(caught.value)


def test_a_parameter_in_the_head_is_refused():
    class Scaled(Functional):
        def __init__(self):
            super().__init__(None)
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)) * self.scale)

    with pytest.raises(ValueError, match=r"mul \(mul\), after its global pooling"):
        fully_convolutional(Scaled())
