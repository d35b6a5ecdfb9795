"""Legalization, the constraint solver and the integer graph, on small hand-built float graphs."""

from __future__ import annotations

import numpy as np
import pytest

from qwtv2_edge.errors import CalibrationError, QuantizeError, RecipeError
from qwtv2_edge.ir import Graph, GraphBuilder, Location, TensorType
from qwtv2_edge.ir.check import check
from qwtv2_edge.ir.serde import graph_hash
from qwtv2_edge.ops.activation import ClampAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, ReshapeAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.quantization import Recipe, quantize
from qwtv2_edge.quantization.apply import params_for, quantize_weights
from qwtv2_edge.quantization.legalize import TO_NCHW, TO_NHWC, legalize
from qwtv2_edge.simulator.run import run


class Net:
    """A float graph under construction, with seeded weights."""

    def __init__(self, shape=(1, 6, 6, 4), seed=0):
        self.rng = np.random.default_rng(seed)
        self.b = GraphBuilder("net")
        self.x = self.b.input("x", TensorType(shape))

    def add(self, op, *inputs, attrs=NoAttrs(), name=None):
        name = name or f"{op}{len(self.b.nodes)}"
        return self.b.add(op, inputs, attrs, name=name, location=Location(name, "net.py", len(self.b.nodes) + 1, f"self.{name}(x)"))[0]

    def conv(self, x, out=4, scale=1.0, name=None, **attrs):
        c = self.b.tensors[x].shape[-1]
        w = self.b.constant("w", (self.rng.normal(size=(out, 1, 1, c)) * scale).astype(np.float32))
        bias = self.b.constant("bias", self.rng.normal(size=out).astype(np.float32))
        return self.add("conv2d", x, w, bias, attrs=Conv2DAttrs(**attrs), name=name)

    def done(self, *outputs) -> Graph:
        self.b.outputs = list(outputs)
        return self.b.freeze()

    def data(self, n=32):
        return np.random.default_rng(9).normal(size=(n, *self.b.tensors["x"].shape[1:])).astype(np.float32)


def quantized(net: Net, graph: Graph, **recipe) -> Graph:
    result = quantize(graph, net.data(), Recipe(**recipe))
    check(result.graph)
    return result.graph


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def scale_and_zero_point(graph: Graph, tensor: str):
    return graph.tensors[tensor].scale, graph.tensors[tensor].zero_point


# ---------------------------------------------------------------- legalize


def test_activations_fuse_only_where_nothing_else_reads_the_value():
    net = Net()
    a = net.conv(net.x, name="a")
    r = net.add("relu", a)
    b = net.conv(r, name="b")
    s = net.add("relu6", b)
    y = net.add("add", s, b, attrs=BinaryAttrs())
    legal = legalize(net.done(y))
    assert ops(legal) == ["conv2d", "conv2d", "relu6", "add"]
    assert legal.node("a").attrs.activation == "relu"
    assert legal.node("b").attrs.activation == "none"


@pytest.mark.parametrize("op", ["hard_sigmoid", "silu"])
@pytest.mark.parametrize("after_conv", [True, False])
def test_rewrites_keep_the_meaning(op, after_conv):
    net = Net()
    x = net.conv(net.x) if after_conv else net.x
    graph = net.done(net.add(op, x))
    legal = legalize(graph)
    assert op not in ops(legal)
    np.testing.assert_allclose(run(legal, [net.data()], None)[0], run(graph, [net.data()], None)[0], atol=2e-6)
    if op == "hard_sigmoid" and after_conv:
        assert ops(legal) == ["conv2d", "clamp"], "the affine part goes into the convolution"


def test_hard_sigmoid_leaves_a_convolution_with_other_readers_alone():
    net = Net()
    c = net.conv(net.x)
    h = net.add("hard_sigmoid", c)
    graph = net.done(net.add("mul", c, h, attrs=BinaryAttrs()))
    np.testing.assert_allclose(run(legalize(graph), [net.data()], None)[0], run(graph, [net.data()], None)[0], atol=2e-6)


@pytest.mark.parametrize(("kernel", "expected"), [((6, 6), ["mean"]), ((5, 6), ["slice", "mean"]), ((3, 3), ["avg_pool2d"])])
def test_single_averages_become_means(kernel, expected):
    net = Net()
    graph = net.done(net.add("avg_pool2d", net.x, attrs=PoolAttrs(kernel, kernel)))
    legal = legalize(graph)
    assert ops(legal) == expected
    np.testing.assert_allclose(run(legal, [net.data()], None)[0], run(graph, [net.data()], None)[0], atol=1e-6)


