"""The network of `plain_loop.py`, trained by Lightning with rules from a callback.

    python -m pip install -c constraints.txt ".[train,lightning]"
    python examples/lightning_callback.py

It prints the check sum that `plain_loop.py` prints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import weightspace as ws
from plain_loop import BATCH, EPOCHS, checksum, make_data, make_model
from weightspace.integrations.lightning import RulesCallback


class Digits(LightningModule):
    """The network as a Lightning module: nothing in it knows of rules."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the callback finds."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train() -> nn.Sequential:
    """Train, and give back the network."""
    rules = RulesCallback(ws.metrics.ChannelL2(smoothing=4.0))  # the only line of weightspace
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[rules], enable_model_summary=False, **quiet)
    module = Digits()
    trainer.fit(module, DataLoader(make_data(), batch_size=BATCH, drop_last=True))
    return module.model


if __name__ == "__main__":
    print(checksum(train().state_dict()))
