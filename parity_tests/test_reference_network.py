"""The oracle's network: walks worked out by hand, and its forward pass against torch's own in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from prm.parity_tests.convert import to_reference
from prm.parity_tests.zoo import BLOCKS, LAYERS, SmallCnn
from prm.reference.network import Node, forward, plan, walk


def conv(name, source, *rows, **params):
    """A convolution from one channel to one, its kernel's rows given."""
    return Node(name, "conv2d", (source,), {"weight": np.array(rows, float)[None, None], **params})


def run(nodes, rows, peak=(0, 0, 0), **options):
    nodes = [Node("x", "input"), *nodes]
    return walk(nodes, forward(nodes, np.array(rows, float)[None]), peak, **options)


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


# ---- walks by hand


def test_two_layers_by_hand():
    # x = 1 3 1, a = conv (1, 1) = 4 4, y = conv (1, 3) = 16. P(a) = (4, 12) / 16
    # P(x) = .25 * (1, 3, 0) / 4 + .75 * (0, 3, 1) / 4
    found = run([conv("a", "x", [1, 1]), Node("r", "relu", ("a",)), conv("y", "r", [1, 3])], [[1, 3, 1]])
    near(found.prm, [[1 / 16, 12 / 16, 3 / 16]])
    assert (found.arrived, found.leaked, found.empty) == (1, 0, False)
    assert found.account["a"] == (1, 0)


def test_leak_is_counted_and_the_map_sums_to_one():
    # a = conv (1) + bias 1 on (0, 3) = (1, 4); y = (1, 1): P(a) = (.2, .8); at column 0 Z = 0: .2 leaks
    nodes = [conv("a", "x", [1], bias=np.array([1.0])), conv("y", "a", [1, 1])]
    found = run(nodes, [[0, 3]])
    near(found.P[0], [[0, 0.8]])
    near(found.prm, [[0, 1]])
    near([found.arrived, found.leaked, found.account["a"][1]], [0.8, 0.2, 0.2])


def test_empty_map_is_flagged():
    found = run([conv("y", "x", [1], bias=np.array([1.0]))], [[0, 0]])
    assert found.empty
    assert (found.arrived, found.leaked) == (0, 1)
    assert found.prm.tolist() == [[0, 0]]


def test_peak_on_an_enlarged_map():
    # y = x of 3 columns, column 3 of 6 is at 1.2
    near(run([conv("y", "x", [1])], [[1, 1, 1]], (0, 0, 3), upsample=2).prm, [[0, 0.8, 0.2]])


def test_batch_norm_is_folded_into_its_convolution_only():
    norm = {"mean": np.array([0.0]), "var": np.array([1.0]), "weight": np.array([-1.0]), "eps": 0.0}
    # gamma < 0, folded: W' = (-1, 1), all to column 1; dropout between makes no difference
    folded = [conv("a", "x", [1, -1]), Node("d", "dropout", ("a",)), Node("n", "batch_norm", ("d",), norm)]
    near(run(folded, [[1, 1]]).prm, [[0, 1]])
    # a second consumer of the convolution: not folded, W+ = (1, 0), all to column 0
    shared = [*folded, Node("z", "add", ("n", "a"))]
    near(run(shared, [[1, 1]]).prm, [[1, 0]])
    # an activation between: not folded
    apart = [conv("a", "x", [1, -1]), Node("d", "relu", ("a",)), Node("n", "batch_norm", ("d",), norm)]
    near(run(apart, [[1, 1]]).prm, [[1, 0]])


def test_norms_forward_by_hand():
    x = Node("x", "input")

    def value(op, rows, **params):
        return forward([x, Node("n", op, ("x",), params)], np.array(rows, float))["n"]

    # channels (1, 3) and (5, 9) of one position each: layer norm over the last axis alone, over the channels, over all
    near(value("layer_norm", [[[1, 3]]], eps=0, weight=[2, 3], bias=[10, 20]), [[[-2 + 10, 3 + 20]]])
    near(value("layer_norm", [[[1]], [[3]]], axes=3, eps=0, weight=[[[2]], [[3]]]), [[[-2]], [[3]]])
    near(value("layer_norm", [[[1, 3]]], eps=3), [[[-1 / 2, 1 / 2]]])  # sigma = sqrt(1 + 3)
    pairs = [[[1]], [[3]], [[5]], [[9]]]
    near(value("group_norm", pairs, groups=2, eps=0, weight=[1, 2, 3, 4]), [[[-1]], [[2]], [[-3]], [[4]]])
    near(value("instance_norm", [[[1, 3]], [[5, 9]]], eps=0, bias=[0, 7]), [[[-1, 1]], [[6, 8]]])
    near(value("instance_norm", [[[1, 3]]], mean=[1], var=[4], eps=0, weight=[3]), [[[0, 3]]])
    # squares of a channel and its neighbours: 5, 14, 13; of the one before and itself: 1, 5, 13
    three = [[[1]], [[2]], [[3]]]
    near(value("local_response_norm", three, size=3, alpha=3, beta=1), [[[1 / 6]], [[2 / 15]], [[3 / 14]]])
    near(value("local_response_norm", three, size=2, alpha=2, beta=1), [[[1 / 2]], [[2 / 6]], [[3 / 14]]])