def test_reshapes_merge_and_a_mean_drops_its_own_axes():
    net = Net()
    pooled = net.add("avg_pool2d", net.x, attrs=PoolAttrs((6, 6), (6, 6)))
    flat = net.add("reshape", net.add("reshape", pooled, attrs=ReshapeAttrs((1, 2, 2))), attrs=ReshapeAttrs((1, 4)))
    graph = net.done(flat)
    legal = legalize(graph)
    assert ops(legal) == ["mean"]
    np.testing.assert_allclose(run(legal, [net.data()], None)[0], run(graph, [net.data()], None)[0], atol=1e-6)
    assert legal.outputs == graph.outputs


def test_a_reshape_whose_source_is_read_elsewhere_stays():
    net = Net()
    pooled = net.add("avg_pool2d", net.x, attrs=PoolAttrs((6, 6), (6, 6)))
    first = net.add("reshape", pooled, attrs=ReshapeAttrs((1, 2, 2)))
    graph = net.done(net.add("reshape", first, attrs=ReshapeAttrs((1, 4))), first, pooled)
    legal = legalize(graph)
    assert ops(legal) == ["mean", "reshape", "reshape"]
    for y, wanted in zip(run(legal, [net.data()], None), run(graph, [net.data()], None), strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-6)


def test_nhwc_io_drops_the_boundary_transposes():
    net = Net(shape=(1, 4, 6, 5))
    x = net.add("transpose", net.x, attrs=TransposeAttrs(TO_NHWC))
    graph = net.done(net.add("transpose", net.conv(x), attrs=TransposeAttrs(TO_NCHW), name="back"))
    legal = legalize(graph, "nhwc")
    assert ops(legal) == ["conv2d"]
    assert legal.tensors["x"].shape == (1, 6, 5, 4)
    assert legal.outputs == ("back",)
    data = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    (y,) = run(legal, [data.transpose(0, 2, 3, 1)], None)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), run(graph, [data], None)[0], atol=1e-6)
    result = quantize(graph, data, Recipe(io_layout="nhwc", compensation="none"))  # data in the module's own layout still fits
    assert ops(result.graph) == ["quantize", "conv2d", "dequantize"]
    assert not any("transpose" in n for n in result.report.notes)
    kept = quantize(graph, data, Recipe(compensation="none"))
    assert any("'back', 'x'" in n and "nhwc" in n for n in kept.report.notes)


# ---------------------------------------------------------------- solver


def test_concat_pool_and_reshape_share_one_scale():
    net = Net()
    a, b = net.conv(net.x, scale=1, name="a"), net.conv(net.x, scale=9, name="b")
    cat = net.add(
        "concat",
        net.add("max_pool2d", a, attrs=PoolAttrs((2, 2), (1, 1))),
        net.add("avg_pool2d", b, attrs=PoolAttrs((2, 2), (1, 1))),
        attrs=ConcatAttrs(3),
    )
    graph = quantized(net, net.done(cat))
    assert len({scale_and_zero_point(graph, graph.node(n).outputs[0]) for n in ("a", "b", "concat4")}) == 1
    assert "requantize" not in ops(graph)


def test_a_fixed_scale_that_does_not_fit_its_class_is_separated_by_requantize():
    net = Net()
    s = net.add("softmax", net.conv(net.x), attrs=SoftmaxAttrs())
    cat = net.add("concat", s, net.conv(net.x, scale=5, name="wide"), attrs=ConcatAttrs(3))
    graph = quantized(net, net.done(cat))
    assert ops(graph).count("requantize") == 1
    assert scale_and_zero_point(graph, s) == (1 / 256, -128)
    assert scale_and_zero_point(graph, graph.node("wide").outputs[0]) == scale_and_zero_point(graph, graph.node("concat3").outputs[0])


def test_two_equal_fixed_scales_meet_without_requantize():
    net = Net()
    parts = [net.add("logistic", net.conv(net.x)) for _ in range(2)]
    graph = quantized(net, net.done(net.add("concat", *parts, attrs=ConcatAttrs(3))))
    assert "requantize" not in ops(graph)


