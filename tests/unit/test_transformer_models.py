"""The transformers that tests and benchmarks use give what their publishers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from models import transformers

#: float32 sums in another order; logits are around 10
PARITY_TOLERANCE = 2e-5


@pytest.mark.parametrize("name", list(transformers.FOLDERS))
def test_published_logits(name: str, data_dir: Path) -> None:
    inputs, logits = transformers.load_published(name, data_dir)
    with torch.no_grad():
        actual = transformers.BUILDERS[name](data_dir)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(actual, logits, rtol=0, atol=PARITY_TOLERANCE)


def test_published_similarities(require) -> None:
    """The example in the documentation of sentence-transformers (sbert.net, all-MiniLM-L6-v2)."""
    require(transformers.SENTENCE_PACKAGE)
    require("tokenizers")
    ids, mask = transformers.tokenize(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    with torch.no_grad():
        e = transformers.build_minilm()(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose((e @ e.T)[np.triu_indices(3, 1)], [0.6660, 0.1046, 0.1411], atol=1e-4)
