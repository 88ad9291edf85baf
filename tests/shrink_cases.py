"""Small networks with channels emptied at random, for the tests of compression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.training.models import build_model

CONV = nn.modules.conv._ConvNd


class Concatenated(nn.Module):
    """Two branches side by side, batch norm over both, reflected padding, flatten and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(2, 5, 1)
        self.norm = nn.BatchNorm2d(11)
        self.c = nn.Conv2d(11, 4, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.head(self.c(self.norm(both).relu()).flatten(1))


class Depthwise(nn.Module):
    """Pointwise, depthwise, grouped, a group norm that mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.b = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, groups=3)
        self.c = nn.Conv2d(12, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.depthwise(self.a(x)).relu()).relu()
        return self.head(self.norm(self.c(self.grouped(x).relu())).mean((2, 3)))


class Squeezed(nn.Module):
    """A gate that multiplies channels, a parameter of the module's own, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.squeeze = nn.Linear(8, 4)
        self.excite = nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.c = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x).relu()
        gate = self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()
        features = nn.functional.gelu(self.c(y * gate[..., None, None] * self.scale)).amax((2, 3))
        return self.head(features), gate


class Chunked(nn.Module):
    """What cannot be followed: two halves of one layer's channels are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.c = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.a(x).chunk(2, 1)
        return self.head(self.c(u.relu() + v).mean((2, 3)))


class Repeated(nn.Module):
    """The same two layers three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :8]
        for _ in range(3):
            x = self.b(self.a(x).relu()).relu()
        return self.head(x)


def of_the_library(name: str, **options):
    return lambda: build_model(name, in_channels=2, image_size=8, num_classes=3, **options)


NETWORKS = {
    "plain": of_the_library("plain", depth=3, width=6, strided=1),
    "vgg": of_the_library("vgg", widths=[5, 6], convs_per_stage=1, hidden=[7], pooling="flatten"),
    "vgg average": of_the_library("vgg", widths=[5, 6], convs_per_stage=2, hidden=[]),
    "mlp": of_the_library("mlp", hidden=[9, 7]),
    "resnet8": of_the_library("resnet8", width=3),
    "resnet8 no norm": of_the_library("resnet8", width=3, norm="none"),
    "resnet8 projection": of_the_library("resnet8", width=3, shortcut="projection"),
    "concatenated": Concatenated,
    "depthwise": Depthwise,
    "squeezed": Squeezed,
    "chunked": Chunked,
    "repeated": Repeated,
}


def images(size: int = 2) -> Tensor:
    return torch.randn(size, 2, 8, 8, generator=torch.Generator().manual_seed(7))


def emptied(name: str, seed: int, share: float = 0.4, *, biases: float = 0.5) -> nn.Module:
    """A network with `share` of its output channels zero, and `biases` of their biases not."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, CONV)):
                if module.weight.shape[0] == 3 and isinstance(module, nn.Linear):
                    continue  # the head
                gone = torch.rand(module.weight.shape[0]) < share
                module.weight[gone] = 0
                if module.bias is not None:
                    module.bias[gone] = torch.randn(int(gone.sum())) * (torch.rand(int(gone.sum())) < biases)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                gone = torch.rand(module.weight.shape[0]) < share
                module.weight[gone] = 0
                module.bias.copy_(torch.randn(module.bias.shape) * (~gone | (torch.rand(gone.shape) < biases)))
    return model.eval()
