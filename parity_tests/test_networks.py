"""The networks: VGG16 and ResNet-18 walked whole against the oracle, weight files and downloads."""

import copy
import hashlib
import http.server
import io
import pickle
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prm.accelerated import PeakBackprop, network, peak_stimulation
from prm.accelerated.checkpoint import load_checkpoint, random_checkpoint, save_checkpoint
from prm.accelerated.networks import load_pretrained, resnet18, vgg16
from prm.accelerated.networks.resnet50 import ResNet50
from prm.accelerated.networks.weights import checkpoint_page, load_features
from prm.parity_tests.architectures import thinned
from prm.parity_tests.checks import assert_same_tensors, refused
from prm.parity_tests.tolerances import NETWORK, assert_close
from prm.parity_tests.walks import assert_same_walks, oracle_walks, pictures
from prm.parity_tests.zoo import randomise

pytest.importorskip("torchvision")

# ---- whole networks against the oracle

# As deep as they are, but not as wide: VGG16's 7 x 7 convolution alone would cost the oracle half a minute.
WHOLE = {
    "resnet18": lambda: thinned(resnet18, by=4),
    "vgg16 conv": lambda: thinned(vgg16),
    "vgg16 fc": lambda: thinned(vgg16, head="fc"),
}


def image(dtype=torch.float32):
    """Exact in float32, so that both precisions see the same picture. Maps of 2 x 2."""
    return pictures(64, 64, count=1).float().to(dtype)


@pytest.fixture(scope="module", params=WHOLE)
def whole(request):
    """A network with float32 weights, and the oracle's maps and walks of one picture: from a corner, from a peak."""
    module = randomise(WHOLE[request.param](), seed=3)
    with torch.no_grad():
        peaks = torch.cat([torch.tensor([[0, 0, 1, 0]]), peak_stimulation(module(image()), threshold=None)[1][-1:]])
    return module, peaks, *oracle_walks(module, image(), peaks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_networks_walk_like_the_oracle(whole, dtype, device):
    module, peaks, maps, walks = whole
    run = PeakBackprop(copy.deepcopy(module).to(device, dtype)).prepare(image(dtype).to(device))
    assert_close(run.maps, maps, dtype, "maps", NETWORK)
    assert_same_walks(run.prms(peaks.to(device)), walks, dtype)
    assert not any(one.empty for one in walks)


def test_sizes_of_the_maps(device):
    for name, stride in (("smallnet", 4), ("resnet18", 32), ("resnet50", 32), ("vgg16", 32)):
        model = network(name, 2).eval().to(device)
        size = (64, 96)
        with torch.no_grad():
            maps = model(torch.zeros(1, 3, *size, device=device))
        assert maps.shape == (1, 2, size[0] // stride, size[1] // stride)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"unknown network 'lenet'.*vgg16"):
        network("lenet", 2)
    with pytest.raises(ValueError, match="head"):
        vgg16(2, head="linear")


def test_resnet50_without_torchvision_is_the_same_network():
    torch.manual_seed(0)
    mine = ResNet50(3)
    torch.manual_seed(0)
    theirs = network("resnet50", 3)
    assert not isinstance(theirs, ResNet50)
    assert_same_tensors(mine.state_dict(), theirs.state_dict())
    runs = [PeakBackprop(model.eval()).prepare(image()) for model in (mine, theirs)]
    assert torch.equal(runs[0].maps, runs[1].maps)
    assert torch.equal(*(run.prms(torch.tensor([[0, 1, 1, 0]])).prms for run in runs))


# ---- weight files


def like_torchvision(model):
    """A state dict as torchvision saves it: the last layer is linear."""
    state = dict(model.state_dict())
    state["fc.weight"] = state["fc.weight"].flatten(1)
    return state


@pytest.fixture(scope="module")
def resnet():
    return randomise(resnet18(5), seed=7)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_linear_classifier_becomes_a_convolution(suffix, resnet, tmp_path):
    path = tmp_path / f"resnet18{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({name: tensor.contiguous() for name, tensor in like_torchvision(resnet).items()}, path)
    model = resnet18(5)
    assert load_pretrained(model, path) == []
    assert_same_tensors(model.state_dict(), resnet.state_dict())
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
    refused(lambda: load_pretrained(vgg16(5), path), path, "features.0.weight", "missing")
    vgg_file(path, **{"features.2.weight": torch.zeros(64, 32, 3, 3)})
    refused(lambda: load_pretrained(vgg16(5), path), path, "features.2.weight", "(64, 32, 3, 3)", "(64, 64, 3, 3)")


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


@pytest.mark.parametrize("name", [*BROKEN, "folder", "nowhere.pth"])
def test_files_that_hold_no_weights(name, tmp_path, capsys):
    path = tmp_path / name
    (tmp_path / "folder").mkdir()
    if name in BROKEN:
        path.write_bytes(BROKEN[name])
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    refused(lambda: load_pretrained(model, path), path)
    assert "unpickled" not in capsys.readouterr().out
    assert_same_tensors(model.state_dict(), before)


# ---- a network trained here as the start of another


@pytest.mark.parametrize("classes", [2, 5])
def test_the_features_of_a_trained_network_with_a_new_classifier(classes):
    # also where the old classifier would fit
    start = randomise(network("smallnet", 2, widths=(4, 6)), seed=1).state_dict()
    model = network("smallnet", classes, widths=(4, 6))
    fresh = copy.deepcopy(model.classifier.state_dict())
    assert load_features(model, start, "start") == ["classifier.weight", "classifier.bias"]
    assert_same_tensors(model.classifier.state_dict(), fresh)
    features = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("features.")}
    assert len(features) == len(start) - 2
    assert_same_tensors(features, {name: start[name] for name in features})


def test_the_features_of_another_network():
    start = network("smallnet", 2, widths=(4, 8)).state_dict()
    model = network("smallnet", 2, widths=(4, 6))
    message = "features.7.weight is (8, 4, 3, 3), expected (6, 4, 3, 3)"
    refused(lambda: load_features(model, start, "runs/start"), "runs/start", message)


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


def test_a_download_with_the_wrong_checksum(server, tmp_path):
    folder, address = server
    content = saved(tiny(1).state_dict())
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(saved(tiny(2).state_dict()))
    refused(lambda: load_pretrained(tiny(), f"{address}/{name}"), f"{address}/{name}", "hash")
    assert not list((tmp_path / "torch").rglob("*.pth"))  # the wrong file is not kept for the next time
    (folder / name).write_bytes(content)
    model = tiny()
    assert load_pretrained(model, f"{address}/{name}") == []
    assert_same_tensors(model.state_dict(), tiny(1).state_dict())


def test_downloads_that_fail(server):
    _, address = server
    # nobody listens on port 9 of this machine, or whoever does is no web server
    for url in (f"{address}/nowhere-12345678.pth", "http://127.0.0.1:9/x-12345678.pth"):
        refused(lambda url=url: load_pretrained(tiny(), url), url)
