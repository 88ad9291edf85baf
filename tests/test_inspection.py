"""ws.inspect: figures against dense matrices and Jacobians, predictions, what it leaves untouched, alerts and advice."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.errors import InspectionError
from weightspace.inspection import Limits
from weightspace.inspection.expectation import expectations
from weightspace.inspection.jacobian import _Jacobian
from weightspace.inspection.layers import layer_spectrum
from weightspace.inspection.signals import Signal, signal_of, through
from weightspace.inspection.tables import number
from weightspace.inspection.trace import trace, untouched
from weightspace.operators import operator_of


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


IMAGES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------- the figures of a layer


@settings(max_examples=25, deadline=None)
@given(
    c_in=st.integers(1, 4),
    c_out=st.integers(1, 4),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    mode=st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    transposed=st.booleans(),
)
def test_figures_equal_those_of_the_dense_matrix(c_in, c_out, stride, padding, mode, transposed):
    if transposed:
        layer = nn.ConvTranspose2d(c_in, c_out, 3, stride=stride, padding=padding).double()
    else:
        layer = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=padding, padding_mode=mode).double()
    operator = operator_of(layer, (6, 6))
    matrix = operator.dense().detach()
    sigma = torch.linalg.svdvals(matrix)
    rows, columns = matrix.shape
    found = layer_spectrum(operator, "exact")
    near = lambda value: pytest.approx(float(value), rel=1e-8, abs=1e-9)
    assert found.shape == (rows, columns)
    assert found.s2 == near(sigma.square().sum())
    assert found.s4 == near(sigma.pow(4).sum())
    assert found.forward_gain == near((sigma.square().sum() / columns).sqrt())
    assert found.backward_gain == near((sigma.square().sum() / rows).sqrt())
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    defect = torch.linalg.matrix_norm(gram - torch.eye(len(gram))) / math.sqrt(len(gram))
    assert found.isometry_defect == pytest.approx(float(defect), abs=1e-6)
    assert found.extremes.sigma_max == near(sigma[0])
    assert found.extremes.is_sigma_min_exact
    assert found.extremes.sigma_min == pytest.approx(float(sigma[-1]), abs=1e-7)
    assert found.stable_rank == near(sigma.square().sum() / sigma[0] ** 2)
    assert found.is_true_padding
    assert torch.allclose(found.values, sigma, atol=1e-7)
    assert found.quantiles()[-1] == near(sigma[0])


def test_every_tier_knows_more_than_the_one_before():
    operator = operator_of(nn.Conv2d(2, 3, 3, padding=1), (8, 8))
    known = [
        (s.extremes is not None, s.values is not None, s.frequency_map is not None)
        for s in (layer_spectrum(operator, d) for d in ws.inspection.DETAILS)
    ]
    assert known == [(False, False, False), (True, False, False), (True, True, True), (True, True, True)]


def test_variance_lost_to_padding_is_what_windows_do_not_read():
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    spectrum = layer_spectrum(operator_of(layer, 4), "moments")
    assert spectrum.padding_loss == pytest.approx(2 / 12)  # 2 of 4 x 3 reads fall outside


def test_the_frequency_map_of_a_low_pass_filter_is_bright_at_the_constant_wave():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1 / 9)
    grid = layer_spectrum(operator_of(layer, (6, 6)), "spectra").frequency_map
    assert grid.shape == (6, 6)
    assert float(grid[0, 0]) == pytest.approx(1.0, abs=1e-5)
    assert int(grid.argmax()) == 0


# ---------------------------------------------------------------------------------- what is measured


def test_measured_gains_and_gradients_are_those_of_autograd():
    model = small()
    x = IMAGES.clone().requires_grad_()
    hidden = model[0](x)
    out = model(x)
    labels = torch.arange(6) % 5
    loss = nn.functional.cross_entropy(out, labels)
    (to_input,) = torch.autograd.grad(loss, x, retain_graph=True)
    report = ws.inspect(model, IMAGES, loss=lambda o: nn.functional.cross_entropy(o, labels))
    first, last = report.layers[0].measured, report.layers[-1].measured
    assert report.loss == pytest.approx(float(loss.detach()))
    (to_out,) = torch.autograd.grad(nn.functional.cross_entropy(out, labels), out)
    assert report.backward_gain == pytest.approx(float(to_input.norm() / to_out.norm()), rel=1e-4)
    assert report.forward_gain == pytest.approx(
        float(out.detach().square().mean().sqrt() / IMAGES.square().mean().sqrt()), rel=1e-4
    )
    assert first.activation_rms == pytest.approx(float(hidden.detach().square().mean().sqrt()), rel=1e-5)
    plain = nn.functional.conv2d(IMAGES, model[0].weight, padding=1)
    assert first.forward_gain == pytest.approx(float(plain.norm() / IMAGES.norm()), rel=1e-4)
    back = to_out @ model[-1].weight
    assert last.backward_gain == pytest.approx(float(back.norm() / to_out.norm()), rel=1e-4)
    assert report.gradient_of == "loss"
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]


def test_in_place_activations_do_not_hide_what_a_layer_wrote():
    plain = small()
    in_place = small()
    in_place[1] = nn.ReLU(inplace=True)
    a, b = ws.inspect(plain, IMAGES, detail="moments"), ws.inspect(in_place, IMAGES, detail="moments")
    assert a.layers[0].measured.activation_rms == b.layers[0].measured.activation_rms
    assert a.layers[0].measured.gradient_rms == pytest.approx(b.layers[0].measured.gradient_rms)


def test_the_next_step_is_measured_without_taking_it():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    loss = lambda out: out.square().mean()
    report = ws.inspect(model, IMAGES, loss=loss, optimizer=optimizer, detail="moments")
    gradient = torch.autograd.grad(loss(model(IMAGES)), model[2].weight)[0]
    expected = 0.5 * float(gradient.norm() / model[2].weight.norm())
    assert report["2"].measured.update_ratio == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not optimizer.state


def test_nothing_is_changed_by_looking():
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Conv2d(4, 2, 3),
    )
    model[3].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = ws.inspect(model, IMAGES)
    with pytest.raises(InspectionError):
        ws.inspect(model, IMAGES[:, :1])
    second = ws.inspect(model, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model[3].weight.requires_grad
    assert model[0].parametrizations.weight.original.requires_grad
    assert torch.equal(model[3].bias.grad, torch.ones(2))
    assert model[0].parametrizations.weight.original.grad is None
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert first.to_dict()["layers"][0]["measured"] == second.to_dict()["layers"][0]["measured"]  # dropout is seeded


def test_gradients_are_on_even_where_the_caller_has_them_off():
    with torch.no_grad():
        report = ws.inspect(small(), IMAGES, detail="moments")
    assert report.backward_gain > 0


# ---------------------------------------------------------------------------------- what is expected


@pytest.mark.parametrize(
    ("function", "q", "square", "slope"),
    [
        (torch.relu, 3.0, 1.5, 0.5),
        (lambda x: 2 * x, 3.0, 12.0, 4.0),
        (torch.tanh, 1e-6, 1e-6, 1.0),
        (torch.sin, 2.0, (1 - math.exp(-4)) / 2, (1 + math.exp(-4)) / 2),
    ],
)
def test_gaussian_moments_have_known_answers(function, q, square, slope):
    written, found = through(function, Signal(0.0, q, 0.0))
    assert written.square == pytest.approx(square, rel=2e-3)
    assert found == pytest.approx(slope, rel=2e-3)


def test_what_images_have_in_common_after_relu_is_the_arc_cosine_kernel():
    q, c = 2.0, 1.2
    angle = math.acos(c / q)
    kernel = q / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle))  # Cho and Saul 2009
    written, _ = through(torch.relu, Signal(0.0, q, c))
    assert written.common == pytest.approx(kernel, rel=2e-3)
    assert written.mean == pytest.approx(math.sqrt(q / (2 * math.pi)), rel=2e-3)


def test_the_signal_of_a_tensor_is_estimated_without_bias():
    torch.manual_seed(0)
    shared = torch.randn(4000)
    x = 0.5 + shared + 2 * torch.randn(8, 4000)
    found = signal_of(x)
    assert found.mean == pytest.approx(0.5, abs=0.05)
    assert found.square == pytest.approx(0.25 + 1 + 4, rel=0.03)
    assert found.common == pytest.approx(0.25 + 1, rel=0.1)
    assert signal_of(torch.full((1, 5), 2.0)).common == 4.0


class Residual(nn.Module):
    """A wide network with every operation that predictions know."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(400, 400) for _ in range(4))
        self.norm = nn.LayerNorm(400)
        for layer in (self.a, self.b, self.c, self.d):
            nn.init.normal_(layer.weight, std=0.06)
            nn.init.normal_(layer.bias, std=0.1)

    def forward(self, x):
        h = self.a(x) + torch.tanh(self.b(x))
        return self.d(torch.nn.functional.gelu(self.c(self.norm(h))))


