"""Posterior predictive and calibration: known answers, loops as references, honest sentences for bad input."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from weightspace.errors import RunError, SamplingError
from weightspace.sampling import (
    SampleStore,
    batch_norm_statistics,
    brier_score,
    expected_calibration_error,
    measure_calibration,
    negative_log_likelihood,
    posterior_predictive,
    predictive_plot,
    reliability,
    reliability_plot,
)

QUICK = settings(deadline=None, max_examples=50)


class Table(nn.Module):
    """Scores that are weights: the model whose predictions are known. Inputs are row numbers."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.scores[rows]


def tables(probabilities: list[list[list[float]]]) -> list[Table]:
    return [Table(torch.tensor(p, dtype=torch.float64).log()) for p in probabilities]


def rows(labels: list[int], size: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    index, flat = torch.arange(len(labels)), torch.tensor(labels)
    return list(zip(index.split(size), flat.split(size), strict=True))


# ---------------------------------------------------------------- the average


def test_two_samples_by_hand():
    """Two points, two samples that are sure of opposite things at the second point."""
    samples = tables([[[0.8, 0.2], [1.0, 0.0]], [[0.6, 0.4], [0.0, 1.0]]])
    found = posterior_predictive(samples[0], samples, rows([0, 1]))
    expected = torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=torch.float64)
    assert torch.allclose(found.probabilities, expected, atol=1e-12)
    assert found.labels.tolist() == [0, 1]
    assert found.log_likelihood.tolist() == pytest.approx([math.log(0.7), math.log(0.5)])
    assert found.nll == pytest.approx(-(math.log(0.7) + math.log(0.5)) / 2)
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert found.entropy.tolist() == pytest.approx([entropy, math.log(2)])
    within = sum(-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.8, 0.6)) / 2
    # All of the second point's entropy is disagreement, little of the first one's.
    assert found.mutual_information.tolist() == pytest.approx([entropy - within, math.log(2)])
    first, second = found.samples
    assert (first.accuracy, first.average_accuracy, second.accuracy) == (0.5, 0.5, 1.0)
    assert first.nll == first.average_nll == math.inf
    assert second.nll == pytest.approx(-math.log(0.6) / 2)
    assert second.average_nll == pytest.approx(found.nll)


def test_weights_of_samples_count(tmp_path):
    """Weight 3 for the first: as if it were there three times."""
    one, two = tables([[[0.9, 0.1]], [[0.5, 0.5]]])
    store = SampleStore(tmp_path)
    store.offer(1, one, weight=3.0)
    store.offer(2, two)
    weighted = posterior_predictive(one, store, rows([0]))
    repeated = posterior_predictive(one, [one, one, one, two], rows([0]))
    assert weighted.probabilities.tolist() == [pytest.approx([0.8, 0.2])]
    for name in ("probabilities", "log_likelihood", "entropy", "mutual_information"):
        assert torch.allclose(getattr(weighted, name), getattr(repeated, name))
    assert [(s.step, s.chain, s.weight) for s in weighted.samples] == [(1, 0, 3.0), (2, 0, 1.0)]
    assert [s.step for s in repeated.samples] == [None] * 4


