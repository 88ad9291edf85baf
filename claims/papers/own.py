"""What this project claims of itself: exact spectra, any optimizer, many processes, resume, files from strangers, speed."""

from __future__ import annotations

from typing import Any

from claims.intervals import Interval, exact, geometric, share
from claims.model import Claim, Measure, Number, Paper
from claims.sources import largest
from claims.verdicts import at_least, at_most

PAPER = Paper(
    "weightspace",
    "weightspace: what this project claims of itself",
    "the weightspace developers",
    "",
    "Not a paper's claims but ours. The tables behind most of them are in [reliability](reliability.md).",
)
_LARGEST = "as the largest over all cases, an exact number"


def _reliability(column: str) -> str:
    return f"reliability/{column}.json"


def _details(found: Any) -> list[dict[str, Any]]:
    return [finding["details"] for finding in found["findings"] if finding["method"] != "all"]


def ddp_differences(found: Any) -> list[float]:
    """Largest difference of a weight to one process, by case and number of processes."""
    cases = [case for details in _details(found) for case in details["differences"].values()]
    return [float(sizes["weights"]) for case in cases for sizes in case.values()]


def fsdp2_differences(precision: str) -> Measure:
    """Largest difference of a weight to one process, over cases and numbers of ranks."""

    def find(found: Any) -> list[float]:
        cases = [case for details in _details(found) for case in details["largest differences"].values()]
        return [float(value) for case in cases for name, value in case.items() if name.endswith(precision)]

    return largest(find)


def trials(found: Any) -> list[dict[str, Any]]:
    """Trainings that were killed again and again."""
    return [trial for details in _details(found) for trial in details["trials"]]


def _differing(found: Any, level: float) -> Interval:
    """Share of killed runs that ended with another bit."""
    return share(sum(len(t["different"]) for t in trials(found)), sum(t["runs"] for t in trials(found)), level)


def _kills(found: Any, level: float) -> Interval:
    faults = next(f for f in found["findings"] if f["method"] == "all")["details"]["kills by scenario"]
    return exact(sum(t["kills"] for t in trials(found)) + sum(faults.values()), len(trials(found)) + len(faults))


def _crashes(found: Any, level: float) -> Interval:
    total = next(f["details"] for f in found["findings"] if f["details"]["target"] == "all targets")
    return share(total["crashes"], total["tried"], level)


def _broken(found: Any, level: float) -> Interval:
    """Cases that fail under a column's conditions, counted."""
    return exact(sum(len(details["broken"]) for details in _details(found)), len(_details(found)))


def _late(method: str) -> Measure:
    """Cases of a method whose compiled step fails the column's conditions, counted."""

    def measure(found: Any, level: float) -> Interval:
        details = next(f["details"] for f in found["findings"] if f["method"] == method)
        return exact(len(details["broken"]), sum(part["cases"] for part in details.values() if "cases" in part))

    return measure


def _with_status(status: str) -> Measure:
    """Combinations of a rule and an optimizer that ended so, counted."""
    return lambda found, level: exact(sum(c["status"] == status for c in found["cases"]), len(found["cases"]))


def standing(contest: Any) -> str:
    """First, level or behind, by the quartiles of peer's time over ours; alone counts as first, no answer as behind.

    >>> [standing({"ours": "x", "ratio": r}) for r in ([1.1, 1.3, 1.5], [0.9, 1.0, 1.1], [0.5, 0.6, 0.7], None)]
    ['first', 'level', 'behind', 'first']
    """
    ratio = contest["ratio"]
    if contest["ours"] is None:
        return "behind"
    if ratio is None:
        return "first"
    return "first" if ratio[0] > 1 else "behind" if ratio[2] < 1 else "level"


def _contests(which: str) -> Measure:
    """Contests that stand so, counted."""

    def measure(found: Any, level: float) -> Interval:
        contests = found["contests"].values()
        return exact(sum(standing(contest) == which for contest in contests), len(contests))

    return measure