def test_predictions_meet_measurements_of_a_wide_random_network():
    torch.manual_seed(0)
    report = ws.inspect(Residual(), torch.randn(200, 400), detail="moments")
    for layer in report.layers:
        m = layer.measured
        assert m.activation_rms == pytest.approx(m.expected_activation_rms, rel=0.06), layer.name
        assert m.gradient_rms == pytest.approx(m.expected_gradient_rms, rel=0.12), layer.name
        assert m.forward_gain == pytest.approx(layer.spectrum.forward_gain, rel=0.06)


def test_predictions_of_a_deep_plain_network_vanish_as_the_measurement_does():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(15)]
    report = ws.inspect(nn.Sequential(*layers), torch.randn(64, 128), detail="moments")
    first = report.layers[0].measured
    assert first.gradient_rms < 1e-4  # torch's default: a sixth of the variance a layer
    assert first.expected_gradient_rms == pytest.approx(first.gradient_rms, rel=0.5)
    assert report.backward_gain < 1e-4
    assert "vanishing" in report.verdict[0]
    assert report.advice[0].rule is not None


def test_a_batch_norm_resets_the_prediction_and_is_folded_into_gains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3))
    nn.init.constant_(model[1].weight, 3.0)
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    report = ws.inspect(model, torch.randn(16, 3, 12, 12), detail="moments")
    first, second = report.layers
    expected = 3.0 * second.spectrum.s2**0.5 / second.spectrum.shape[0] ** 0.5
    assert second.measured.expected_activation_rms == pytest.approx(expected, rel=0.05)
    assert first.norm == "1"
    assert "NativeBatchNorm" in second.after
    # After batch norm with gamma 3 every output has mean square 9, whatever the weight was scaled by.
    assert first.folded_forward_gain * (first.spectrum.shape[1] / first.spectrum.shape[0]) ** 0.5 == pytest.approx(
        3.0, rel=0.1
    )