@given(
    samples=st.integers(1, 5),
    points=st.integers(1, 12),
    classes=st.integers(2, 5),
    size=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
@QUICK
def test_the_average_is_that_of_a_loop(samples, points, classes, size, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(samples, points, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (points,), generator=generator).tolist()
    found = posterior_predictive(Table(scores[0]), [Table(s) for s in scores], rows(labels, size))
    for n in range(points):
        average = [0.0] * classes
        within = 0.0
        for k in range(samples):
            exps = [math.exp(float(value)) for value in scores[k, n]]
            p = [value / math.fsum(exps) for value in exps]
            within -= math.fsum(value * math.log(value) for value in p) / samples
            average = [a + value / samples for a, value in zip(average, p, strict=True)]
        entropy = -math.fsum(a * math.log(a) for a in average)
        assert found.probabilities[n].tolist() == pytest.approx(average)
        assert float(found.log_likelihood[n]) == pytest.approx(math.log(average[labels[n]]))
        assert float(found.entropy[n]) == pytest.approx(entropy, abs=1e-12)
        assert float(found.mutual_information[n]) == pytest.approx(max(0.0, entropy - within), abs=1e-12)
    for k, score in enumerate(found.samples, 1):
        part = posterior_predictive(Table(scores[0]), [Table(s) for s in scores[:k]], rows(labels, size))
        assert (score.average_accuracy, score.average_nll) == pytest.approx((part.accuracy, part.nll))
        alone = posterior_predictive(Table(scores[0]), Table(scores[k - 1]), rows(labels, size))
        assert (score.accuracy, score.nll) == pytest.approx((alone.accuracy, alone.nll))
        assert torch.all(alone.mutual_information == 0)


def test_averaging_never_hurts_the_likelihood_and_bounds_hold():
    """Jensen: the average's log-likelihood is at least the samples' mean; information is between 0 and entropy."""
    scores = 3 * torch.randn(7, 40, 6)
    labels = torch.randint(6, (40,)).tolist()
    found = posterior_predictive(Table(scores[0]), [Table(s) for s in scores], rows(labels, 16))
    summary = found.summary()
    assert summary["nll"] <= summary["mean_sample_nll"]
    assert bool((found.mutual_information <= found.entropy + 1e-12).all())
    assert bool((found.entropy <= math.log(6) + 1e-12).all())
    assert json.loads(json.dumps(summary))["samples"] == 7
    assert repr(found).startswith("<Predictive of 7 samples on 40 points: accuracy")


def test_likelihoods_that_underflow_are_exact():
    """A probability of exp(-2000) is 0 in float64, its logarithm is -2000 all the same."""
    scores = torch.tensor([[0.0, 2000.0]], dtype=torch.float64)
    found = posterior_predictive(Table(scores), [Table(scores), Table(scores - 0.0)], rows([0]))
    assert float(found.probabilities[0, 0]) == 0.0
    assert found.nll == 2000.0
    assert float(found.entropy[0]) == 0.0


def test_a_class_that_is_ruled_out_by_minus_infinity_is_no_accident():
    scores = torch.tensor([[0.0, -math.inf, 0.0]])
    found = posterior_predictive(Table(scores), [Table(scores)], rows([2]))
    assert found.probabilities.tolist() == [[0.5, 0.0, 0.5]]
    assert float(found.entropy[0]) == pytest.approx(math.log(2))


def test_tokens_are_flattened_and_ignored_ones_left_out():
    scores = torch.randn(6, 5, 4)  # six texts of five tokens, four letters
    labels = torch.randint(4, (6, 5))
    labels[2, 3] = labels[5, 0] = -100
    batches = [(torch.arange(0, 4), labels[:4]), (torch.arange(4, 6), labels[4:])]
    found = posterior_predictive(Table(scores), [Table(scores)], batches)
    kept = labels.reshape(-1) != -100
    assert found.probabilities.shape == (28, 4)
    assert torch.equal(found.labels, labels.reshape(-1)[kept])
    expected = nn.functional.cross_entropy(scores.double().reshape(-1, 4), labels.reshape(-1))
    assert found.nll == pytest.approx(float(expected))


# ---------------------------------------------------------------- models, samples, batches


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def points(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3), torch.randint(4, (count,))


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_is_left_as_it_is(training):
    model = classifier().train(training)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    samples = [classifier() for _ in range(3)]
    data = points()
    posterior_predictive(model, samples, [data], renormalize=batch_norm_statistics([data]))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training is training
    assert torch.is_grad_enabled()
    assert model[0].weight.grad is not None


def test_dropout_is_off_and_buffers_are_the_samples():
    """Mutants: leaving the copy in training mode, or loading parameters only, changes the probabilities."""
    model, sample = classifier(), classifier()
    sample(torch.randn(64, 3) * 3 + 1)
    sample.eval()
    inputs, labels = points()
    found = posterior_predictive(model, [sample.state_dict()], [(inputs, labels)])
    assert torch.allclose(found.probabilities, sample(inputs).softmax(-1).double(), atol=1e-6)


@pytest.mark.parametrize("form", ["store", "stores", "samples", "states", "models", "mixed", "generator"])
def test_samples_come_in_any_form(tmp_path, form):
    models = [classifier() for _ in range(4)]
    stores = [SampleStore(tmp_path / str(chain), chain=chain) for chain in range(2)]
    for step, model in enumerate(models, 1):
        stores[(step - 1) // 2].offer(step, model)
    whole = SampleStore(tmp_path / "whole")
    for step, model in enumerate(models, 1):
        whole.offer(step, model)
    samples = {
        "store": whole,
        "stores": stores,
        "samples": list(whole),
        "states": [model.state_dict() for model in models],
        "models": models,
        "mixed": [stores[0], models[2], models[3].state_dict()],
        "generator": (model for model in models),
    }[form]
    data = points()
    expected = torch.stack([model.eval()(data[0]).softmax(-1) for model in models]).double().mean(0)
    found = posterior_predictive(classifier(), samples, [data])
    assert torch.allclose(found.probabilities, expected, atol=1e-6)


def test_only_one_sample_is_in_memory(tmp_path, monkeypatch):
    """The next sample is read after the last one has been used up, and no file is read twice."""
    store = SampleStore(tmp_path)
    for step in range(1, 4):
        store.offer(step, classifier())
    events = []
    load = type(next(iter(store))).load
    monkeypatch.setattr(type(next(iter(store))), "load", lambda self: events.append(self.step) or load(self))
    data = points()

    def batches():
        events.append("pass")
        yield data

    posterior_predictive(classifier(), store, batches)
    assert events == [1, "pass", 2, "pass", 3, "pass"]


def test_batches_may_be_loaders_functions_tuples_and_dicts():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(first + second)}

    model, (inputs, labels) = Two(), points()
    take = lambda output: output["logits"]
    expected = model(inputs, inputs)["logits"].softmax(-1).double()
    for batch in (((inputs, inputs), labels), ({"first": inputs, "second": inputs}, labels)):
        found = posterior_predictive(model, [model], [batch], logits=take)
        assert torch.allclose(found.probabilities, expected, atol=1e-6)
    single = nn.Linear(3, 4)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=5)
    found = posterior_predictive(single, [single, single], loader)
    assert torch.equal(found.labels, labels)
    found = posterior_predictive(single, [single, single], lambda: iter(loader), dtype=torch.float32)
    assert (found.probabilities.dtype, found.log_likelihood.dtype) == (torch.float32, torch.float64)


def test_renormalizing_is_a_pass_with_the_samples_weights():
    """Weights whose statistics are of another layer: averages of networks have no statistics of their own."""
    train = [points(64) for _ in range(3)]
    model = classifier()
    stale = copy.deepcopy(model)
    stale[1].running_mean.fill_(100.0)
    inputs, labels = points()
    found = posterior_predictive(model, [stale], [(inputs, labels)], renormalize=batch_norm_statistics(train))
    # By hand: means and unbiased variances of each batch, averaged over batches.
    hidden = [model[0](batch[0]) for batch in train]
    mean, var = (torch.stack([f(h) for h in hidden]).mean(0) for f in (lambda h: h.mean(0), lambda h: h.var(0)))
    activity = ((model[0](inputs) - mean) / (var + 1e-5).sqrt()).relu()
    expected = model[4](activity).softmax(-1).double()
    assert torch.allclose(found.probabilities, expected, atol=1e-5)
    without = posterior_predictive(model, [stale], [(inputs, labels)])
    assert not torch.allclose(without.probabilities, expected, atol=1e-2)


def test_a_renormalization_that_leaves_training_mode_does_no_harm():
    model, data = classifier(), points()
    found = posterior_predictive(model, [model], [data], renormalize=lambda copied: copied.train() and None)
    assert torch.equal(found.probabilities, posterior_predictive(model, [model], [data]).probabilities)


# ---------------------------------------------------------------- refusals


def test_shuffled_batches_are_noticed():
    data = points(64)
    loader = DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    model = nn.Linear(3, 4)
    with pytest.raises(SamplingError, match="turn shuffling and augmentation off"):
        posterior_predictive(model, [model] * 4, loader)


@pytest.mark.parametrize("second", [1, 3])
def test_another_number_of_batches_is_noticed(second):
    model, data, passes = nn.Linear(3, 4), points(), []

    def batches():
        passes.append(None)
        return [data] * (2 if len(passes) == 1 else second)

    with pytest.raises(SamplingError, match="the batches for sample 1 are others than for the first sample"):
        posterior_predictive(model, [model, model], batches)


@pytest.mark.parametrize(
    ("samples", "batches", "sentence"),
    [
        ([], None, "there are no samples to average"),
        ("folder", None, "samples holds 'folder'; give a SampleStore"),
        ([3], None, "samples holds 3; give a SampleStore"),
        ([nn.Linear(3, 5)], None, "sample 0 belongs to another model: "),
        ([{"weight": torch.ones(4, 3)}], None, "sample 0 belongs to another model: "),
        (None, [], "the batches hold no labelled point"),
        (None, [(torch.ones(2, 3), torch.tensor([-100, -100]))], "the batches hold no labelled point"),
        (None, iter([]), "batches can be read once only; give a list, a DataLoader, or a function"),
        (None, [torch.ones(2, 3)], "a batch is a Tensor; give pairs of inputs and labels"),
        (None, [(torch.ones(2, 3), torch.tensor([0.0, 1.0]))], "give a whole number for each"),
        (None, [(torch.ones(2, 3), torch.tensor([0, 1, 2]))], "labels are (3,) for class scores (2, 4)"),
        (None, [(torch.ones(2, 3), [0, 1])], "labels are list for class scores (2, 4)"),
        (None, [(torch.ones(2, 3), torch.tensor([0, 4]))], "a label is 4, but the model knows classes 0 to 3"),
        (None, [(torch.ones(2, 3), torch.tensor([0, -1]))], "a label is -1, but the model knows classes 0 to 3"),
        (None, [(torch.full((2, 3), math.nan), torch.tensor([0, 1]))], "sample 0 predicts scores that are NaN"),
    ],
)
def test_bad_input_is_one_sentence(samples, batches, sentence):
    model = nn.Linear(3, 4)
    with pytest.raises(SamplingError) as caught:
        posterior_predictive(model, [model] if samples is None else samples, [points()] if batches is None else batches)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_without_class_scores_are_told_how(tmp_path):
    model, (inputs, labels) = nn.Linear(3, 1), points()
    with pytest.raises(SamplingError, match=r"the model gives \(32, 1\); class scores .* say how with logits="):
        posterior_predictive(model, [model], [(inputs, labels % 2)])
    pair = lambda score: torch.cat((torch.zeros_like(score), score), dim=-1)
    found = posterior_predictive(model, [model], [(inputs, labels % 2)], logits=pair)
    assert torch.allclose(found.probabilities[:, 1:], model(inputs).sigmoid().double(), atol=1e-6)
    store = SampleStore(tmp_path)
    store.offer(17, nn.Linear(3, 2))
    with pytest.raises(SamplingError, match="the sample of step 17 belongs to another model"):
        posterior_predictive(model, store, [(inputs, labels)])


# ---------------------------------------------------------------- calibration


def calibrated(count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidences 0.6, 0.7, ... where of `count * 10` points exactly that fraction is right."""
    probabilities, labels = [], []
    for tenths in (6, 7, 8, 9):
        for point in range(10 * count):
            probabilities.append([tenths / 10, 1 - tenths / 10])
            labels.append(0 if point % 10 < tenths else 1)
    return torch.tensor(probabilities, dtype=torch.float64), torch.tensor(labels)


def test_known_scores():
    probabilities, labels = calibrated()
    assert expected_calibration_error(probabilities, labels, 10) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.0, abs=1e-12)
    for classes in (2, 3, 10, 1000):
        uniform, flat = torch.full((50, classes), 1 / classes, dtype=torch.float64), torch.arange(50) % classes
        assert brier_score(uniform, flat) == pytest.approx(1 - 1 / classes)
        assert negative_log_likelihood(uniform, flat) == pytest.approx(math.log(classes))
    sure, flat = torch.eye(4)[torch.tensor([0, 1, 2, 3])], torch.arange(4)
    assert (brier_score(sure, flat), negative_log_likelihood(sure, flat)) == (0.0, 0.0)
    wrong = sure.roll(1, 0)
    assert brier_score(wrong, flat) == 2.0
    assert negative_log_likelihood(wrong, flat) == math.inf
    assert expected_calibration_error(wrong, flat) == 1.0


def test_a_bin_holds_its_upper_edge_and_not_its_lower():
    halves = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability(halves, torch.zeros(3, dtype=torch.int64), 4).counts.tolist() == [0, 1, 1, 1]


def test_overconfidence_is_its_size():
    """90 % sure and right in 60 of 100."""
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(100, 1)
    labels = torch.tensor([0] * 60 + [1] * 40)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3, abs=1e-6)
    measured = measure_calibration(probabilities, labels, resamples=200)
    assert measured.verdict.startswith("overconfident: mean confidence 0.9000, accuracy 0.6000; calibration error 0.3")
    under = measure_calibration(torch.tensor([[0.6, 0.4]]).repeat(100, 1), torch.zeros(100, dtype=torch.int64))
    assert under.verdict.startswith("underconfident")


def slow_ece(probabilities: list[list[float]], labels: list[int], bins: int) -> float:
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        confidence = max(row)
        for b in range(bins):
            if b / bins < confidence <= (b + 1) / bins:
                members[b].append((confidence, row.index(confidence) == label))
    total = 0.0
    for chosen in members:
        if chosen:
            gap = abs(sum(right for _, right in chosen) - math.fsum(c for c, _ in chosen)) / len(chosen)
            total += gap * len(chosen) / len(labels)
    return total


@given(
    count=st.integers(1, 60),
    classes=st.integers(2, 6),
    bins=st.integers(1, 20),
    spread=st.floats(0.1, 5),
    seed=st.integers(0, 10_000),
)
@QUICK
def test_scores_are_those_of_loops(count, classes, bins, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (spread * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    labels = torch.randint(classes, (count,), generator=generator)
    listed, flat = probabilities.tolist(), labels.tolist()
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(slow_ece(listed, flat, bins))
    brier = [
        math.fsum((p - (c == label)) ** 2 for c, p in enumerate(row)) for row, label in zip(listed, flat, strict=True)
    ]
    assert brier_score(probabilities, labels) == pytest.approx(math.fsum(brier) / count)
    nll = -math.fsum(math.log(row[label]) for row, label in zip(listed, flat, strict=True)) / count
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(nll)
    table = reliability(probabilities, labels, bins)
    assert int(table.counts.sum()) == count
    right = sum(row.index(max(row)) == label for row, label in zip(listed, flat, strict=True))
    assert table.mean_accuracy == pytest.approx(right / count)
    assert table.mean_confidence == pytest.approx(math.fsum(max(row) for row in listed) / count)
    assert len(json.loads(json.dumps(table.rows()))) == bins


def test_scores_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities = torch.randn(200, 5, dtype=torch.float64).softmax(-1)
    labels = torch.randint(5, (200,))
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(
        metrics.log_loss(labels.numpy(), probabilities.numpy(), labels=range(5))
    )
    two = torch.rand(200, dtype=torch.float64)
    pairs = torch.stack((1 - two, two), dim=-1)
    theirs = metrics.brier_score_loss((labels % 2).numpy(), two.numpy(), scale_by_half=True)
    assert brier_score(pairs, labels % 2) == pytest.approx(2 * theirs)


def test_proper_scores_are_least_for_the_truth():
    """Mutant: a score that is not proper would be lower for a sharpened or flattened forecast."""
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    truth = scores.softmax(-1)
    labels = torch.multinomial(truth, 1, generator=generator)[:, 0]
    for score in (brier_score, negative_log_likelihood):
        values = [score((scores * sharp).softmax(-1), labels) for sharp in (0.7, 1.0, 1.4)]
        assert values[1] == min(values)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Accuracy 0.7 of 200 points, 150 data sets, 90 % intervals; and chance alone is exceeded in a tenth."""
    generator = torch.Generator().manual_seed(0)
    held, beyond, widths = 0, 0, []
    for seed in range(150):
        probabilities = torch.tensor([[0.7, 0.3]], dtype=torch.float64).repeat(200, 1)
        labels = (torch.rand(200, generator=generator) > 0.7).long()
        measured = measure_calibration(probabilities, labels, resamples=100, level=0.9, seed=seed)
        held += measured.accuracy.low <= 0.7 <= measured.accuracy.high
        beyond += measured.ece.value > measured.ece_by_chance
        widths.append(measured.accuracy.high - measured.accuracy.low)
    assert 0.82 <= held / 150 <= 0.98
    assert 0.03 <= beyond / 150 <= 0.18
    assert sum(widths) / 150 == pytest.approx(2 * 1.645 * math.sqrt(0.7 * 0.3 / 200), rel=0.08)


def test_a_summary_has_all_and_the_seed_decides_it():
    probabilities, labels = calibrated(4)
    first, again = (measure_calibration(probabilities, labels, resamples=50, seed=3) for _ in range(2))
    other = measure_calibration(probabilities, labels, resamples=50, seed=4)
    assert first.summary() == again.summary() != other.summary()
    summary = json.loads(json.dumps(first.summary()))
    assert summary["accuracy"]["low"] <= summary["accuracy"]["value"] <= summary["accuracy"]["high"]
    assert (summary["points"], len(summary["bins"])) == (160, 15)
    assert summary["verdict"].startswith("calibrated, as far as 160 points tell")
    assert first.accuracy.value == pytest.approx(0.75)
    assert "ECE" in str(first)
    mixed = torch.tensor([[0.9, 0.1]] * 400 + [[0.6, 0.4]] * 400)
    flat = torch.tensor(([0] * 3 + [1]) * 100 + ([0] * 3 + [1]) * 100)
    assert measure_calibration(mixed, flat, resamples=50).verdict.startswith("not calibrated")


def test_an_impossible_label_makes_the_likelihood_infinite_and_nothing_nan():
    measured = measure_calibration(torch.tensor([[1.0, 0.0]] * 20), torch.tensor([0] * 19 + [1]), resamples=100)
    assert (measured.nll.value, measured.nll.high) == (math.inf, math.inf)
    assert not math.isnan(measured.nll.low)


@pytest.mark.parametrize(
    ("probabilities", "labels", "sentence"),
    [
        (torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), "are negative or not finite; give the softmax"),
        (torch.rand(5, 3) + 1, torch.zeros(5, dtype=torch.int64), "misses the sum 1 by"),
        (torch.full((5, 3), math.nan), torch.zeros(5, dtype=torch.int64), "are negative or not finite"),
        (torch.ones(5), torch.zeros(5, dtype=torch.int64), "of shape (5,); give (points, classes)"),
        (torch.ones(5, 1), torch.zeros(5, dtype=torch.int64), "of shape (5, 1); give (points, classes)"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), "of shape (0, 2)"),
        (torch.ones(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), "probabilities are torch.int64"),
        (torch.full((5, 2), 0.5), torch.zeros(4, dtype=torch.int64), "of shape (4,); give 5 whole numbers"),
        (torch.full((5, 2), 0.5), torch.zeros(5), "labels are torch.float32"),
        (torch.full((5, 2), 0.5), torch.ones(5, dtype=torch.int64) * 2, "labels run from 2 to 2; with 2 classes"),
        (torch.full((5, 2), 0.5), -torch.ones(5, dtype=torch.int64), "labels run from -1 to -1"),
    ],
)
def test_what_are_no_probabilities_is_refused_everywhere(probabilities, labels, sentence):
    scores = (brier_score, negative_log_likelihood, expected_calibration_error, reliability, measure_calibration)
    for score in scores:
        with pytest.raises(SamplingError) as caught:
            score(probabilities, labels)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bins": 0}, "bins is 0; give a whole number of at least 1"),
        ({"bins": 1.5}, "bins is 1.5"),
        ({"resamples": 0}, "resamples is 0"),
        ({"level": 1.0}, "level is 1.0; give a number between 0 and 1"),
        ({"level": math.nan}, "level is nan"),
    ],
)
def test_bad_options_of_the_summary_are_refused(options, sentence):
    with pytest.raises(SamplingError) as caught:
        measure_calibration(torch.full((5, 2), 0.5), torch.zeros(5, dtype=torch.int64), **options)
    assert sentence in str(caught.value)


