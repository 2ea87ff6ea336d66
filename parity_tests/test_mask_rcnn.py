"""Mask R-CNN as a student: what is fixed, what a step sees, and answers at the picture's own size."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from prm import InputError
from prm.accelerated import Proposals
from prm.accelerated.students.mask_rcnn import MaskRCNN, _pasted
from prm.eval.datasets import draw_scene

SMALL = {"short": 64, "channels": 16, "rois": 16, "anchor": 8}


def made(num_classes=5, **options):
    torch.manual_seed(0)
    return MaskRCNN(num_classes, **(SMALL | options))


def scene(k=0, size=96):
    drawn = draw_scene(4, k, size=size)
    return drawn.image, drawn.masks, drawn.labels


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_lite2", "resnet50"])
def test_features_at_every_stride_and_what_is_fixed(backbone):
    model = made(backbone=backbone).train()
    features = model.detector.backbone(torch.zeros(1, 3, 128, 192))
    assert [tuple(y.shape) for y in features.values()] == [(1, 16, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]
    trunk = model.detector.backbone.trunk
    norms = [m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert not any(p.requires_grad for p in trunk[0].parameters())
    assert any(p.requires_grad for p in trunk[1].parameters()) and model.detector.rpn.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.groups(0.01, 1e-4))
    sum(model.losses([model.example(scene(), np.random.default_rng(0))]).values()).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers()).keys()
    assert changed and not changed & fixed
    assert any(name.startswith("detector.backbone.trunk.1") for name in changed)


def test_every_trained_parameter_is_in_one_group():
    model = made()
    weights, biases = model.groups(0.01, 1e-4)
    assert (weights["lr"], biases["lr"], weights["weight_decay"], biases["weight_decay"]) == (0.01, 0.02, 1e-4, 0.0)
    grouped = [id(p) for group in (weights, biases) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.ndim == 1 for p in biases["params"])


def test_an_example_is_scaled_and_mirrored_with_its_masks():
    """The boxes are tight around the masks, which lie where the picture shows them."""
    image = np.zeros((80, 100, 3), np.uint8)
    masks = np.zeros((3, 80, 100), bool)
    masks[0, 10:30, 20:60], masks[1, 50:70, 5:15] = True, True  # and one without a pixel
    image[masks[0]], image[masks[1]] = 200, 200
    model, seen = made(jitter=0.0), set()
    for k in range(12):
        x, target = model.example((image, masks, np.array([3, 1, 2])), np.random.default_rng(k))
        assert x.shape == (3, 64, 80) and target["labels"].tolist() == [4, 2]
        shown = (x[0] > 0.4).nonzero()
        inside = target["masks"].bool().any(0)
        assert (inside == (x[0] > 0.4)).float().mean() > 0.98 and len(shown)
        for mask, box in zip(target["masks"].bool(), target["boxes"].tolist()):
            rows, columns = mask.nonzero().unbind(1)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        seen.add(tuple(target["boxes"][0].tolist()))
    assert seen == {(16.0, 8.0, 48.0, 24.0), (32.0, 8.0, 64.0, 24.0)}
    sizes = {tuple(made(multi_scale=[48, 96]).example(scene(), np.random.default_rng(k))[0].shape) for k in range(9)}
    assert sizes == {(3, 48, 48), (3, 96, 96)}
    one, other = (made(jitter=0.4).example(scene(), np.random.default_rng(5))[0] for _ in range(2))
    assert (one == other).all() and (one != made(jitter=0.0).example(scene(), np.random.default_rng(5))[0]).any()


def test_a_picture_without_masks():
    model = made().train()
    image = scene()[0]
    x, target = model.example((image, np.zeros((0, 96, 96), bool), np.zeros(0, np.int64)), np.random.default_rng(0))
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *x.shape[1:])
    losses = model.losses([(x, target), model.example(scene(), np.random.default_rng(0))])
    assert len(losses) == 5 and all(bool(term.isfinite()) for term in losses.values())


def test_masks_are_pasted_where_their_boxes_lie():
    whole = torch.ones(1, 1, 28, 28)
    masks = _pasted(whole, torch.tensor([[10.0, 5.0, 30.0, 25.0]]), 40, 50).masks()[0]
    assert masks[6:24, 11:29].all() and not masks[:4].any() and not masks[:, :9].any() and not masks[:, 32:].any()
    assert len(_pasted(whole[:0], torch.zeros(0, 4), 40, 50)) == 0


def test_it_learns_a_picture_and_answers_at_its_size():
    """Overfit: after some steps on one picture its masks are found, at whatever size the picture has."""
    image = np.full((70, 96, 3), 60, np.uint8)
    masks = np.zeros((2, 70, 96), bool)
    masks[0, 10:50, 8:40], masks[1, 20:62, 54:90] = True, True
    image[masks[0]], image[masks[1]] = (230, 40, 40), (40, 220, 60)
    model = made(2, jitter=0.0, flip=False)
    model.start_from_imagenet()
    model.train()
    optimizer = torch.optim.AdamW(model.groups(2e-3, 1e-4))
    for step in range(60):
        torch.manual_seed(step)
        example = model.example((image, masks, np.array([0, 1])), np.random.default_rng(step))
        loss = sum(model.losses([example]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = model.answer(image)
    assert found.masks.height == 70 and found.masks.width == 96 and (np.diff(found.scores) <= 0).all()
    ious = found.masks.select([0, 1]).ious(Proposals.from_masks(torch.from_numpy(masks)))
    assert sorted(found.labels[:2].tolist()) == [0, 1] and (ious.amax(0) > 0.7).all(), (ious, found.scores[:5])
    again = model.answer(image)
    assert (again.scores == found.scores).all()
    large = model.answer(image.repeat(2, 0).repeat(2, 1))
    assert (large.masks.height, large.masks.width) == (140, 192)
    own = large.masks.select([0, 1]).ious(Proposals.from_masks(torch.from_numpy(masks.repeat(2, 1).repeat(2, 2))))
    assert (own.amax(0) > 0.7).all()


def test_imagenets_weights_fill_the_backbone(tmp_path):
    from safetensors.torch import save_file

    model = made()
    before = model.detector.backbone.trunk[1][0].project.conv.weight.clone()
    model.start_from_imagenet()
    assert (model.detector.backbone.trunk[1][0].project.conv.weight != before).any()
    save_file({"nothing": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"bad\.safetensors: not weights of this network"):
        model.start_from_imagenet(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("options", [{"backbone": "vgg16"}, {"short": 8}, {"rois": 0}, {"score": 1.0}, {"jitter": 2.0}])
def test_options_that_cannot_be(options):
    with pytest.raises(InputError, match="mask_rcnn: "):
        made(**options)
