"""`lipschitz_bound` and `certified_radius`: known answers, dense matrices, and pairs of images that try to break them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import weightspace as ws
from weightspace.errors import InspectionError
from weightspace.inspection import _lipschitz_constants as constants
from weightspace.inspection import lipschitz

NEAR = 1 + 1e-9


class Function(nn.Module):
    """A forward pass written as a function, with one module to call."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner, x)


def bound_of(function: Callable[[nn.Module, Tensor], Any], inner: nn.Module | None = None, **given: Any) -> float:
    return ws.lipschitz_bound(Function(function, inner), torch.randn(3, 4, 6, 6), **given).value


def matrix(linear: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Dense, by unit vectors; biases are taken away."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        return (linear(eye) - linear(torch.zeros(1, *shape, dtype=torch.float64))).reshape(size, -1).T


def stretch(model: nn.Module, x: Tensor, steps: int = 25) -> float:
    """The largest ratio of distances that gradient ascent over pairs finds, float64."""
    exact = copy.deepcopy(model).double().eval()
    x, direction = x.double().requires_grad_(), torch.randn_like(x, dtype=torch.float64).requires_grad_()
    optimizer, best = torch.optim.Adam([x, direction], lr=0.1), 0.0
    for step in range(steps):
        length = 10.0 ** (step % 4 - 3)  # near and far pairs
        y = x + length * direction / direction.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        ratios = (exact(y) - exact(x)).flatten(1).norm(dim=1) / (y - x).flatten(1).norm(dim=1)
        best = max(best, float(ratios.detach().max()))
        optimizer.zero_grad()
        (-ratios.sum()).backward()
        optimizer.step()
    return best


# ---------------------------------------------------------------- pieces


def test_a_chain_is_the_product_of_true_operator_norms():
    torch.manual_seed(0)
    convs = [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 2, 2)]
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.Tanh(), convs[2], nn.Flatten(), nn.Linear(512, 3)).double()
    shapes = [(2, 16, 16), (3, 8, 8), (2, 8, 8)]
    norms = [float(torch.linalg.matrix_norm(matrix(c, s), 2)) for c, s in zip(convs, shapes, strict=True)]
    exact = math.prod(norms) * float(torch.linalg.matrix_norm(model[-1].weight.detach(), 2))
    found = ws.lipschitz_bound(model, torch.randn(2, 2, 16, 16, dtype=torch.float64))
    assert exact <= found.value <= 1.15 * exact
    assert [p.name for p in found.pieces] == [str(i) for i in range(7)]


def test_the_norm_is_not_that_of_the_flattened_kernel():
    average = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(average.weight, 1.0)
    normalized = nn.Sequential(spectral_norm(average, n_power_iterations=50)).eval()
    found = ws.lipschitz_bound(normalized, torch.zeros(1, 1, 12, 12)).value
    assert float(torch.linalg.svdvals(average.weight.detach().flatten(1))[0]) == pytest.approx(1.0)
    assert 2.9 < found < 3.01
    assert stretch(normalized, torch.ones(1, 1, 12, 12)) > 1.5


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AvgPool1d(3, stride=2, padding=1), (1, 11)),
        (nn.AvgPool2d(3, stride=1), (2, 7, 6)),
        (nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True), (1, 8, 7)),
        (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (1, 7, 7)),
        (nn.AdaptiveAvgPool2d((3, None)), (1, 7, 5)),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 4)),
        (nn.AvgPool3d(2, stride=1), (1, 3, 4, 3)),
    ],
)
def test_average_pools_have_their_exact_norm(pool: nn.Module, shape: tuple[int, ...]):
    exact = float(torch.linalg.matrix_norm(matrix(pool, shape), 2))
    assert ws.lipschitz_bound(pool, torch.zeros(1, *shape)).value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("pool", "shape", "expected"),
    [
        (nn.MaxPool2d(2), (1, 8, 8), 1),
        (nn.MaxPool2d(3, stride=2), (1, 9, 9), 2),
        (nn.MaxPool2d(3, stride=1, padding=1), (1, 8, 8), 3),
        (nn.MaxPool1d(5, stride=2), (1, 15), math.sqrt(3)),
        (nn.MaxPool1d(3, stride=1, dilation=2), (1, 9), math.sqrt(3)),
        (nn.MaxPool1d(3, stride=1), (1, 4), math.sqrt(2)),  # too short for three windows on one entry
        (nn.MaxPool3d(2, stride=1), (1, 4, 4, 4), math.sqrt(8)),
    ],
)
def test_overlapping_maximum_pools_count_an_entry_in_each_window(
    pool: nn.Module, shape: tuple[int, ...], expected: float
):
    assert ws.lipschitz_bound(pool, torch.zeros(1, *shape)).value == pytest.approx(expected)
    spikes = torch.eye(math.prod(shape)).view(-1, *shape)  # an entry that is the maximum of all its windows attains it
    with torch.no_grad():
        reached = (pool(spikes) - pool(torch.zeros(1, *shape))).flatten(1).norm(dim=1).max()
    assert float(reached) == pytest.approx(expected, rel=1e-6)