def _speed(found: Any, level: float) -> Interval:
    """Geometric mean of the medians of peer's time over ours."""
    ratios = [contest["ratio"] for contest in found["contests"].values()]
    return geometric([float(ratio[1]) for ratio in ratios if ratio is not None], level)


CONTESTS = "benchmarks/contests.json"
METHODS = ("singular values", "channel gradients", "gated penalties", "submanifolds", "constrained Langevin")
CLAIMS = (
    Claim(
        "own-any-rule",
        PAPER,
        "Any rule works on any optimizer of torch, or is refused with a sentence that says why.",
        "every rule of the registry (ten kinds of metrics and manifolds, all penalties) on every optimizer of torch.optim: five steps, then what the rule declares is measured",
        "a combination that crashes, or that breaks what it declares",
        "Small network, float64; the mathematics of each rule is tested apart.",
        (
            Number("combinations that crash or break their constraint", "claims/any-rule.json", "by counting", _with_status("broken"), at_most(0), ".0f"),
            Number("combinations that work", "claims/any-rule.json", "by counting", _with_status("works"), None, ".0f"),
            Number("combinations refused with a sentence", "claims/any-rule.json", "by counting", _with_status("refused"), None, ".0f"),
        ),
        "attach.md",
        is_papers=False,
        unit_of_n="combinations",
        runs=("any-rule",),
    ),
    Claim(
        "own-spectra",
        PAPER,
        "All singular values of a convolution are exact, whatever its padding, stride, dilation, groups and number of dimensions.",
        "layers of every combination that torch accepts at this size, in one to three dimensions: against LAPACK on the matrix that torch's own layer gives for unit vectors",
        "a number of values or a value that is wrong by more than rounding",
        "Layers whose windows overlap and are not circular take the dense matrix here too, which limits their size; large ones have bounds and moments instead.",
        (
            Number("largest relative error", "claims/exact-spectra.json", _LARGEST, largest(lambda f: [c["relative_error"] for c in f["cases"]]), at_most(1e-10), ".0e"),
            Number("layers with the right number of values, share", "claims/exact-spectra.json", "by counting", lambda f, level: exact(sum(c["found"] == c["values"] for c in f["cases"]) / len(f["cases"]), len(f["cases"])), at_least(1), ".2f"),
            Number("largest ratio of the true norm to the norm of the flattened kernel", "claims/exact-spectra.json", _LARGEST, largest(lambda f: [c["norm_over_flattened_norm"] for c in f["cases"]]), None, ".1f"),
        ),
        "operators/singular-values.md",
        is_papers=False,
        unit_of_n="layers",
        runs=("exact-spectra",),
    ),
    Claim(
        "own-speed",
        PAPER,
        "No peer is faster at anything that both do.",
        "contests on one machine: the same kernels, the same threads, turns taken one after the other, against every peer installed from the registry and against plain torch; the quartiles of peer's time over ours. First: even the lower quartile is above 1; behind: even the upper one is below 1",
        "a contest in which we are behind",
        "One machine; the file keeps quartiles of the turns, not single turns. What a benchmark's page explains as a floor still counts as behind here.",
        (
            Number("contests in which a peer is faster", CONTESTS, "from the quartiles of the turns, by counting", _contests("behind"), at_most(0), ".0f"),
            Number("contests in which we are first, or alone", CONTESTS, "from the quartiles of the turns, by counting", _contests("first"), None, ".0f"),
            Number("contests that are level", CONTESTS, "from the quartiles of the turns, by counting", _contests("level"), None, ".0f"),
            Number("peer's time over ours, geometric mean over contests", CONTESTS, "as geometric mean of the medians, with Student's interval of the logarithms", _speed, None, ".1f"),
        ),
        "benchmarks.md",
        is_papers=False,
        unit_of_n="contests",
        runs=("contests",),
    ),
    Claim(
        "own-ddp",
        PAPER,
        "Training on several processes (DDP) equals training in one, for every rule.",
        "every rule and optimizer of the library, 12 steps on 2 and 4 processes, float64, against one process with the joined batch",
        "a weight that differs by more than 1e-10",
        "CPU (gloo), one machine; NCCL and accelerators were not tried.",
        (Number("largest difference of a weight, float64", _reliability("ddp"), _LARGEST, largest(ddp_differences), at_most(1e-10), ".0e"),),
        "reliability.md",
        is_papers=False,
        unit_of_n="cases x numbers of processes",
        runs=("reliability-ddp",),
    ),
    Claim(
        "own-fsdp2",
        PAPER,
        "Training with sharded weights (FSDP2) equals training in one process, for every rule.",
        "every rule that acts on sharded weights, on 2 and 4 ranks, against one process",
        "a weight that differs by more than 1e-10 in float64 or 1e-5 in float32",
        "CPU (gloo), one machine.",
        (
            Number("largest difference of a weight, float64", _reliability("fsdp2"), _LARGEST, fsdp2_differences("float64"), at_most(1e-10), ".0e"),
            Number("largest difference of a weight, float32", _reliability("fsdp2"), _LARGEST, fsdp2_differences("float32"), at_most(1e-5), ".0e"),
        ),
        "reliability.md",
        is_papers=False,
        unit_of_n="cases x numbers of ranks",
        runs=("reliability-fsdp2",),
    ),
    Claim(
        "own-resume",
        PAPER,
        "A killed training goes on and ends as if it had not been killed, bit for bit.",
        "trainings of all five methods and sampled chains, killed with `kill -9` at random moments and at every file operation, then resumed until done: weights and records against an undisturbed run",
        "a bit that differs",
        "One machine and file system. n counts trainings that were compared; a run of no failures still leaves room for rare ones, which is what the interval says.",
        (
            Number("runs that ended with another bit, share", _reliability("resume"), "by counting, with Clopper and Pearson's interval", _differing, at_most(0.1), ".3f"),
            Number("kills in all", _reliability("resume"), "by counting", _kills, None, ".0f"),
        ),
        "reliability.md",
        is_papers=False,
        unit_of_n="killed runs",
        runs=("reliability-resume",),
    ),
    Claim(
        "own-precision",
        PAPER,
        "Every rule works in 16 bits and with autocast.",
        "every case with bfloat16 and float16 autocast, 16-bit weights, channels_last, accumulation, clipping before and after: constraints and skipped steps",
        "a case that breaks its bound",
        "CPU.",
        (Number("cases that break a bound", _reliability("precision"), "by counting", _broken, at_most(0), ".0f"),),
        "precision.md",
        is_papers=False,
        unit_of_n="methods",
        runs=("reliability-precision",),
    ),
    Claim(
        "own-compile",
        PAPER,
        "Every rule's step works under torch.compile without compiling again and again.",
        "20 compiled steps of every case: compilations after the third step, and errors against the plain step",
        "a case that compiles later than the third step",
        "torch 2.13 on a CPU. A gate that opens and closes makes torch compile a second graph later; results stay right.",
        tuple(Number(f"{method}: cases that compile late", _reliability("compilation"), "by counting", _late(method), at_most(0), ".0f") for method in METHODS),
        "precision.md",
        is_papers=False,
        unit_of_n="cases",
        runs=("reliability-compilation",),
    ),
    Claim(
        "own-hostile",
        PAPER,
        "Damaged or hostile recipes, checkpoints, data and command lines end in a sentence, never in a crash.",
        "29,200 mutated inputs of 17 kinds, counted after the defects that they found were repaired",
        "a crash",
        "Seeds that found defects are in the count, after repair; two kinds were tried on as many fresh seeds, again without a crash.",
        (Number("inputs that crash, share", _reliability("hostile"), "by counting, with Clopper and Pearson's interval", _crashes, at_most(0.001), ".5f"),),
        "security.md",
        is_papers=False,
        unit_of_n="inputs",
        runs=("reliability-hostile",),
    ),
)  # fmt: skip