@pytest.mark.parametrize("wide", [False, True])
def test_absorbed_clamp_holds_whatever_reads_it(wide):
    net = Net()
    clamped = net.add("clamp", net.conv(net.x, scale=4), attrs=ClampAttrs(-1.0, 0.5))
    y = net.add("concat", clamped, net.conv(net.x, scale=20), attrs=ConcatAttrs(3)) if wide else clamped
    float_graph = net.done(y)
    graph = quantized(net, float_graph, compensation="none")
    assert "clamp" not in ops(graph)
    out = run(graph, [net.data()], _numerics())[0][..., :4]
    tolerance = graph.tensors[graph.nodes[-1].inputs[0]].scale + graph.tensors[clamped if wide else f"{clamped}:int8"].scale
    assert out.max() <= 0.5 + tolerance
    assert out.min() >= -1 - tolerance


def _numerics():
    from qwtv2_edge.compensation.fit import FIT_NUMERICS

    return FIT_NUMERICS


def test_constant_zero_activation_names_the_node_and_the_line():
    net = Net()
    w, b = net.b.constant("w", np.zeros((4, 1, 1, 4), np.float32)), net.b.constant("b", np.zeros(4, np.float32))
    graph = net.done(net.add("conv2d", net.x, w, b, attrs=Conv2DAttrs(), name="dead"))
    with pytest.raises(CalibrationError) as caught:
        quantize(graph, net.data())
    assert "conv2d 'dead'" in str(caught.value)
    assert "net.py:1" in str(caught.value)
    assert "fix" in str(caught.value)


def test_non_finite_activation_names_the_node():
    net = Net()
    graph = net.done(net.conv(net.conv(net.x, scale=1e38, name="big"), scale=1e38, name="overflow"))
    with pytest.raises(CalibrationError, match=r"conv2d 'overflow'|conv2d 'big'"):
        quantize(graph, net.data())


def test_empty_calibration_and_quantized_graphs_are_refused():
    net = Net()
    graph = net.done(net.conv(net.x))
    with pytest.raises(CalibrationError, match=r"no samples|empty"):
        quantize(graph, net.data()[:0])
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize(quantized(net, graph), net.data())


@pytest.mark.parametrize("batch", [4, 65])
def test_a_network_with_a_batch_of_its_own_is_calibrated_on_whole_batches(batch):
    net = Net((batch, 6, 6, 4))
    result = quantize(net.done(net.conv(net.x)), net.data(3 * batch))
    check(result.graph)
    assert result.report.samples == 3 * batch
    with pytest.raises(CalibrationError, match=f"not a multiple of the network's own batch of {batch}"):
        quantize(net.b.freeze(), net.data(3 * batch + 1))


def test_an_override_that_matches_nothing_is_an_error():
    net = Net()
    with pytest.raises(RecipeError, match="matches no node"):
        quantize(net.done(net.conv(net.x)), net.data(), {"overrides": {"featurs.*": {"weight_bits": 4}}})


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 1), (-3, 0.1), (-0.001, 900), (2, 3), (-5, -4), (0, 1e-20)])
def test_activation_params_hold_the_range_and_zero(low, high):
    p = params_for(low, high)
    assert -128 <= p.zero_point <= 127
    assert np.float32(p.scale) == p.scale
    low, high = min(low, 0), max(high, 0)
    assert (-128 - p.zero_point) * p.scale <= low + p.scale / 2 * 1.001
    assert (127 - p.zero_point) * p.scale >= high - p.scale / 2 * 1.001


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_weight_codes_and_bias(bits, granularity):
    rng = np.random.default_rng(0)
    w, b = (
        rng.normal(size=(5, 3, 3, 2)).astype(np.float32) * np.array([1, 1e-9, 10, 0, 1])[:, None, None, None],
        rng.normal(size=5).astype(np.float32),
    )
    w = w.astype(np.float32)
    q = quantize_weights(w, b, 0, 0.1, 0.2, Recipe(weight_bits=bits, weight_granularity=granularity, weight_observer="minmax"))
    top = 127 if bits == 8 else 7
    assert np.abs(q.codes).max() == top
    assert q.codes.dtype == np.int8
    assert not q.codes[3].any()
    assert np.abs(q.bias).max() < 2**30
    real_bias = q.bias * (0.1 * q.scale.astype(np.float64))
    np.testing.assert_allclose(real_bias, b, atol=float(0.1 * q.scale.max()))
    effective = 0.1 * q.scale.astype(np.float64) / 0.2
    assert effective.min() >= 2.0**-31
    assert effective.max() < 256