def test_an_unknown_operation_starts_the_prediction_again_from_what_was_measured():
    torch.manual_seed(0)

    class Cubed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(200, 200), nn.Linear(200, 200)

        def forward(self, x):
            return self.b(self.a(10 * x) ** 3)

    first, second = ws.inspect(Cubed(), torch.randn(64, 200), detail="moments").layers
    assert second.measured.expected_activation_rms == pytest.approx(second.measured.activation_rms, rel=0.2)
    assert "Pow" in second.after
    assert first.measured.expected_gradient_rms is None


def test_a_wrong_second_moment_is_seen_in_the_prediction():
    """A mutant: predictions must depend on every layer's own S2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with untouched(model, 0):
        seen = trace(model, torch.randn(32, 64), None)
        s2 = [float(layer_spectrum(c.operator, "moments").s2) for c in seen.calls]
        right = expectations(seen, s2)
        wrong = expectations(seen, [s2[0], 4 * s2[1]])
    assert wrong[1].activation_rms > 1.9 * right[1].activation_rms * 0.9
    assert wrong[0].gradient_rms == pytest.approx(2 * right[0].gradient_rms)
    assert wrong[0].activation_rms == right[0].activation_rms


# ---------------------------------------------------------------------------------- the Jacobian


@pytest.mark.parametrize("training", [True, False])
def test_singular_values_of_the_whole_map_are_those_of_its_jacobian(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 3, 3, stride=2))
    model.double().train(training)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    reference = torch.autograd.functional.jacobian(lambda z: model(z).flatten(), x).flatten(1)
    sigma = torch.linalg.svdvals(reference)
    exact = ws.jacobian_singular_values(model, x)
    assert exact.is_exact
    assert torch.allclose(exact.values, sigma, atol=1e-12)
    assert exact.mean_square == pytest.approx(float(sigma.square().sum()) / x.numel())
    lanczos = ws.jacobian_singular_values(model, x, exact=False, steps=12)
    assert not lanczos.is_exact
    assert float(lanczos.values[0]) <= float(sigma[0]) * (1 + 1e-12)
    assert float(lanczos.values[0]) == pytest.approx(float(sigma[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(3, 4)),
        (nn.LSTM(3, 4), torch.randn(5, 1, 3)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)),
    ],
    ids=["mlp", "lstm", "attention in training mode"],
)
def test_both_ways_forward_are_the_adjoint_of_the_way_back(model, x):
    with untouched(model, 0):
        jacobian = _Jacobian(model, x, 0)
        v, u = torch.randn(jacobian.columns), torch.randn(jacobian.rows)
        back = float(jacobian.adjoint(u) @ v)
        assert float(jacobian.apply(v) @ u) == pytest.approx(back, rel=1e-3, abs=1e-4)
        assert float(jacobian._twice_backward(v) @ u) == pytest.approx(back, rel=1e-3, abs=1e-4)


def test_the_jacobian_needs_something_to_differentiate_by():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    with pytest.raises(InspectionError, match="no floating-point tensor"):
        ws.jacobian_singular_values(model, torch.tensor([1, 2]))
    report = ws.inspect(model, torch.tensor([1, 2]))
    assert report.jacobian is None
    assert "no singular values of the whole map" in report.problems[0]
    assert math.isnan(report.forward_gain)
    assert report.backward_gain > 0  # to the first layer


# ---------------------------------------------------------------------------------- models of all kinds


class Odd(nn.Module):
    """Shared, frozen, parametrized, grouped, transposed, unused; two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.d.weight = self.c.weight
        self.e = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.emb, self.lin = nn.Embedding(10, 8), nn.Linear(8, 4)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused, self.bn = nn.Conv1d(2, 2, 3), nn.BatchNorm2d(4)
        self.own = nn.Parameter(torch.ones(3, 3))
        self.a.weight.requires_grad_(False)

    def forward(self, x, ids):
        h = torch.relu(self.bn(self.b(torch.relu(self.a(x)))))
        h = self.up(self.e(self.c(h + self.d(torch.relu(self.c(h))))))
        t = self.emb(ids)
        return {"image": h, "text": self.lin(self.att(t, t, t)[0])}


