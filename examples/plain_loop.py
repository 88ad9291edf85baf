"""Rules in a plain training loop; `lightning_callback.py` and `huggingface_trainer.py` train the same network.

    python examples/plain_loop.py

All three print the same check sum: their weights are equal, bit for bit.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import weightspace as ws

EPOCHS, BATCH = 2, 64


def make_model() -> nn.Sequential:
    """A small network for images of 8 x 8; the same one at every call."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*layers)


def make_data() -> TensorDataset:
    """Handwritten digits that come with scikit-learn: images (N, 1, 8, 8) in [0, 1] and labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))


def checksum(tensors: dict[str, Tensor]) -> str:
    """One short text for all numbers of a network."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def train() -> nn.Sequential:
    """Train, and give back the network."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing=4.0))  # the only line of weightspace
    for _ in range(EPOCHS):
        for images, labels in DataLoader(make_data(), batch_size=BATCH, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    print(checksum(train().state_dict()))
