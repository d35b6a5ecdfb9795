"""Seeded transformers of a few thousand weights, for tests that quantize and run whole networks in a second."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.transformers import PostNormBlock, PreNormBlock

WIDTH, HEADS, HIDDEN = 16, 2, 32
FRAMES, FEATURES, WORDS, CLASSES = 7, 5, 23, 4


class Encoder(nn.Module):
    """Frames of features, a class token, blocks; logits from the token."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.token, self.places = (nn.Parameter(torch.randn(1, n, WIDTH)) for n in (1, FRAMES + 1))
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
        for block in self.blocks:
            t = block(t)
        return self.head(self.norm(t)[:, 0])


class Sentence(nn.Module):
    """Word numbers and a mask; the mean of the words that count, of length 1 (BERT with mean pooling)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(1, FRAMES, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(post_norm_block() for _ in range(2))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        t = self.norm(self.words(words) + self.places)
        for block in self.blocks:
            t = block(t, mask)
        keep = mask[:, :, None].to(t.dtype)
        return F.normalize((t * keep).sum(1) / keep.sum(1), dim=-1)


def pre_norm_block() -> nn.Module:
    return PreNormBlock(WIDTH, HEADS, HIDDEN)


def post_norm_block() -> nn.Module:
    return PostNormBlock(WIDTH, HEADS, HIDDEN, qkv_bias=True, gelu="none", eps=1e-5)


def spread(module: nn.Module) -> nn.Module:
    """Norms whose gamma is not 1 in all channels, a few channels far apart, as training leaves them."""
    rng = np.random.default_rng(1)
    for m in module.modules():
        if isinstance(m, nn.LayerNorm):
            gamma = rng.uniform(0.5, 1.5, m.weight.shape)
            gamma[:2] = 12.0
            m.weight.data = torch.from_numpy(gamma.astype(np.float32))
            m.bias.data = torch.from_numpy(rng.normal(0, 0.3, m.bias.shape).astype(np.float32))
    return module.eval()


def encoder(block: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return spread(Encoder(block))


def sentence() -> nn.Module:
    torch.manual_seed(0)
    return spread(Sentence())


def frames(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, FRAMES, FEATURES)).astype(np.float32)


def sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers and masks, both int64 (count, FRAMES); of 2 to FRAMES words each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, FRAMES + 1, (count, 1))
    mask = np.arange(FRAMES) < lengths
    return np.where(mask, rng.integers(1, WORDS, (count, FRAMES)), 0), mask.astype(np.int64)