def test_every_kind_of_layer_has_a_row_or_a_reason():
    torch.manual_seed(0)
    x, ids = torch.randn(2, 3, 8, 8), torch.randint(0, 10, (2, 5))
    report = ws.inspect(Odd(), (x, ids))
    again = ws.inspect(Odd(), {"ids": ids, "x": x}, detail="moments")
    assert {layer.name for layer in report.layers} == {"a", "b", "c", "d", "e", "up", "lin", "att.out_proj"}
    assert {layer.name for layer in again.layers} == {layer.name for layer in report.layers}
    assert report["a"].notes == ("frozen",)
    assert report["c"].notes == ("shares its weight with d", "called 2 times, figures of the first at each size")
    assert report["d"].spectrum is report["c"].spectrum  # computed once
    assert report["e"].notes == ("parametrized (SpectralNorm)",)
    assert report["e"].operator.startswith("Conv2d")
    assert report["att.out_proj"].measured is None
    assert {entry.name: entry.kind for entry in report.unsupported} == {
        "": "Odd",
        "emb": "Embedding",
        "att": "MultiheadAttention",
        "unused": "Conv1d",
        "bn": "BatchNorm2d",
    }
    assert all(entry.reason for entry in report.unsupported)
    text = str(report)
    for name in ("unused (Conv1d): not called", "the model itself (Odd)", "frozen", "shares its weight"):
        assert name in text