def test_effective_scale_beyond_the_limit_is_refused_with_its_value():
    with pytest.raises(QuantizeError, match="not below 2\\*\\*8"):
        quantize_weights(np.full((1, 1), 1e6, np.float32), np.zeros(1, np.float32), 0, 1.0, 1.0, Recipe())


# ---------------------------------------------------------------- compensation in a network


def test_variants_are_ordered_on_data_the_fit_did_not_see():
    net = Net(shape=(1, 8, 8, 8))
    h = net.x
    for i in range(4):
        branch = net.conv(net.conv(h, 8, 0.3, name=f"c{i}a", activation="relu"), 8, 0.3, name=f"c{i}b")
        h = net.add("add", h, branch, attrs=BinaryAttrs(), name=f"add{i}")
    graph = net.done(h)
    calibration, fresh = net.data(64), np.random.default_rng(77).normal(size=(64, 8, 8, 8)).astype(np.float32)
    wanted = run(graph, [fresh], None)[0]
    errors, results = {}, {}
    for kind in ("none", "offset", "cwac"):
        results[kind] = quantize(graph, calibration, Recipe(weight_bits=4, weight_observer="minmax", compensation=kind))
        errors[kind] = np.square(run(results[kind].graph, [fresh], _numerics())[0] - wanted).mean()
    assert errors["cwac"] <= errors["offset"] * 1.001
    assert errors["offset"] <= errors["none"] * 1.001
    assert errors["cwac"] < 0.9 * errors["none"]
    assert ops(results["cwac"].graph) == ops(results["none"].graph)
    for name, array in results["none"].graph.constants.items():
        assert results["cwac"].graph.constants[name].shape == array.shape
        if array.dtype == np.int8:
            np.testing.assert_array_equal(results["cwac"].graph.constants[name], array)
    report = results["cwac"].report
    assert [c.node for c in report.compensation] == [n.name for n in graph.nodes if n.op == "conv2d"]
    assert any(c.target == "residual" for c in report.compensation)
    variants = results["cwac"].variants
    assert variants[report.network.chosen] is results["cwac"].graph
    assert {k: graph_hash(g) for k, g in variants.items()} == {k: graph_hash(r.variants[k]) for k, r in results.items()}
    assert all(c.mse_cwac <= c.mse_before * 1.5 for c in report.compensation)


def test_quantization_is_deterministic_and_does_not_depend_on_how_samples_arrive():
    net = Net()
    graph = net.done(net.conv(net.conv(net.x, activation="relu")))
    data = net.data(20)
    results = [quantize(graph, source, Recipe(observer="minmax")).graph for source in (data, list(data), iter(data), [data[:7], data[7:]])]
    for other in results[1:]:
        assert other.nodes == results[0].nodes
        assert dict(other.tensors) == dict(results[0].tensors)
        for name, array in results[0].constants.items():
            np.testing.assert_array_equal(array, other.constants[name])


def test_linear_heads_and_int8_io():
    net = Net(shape=(1, 12))
    w, b = net.b.constant("w", net.rng.normal(size=(3, 12)).astype(np.float32)), net.b.constant("b", np.ones(3, np.float32))
    graph = net.done(net.add("fully_connected", net.x, w, b, attrs=FullyConnectedAttrs()))
    integer = quantized(net, graph, io_dtype="int8")
    assert ops(integer) == ["fully_connected"]
    assert integer.tensors[integer.inputs[0]].dtype == integer.tensors[integer.outputs[0]].dtype == "int8"


def test_too_few_samples_to_hold_out_switch_compensation_off_and_say_so():
    net = Net()
    result = quantize(net.done(net.conv(net.x)), net.data(2))
    assert result.report.network.chosen == "none"
    assert "nothing to hold out" in result.report.network.reason


def test_a_node_whose_compensation_is_switched_off_says_so():
    net = Net()
    graph = net.done(net.conv(net.conv(net.x, name="a"), name="b"))
    result = quantize(graph, net.data(), Recipe(weight_bits=4, overrides={"a": {"compensation": "none"}}))
    choices = {c.node: c for c in result.report.compensation}
    assert (choices["a"].kind, choices["a"].reason) == ("none", "switched off")
    plain = quantize(graph, net.data(), Recipe(weight_bits=4, compensation="none"))
    np.testing.assert_array_equal(
        result.graph.constants[result.graph.node("a").inputs[2]], plain.graph.constants[plain.graph.node("a").inputs[2]]
    )