@pytest.mark.parametrize(
    "norm", [("layer_norm", {"axes": 1}), ("group_norm", {"groups": 1}), ("instance_norm", {})], ids=lambda n: n[0]
)
def test_walk_passes_a_norm_unchanged(norm):
    # x = (1, 3) becomes (-1, 1) + 2 = (1, 3) again, or with gamma = -1 (3, 1): what the norm's output says goes to x
    op, params = norm
    both = {"layer_norm": [2, 2]}.get(op, [2])
    for gamma, expected in ((1, [[0.25, 0.75]]), (-1, [[0.75, 0.25]])):
        weight = {"layer_norm": [gamma, gamma]}.get(op, [gamma])
        node = Node("n", op, ("x",), {**params, "weight": np.array(weight), "bias": np.array(both), "eps": 0.0})
        found = run([node, conv("y", "n", [1, 1])], [[1, 3]])
        near(found.prm, expected)
        assert found.account["n"] == (1, 0)
    # a convolution does not take them in: W' = -W would send all to column 1
    node = Node("n", op, ("a",), {**params, "weight": np.array([-1]), "bias": np.array([9]), "eps": 1.0})
    near(run([conv("a", "x", [1, -1]), node, conv("y", "n", [1])], [[1, 1]]).prm, [[1, 0]])


def test_walk_passes_local_response_norm_unchanged():
    node = Node("n", "local_response_norm", ("x",), {"size": 1, "alpha": 1.0, "beta": 1.0})
    # 1 / (1 + 1) and 3 / (1 + 9): .5 and .3
    near(run([node, conv("y", "n", [3, 5])], [[1, 3]]).prm, [[0.5, 0.5]])


def test_learned_factor_may_have_either_sign():
    k = Node("k", "constant", (), {"value": np.array([[[-1.0]]]), "learned": True})
    nodes = [k, conv("b", "x", [1, 3])]
    near(run([*nodes, Node("y", "multiply", ("k", "b"))], [[1, 1]]).prm, [[0.25, 0.75]])
    # computed from one, too
    nodes.append(Node("two", "constant", (), {"value": 2.0}))
    nodes.append(Node("s", "multiply", ("k", "two")))
    near(run([*nodes, Node("y", "multiply", ("b", "s"))], [[1, 1]]).prm, [[0.25, 0.75]])
    with pytest.raises(NotImplementedError, match=r"'y'.*positive"):
        run([*nodes, Node("y", "divide", ("b", "s"))], [[1, 1]])


def test_gate_is_seen_through_shapes():
    nodes = [
        conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("g", "sigmoid", ("c",)),
        Node("u", "unsqueeze", ("g",), {"axis": 0}), Node("v", "squeeze", ("u",), {"axis": 0}),
        Node("y", "multiply", ("v", "b")),
    ]  # fmt: skip
    near(run(nodes, [[1, 3]]).prm, [[1, 0]])


def test_zero_pad_is_merged_and_the_minimum_ignores_it():
    # one zero on the left of (2, 1): y0 sees (pad, 2), all goes to column 0
    nodes = [Node("p", "zero_pad", ("x",), {"padding": (1, 0, 0, 0)}), conv("y", "p", [1, 1])]
    near(run(nodes, [[2, 1]]).prm, [[1, 0]])
    # x = (-2, -1): U_hat = (0, 1) and Z = 0 + 0: leaks, while a shifted pad would have been 2 and taken mass
    assert run(nodes, [[-2, -1]]).leaked == 1
    # merged with the convolution's own padding: y0 sees two pads only
    wide = [nodes[0], conv("y", "p", [1, 1], padding=(0, 1))]
    assert run(wide, [[2, 1]]).leaked == 1
    near(run(wide, [[2, 1]], (0, 0, 1)).prm, [[1, 0]])
    pooled = [nodes[0], Node("y", "avg_pool2d", ("p",), {"kernel": (1, 3), "stride": 1})]
    near(run(pooled, [[3, 1]]).prm, [[0.75, 0.25]])


