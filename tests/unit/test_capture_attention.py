"""Transformers: the graph computes what the module computes, with the ops and the data movements that attention needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwtv2_edge.errors import ImportGraphError, UsageError
from qwtv2_edge.frontend.torch_export import capture
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.simulator.run import batchable, run_float

FLOAT_TOLERANCE = 1e-5
NONE = -float("inf")


class Fn(nn.Module):
    def __init__(self, f: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.f = f

    def forward(self, *xs: Tensor) -> object:
        return self.f(*self.layers, *xs)


@dataclass(frozen=True)
class Case:
    """inputs: arrays of batch 1. ops: op -> how often it must be in the graph. batched: samples stay apart along axis 0."""

    name: str
    module: nn.Module
    inputs: tuple[np.ndarray, ...]
    ops: tuple[tuple[str, int], ...] = ()
    batched: bool = True


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


TOKENS = drawn(1, 5, 8)
HEADS = drawn(1, 2, 5, 4)
SCORES = drawn(1, 2, 5, 5)
KEPT = np.array([[1, 1, 1, 0, 0]])
BLOCKED = KEPT == 0
TABLE = nn.Linear(8, 15)  # a holder of constants


class Encoder(nn.Module):
    """A small image transformer: class token, positions, one pre-norm block, head on the class token."""

    def __init__(self, heads: int, split: str, width: int = 16) -> None:
        super().__init__()
        self.heads, self.split = heads, split
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        n, t, w = x.shape
        depth = w // self.heads
        qkv = self.qkv(self.norm1(x))
        if self.split == "chunk":
            q, k, v = (part.view(n, t, self.heads, depth).transpose(1, 2) for part in qkv.chunk(3, -1))
        else:
            q, k, v = qkv.reshape(n, t, 3, self.heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
        if self.split == "fused":
            a = F.scaled_dot_product_attention(q, k, v)
        else:
            a = ((q * depth**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(a.transpose(1, 2).reshape(n, t, w))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


def mha(**options: object) -> nn.Module:
    return nn.MultiheadAttention(8, 2, **options)  # type: ignore[arg-type]


def hugging_face(x: Tensor, mask: Tensor) -> Tensor:
    """The additive mask of the widespread BERT and GPT code, built in steps."""
    wide = mask[:, None, None, :].expand(1, 1, 5, 5).to(torch.float32)
    inverted = 1.0 - wide
    inverted = inverted.masked_fill(inverted.to(torch.bool), torch.finfo(torch.float32).min)
    return (x @ x.transpose(-1, -2) / 2 + inverted).softmax(-1) @ x


def grouped(q: Tensor, k: Tensor) -> Tensor:
    return q @ k[:, :, None].expand(1, 2, 2, 5, 4).reshape(1, 4, 5, 4).transpose(-1, -2)


def causal() -> Tensor:
    return torch.full((5, 5), NONE).triu(1)


MOVES_OF_HEADS = (("transpose", 4), ("mul", 0), ("slice", 0), ("batch_matmul", 2), ("softmax", 1), ("fully_connected", 4))
_MASKED = (("mask_fill", 1), ("add", 0), ("mul", 0))

CASES = [
    # normalisations
    Case("layer_norm", nn.LayerNorm(8), (TOKENS,), (("layer_norm", 1), ("reshape", 0))),
    Case("layer_norm_plain", nn.LayerNorm(8, elementwise_affine=False), (TOKENS,), (("layer_norm", 1),)),
    Case("layer_norm_two_axes", nn.LayerNorm((5, 8)), (TOKENS,), (("layer_norm", 1),)),
    Case("layer_norm_channels", Fn(lambda n, x: n(x.permute(0, 2, 3, 1)), nn.LayerNorm(2)), (HEADS,), (("transpose", 1),)),
    Case("layer_norm_affine_after", Fn(lambda n, x: n(x) * TABLE.weight[0] + TABLE.weight[1], nn.LayerNorm(8)), (TOKENS,), (("mul", 0),)),
    Case("rms_norm", nn.RMSNorm(8), (TOKENS,), (("layer_norm", 1),)),
    Case(
        "rms_norm_spelled",
        Fn(lambda x: TABLE.weight[0] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
        (TOKENS,),
        (("layer_norm", 1), ("mul", 0), ("mean", 0)),
    ),
    Case(
        "layer_norm_spelled_with_var",
        Fn(lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)),
        (TOKENS,),
        (("layer_norm", 1), ("sub", 0), ("mean", 0)),
    ),
    Case(
        "layer_norm_spelled",
        Fn(lambda x: (lambda d: d / ((d * d).mean(-1, keepdim=True) + 1e-5).sqrt() * TABLE.weight[0])(x - x.mean(-1, keepdim=True))),
        (TOKENS,),
        (("layer_norm", 1), ("sub", 0), ("mul", 0)),
    ),
    Case("normalize", Fn(lambda x: F.normalize(x, dim=-1)), (TOKENS,), (("l2_normalize", 1), ("transpose", 0))),
    Case("normalize_middle_axis", Fn(lambda x: F.normalize(x, dim=1)), (TOKENS,), (("l2_normalize", 1), ("transpose", 2))),
    Case("gelu", nn.GELU(), (TOKENS,), (("gelu", 1),)),
    Case("gelu_tanh", nn.GELU("tanh"), (TOKENS,), (("gelu", 1),)),
    # products
    Case("scores", Fn(lambda x: x @ x.transpose(-2, -1)), (HEADS,), (("batch_matmul", 1), ("transpose", 0), ("reshape", 0))),
    Case("bmm", Fn(lambda x: torch.bmm(x, x.transpose(1, 2))), (TOKENS,), (("batch_matmul", 1), ("transpose", 0))),
    Case("one_key_for_all_heads", Fn(lambda q, k: q @ k.transpose(-1, -2)), (HEADS, HEADS[:, :1]), (("batch_matmul", 1),)),
    Case("grouped_keys", Fn(grouped), (drawn(1, 4, 5, 4), HEADS), (("batch_matmul", 1),)),
    Case("constant_left", Fn(lambda x: TABLE.weight[:, :5] @ x), (TOKENS,)),
    Case("constant_per_head", Fn(lambda x: x @ TABLE.weight.view(2, 3, 4, 5).transpose(0, 1)[:1, :2]), (HEADS,), (("batch_matmul", 1),)),
    Case("linear_as_product", Fn(lambda x: x @ TABLE.weight.T + TABLE.bias), (TOKENS,), (("fully_connected", 1), ("add", 0))),
    Case("addmm_of_activations", Fn(lambda x: torch.addmm(x, x, x.T)), (drawn(5, 5),), batched=False),
    *[
        Case("einsum_" + equation.replace(",", "_").replace("->", "_to_"), Fn(lambda *ab, e=equation: torch.einsum(e, *ab)), operands, ops)
        for equation, operands, ops in (
            ("bhid,bhjd->bhij", (HEADS, HEADS), (("transpose", 0),)),
            ("bhij,bhjd->bhid", (SCORES, HEADS), (("transpose", 0),)),
            ("bthd,bshd->bhts", (HEADS, HEADS), (("transpose", 2),)),
            ("bhts,bshd->bthd", (drawn(1, 5, 3, 2), HEADS), (("transpose", 2),)),
            ("bid,bjd->bij", (TOKENS, TOKENS), (("transpose", 0),)),
            ("bid,bjd->bji", (TOKENS, TOKENS), ()),
        )
    ],
    Case("einsum_weights", Fn(lambda x: torch.einsum("btd,ed->bte", x, TABLE.weight)), (TOKENS,), (("fully_connected", 1),)),
    Case("einsum_weights_per_token", Fn(lambda x: torch.einsum("btd,ted->bte", x, TABLE.weight.view(5, 3, 8))), (TOKENS,)),
    # attention
    *[Case(f"image_{split}", Encoder(4, split), (drawn(1, 3, 8, 8),), (("transpose", 5), ("mul", 0), ("slice", 1), ("fully_connected", 7)))
      for split in ("chunk", "unbind", "fused")],
    Case("image_one_head", Encoder(1, "chunk"), (drawn(1, 3, 8, 8),), (("transpose", 1), ("mul", 0), ("reshape", 2))),
    Case("mha", Fn(lambda a, x: a(x, x, x, need_weights=False)[0], mha(batch_first=True)), (TOKENS,), MOVES_OF_HEADS),
    Case("mha_weights", Fn(lambda a, x: a(x, x, x), mha(batch_first=True)), (TOKENS,), MOVES_OF_HEADS),
    Case("mha_time_first", Fn(lambda a, x: a(x, x, x)[0], mha()), (TOKENS.transpose(1, 0, 2),), MOVES_OF_HEADS, batched=False),
    Case("mha_cross", Fn(lambda a, x, y: a(x, y, y)[0], mha(batch_first=True)), (TOKENS, drawn(1, 7, 8)), MOVES_OF_HEADS),
    Case(
        "mha_padding",
        Fn(lambda a, x, m: a(x, x, x, key_padding_mask=m)[0], mha(batch_first=True)),
        (TOKENS, BLOCKED),
        (*MOVES_OF_HEADS, ("mask_fill", 1)),
    ),
    Case(
        "mha_causal_padding",
        Fn(lambda a, x, m: a(x, x, x, key_padding_mask=m, attn_mask=causal(), need_weights=False)[0], mha(batch_first=True)),
        (TOKENS, BLOCKED),
        (*MOVES_OF_HEADS, ("mask_fill", 2)),
    ),
    *[Case(f"encoder_{first}", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first), (TOKENS,), MOVES_OF_HEADS[:5])
      for first in (False, True)],
    Case("sdpa_scale", Fn(lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3)), (HEADS,), (("mul", 0), ("transpose", 0))),
    Case("sdpa_causal", Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), (HEADS,), _MASKED),
    Case("sdpa_boolean", Fn(lambda x, m: F.scaled_dot_product_attention(x, x, x, m)), (HEADS, KEPT[:, None, None] > 0), _MASKED),
    Case(
        "sdpa_additive",
        Fn(lambda x, m: F.scaled_dot_product_attention(x, x, x, (1.0 - m[:, None, None, :].float()) * torch.finfo(torch.float32).min)),
        (HEADS, KEPT),
        _MASKED,
    ),
    Case(
        "sdpa_bias_and_causal",
        Fn(lambda x: F.scaled_dot_product_attention(x, x, x, causal() + 0.1 * torch.arange(5.0), scale=0.3)),
        (HEADS,),
        (("mask_fill", 1), ("add", 1)),
    ),
    # masks
    Case("masked_fill", Fn(lambda x, m: x.masked_fill(m[:, None, None] == 0, -1e9).softmax(-1)), (SCORES, KEPT), _MASKED),
    Case("masked_fill_low_number", Fn(lambda x, m: x.masked_fill(~m[..., None], -7.0)), (TOKENS, KEPT > 0), (("mask_fill", 1),)),
    Case("masked_max", Fn(lambda x, m: x.masked_fill(~m[..., None], NONE).amax(1)), (TOKENS, KEPT > 0), (("mask_fill", 1),)),
    Case("float_mask", Fn(lambda x, m: (x + (1 - m[:, None, None, :]) * -1e4).softmax(-1)), (SCORES, KEPT.astype(np.float32)), _MASKED),
    Case("where", Fn(lambda x, m: torch.where(m[:, None], x, torch.tensor(NONE)).softmax(-1)), (SCORES[:, 0], KEPT > 0), _MASKED),
    Case("where_constant", Fn(lambda x: torch.where(torch.ones(5, 5).tril() > 0, x, -1e9).softmax(-1)), (SCORES,), _MASKED),
    Case("added_constant", Fn(lambda x: (x + causal()).softmax(-1)), (SCORES,), _MASKED),
    Case(
        "masks_joined",
        Fn(lambda x, m: x.masked_fill(~(m[:, None, None, :].bool() & (torch.ones(5, 5).tril() > 0)), -1e9).softmax(-1)),
        (SCORES, KEPT),
        (("mask_fill", 2),),
    ),
    Case(
        "blocks_joined",
        Fn(lambda x, m: x.masked_fill(m[:, None, None] | (torch.ones(5, 5).triu(1) > 0), -1e9).softmax(-1)),
        (SCORES, BLOCKED),
        (("mask_fill", 2),),
    ),
    Case("masks_in_steps", Fn(hugging_face), (HEADS, KEPT), (("mask_fill", 1), ("add", 0))),
    *[
        Case(f"masked_mean_{i}", Fn(f), (TOKENS, mask), (("softmax", 1), ("mask_fill", 1), ("batch_matmul", 1), ("mul", 0)))
        for i, (f, mask) in enumerate(
            (
                (lambda x, m: (x * m.unsqueeze(-1).expand(x.size()).float()).sum(1) / m.sum(1, keepdim=True).clamp(min=1e-9), KEPT),
                (lambda x, m: (x * m.unsqueeze(-1)).sum(1) / m.sum(1, keepdim=True), KEPT.astype(np.float32)),
                (lambda x, m: (m[..., None] * x).sum(1) / torch.clamp(m[..., None].float().expand(x.size()).sum(1), min=1e-9), KEPT),
            )
        )
    ],
    # look-ups and tokens
    Case(
        "embeddings",
        Fn(
            lambda words, places, types, norm, i: norm(words(i) + places(torch.arange(i.shape[1])) + types(torch.zeros_like(i))),
            nn.Embedding(9, 8, padding_idx=0),
            nn.Embedding(9, 8),
            nn.Embedding(2, 8),
            nn.LayerNorm(8),
        ),
        (np.array([[1, 2, 0, 8, 3]]),),
        (("embedding", 1), ("add", 1), ("reshape", 0)),
    ),
    Case("argmax", Fn(lambda x: x.argmax(-1)), (TOKENS,), (("argmax", 1),)),
    Case("argmax_keepdim", Fn(lambda x: x.argmax(1, keepdim=True)), (TOKENS,), (("argmax", 1),)),
    Case("repeated_tokens", Fn(lambda x: torch.cat([x[:, :1].expand(-1, 3, -1), x], 1)), (TOKENS,)),
    Case("constant_stacked", Fn(lambda x: torch.stack([TABLE.weight[:1], x], 2)), (drawn(1, 8),)),
]  # fmt: skip


def captured(case: Case, core: bool = False) -> Graph:
    with torch.no_grad():
        if not core:
            return capture(case.module.eval(), case.inputs)
        program = torch.export.export(case.module.eval(), tuple(torch.from_numpy(x) for x in case.inputs), strict=False)
        return capture(program.run_decompositions())


def agree(graph: Graph, case: Case) -> None:
    with torch.no_grad():
        y = case.module.eval()(*(torch.from_numpy(x) for x in case.inputs))
    expected = [t.numpy() for t in (y if isinstance(y, tuple | list) else [y])]
    actual = run_float(graph, case.inputs)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=FLOAT_TOLERANCE * max(1.0, float(np.abs(e).max())))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_graph_computes_what_the_module_computes(case: Case) -> None:
    graph = captured(case)
    agree(graph, case)
    counts = Counter(n.op for n in graph.nodes)
    for op, count in case.ops:
        assert counts[op] == count, [(n.name, n.op, graph.tensors[n.outputs[0]].shape) for n in graph.nodes]
    assert batchable(graph) == case.batched


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_core_aten_form_gives_the_same(case: Case) -> None:
    agree(captured(case, core=True), case)


def test_samples_of_a_batch_do_not_meet() -> None:
    graph = capture(Encoder(4, "unbind").eval(), drawn(1, 3, 8, 8))
    x = drawn(3, 3, 8, 8)
    one_by_one = np.concatenate([run_float(graph, [x[i : i + 1]])[0] for i in range(3)])
    np.testing.assert_allclose(run_float(graph, [x])[0], one_by_one, rtol=0, atol=FLOAT_TOLERANCE)


def test_a_batch_of_three_is_captured() -> None:
    module = Encoder(4, "unbind").eval()
    x = drawn(3, 3, 8, 8)
    agree(capture(module, x), Case("", module, (x,)))
    masked = Case("", Fn(lambda a, m: F.scaled_dot_product_attention(a, a, a, m)), (drawn(3, 2, 5, 4), drawn(3, 1, 1, 5) > -0.5))
    agree(captured(masked), masked)


def test_keys_are_taken_as_they_lie() -> None:
    graph = captured(next(c for c in CASES if c.name == "image_one_head"))
    scores, values = (n for n in graph.nodes if n.op == "batch_matmul")
    assert scores.attrs.transpose_b
    assert not values.attrs.transpose_b
    assert [n.name for n in graph.nodes if n.op == "fully_connected"][:3] == ["qkv.0", "qkv.1", "qkv.2"]
    assert all(graph.node(f"qkv.{i}").location.module_path == "qkv" for i in range(3))


def test_unread_parts_of_a_projection_are_dropped() -> None:
    case = Case("", Fn(lambda f, x: (lambda q, k, v: q + v)(*f(x).chunk(3, -1)), nn.Linear(8, 12)), (TOKENS,))
    graph = captured(case)
    agree(graph, case)
    assert [graph.constants[n.inputs[1]].shape for n in graph.nodes if n.op == "fully_connected"] == [(4, 8), (4, 8)]


def test_a_projection_that_is_read_whole_too_stays_one() -> None:
    case = Case("", Fn(lambda f, x: (lambda y: y[..., :4] + y.sum(-1, keepdim=True))(f(x)), nn.Linear(8, 12)), (TOKENS,))
    graph = captured(case)
    agree(graph, case)
    assert Counter(n.op for n in graph.nodes)["fully_connected"] == 1


def beta(graph: Graph) -> float:
    return next(float(n.attrs.beta) for n in graph.nodes if n.op == "softmax")


def test_scale_goes_into_the_weights_of_the_queries() -> None:
    f, g = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
    case = Case("", Fn(lambda f, g, x: ((f(x) @ g(x).transpose(1, 2)) / 8).softmax(-1), f, g), (TOKENS,))
    graph = captured(case)
    agree(graph, case)
    assert beta(graph) == 1
    np.testing.assert_allclose(graph.constants["layers.0.weight"], f.weight.detach().numpy() / 8)


def test_scale_stays_in_the_softmax_where_the_weights_serve_others() -> None:
    case = Case("", Fn(lambda f, x: (lambda q: ((q / 8) @ q.transpose(1, 2)).softmax(-1))(f(x)), nn.Linear(8, 8)), (TOKENS,))
    graph = captured(case)
    agree(graph, case)
    assert beta(graph) == 0.125
    assert not any(n.op == "mul" for n in graph.nodes)


def test_masks_are_scaled_with_the_scores_that_they_mask() -> None:
    case = Case("", Fn(lambda x: (x.masked_fill(torch.ones(5, 5).triu(1) > 0, -1e4) * 0.01).softmax(-1)), (SCORES,))
    graph = captured(case)
    agree(graph, case)
    assert beta(graph) == pytest.approx(0.01)


def test_interface_of_indices_and_masks() -> None:
    ids, mask = np.array([[1, 2, 0, 8, 3]]), KEPT
    case = Case(
        "", Fn(lambda e, i, m: F.scaled_dot_product_attention(e(i), e(i), e(i), m[:, None, :] > 0), nn.Embedding(9, 8)), (ids, mask)
    )
    graph = captured(case)
    agree(graph, case)
    assert [graph.tensors[t].dtype for t in graph.inputs] == ["int32", "float32"]


class Net(nn.Module):
    def __init__(self, f: Callable[..., object]) -> None:
        super().__init__()
        self.f, self.table = f, nn.Embedding(9, 8)

    def forward(self, *xs: Tensor) -> object:
        return self.f(self.table, *xs)


IDS = np.array([[1, 2, 0, 8, 3]])


@pytest.mark.parametrize(
    ("f", "inputs", "message", "fix"),
    [
        (lambda e, i: e(i) * i.unsqueeze(-1), (IDS,), "mul of integers", "an input of its own"),
        (lambda e, i: e(i + 1), (IDS,), "add of integers", "an input of its own"),
        (lambda e, i: e(i) * (i != 0).unsqueeze(-1), (IDS,), "ne of integers", "an input of its own"),
        (lambda e, x: x.masked_fill(x > 1, 0.0), (TOKENS,), "a comparison", ""),
        (lambda e, x, m: x.masked_fill(~m[..., None], -1e9), (TOKENS, KEPT > 0), "no softmax or maximum reads", "a number that can occur"),
        (
            lambda e, x, m: (x + (1 - m.float()[:, None]) * -100.0).softmax(-1),
            (SCORES[:, 0], KEPT),
            "adds 0 or -100",
            "-10000 where it masks",
        ),
        (lambda e, x, m: torch.relu(m.float()) * x[..., 0], (TOKENS, KEPT), "relu of a mask", "masked_fill"),
        (lambda e, x, m: (x * m.unsqueeze(-1)).amax(1), (TOKENS, KEPT), "amax of a product with a mask", "mean over what is kept"),
        (lambda e, x: torch.einsum("bii->bi", x[..., :5]), (TOKENS,), "einsum 'bii->bi'", "two operands"),
        (lambda e, x: x.argmax(), (TOKENS,), "argmax over all axes", "dim="),
        (lambda e, x: x + NONE, (TOKENS,), "NaN or infinite values", "-1e4"),
        (lambda e, x: torch.rsqrt(x), (TOKENS,), "rsqrt", "normalisation"),
        (lambda e, x: x / x.norm(dim=-1), (drawn(1, 8, 8),), "keepdim False", "keepdim=True"),
        (lambda e, x: x.var(-1), (TOKENS,), "Bessel", "unbiased=False"),
        (lambda e, x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True), (HEADS,), "enable_gqa", "repeat the heads"),
        (lambda e, x: F.log_softmax(x, -1), (TOKENS,), "log_softmax", "use softmax"),
    ],
)
def test_refusals_say_why_and_what_to_do(f: Callable[..., object], inputs: tuple[np.ndarray, ...], message: str, fix: str) -> None:
    with pytest.raises(ImportGraphError) as caught:
        capture(Net(f).eval(), inputs)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert fix in problem.fix
    assert __file__ in problem.source


def test_indices_outside_int32_are_refused() -> None:
    graph = capture(Net(lambda e, i: e(i)).eval(), (IDS,))
    with pytest.raises(UsageError, match="int64"):
        run_float(graph, [IDS + 2**40])
    with pytest.raises(UsageError, match="float"):
        run_float(graph, [IDS + 0.5])
