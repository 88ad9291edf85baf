"""What every test shares: a seeded generator, so that a statistical tolerance that holds once holds always."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