ACTIVATIONS = (
    *(
        nn.LeakyReLU(-3.0),
        nn.LeakyReLU(0.1),
        nn.PReLU(2, 1.7),
        nn.ELU(2.5),
        nn.ELU(0.2),
        nn.CELU(0.3),
        nn.Softplus(3.0),
    ),
    *(kind() for kind in constants.SLOPES),
)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_slopes_bound_the_steepest_place_and_not_by_much(activation: nn.Module):
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64).repeat(2, 1).T.contiguous()
    with torch.no_grad():
        y = activation.double()(x)
    steepest = float((y.diff(dim=0).abs() / x.diff(dim=0)).max())
    slope = constants.slope(activation)
    assert slope is not None
    assert steepest <= slope * (1 + 1e-6)
    assert slope <= max(1.01 * steepest, 1.0)


def test_tanh_approximation_of_gelu_is_not_steeper():
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    assert (functional.gelu(x, approximate="tanh").diff() / x.diff()).abs().max() < constants.SLOPES[nn.GELU]


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda _, x: x + torch.relu(x), 2.0),
        (lambda _, x: x + x, 2.0),
        (lambda _, x: x - 0.5, 1.0),
        (lambda _, x: 1 - x, 1.0),
        (lambda _, x: (x - 0.5) / 0.25, 4.0),
        (lambda _, x: x * torch.tensor([[[2.0]], [[-3.0]], [[0.0]], [[1.0]]]), 3.0),
        (lambda _, x: torch.cat([x, 2 * 1.0 + x], 1), math.sqrt(2)),
        (lambda _, x: x.mean((2, 3)), 1 / 6),
        (lambda _, x: x.view(x.size(0), -1), 1.0),
        (lambda _, x: torch.flatten(x, 1).sigmoid(), 0.25),
        (lambda _, x: functional.dropout(x, 0.5, training=False), 1.0),
    ],
)
def test_functions_have_their_constant(function: Any, expected: float):
    assert bound_of(function) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x * x,
        lambda _, x: x / (x.abs() + 1),
        lambda _, x: 1 / x,
        lambda _, x: x.mean(),
        lambda _, x: x.mean(0),
        lambda _, x: torch.cat([x, x]),
        lambda _, x: x.flatten(0, 1),
        lambda _, x: x.transpose(0, 1),
        lambda _, x: torch.add(x, x, alpha=3),
        lambda _, x: torch.add(x, other=torch.relu(x)),
        lambda _, x: x[:, :1, :, :] + x,
        lambda _, x: x.mean((2, 3), keepdim=True) + x,  # the branch is copied to every place
        lambda _, x: x.mean((2, 3), keepdim=True) * torch.ones(6, 6),
        lambda _, x: functional.dropout(x, 0.5),
        lambda _, x: x / 0.0,
        lambda _, x: x.view(torch.int32).view(torch.float32),
        lambda _, x: (x, x),
        lambda _, x: torch.softmax(x, 1),
        lambda _, x: x if x.sum() > 0 else -x,
    ],
)
def test_what_has_no_known_constant_is_refused(function: Any):
    with pytest.raises(InspectionError):
        bound_of(function)


def test_changes_in_place_reach_whoever_reads_the_value_later():
    def residual(_: nn.Module, x: Tensor) -> Tensor:
        y = 1.0 * x
        z = y.mul_(3.0)
        return y + z  # 6 x, not 1 x + 3 x

    def torchvision(inner: nn.Module, x: Tensor) -> Tensor:
        out = inner(x)
        out += x
        return torch.relu(out)

    assert bound_of(residual) == pytest.approx(6.0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    alone = ws.lipschitz_bound(conv, torch.zeros(1, 4, 6, 6)).value
    assert bound_of(torchvision, conv) == pytest.approx(1 + alone)
    assert bound_of(lambda inner, x: inner(2 * x) + x, nn.ReLU(inplace=True)) == pytest.approx(3.0)


def test_batch_norm_is_folded_into_the_layer_that_feeds_it_alone():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).eval()
    norm.running_var.uniform_(0.1, 4.0)
    norm.weight.data.uniform_(-2, 2)
    x = torch.zeros(2, 4, 6, 6)
    folded = copy.deepcopy(conv)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    folded.weight.data *= scale.view(-1, 1, 1, 1)
    alone = ws.lipschitz_bound(conv, x).value
    expected = ws.lipschitz_bound(folded, x).value
    largest = float(scale.abs().max())
    assert ws.lipschitz_bound(nn.Sequential(conv, norm), x).value == pytest.approx(expected, rel=1e-5)
    assert expected < 0.99 * alone * largest
    twice = nn.ModuleList([conv, norm])
    assert bound_of(lambda m, x: (y := m[0](x)) + m[1](y), twice) == pytest.approx(alone * (1 + largest), rel=1e-5)
    with pytest.raises(InspectionError, match="call model.eval"):
        ws.lipschitz_bound(nn.Sequential(conv, norm.train()), x)


