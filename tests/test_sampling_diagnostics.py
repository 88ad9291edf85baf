"""Chain diagnostics: chains with a known law, the paper's formulas by loops, networks under permutation symmetry."""

from __future__ import annotations

import copy
import json
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.errors import SamplingError
from weightspace.sampling import SampleStore, chain_diagnostics, chain_quantities, trace_plot

pytest.importorskip("arviz")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autoregressive(phi: float, chains: int = 4, draws: int = 5000, seed: int = 0) -> torch.Tensor:
    """AR(1) with variance 1, from its stationary law."""
    drawn = noise(chains, draws, seed=seed)
    for draw in range(1, draws):
        drawn[:, draw] = phi * drawn[:, draw - 1] + math.sqrt(1 - phi * phi) * drawn[:, draw]
    return drawn


# ---------------------------------------------------------------- known laws


def test_independent_draws_are_worth_themselves():
    found = chain_diagnostics(noise(4, 2000), ["x"])["x"]
    assert 0.999 < found.rhat < 1.005
    assert 0.85 * 8000 < found.ess_bulk < 1.15 * 8000
    assert 0.8 * 8000 < found.ess_tail < 1.15 * 8000
    assert found.mcse == pytest.approx(found.std / math.sqrt(8000), rel=0.1)
    assert abs(found.mean) < 4 * found.mcse
    assert found.converged
    assert found.verdict.startswith("R-hat 1.00")


@pytest.mark.parametrize("phi", [0.3, 0.6, 0.9, -0.3])
def test_autoregressive_draws_are_worth_their_known_share(phi):
    found = chain_diagnostics(autoregressive(phi), ["x"])["x"]
    assert found.ess_bulk == pytest.approx(20_000 * (1 - phi) / (1 + phi), rel=0.15)
    assert found.mcse == pytest.approx(math.sqrt((1 + phi) / (1 - phi) / 20_000), rel=0.1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x + torch.tensor([[1.5], [0], [0], [0]]),  # one chain elsewhere
        lambda x: x * torch.tensor([[5.0], [1], [1], [1]]),  # one chain wider: only the folded part sees it
        lambda x: x + torch.linspace(0, 3, x.shape[1]),  # all drift alike: only splitting sees it
        lambda x: torch.where(torch.arange(4)[:, None] % 2 == 0, x.abs() + 1, -x.abs() - 1),  # two modes
    ],
)
def test_chains_that_did_not_converge_are_told(spoil):
    """Mutants: R-hat without splitting misses the drift, without folding the scale."""
    found = chain_diagnostics(spoil(noise(4, 500)), ["x"])
    assert found["x"].rhat > 1.1
    assert not found.converged
    assert "the chains disagree or drift (R-hat" in found["x"].verdict
    assert found.verdict.startswith("1 of 1 quantities fail; x: the chains disagree or drift")


def test_too_few_draws_are_told_though_chains_agree():
    found = chain_diagnostics(noise(4, 60), ["x"])["x"]
    assert found.rhat < 1.03
    assert not found.converged
    assert "effective sample size" in found.verdict
    assert "< 400: longer chains" in found.verdict


