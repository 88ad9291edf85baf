"""The network of `plain_loop.py`, trained by Hugging Face's `Trainer` with rules from a callback.

    python -m pip install -c constraints.txt ".[train,transformers]"
    python examples/huggingface_trainer.py

It prints the check sum that `plain_loop.py` prints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import weightspace as ws
from plain_loop import BATCH, EPOCHS, checksum, make_data, make_model
from weightspace.integrations.huggingface import RulesCallback


class Digits(nn.Module):
    """The network as the Trainer wants it: it computes its own loss. Nothing in it knows of rules."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Tensor]]):
    """The data with the names of `Digits.forward`."""

    def __init__(self) -> None:
        self._data = make_data()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        images, labels = self._data[place]
        return {"images": images, "labels": labels}


def train(folder: Path) -> nn.Sequential:
    """Train, and give back the network; the Trainer writes to `folder`."""
    rules = RulesCallback(ws.metrics.ChannelL2(smoothing=4.0))  # the only line of weightspace
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        dataloader_drop_last=True,
        train_sampling_strategy="sequential",  # as the other two examples; the default shuffles
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # no clipping; the default clips to 1
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    module = Digits()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(
        model=module, args=arguments, train_dataset=Rows(), optimizers=(optimizer, None), callbacks=[rules]
    )
    trainer.train()
    return module.model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(checksum(train(Path(folder)).state_dict()))