def test_batch_norm_over_tokens_is_not_folded_over_features():
    torch.manual_seed(0)
    linear, norm = nn.Linear(3, 3), nn.BatchNorm1d(3).eval()
    norm.weight.data = torch.tensor([1.0, 5.0, 0.1])
    model = nn.Sequential(linear, norm).double().eval()
    exact = float(torch.linalg.matrix_norm(matrix(model, (3, 3)), 2))
    assert exact <= ws.lipschitz_bound(model, torch.zeros(2, 3, 3, dtype=torch.float64)).value * NEAR


# ---------------------------------------------------------------- no pair violates the bound

PIECES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "strided": lambda: nn.Conv2d(2, 2, 3, stride=2, padding=1),
    "reflect": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 3, padding=1),
    "norm": lambda: nn.BatchNorm2d(2),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky": lambda: nn.LeakyReLU(-2.0),
    "maximum": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "average": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(5),
    "residual": lambda: Function(lambda inner, x: x + inner(x), nn.Conv2d(2, 2, 3, padding=1)),
    "normalize": lambda: Function(lambda _, x: (x - 0.3) / 0.5),
}


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_no_pair_of_images_violates_the_bound(names: list[str], seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(*(PIECES[name]() for name in names), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 2, 8, 8)
    with torch.no_grad():
        for _ in range(5):
            model(x)  # running statistics of its own
        for p in model.parameters():
            p.mul_(2.0)
    model.eval()
    found = ws.lipschitz_bound(model, x)
    assert stretch(model, x) <= found.value * NEAR


def test_the_property_would_catch_smaller_constants(monkeypatch: pytest.MonkeyPatch):
    """Mutants: overlap forgotten, the norm of the mean, and the flattened norm fall to images that are made for it."""
    torch.manual_seed(0)
    pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Flatten())
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 5.0  # moved up, it is the maximum of nine windows
    reached = stretch(pool, x, steps=60)
    assert reached <= 3.0 * NEAR
    monkeypatch.setattr(constants, "maximum_pool", lambda *_: 1.0)
    assert reached > ws.lipschitz_bound(pool, x).value


# ---------------------------------------------------------------- radii


def test_the_radius_of_a_linear_classifier_is_the_distance_to_its_boundary():
    torch.manual_seed(0)
    head = nn.Linear(5, 4)
    x = torch.randn(50, 5, dtype=torch.float64)
    bound = ws.lipschitz_bound(head, x.float())
    with torch.no_grad():
        logits = head.double()(x)
    radii = ws.certified_radius(logits, bound)
    top = logits.argmax(1)
    weight = head.weight.detach()
    for i in range(50):
        distances = [
            float((logits[i, top[i]] - logits[i, j]) / (weight[top[i]] - weight[j]).norm())
            for j in range(4)
            if j != top[i]
        ]
        assert float(radii[i]) == pytest.approx(min(distances), rel=1e-9)
        assert float(radii[i]) <= min(distances)
    assert (ws.certified_radius(logits, float(bound)) <= radii * NEAR).all()  # sqrt(2) L is never better


def test_no_attack_gets_inside_a_radius():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3))
    x = torch.randn(20, 1, 8, 8)
    bound = ws.lipschitz_bound(model, x)
    logits = model(x)
    radii, top = ws.certified_radius(logits, bound), logits.argmax(1)
    change = torch.zeros_like(x, requires_grad=True)
    length = (radii * 0.999).float().view(-1, 1, 1, 1)
    for _ in range(30):
        scores = model(x + change)
        assert torch.equal(scores.argmax(1), top)
        own = scores.gather(1, top[:, None])[:, 0]
        others = scores.scatter(1, top[:, None], -math.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - own).sum(), change)
        change = (length * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).detach().requires_grad_()


def test_wrong_equal_and_broken_scores_have_radius_zero():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
    radii = ws.certified_radius(logits, 1.0, labels=torch.zeros(5, dtype=torch.long))
    assert radii.tolist() == pytest.approx([math.sqrt(2), 0.0, 0.0, 0.0, 0.0])
    assert ws.certified_radius(torch.tensor([[1.0, 1.0]]), 0.0).tolist() == [0.0]
    assert ws.certified_radius(torch.tensor([[1.0, 0.0]]), 0.0).tolist() == [math.inf]


# ---------------------------------------------------------------- refusals and promises