def test_several_consumers_add_up():
    # b = (1, 0) x, c = (0, 1) x of x = (1, 3): 1 and 3; the sum splits 1 : 3
    nodes = [conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("y", "add", ("b", "c"))]
    near(run(nodes, [[1, 3]]).prm, [[0.25, 0.75]])
    # one tensor twice in one addition
    near(run([conv("b", "x", [1]), Node("y", "add", ("b", "b"))], [[2]]).arrived, 1)


def test_residual_uses_the_values_before_the_sum():
    # x = (1, 3), b = 2 x = (2, 6): y0 = 1 + 2, so thirds, and both end at column 0
    nodes = [conv("b", "x", [2]), Node("s", "add", ("x", "b")), Node("y", "relu", ("s",))]
    found = run(nodes, [[1, 3]])
    near(found.prm, [[1, 0]])
    near(found.account["b"][0], 2 / 3)


def test_constants_take_no_share():
    value = {"value": np.array([[[[5.0]]]])}  # with the batch's leading axis
    nodes = [Node("k", "constant", (), value), conv("b", "x", [1, 3])]
    for op in ("add", "subtract", "multiply", "divide"):
        near(run([*nodes, Node("y", op, ("b", "k"))], [[1, 1]]).prm, [[0.25, 0.75]])
    near(run([*nodes, Node("y", "multiply", ("k", "b"))], [[1, 1]]).prm, [[0.25, 0.75]])
    for op in ("subtract", "divide"):
        with pytest.raises(NotImplementedError, match=f"{op}.*'y'"):
            run([*nodes, Node("y", op, ("k", "b"))], [[1, 1]])
    nodes[0] = Node("k", "constant", (), {"value": -1.0})
    with pytest.raises(NotImplementedError, match=r"'y'.*positive"):
        run([*nodes, Node("y", "multiply", ("b", "k"))], [[1, 1]])


def test_normalised_input_is_shifted_after_the_normalisation():
    # (x - 2): (-1, 1) -> U_hat (0, 2)
    nodes = [Node("k", "constant", (), {"value": 2.0}), Node("m", "subtract", ("x", "k")), conv("y", "m", [1, 1])]
    near(run(nodes, [[1, 3]]).prm, [[0, 1]])


def test_signed_rule_is_for_the_convolutions_that_see_the_image():
    nodes = [Node("k", "constant", (), {"value": 2.0}), Node("m", "subtract", ("x", "k")), conv("y", "m", [-2, 1])]
    # U = (-1, 4): U- W- = 2, U+ W+ = 4
    near(run(nodes, [[1, 6]], signed=True).prm, [[1 / 3, 2 / 3]])
    near(run(nodes, [[1, 6]]).prm, [[0, 1]])
    # behind a convolution it is not used: m = (-1, 4) is computed, U_hat = (0, 5)
    deeper = [conv("m", "x", [1], bias=np.array([-2.0])), conv("y", "m", [-2, 1])]
    near(run(deeper, [[1, 6]], signed=True).prm, [[0, 1]])


def test_gate_takes_nothing():
    # g = sigmoid of the other column, full size: P follows b, to column 0
    nodes = [conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("g", "sigmoid", ("c",))]
    for inputs in (("b", "g"), ("g", "b")):
        near(run([*nodes, Node("y", "multiply", inputs)], [[1, 3]]).prm, [[1, 0]])
    with pytest.raises(NotImplementedError, match=r"'y'.*full-size"):
        run([*nodes, Node("y", "multiply", ("b", "c"))], [[1, 3]])
    # no sigmoid, but broadcast
    gate = [Node("m", "mean", ("x",), {"keepdims": True}), Node("y", "multiply", ("m", "x"))]
    near(run(gate, [[1, 3]], (0, 0, 1)).prm, [[0, 1]])


def test_activation_written_out():
    # x * tanh(softplus(x)) and x * hard_sigmoid(x) in pieces: P unchanged, by either order
    nodes = [conv("b", "x", [1, 3]), Node("s", "softplus", ("b",)), Node("t", "tanh", ("s",))]
    near(run([*nodes, Node("y", "multiply", ("t", "b"))], [[1, 1]]).prm, [[0.25, 0.75]])
    pieces = [
        conv("b", "x", [1, 3]),
        Node("three", "constant", (), {"value": 3.0}),
        Node("p", "add", ("b", "three")),
        Node("q", "relu6", ("p",)),
        Node("y", "multiply", ("b", "q")),
    ]
    near(run(pieces, [[1, 1]]).prm, [[0.25, 0.75]])
    with pytest.raises(NotImplementedError, match="'y'"):
        run([nodes[0], Node("y", "multiply", ("b", "b"))], [[1, 1]])


