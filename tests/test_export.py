"""A network trained under a constraint is a plain network: it is copied, saved, exported like any other."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import weightspace as ws
from weightspace.manifolds import Oblique, Product, Sphere, Stiefel


class Residual(nn.Module):
    """A stem, a block with a 1x1 shortcut and a depthwise convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.middle = nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (self.depthwise(self.first(x).relu()) + self.shortcut(x)).relu().mean((2, 3))
        return self.head(self.middle(x).relu())


ON = (ws.on.convs | ws.on.linears) & ~ws.on.head


def by_optimizer(model, manifold):
    return ws.optim.SubmanifoldSGD(ws.param_groups(model, {ON: manifold}), lr=0.05, momentum=0.9), None


def by_adam(model, manifold):
    return ws.optim.SubmanifoldAdam(ws.param_groups(model, {ON: manifold}), lr=0.01), None


def by_attach(model, manifold):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, ws.attach(optimizer, model, type(manifold)(manifold.grouping, on=ON))


WAYS = {
    "SubmanifoldSGD, Stiefel": (by_optimizer, Stiefel()),
    "SubmanifoldSGD, Sphere": (by_optimizer, Sphere()),
    "SubmanifoldSGD, Product": (by_optimizer, Product([Stiefel(), Oblique()], over="output")),
    "SubmanifoldAdam, Oblique": (by_adam, Oblique()),
    "attach, Stiefel": (by_attach, Stiefel()),
}


def batch(size=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator)


def train(way, manifold):
    torch.manual_seed(0)
    model = Residual()
    optimizer, rules = way(model, manifold)
    for k in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(8, k)), torch.arange(8) % 5).backward()
        optimizer.step()
    return model.eval(), optimizer, rules


@pytest.fixture(scope="module", params=WAYS, ids=lambda name: name.replace(", ", "-"))
def trained(request):
    return train(*WAYS[request.param])


@pytest.fixture(scope="module", params=["SubmanifoldSGD, Stiefel", "attach, Stiefel"], ids=["optimizer", "attach"])
def exported(request):
    return train(*WAYS[request.param])[0]


def outputs(model, images=None):
    with torch.no_grad():
        return model(batch() if images is None else images)


def test_the_constraint_was_in_force(trained):
    model, optimizer, rules = trained
    assert len((rules or optimizer).verify()) >= 3
    assert not torch.equal(model.stem.weight, Residual().stem.weight)


def test_modules_parameters_and_keys_are_those_of_the_unconstrained_model(trained):
    model, _, _ = trained
    plain = Residual()
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, parameter in model.named_parameters():
        assert type(parameter) is nn.Parameter, name
        assert parameter.is_leaf, name
    for module in model.modules():
        assert not hasattr(module, "parametrizations")
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._state_dict_hooks)
        assert not any(hooks), "nothing is left on the modules"


def test_the_state_loads_into_a_plain_model(trained):
    model, _, _ = trained
    plain = Residual().eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(outputs(plain), outputs(model))


def test_safetensors_round_trip(trained, tmp_path):
    model, _, _ = trained
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plain = Residual().eval()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(outputs(plain), outputs(model))


def test_a_copy_is_free_and_apart(trained):
    model, _, _ = trained
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin), outputs(model))
    before = model.stem.weight.detach().clone()
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    twin(batch()).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.stem.weight, before)
    assert not torch.equal(twin.stem.weight, before)


def test_half_precision_and_channels_last_copies(trained):
    model, _, _ = trained
    twin = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.channels_last)
    wanted = outputs(model)
    given = outputs(twin, batch().to(torch.bfloat16)).float()
    assert (given - wanted).norm() < 0.05 * wanted.norm()


def test_loading_needs_no_weightspace(exported, tmp_path):
    torch.export.save(torch.export.export(exported, (batch(),)), tmp_path / "model.pt2")
    save_file({"x": batch(), "y": outputs(exported)}, tmp_path / "data.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file\n"
        "d = load_file('data.safetensors'); m = torch.export.load('model.pt2').module()\n"
        "torch.testing.assert_close(m(d['x']), d['y']); assert 'weightspace' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_export_gives_the_same_outputs(exported, tmp_path):
    size = torch.export.Dim("size", min=1, max=64)
    program = torch.export.export(exported, (batch(),), dynamic_shapes=({0: size},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert set(program.state_dict) == set(Residual().state_dict())
    for images in (batch(), batch(7, 3)):
        torch.testing.assert_close(outputs(loaded.module(), images), outputs(exported, images))


def test_onnx_gives_the_same_outputs(exported, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    size = torch.export.Dim("size", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported, (batch(),), dynamo=True, dynamic_shapes=({0: size},), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for images in (batch(), batch(7, 3)):
        (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), outputs(exported, images), rtol=1e-4, atol=1e-5)