def slow_rhat(chains: list[list[float]]) -> float:
    """Vehtari et al. (2021), equations 1 to 4 and 14, in loops."""
    from scipy.stats import norm, rankdata

    half = len(chains[0]) // 2
    pieces = [piece for chain in chains for piece in (chain[:half], chain[-half:])]

    def classic(parts: list[list[float]]) -> float:
        n, m = len(parts[0]), len(parts)
        means = [math.fsum(part) / n for part in parts]
        grand = math.fsum(means) / m
        between = n / (m - 1) * math.fsum((mean - grand) ** 2 for mean in means)
        inner = [math.fsum((x - mean) ** 2 for x in p) / (n - 1) for p, mean in zip(parts, means, strict=True)]
        within = math.fsum(inner) / m
        return math.sqrt(((n - 1) / n * within + between / n) / within)

    def normal(parts: list[list[float]]) -> list[list[float]]:
        flat = [x for part in parts for x in part]
        scores = norm.ppf((rankdata(flat) - 3 / 8) / (len(flat) + 1 / 4))
        size = len(parts[0])
        return [list(map(float, scores[i : i + size])) for i in range(0, len(flat), size)]

    flat = sorted(x for piece in pieces for x in piece)
    median = (flat[(len(flat) - 1) // 2] + flat[len(flat) // 2]) / 2
    folded = [[abs(x - median) for x in piece] for piece in pieces]
    return max(classic(normal(pieces)), classic(normal(folded)))


@given(chains=st.integers(2, 5), draws=st.integers(8, 60), shift=st.floats(0, 2), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_rhat_is_the_papers(chains, draws, shift, seed):
    values = noise(chains, draws, seed=seed)
    values[0] += shift
    found = chain_diagnostics(values)["quantity 0"]
    assert found.rhat == pytest.approx(slow_rhat(values.tolist()), rel=1e-6)


def test_diagnostics_do_not_change_under_monotone_maps():
    """Ranks alone count: R-hat of a Cauchy-like quantity is that of its normal preimage."""
    x = noise(4, 300)
    first, second = chain_diagnostics({"x": x, "wild": torch.exp(4 * x)}).rows
    assert first.ess_bulk == pytest.approx(second.ess_bulk)
    assert chain_diagnostics(x)["quantity 0"].rhat == pytest.approx(first.rhat)


def test_one_chain_is_compared_with_itself_and_never_passes():
    still = chain_diagnostics(noise(1, 2000), ["x"])["x"]
    assert still.rhat < 1.01
    assert not still.converged
    assert still.verdict == "one chain cannot show what it missed: run 4"
    drifting = chain_diagnostics(noise(1, 2000) + torch.linspace(0, 3, 2000), ["x"])["x"]
    assert drifting.rhat > 1.1
    assert "the chain drifts" in drifting.verdict


def test_two_chains_pass_with_a_remark():
    found = chain_diagnostics(noise(2, 2000), ["x"])["x"]
    assert found.converged
    assert found.verdict.endswith("(with 2 chains; 4 are advised)")


def test_chains_that_mean_different_things_are_looked_at_alone():
    values = {"far apart": noise(4, 1000) + 10 * torch.arange(4)[:, None], "same": noise(4, 1000, seed=1)}
    together = chain_diagnostics(values)
    assert together["far apart"].rhat > 2.5
    alone = chain_diagnostics(values, within=["far apart"])
    assert alone.converged
    assert alone["far apart"].within
    assert alone["far apart"].mcse == pytest.approx(1 / math.sqrt(4000), rel=0.15)
    drifting = dict(values)
    drifting["far apart"] = values["far apart"] + torch.eye(4)[:, :1] * torch.linspace(0, 5, 1000)
    worst = chain_diagnostics(drifting, within=["far apart"])["far apart"]
    assert worst.rhat > 1.1  # the worst chain counts
    assert "the chain drifts" in worst.verdict


def test_what_stands_still_is_nothing_to_judge():
    stuck = noise(4, 100)
    stuck[2] = 3.0
    found = chain_diagnostics({"constant": torch.ones(4, 100), "one stuck": stuck, "fine": noise(4, 1000)[:, :100]})
    for name in ("constant", "one stuck"):
        assert math.isnan(found[name].rhat)
        assert not found[name].converged
        assert found[name].verdict.startswith("does not vary in some chain")
    assert not found.converged
    assert "quantities fail; constant: does not vary" in found.verdict


# ---------------------------------------------------------------- forms and refusals


def test_values_come_as_tensors_arrays_lists_and_dicts():
    values = noise(4, 50, 2)
    expected = [row.rhat for row in chain_diagnostics(values).rows]
    named = {"a": values[..., 0], "b": values[..., 1].float()}
    for form in (values.numpy(), values.tolist(), values.requires_grad_(), named):
        assert [row.rhat for row in chain_diagnostics(form).rows] == pytest.approx(expected, rel=1e-4)
    assert [row.name for row in chain_diagnostics(values, ["u", "v"]).rows] == ["u", "v"]
    assert [row.name for row in chain_diagnostics(values).rows] == ["quantity 0", "quantity 1"]
    summary = json.loads(json.dumps(chain_diagnostics(named).summary()))
    assert [row["name"] for row in summary] == ["a", "b"]
    assert "effective sample size" in summary[0]["verdict"]
    text = str(chain_diagnostics(named)).splitlines()
    assert (len(text), text[0].split()) == (4, ["mean", "mcse", "R-hat", "bulk", "tail"])


@pytest.mark.parametrize(
    ("values", "options", "sentence"),
    [
        (noise(4, 3), {}, "quantity 0 has shape (4, 3); give (chains, draws) with at least 4 draws"),
        (noise(4), {}, "values have shape (4,); give (chains, draws, quantities)"),
        (noise(4, 10, 2, 2), {}, "values have shape (4, 10, 2, 2)"),
        (noise(0, 10), {}, "quantity 0 has shape (0, 10)"),
        (noise(4, 10, 0), {}, "there are no quantities"),
        ({}, {}, "there are no quantities"),
        ({"a": noise(10)}, {}, "a has shape (10,)"),
        ({"a": noise(2, 10)}, {"names": ["b"]}, "names are given for a dict"),
        (noise(2, 10), {"names": ["a", "b"]}, "2 different names are given for 1 quantities"),
        (noise(2, 10, 2), {"names": ["a", "a"]}, "1 different names are given for 2 quantities"),
        (noise(2, 10) / 0, {}, "quantity 0 has values that are not finite: a chain has diverged"),
        ([[1.0, 2.0], [1.0]], {}, "values are no table of numbers"),
        ("text", {}, "values are no table of numbers"),
        (noise(2, 10), {"within": ["x"]}, "within names 'x', but the quantities are quantity 0"),
    ],
)
def test_bad_values_are_one_sentence(values, options, sentence):
    with pytest.raises(SamplingError) as caught:
        chain_diagnostics(values, **options)
    assert sentence in str(caught.value)


def test_without_arviz_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(SamplingError) as caught:
        chain_diagnostics(noise(4, 10))
    assert str(caught.value) == 'Chain diagnostics needs arviz; pip install "weightspace[sampling]"'


@given(chains=st.integers(1, 4), draws=st.integers(4, 12), kinds=st.integers(1, 3), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_every_table_of_numbers_gets_an_answer_and_a_sentence(chains, draws, kinds, seed):
    values = noise(chains, draws, kinds, seed=seed)
    values[..., 0] = values[..., 0].round()  # ties
    found = chain_diagnostics(values)
    assert len(found.rows) == kinds
    assert all(row.verdict for row in found.rows)
    assert not found.converged


# ---------------------------------------------------------------- quantities of networks


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(20, 3), torch.randint(4, (20,))


def permuted(model: nn.Sequential, order: list[int]) -> nn.Sequential:
    """The same function with its hidden units in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    return other


def test_quantities_are_what_their_names_say():
    model, (inputs, labels) = network(), batch()
    chains = [[network() for _ in range(5)] for _ in range(2)]
    mean = lambda m: float(m[2].bias.mean())
    found = chain_quantities(model, chains, (inputs, labels), points=2, functions={"mean of the last bias": mean})
    assert all(values.shape == (2, 5) for values in found.values.values())
    sample = chains[1][3]
    log_p = sample(inputs).double().log_softmax(-1)
    expected = {
        "loss": nn.functional.nll_loss(log_p, labels),
        "entropy": -(log_p.exp() * log_p).sum(-1).mean(),
        "log p(label) of point 1": log_p[1, labels[1]],
        "norm of 0.weight": sample[0].weight.norm(),
        "norm of 2.weight": sample[2].weight.norm(),
        "mean of the last bias": sample[2].bias.mean(),
    }
    for name, value in expected.items():
        assert float(found.values[name][1, 3]) == pytest.approx(float(torch.as_tensor(value).detach()), rel=1e-5), name
    assert found.within == ("projection 0", "projection 1")
    assert set(found.values) == {*expected, "log p(label) of point 0", "projection 0", "projection 1"}


def test_renumbered_units_change_the_projections_and_nothing_else():
    """The reason for all this: two chains with the same functions and other numberings."""
    chain = [network() for _ in range(6)]
    mirrored = [permuted(model, [3, 5, 0, 1, 4, 2]) for model in chain]
    found = chain_quantities(chain[0], [chain, mirrored], batch())
    for name, values in found.values.items():
        same = torch.allclose(values[0], values[1], rtol=1e-4, atol=1e-6)
        assert same == (name not in found.within), name


def test_converged_chains_in_different_numberings_pass_and_single_weights_do_not():
    """Draws around one network, the second chain renumbered: R-hat of a weight is large, of functions 1."""
    center, order = network(), [3, 5, 0, 1, 4, 2]

    def chain(seed: int, renumber: bool) -> list[nn.Sequential]:
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(150):
            model = copy.deepcopy(center)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            drawn.append(permuted(model, order) if renumber else model)
        return drawn

    chains = [chain(seed, renumber=seed % 2 == 1) for seed in range(2)]
    single = torch.tensor([[float(m[0].weight[0, 0].detach()) for m in models] for models in chains])
    assert chain_diagnostics(single)["quantity 0"].rhat > 1.5
    found = chain_diagnostics(chain_quantities(center, chains, batch()))
    assert all(row.rhat < 1.05 for row in found.rows), str(found)
    assert {row.name for row in found.rows if row.within} == {"projection 0", "projection 1"}


def test_norms_that_a_constraint_holds_are_left_out():
    chains = [[network() for _ in range(4)] for _ in range(2)]
    with torch.no_grad():
        for model in (model for chain in chains for model in chain):
            model[0].weight.copy_(nn.functional.normalize(model[0].weight))
    found = chain_quantities(network(), chains, batch())
    assert "norm of 0.weight" not in found.values
    assert "norm of 2.weight" in found.values


def test_stores_of_unequal_length_are_cut_to_their_last_samples(tmp_path):
    stores = []
    for chain, length in enumerate((7, 5)):
        store = SampleStore(tmp_path / str(chain), chain=chain)
        for step in range(1, length + 1):
            store.offer(step, network())
        stores.append(store)
    model, data = network(), batch()
    before = copy.deepcopy(model.state_dict())
    found = chain_quantities(model, stores, data, norms=1, projections=0)
    assert found.values["loss"].shape == (2, 5)
    assert not found.within
    assert [name for name in found.values if name.startswith("norm")] == ["norm of 2.weight"]
    first = list(stores[0])[2].load()
    model.load_state_dict(first)
    expected = float(nn.functional.cross_entropy(model(data[0]), data[1]))
    assert float(found.values["loss"][0, 0]) == pytest.approx(expected, rel=1e-5)
    model.load_state_dict(before)
    again = chain_quantities(model, stores, data, norms=1, projections=0)
    assert all(torch.equal(values, again.values[name]) for name, values in found.values.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bad_chains_are_one_sentence(tmp_path):
    model, data = network(), batch()
    for chains, data_given, sentence in [
        ([], data, "chains is no list of chains"),
        ("folder", data, "chains is no list of chains"),
        (SampleStore(tmp_path), data, "chains is no list of chains; give one, even of a single SampleStore"),
        ([[]], data, "a chain has no samples"),
        ([[model], []], data, "a chain has no samples"),
        ([[nn.Linear(2, 2)]], data, "sample 0 belongs to another model"),
        ([[model]], data[0], "a batch is a Tensor; give pairs"),
        ([[model]], (data[0], torch.full((20,), -100)), "the batch holds no labelled point"),
    ]:
        with pytest.raises(SamplingError) as caught:
            chain_quantities(model, chains, data_given)
        assert sentence in str(caught.value)


def test_traces_are_drawn_of_the_ordinary_and_the_odd(tmp_path):
    found = chain_quantities(network(), [[network() for _ in range(5)] for _ in range(3)], batch())
    many = {"a name that is very long indeed, much longer than any axis title can be": noise(20, 40)}
    for number, values in enumerate((found, many, noise(1, 4), {"constant": torch.ones(2, 10)})):
        path = tmp_path / f"{number}.png"
        assert trace_plot(values, path, notes={"loss": "R-hat 1.00"}) == path
        assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SamplingError, match="at least 4 draws"):
        trace_plot(noise(2, 3), tmp_path / "x.png")