def test_concatenation_slice_and_chunk():
    nodes = [conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("cat", "concatenate", ("b", "c"))]
    near(run(nodes, [[1, 3]], (1, 0, 0)).prm, [[0, 1]])
    near(run([*nodes, Node("y", "slice", ("cat",), {"axis": 0, "start": 1})], [[1, 3]]).prm, [[0, 1]])
    near(run([*nodes, Node("y", "chunk", ("cat",), {"axis": 0, "chunks": 2, "index": 0})], [[1, 3]]).prm, [[1, 0]])


def test_concatenated_constant_swallows_its_mass():
    nodes = [Node("k", "constant", (), {"value": np.ones((1, 1, 2))}), Node("y", "concatenate", ("x", "k"))]
    found = run(nodes, [[1, 3]], (1, 0, 0))
    assert (found.arrived, found.leaked, found.empty) == (0, 1, True)


def test_pooling_mean_linear_and_shapes():
    weight = {"weight": np.array([[1.0, 3.0]])}
    pooled = [Node("p", "max_pool2d", ("x",), {"kernel": (1, 2)}), Node("f", "flatten", ("p",))]
    tail = [Node("l", "linear", ("f",), weight), Node("y", "reshape", ("l",), {"shape": (1, 1, 1)})]
    # maxima 2 (column 1) and 2 (column 2): 2 : 6
    near(run([*pooled, *tail], [[1, 2, 2, 0]]).prm, [[0, 0.25, 0.75, 0]])
    near(run([Node("y", "mean", ("x",), {"keepdims": True})], [[1, 3]]).prm, [[0.25, 0.75]])
    near(run([Node("y", "adaptive_avg_pool2d", ("x",), {"size": 1})], [[1, 3]]).prm, [[0.25, 0.75]])
    near(run([Node("y", "adaptive_max_pool2d", ("x",), {"size": (None, 1)})], [[1, 3]]).prm, [[0, 1]])
    near(run([Node("y", "mean", ("x",), {"axes": (-1,), "keepdims": True})], [[1, 3]]).prm, [[0.25, 0.75]])
    near(run([Node("y", "permute", ("x",), {"axes": (0, 2, 1)})], [[1, 3]], (0, 1, 0)).prm, [[0, 1]])
    near(run([Node("y", "transpose", ("x",), {"axes": (1, -1)})], [[1, 3]], (0, 1, 0)).prm, [[0, 1]])
    wide = [Node("m", "mean", ("x",), {"keepdims": True}), Node("y", "expand", ("m",), {"shape": (-1, 2, ("x", 2))})]
    near(run(wide, [[1, 3]], (0, 1, 0)).prm, [[0.25, 0.75]])
    up = [Node("y", "interpolate", ("x",), {"mode": "bilinear", "size": (1, 4)})]
    near(run(up, [[1, 3]], (0, 0, 1)).prm, [[0.5, 0.5]])  # (.75, .25) * (1, 3)


def test_sums_pads_and_powers():
    nodes = [conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("cat", "concatenate", ("b", "c"))]
    # 1 of the first column and 3 of the second: 1 : 3
    near(run([*nodes, Node("y", "sum", ("cat",), {"axes": (0,), "keepdims": True})], [[1, 3]]).prm, [[0.25, 0.75]])
    pad = {"padding": (2, 0, 0, 0)}
    near(run([Node("y", "pad", ("x",), {**pad, "mode": "reflect"})], [[1, 2, 3]]).prm, [[0, 0, 1]])
    near(run([Node("y", "pad", ("x",), {**pad, "mode": "circular"})], [[1, 2, 3]]).prm, [[0, 1, 0]])
    zeros = [Node("p", "zero_pad", ("x",), pad), Node("y", "relu", ("p",))]
    assert run(zeros, [[1, 2, 3]]).leaked == 1 and run(zeros, [[1, 2, 3]], (0, 0, 2)).leaked == 0
    near(run([Node("y", "power", ("x",), {"exponent": 2.0})], [[1, 3]], (0, 0, 1)).prm, [[0, 1]])