class Own(nn.Module):
    """A module whose constant only its author knows."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.softmax(x, 1)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.LayerNorm(4), "0 (LayerNorm) has no Lipschitz constant that is known here"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), "1 (Softmax) has no Lipschitz constant"),
        (Own(), "softmax (the function softmax) has no Lipschitz constant"),
        (nn.Dropout(), "call model.eval() first"),
        (nn.BatchNorm1d(4), "one image's output depends on the others"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), "keep running statistics"),
        (nn.LSTM(4, 4), "returns no tensor of one row an image"),
        (nn.CELU(-1.0), "(CELU) has no Lipschitz constant"),
        (nn.Softplus(threshold=1), "(Softplus) has no Lipschitz constant"),
        (nn.MaxPool2d(2), "fails on the example"),
        (nn.Bilinear(4, 4, 4), "fails on the example"),
    ],
)
def test_refusals_name_the_piece(model: nn.Module, sentence: str):
    with pytest.raises(InspectionError) as caught:
        ws.lipschitz_bound(model, torch.randn(2, 4))
    assert sentence in str(caught.value)


def test_a_layer_with_a_forward_pass_of_its_own_is_refused():
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
            return self._conv_forward(input, 100 * self.weight, self.bias)

    with pytest.raises(InspectionError, match="got images of 1 spatial dimensions"):
        ws.lipschitz_bound(nn.MaxPool2d(2), torch.zeros(2, 4, 4))
    with pytest.raises(InspectionError, match="forward pass of its own"):
        ws.lipschitz_bound(Standardized(1, 1, 3), torch.zeros(1, 1, 5, 5))


def test_settings_that_a_call_overrides_are_noticed():
    up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
    assert bound_of(lambda inner, x: inner(x), up) > 0
    with pytest.raises(InspectionError, match="where its own settings give"):
        bound_of(lambda inner, x: inner(x, [12, 12]), up)


def test_batch_norm_with_a_forward_pass_of_its_own_is_looked_into():
    class Tripled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
            return 3 * input

    assert bound_of(lambda inner, x: inner(x), Tripled(4).eval()) == pytest.approx(3.0)


@pytest.mark.parametrize("place", ["", "0"])
def test_a_hook_that_changes_the_output_is_noticed(place: str):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.get_submodule(place).register_forward_hook(lambda _module, _inputs, output: 3 * output)
    with pytest.raises(InspectionError, match="forward hook"):
        ws.lipschitz_bound(model, torch.randn(2, 4))


def test_given_constants_are_used_and_checked():
    model = nn.Sequential(nn.Linear(4, 4), Own())
    plain = ws.lipschitz_bound(model[0], torch.randn(2, 4)).value
    found = ws.lipschitz_bound(model, torch.randn(2, 4), given={Own: 2.0})
    assert found.value == pytest.approx(2 * plain)
    assert found.pieces[-1].note == "given by you"
    with pytest.raises(InspectionError, match="a constant is a number"):
        ws.lipschitz_bound(model, torch.randn(2, 4), given={Own: math.nan})


def test_weights_that_are_not_finite_and_inputs_that_are_no_batch():
    model = nn.Linear(2, 2)
    for bad in (torch.zeros(2), torch.zeros(0, 2), torch.zeros(1, 2, dtype=torch.long)):
        with pytest.raises(InspectionError, match="pass a batch"):
            ws.lipschitz_bound(model, bad)
    model.weight.data[0, 0] = math.nan
    with pytest.raises(InspectionError, match="NaN"):
        ws.lipschitz_bound(model, torch.zeros(1, 2))
    with pytest.raises(InspectionError, match="two classes"):
        ws.certified_radius(torch.zeros(3), 1.0)
    with pytest.raises(InspectionError, match="The bound is"):
        ws.certified_radius(torch.zeros(3, 2), math.nan)
    with pytest.raises(InspectionError, match="have 3 classes"):
        ws.certified_radius(torch.zeros(1, 3), ws.lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2)))


def test_nothing_is_changed_and_the_table_is_readable():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3))
    model.eval()
    x = torch.randn(2, 1, 8, 8)
    before, kept = copy.deepcopy(model.state_dict()), x.clone()
    found = ws.lipschitz_bound(model, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    lines = str(found).splitlines()
    assert lines[0].split() == ["piece", "kind", "constant", "bound", "so", "far", "why"]
    assert lines[-1] == f"Lipschitz constant, L2: at most {lipschitz._rounded_up(found.value)}"
    assert found.head is not None
    assert found.head.shape == (3, 72)
    assert found.body == pytest.approx(found.pieces[-2].bound)


@given(st.floats(1e-9, 1e9))
def test_printed_bounds_are_never_below_the_value(value: float):
    assert value * (1 - 1e-8) <= float(lipschitz._rounded_up(value)) <= 1.002 * value