def test_a_layer_with_bad_weights_is_named_and_the_rest_is_analyzed():
    model = small()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = math.nan
    report = ws.inspect(model, IMAGES)
    assert [layer.name for layer in report.layers] == ["0", "4"]
    assert report.unsupported[0].name == "2"
    assert "NaN" in report.unsupported[0].reason
    assert (report.alerts[0].kind, report.alerts[0].layer) == ("nonfinite", "2")
    assert "first to look at: 2: its weight holds NaN" in report.verdict[0]
    assert report.advice[0].rule is None


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_looked_through(wrap):
    report = ws.inspect(wrap(small()), IMAGES, detail="moments")
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_analyzed_in_theirs_or_in_float32(dtype):
    report = ws.inspect(small().to(dtype), IMAGES.to(dtype), detail="extremes")
    reference = ws.inspect(small(), IMAGES, detail="extremes")
    assert report["0"].spectrum.extremes.sigma_max == pytest.approx(
        reference["0"].spectrum.extremes.sigma_max, rel=1e-5 if dtype == torch.float64 else 2e-2
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ws.inspect(nn.LazyLinear(3), IMAGES), "lazy"),
        (lambda: ws.inspect(nn.Linear(3, 3, device="meta"), IMAGES), "meta device"),
        (lambda: ws.inspect(nn.ReLU(), IMAGES.requires_grad_(False)), "no convolution"),
        (lambda: ws.inspect(small(), (IMAGES, IMAGES)), "forward pass of Sequential failed on the example input"),
        (lambda: ws.inspect(small(), IMAGES, detail="all"), "choose one of moments, extremes, spectra, exact"),
        (lambda: ws.inspect(small(), IMAGES, loss=lambda o: o), r"shape \(6, 5\); return one number"),
        (lambda: ws.inspect(small(), IMAGES, loss=lambda o: o.missing), "Check loss="),
        (lambda: ws.inspect(small(), IMAGES, optimizer=torch.optim.SGD([torch.zeros(1)], 0.1)), "needs loss="),
        (lambda: ws.inspect("resnet", IMAGES), "got a str; pass a torch.nn.Module"),
        (lambda: Limits(sigma_max=0.0), "sigma_max=0.0; give a positive number"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(InspectionError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------- alerts and advice


def kinds(report):
    return {(alert.layer, alert.kind) for alert in report.alerts}


def test_alerts_name_layer_evidence_and_limit():
    model = small()
    with torch.no_grad():
        model[2].weight.mul_(30.0)
    report = ws.inspect(model, IMAGES)
    assert {("2", "sigma_max"), ("2", "gain")} <= kinds(report)
    alert = next(a for a in report.alerts if a.kind == "sigma_max")
    assert f"{report['2'].spectrum.extremes.sigma_max:.3g}" in alert.evidence
    assert "limit 6" in alert.evidence
    calm = ws.inspect(model, IMAGES, limits=Limits(sigma_max=1e3, layer_gain=1e3, end_to_end=1e6, padding_loss=1.0))
    assert ("2", "sigma_max") not in kinds(calm)


@pytest.mark.parametrize(
    ("layer", "size", "kind"),
    [
        (
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1), n_power_iterations=30),
            8,
            "spectral_norm",
        ),
        (nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, padding=1), n_power_iterations=30), 8, "spectral_norm"),
        (nn.Conv2d(3, 3, 3, padding=1), 2, "padding"),
    ],
)
def test_particular_defects_are_found(layer, size, kind):
    torch.manual_seed(0)
    report = ws.inspect(nn.Sequential(layer), torch.randn(4, 3, size, size))
    assert kind in {alert.kind for alert in report.alerts}


