"""Train DigitsNet and write ``weights.npz`` and ``digits.npz`` beside this file.

``python -m qwtv2_edge.demo.train`` (needs torch and scikit-learn; about a minute on one core).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qwtv2_edge.demo.data import DIGITS, load_part
from qwtv2_edge.demo.model import WEIGHTS, DigitsNet

EPOCHS = 60
BATCH = 64
SEED = 0


def write_digits() -> None:
    """Copy scikit-learn's digits into ``digits.npz``, as uint8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez_compressed(DIGITS, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to one pixel, zeros moved in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack([p[:, r : r + 8, c : c + 8] for p, (r, c) in zip(padded, moves.tolist(), strict=True)])


def train() -> DigitsNet:
    """Train from scratch with a fixed seed."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, labels = (torch.from_numpy(a) for a in load_part("train"))
    images, labels = images.float(), labels.long()
    model = DigitsNet()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for i in range(len(images) // BATCH):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            loss = nn.functional.cross_entropy(model(shifted(images[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, part: str) -> float:
    """Top-1 on one part of the data."""
    images, labels = load_part(part)
    with torch.no_grad():
        predicted = model(torch.from_numpy(images).float()).argmax(1).numpy()
    return float((predicted == labels).mean())


def main() -> None:
    if not DIGITS.exists():
        write_digits()
    model = train()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(WEIGHTS, **state)
    print(f"evaluation top-1 {accuracy(model, 'evaluation'):.4f}, train {accuracy(model, 'train'):.4f}, {WEIGHTS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