def test_float16_probabilities_of_many_classes_are_accepted():
    probabilities = torch.randn(20, 100).softmax(-1).half()
    labels = torch.randint(100, (20,))
    assert brier_score(probabilities, labels) == pytest.approx(brier_score(probabilities.double(), labels))


# ---------------------------------------------------------------- pictures


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_pictures_are_drawn_of_the_ordinary_and_the_odd(tmp_path):
    probabilities = torch.randn(300, 4).softmax(-1)
    labels = torch.randint(4, (300,))
    for number, (p, y) in enumerate([(probabilities, labels), (probabilities[:1], labels[:1]), calibrated()]):
        path = tmp_path / f"{number}.png"
        assert reliability_plot(reliability(p, y), path, title="$x$ of a network") == path
        assert is_png(path)
    model = nn.Linear(3, 4)
    for count in (1, 5):
        found = posterior_predictive(model, [nn.Linear(3, 4) for _ in range(count)], [points()])
        assert is_png(predictive_plot(found, tmp_path / f"curve{count}.png", title="Five"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        reliability_plot(reliability(probabilities, labels), tmp_path / "file" / "plot.png")


def test_without_matplotlib_there_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    table = reliability(*calibrated(1))
    with pytest.raises(SamplingError, match=r'A reliability diagram needs matplotlib; pip install "weightspace\[sampl'):
        reliability_plot(table, tmp_path / "x.png")
