"""A few seconds of real work with known answers: does the library compute what it says on this machine?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch

from weightspace.doctor.finding import Finding

_REPORT = "please report this, with the output of `weightspace doctor --json`"
SLOWER = 3.0  # times, from which on threads are said to be in each other's way
_BATCH, _SIDE, _REPEATS = 256, 16, 5


def self_tests() -> Iterator[Finding]:
    """Every test as a finding; one that raises is a problem and does not stop the others."""
    yield attempt("test: a step on Stiefel", stiefel_step)
    yield attempt("test: singular values", known_singular_values)
    if find_spec("safetensors") is not None:
        yield attempt("test: checkpoint bytes", safetensors_round_trip)
    if all(find_spec(name) is not None for name in ("pydantic", "yaml", "numpy")):
        yield attempt("test: recipes", recipes_load)
    yield attempt("test: threads in LAPACK", batched_lapack)


def attempt(name: str, test: Callable[[], Finding | str]) -> Finding:
    """The test's finding; a text means that all is well; whatever it raises becomes a problem."""
    try:
        answer = test()
    except Exception as error:  # noqa: BLE001  # the point is to tell of whatever is wrong here
        return Finding(name, "problem", f"{type(error).__name__}: {' '.join(str(error).split())}", _REPORT)
    return answer if isinstance(answer, Finding) else Finding(name, "ok", answer)


def stiefel_step() -> str:
    """Three steps of SGD on a Stiefel manifold, verified."""
    import weightspace as ws

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 8, 3)
        groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.Stiefel()})
        optimizer = ws.optim.SubmanifoldSGD(groups, lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6)).square().mean().backward()
            optimizer.step()
    (check,) = optimizer.verify()
    return f"orthonormal up to {check.error:.0e}"


def known_singular_values() -> str | Finding:
    """A 1x1 kernel acts on every pixel alike: its map has the singular values of its matrix, 3 and 2."""
    import weightspace as ws

    name = "test: singular values"
    layer = torch.nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -3.0], [2.0, 0.0]]).reshape(2, 2, 1, 1))
    found = ws.singular_values(layer, (4, 4))
    wanted = torch.tensor([3.0] * 16 + [2.0] * 16)
    error = float((found.cpu() - wanted).abs().max())
    if error > 1e-5:
        return Finding(name, "problem", f"those of a known kernel are off by {error:.1e}", _REPORT)
    return f"those of a known kernel, up to {error:.0e}"


def safetensors_round_trip() -> str | Finding:
    """Weights written and read back are the same bits."""
    from safetensors.torch import load, save

    weight = torch.linspace(-1, 1, 12).reshape(3, 4)
    if not torch.equal(load(save({"weight": weight}))["weight"], weight):
        return Finding("test: checkpoint bytes", "problem", "weights come back changed", _REPORT)
    return "weights come back bit for bit"


def recipes_load() -> str:
    """The bundled recipes are there and are read."""
    from weightspace.training.recipe import bundled_recipes, load_recipe

    load_recipe("quickstart")
    return f"{len(bundled_recipes())} come along"


def batched_lapack() -> str | Finding:
    """Whether many small decompositions are slower with all threads than with one, as with MKL they can be."""
    threads = torch.get_num_threads()
    if threads == 1:
        return "torch has one thread: nothing in each other's way"
    matrices = torch.linspace(0, 1, _BATCH * _SIDE * _SIDE).sin().reshape(_BATCH, _SIDE, _SIDE)
    together = _fastest(matrices)
    try:
        torch.set_num_threads(1)
        alone = _fastest(matrices)
    finally:
        torch.set_num_threads(threads)
    ratio = together / alone
    if ratio < SLOWER:
        return f"{_BATCH} small decompositions take {ratio:.1f} times as long with {threads} threads as with one"
    found = f"{_BATCH} small decompositions take {ratio:.0f} times as long with {threads} threads as with one"
    cure = "weightspace avoids it; around torch.linalg calls of your own: torch.set_num_threads(1)"
    return Finding("test: threads in LAPACK", "note", found, cure)


def _fastest(matrices: torch.Tensor) -> float:
    """Seconds of the fastest of some repeats: what else runs on the machine only ever adds."""
    times: list[float] = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.linalg.svdvals(matrices)
        times.append(time.perf_counter() - start)
    return min(times)