def test_a_norm_written_out():
    """(x - mean) / root of the mean square: P unchanged; a pooling less its map: through the pooling."""
    axes = {"axes": (2,), "keepdims": True}
    less = [Node("m", "mean", ("x",), axes), Node("d", "subtract", ("x", "m"))]
    root = [Node("q", "power", ("d",), {"exponent": 2.0}), Node("v", "mean", ("q",), axes),
            Node("s", "power", ("v",), {"exponent": 0.5}), Node("y", "divide", ("d", "s"))]  # fmt: skip
    near(run([*less, *root], [[1, 3]], (0, 0, 1)).prm, [[0, 1]])
    with np.errstate(invalid="ignore"), pytest.raises(NotImplementedError, match=r"'y'.*not positive"):
        run([*less, *root], [[2, 2]])
    pool = Node("p", "avg_pool2d", ("x",), {"kernel": (1, 3), "stride": 1, "padding": (0, 1)})
    near(run([pool, Node("y", "subtract", ("p", "x"))], [[1, 3, 0]], (0, 0, 0)).prm, [[0.25, 0.75, 0]])


def test_a_gated_linear_unit():
    # of two full maps the one that an activation made is the gate
    nodes = [conv("b", "x", [1, 0]), conv("c", "x", [0, 1]), Node("g", "gelu", ("c",))]
    for inputs in (("b", "g"), ("g", "b")):
        near(run([*nodes, Node("y", "multiply", inputs)], [[1, 3]]).prm, [[1, 0]])
    both = [*nodes, Node("h", "relu", ("b",)), Node("y", "multiply", ("h", "g"))]
    with pytest.raises(NotImplementedError, match=r"'y'.*full-size"):
        run(both, [[1, 3]])


def test_what_has_no_rule_is_refused_before_any_work():
    image = np.zeros((1, 1, 2))
    cases = [
        ([Node("odd", "cumsum", ("x",))], "'cumsum'.*'odd'"),
        ([Node("s", "softmax", ("x",), {"axis": 0})], "'softmax'.*'s'"),
        ([Node("u", "interpolate", ("x",), {"mode": "bicubic", "size": (2, 4)})], "'interpolate'.*'u'"),
        ([Node("p", "zero_pad", ("x",), {"padding": (-1, 0, 0, 0)}), Node("r", "relu", ("p",))], "'zero_pad'.*'p'"),
        ([Node("p", "power", ("x",), {"exponent": -1.0})], "'power'.*'p'"),
        ([Node("r", "relu", ("x",)), Node("d", "subtract", ("x", "r"))], "'subtract'.*'d'.*mean"),
        ([Node("r", "relu", ("x",)), Node("d", "divide", ("x", "r"))], "'divide'.*'d'.*deviation"),
    ]
    for nodes, message in cases:
        with pytest.raises(NotImplementedError, match=message):
            forward([Node("x", "input"), *nodes], image)
    for nodes in ([Node("a", "relu", ("b",))], [Node("x", "relu", ("x",))], [Node("z", "input")]):
        with pytest.raises(ValueError, match=r"repeats|before|exactly one"):
            plan([Node("x", "input"), *nodes])


# ---- converted torch modules


NETWORKS = {**LAYERS, **{name: SmallCnn([name], 1).double() for name in BLOCKS}}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("size", [(9, 11), (12, 8)])
def test_forward_equals_torch(kind, size):
    module = NETWORKS[kind]
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = to_reference(module)
    values = forward(network, x[0].numpy())
    expected = module(x.clone())[0].detach().numpy()
    np.testing.assert_allclose(values[network.output], expected, rtol=1e-12, atol=1e-12)
    C, H, W = expected.shape
    for peak in ((0, 0, 0), (C - 1, H // 2, W // 2), (1, H - 1, W - 1)):
        found = walk(network, values, peak)
        assert found.arrived + found.leaked == pytest.approx(1, rel=1e-12)
        assert found.empty or found.prm.sum() == pytest.approx(1, rel=1e-12)
        assert (found.P >= 0).all()


def test_a_module_called_twice_is_two_layers():
    network = to_reference(LAYERS["module called twice"])
    assert [node.name for node in network.nodes if node.op == "conv2d"] == ["c", "c#2"]


def test_conversion_refuses_by_name():
    with pytest.raises(NotImplementedError, match=r"1 .*ConvTranspose2d"):
        to_reference(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 3, 2)).eval())
    with pytest.raises(ValueError, match="training"):
        to_reference(nn.Sequential(nn.ReLU()))