def test_dead_modes_and_dead_channels_are_found():
    model = small()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = -1.0
        model[2].weight[1:] = 0
    report = ws.inspect(model, IMAGES)
    assert {("2", "dead channels"), ("2", "dead modes")} <= kinds(report)
    assert report["2"].measured.dead_inputs == 2
    assert report["2"].spectrum.dead_modes == pytest.approx(2 / 3, abs=0.02)


def test_modes_that_the_geometry_leaves_no_room_for_are_not_dead():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 1, stride=2, bias=False)  # reads a quarter of its input: rank 2 a window, 4 outputs
    spectrum = layer_spectrum(operator_of(layer, 8), "spectra")
    assert spectrum.rank_bound == 2 * 16
    assert float(spectrum.values[spectrum.rank_bound :].abs().max()) == 0.0
    assert spectrum.dead_modes == 0.0


def test_a_batch_norm_behind_a_layer_takes_part_in_its_alerts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    x = torch.randn(16, 3, 8, 8)
    assert not {kind for _, kind in kinds(ws.inspect(model, x))} & {"sigma_max", "gain"}
    assert {"sigma_max", "gain"} <= {kind for _, kind in kinds(ws.inspect(model[:1], x))}


def test_rules_of_the_advice_can_be_pasted_and_act_on_the_layers_named():
    model = small()
    with torch.no_grad():
        model[2].weight.mul_(30.0)
        model[4].weight.mul_(1e-4)
    report = ws.inspect(model, IMAGES)
    assert report.advice
    for advice in report.advice:
        if advice.rule is None:
            continue
        rule = eval(advice.rule, {"ws": ws})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rules = ws.attach(optimizer, model, rule)
        acted = {route.info.name.removesuffix(".weight") for route in rules.table().routes if route.rules}
        assert acted == set(advice.layers) if advice.layers else acted
        rules.remove()
        assert str(advice).endswith(advice.rule)


def test_a_healthy_network_gets_no_advice():
    torch.manual_seed(0)
    linear = nn.Linear(32, 32)
    nn.init.orthogonal_(linear.weight)
    report = ws.inspect(nn.Sequential(linear), torch.randn(64, 32))
    assert report.alerts == ()
    assert report.advice == ()
    assert report.verdict[-1] == "Nothing is beyond its limit."
    assert report.backward_gain == pytest.approx(1.0, rel=1e-4)


# ---------------------------------------------------------------------------------- what comes out


def test_json_holds_every_figure_and_no_nan(tmp_path):
    report = ws.inspect(small(), IMAGES)
    path = report.to_json(tmp_path / "deep" / "report.json")
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read["layers"][0]["sigma_max"] == report.layers[0].spectrum.extremes.sigma_max
    assert read["layers"][1]["quantiles"]["1"] == pytest.approx(float(report.layers[1].spectrum.values[0]))
    assert read["jacobian"]["rows"] == 10  # two images, five outputs


def test_scalars_are_finite_numbers_with_the_layer_in_the_tag():
    scalars = ws.inspect(small(), IMAGES, detail="extremes").scalars()
    assert scalars["inspect/0/sigma_max"] <= scalars["inspect/0/sigma_max_bound"]
    assert all(isinstance(value, float) and math.isfinite(value) for value in scalars.values())


@given(st.floats(1e-8, 1e8))
def test_bounds_are_rounded_to_their_safe_side(value):
    assert float(number(value, up=True)) >= value * (1 - 1e-12)
    assert float(number(value, up=False)) <= value * (1 + 1e-12)
