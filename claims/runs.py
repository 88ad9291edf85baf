"""Every command that makes raw values of the claims page, with what it costs.

Costs are those of the results pages: two cores of an AMD EPYC, torch 2.13.0+cpu. Where the machine did other work too,
only the number of runs is known.
"""

from __future__ import annotations

from claims.model import Run

CIFAR = "train.parquet and test.parquet of CIFAR-10 (JPEG), see docs/data.md"
FASHION = "Fashion-MNIST, see docs/data.md"
BIBLE = "the King James Bible, see docs/data.md#text"
_SMALL = ("--set", "data.train_size=500", "--set", "data.test_size=500", "--set", "train.epochs=2")
_FEW = ("--set", "compare.seeds=2", "--set", "compare.tune.seeds=1")
# Comparisons that draw their trials at random; the others try a grid.
_DRAWN = ("penalties", "submanifolds", "cola", "kjv")


def short(name: str, seconds: float, what: str) -> Run:
    """A measurement of `claims.measurements`, part of `--rerun cheap`."""
    return Run(
        name,
        ("claims.measurements", name, "--out", "{out}"),
        {f"claims/{name}.json": f"{name}.json"},
        seconds / 60,
        what,
        quick=("--quick",),
    )


def comparison(
    recipe: str, folder: str, minutes: float | None, cost: str, *settings: str, name: str = "", losses: bool = False
) -> Run:
    """A `weightspace compare`, whose table.json stands in docs/results/FOLDER/NAME."""
    name, is_cifar = name or recipe, recipe.startswith("cifar10")
    root = ("--set", "data.root={root}") if is_cifar else ()
    produces = {f"results/{folder}/{name}/table.json": "table.json"}
    if losses:
        produces[f"results/{folder}/losses.json"] = "losses.json"
    is_tuned = "compare.tune=null" not in settings
    drawn = ("--set", "compare.tune.random.trials=2") if any(word in recipe for word in _DRAWN) else ()
    few = (*_FEW, *drawn) if is_tuned else ("--set", "compare.seeds=2")
    small = tuple(word.replace("=500", "=20000") for word in _SMALL) if recipe.startswith("kjv") else _SMALL
    return Run(
        name,
        ("weightspace", "compare", recipe, "--out", "{out}", *root, *settings),
        produces,
        minutes,
        cost,
        quick=(*few, *small),
        needs=CIFAR if is_cifar else BIBLE if recipe.startswith("kjv") else FASHION,
        then=("claims.losses", "{out}") if losses else (),
    )


def arms(text: str) -> tuple[str, ...]:
    """Arms of a comparison that is not tuned again."""
    return ("--set", "compare.tune=null", "--set", f"compare.arms={text}")


def sweep(recipe: str, folder: str, *options: str) -> Run:
    """A `weightspace tolerance`."""
    root = ("--set", "data.root={root}") if recipe.startswith("cifar10") else ()
    return Run(
        f"tolerance-{folder}",
        ("weightspace", "tolerance", recipe, "--out", "{out}", *root, *options),
        {f"results/gated-penalties/{folder}/tolerance.json": "tolerance.json"},
        None,
        "strengths x gates x seeds",
        quick=("--seeds", "1", *_SMALL),
        needs=CIFAR if root else FASHION,
    )


_STIEFEL = "rules: [{rule: Stiefel, grouping: matrix}]"
_BOTH = "{{SGD: {{set: {{train.optimizer.lr: {0}, train.optimizer.options.weight_decay: {1}}}}}, Stiefel: {{set: {{train.optimizer.lr: {2}, train.optimizer.manifold_lr_factor: {3}}}, rules: [{{rule: Stiefel, grouping: matrix}}]}}}}"
_FIFTEEN = ("--set", "compare.seeds=15")
_COLA_SEEDS = (
    "{SGD: {set: {train.optimizer: {name: SubmanifoldSGD, lr: 0.1093, options: {momentum: 0.9, weight_decay: 0.0005027}}, train.schedule.warmup_epochs: 0.806}}, "
    "'o-CoLA-ud, temperature 0': {set: {train.optimizer.lr: 0.04514, train.optimizer.manifold_lr_factor: 5.451, train.schedule.warmup_epochs: 0.358}, "
    "rules: [{rule: Stiefel, grouping: matrix, on: \"convs & ~name('conv1')\"}]}}"
)
_VGG_L2 = (
    "--rule", "L2", "--strengths", "0.016:0.256", "--set", "sweep.gates.cautious={rule: CautiousWeightDecay, strengths: [0.16, 2.56]}",
    "--gates", "always,delayed quarter,delayed half,coherent-total,coherent-history,coherent-previous,random as total,random as history by layer,cautious",
)  # fmt: skip
_SEEDS = ("--strengths", "0.016:0.032", "--seeds", "10", "--gates", "always,delayed half,coherent-total,coherent-history,random as total,random as history by layer")  # fmt: skip


def reliability(column: str, cost: str) -> Run:
    """A column of docs/reliability.md."""
    return Run(
        f"reliability-{column}",
        ("claims.columns", column, "--out", "{out}"),
        {f"reliability/{column}.json": f"{column}.json"},
        None,
        cost,
        quick=("--quick",),
    )


_ALL = (
    short("toeplitz", 1, "10 small layers against their matrices"),
    short("exact-spectra", 1, "80 small layers against LAPACK"),
    short("penalty-gradients", 1, "6 penalties x 5 kernels against central differences"),
    short("gain-sweep", 80, "4 gains x 7 seeds x 2 learning rates, a plain net of 16 layers on digits"),
    short("channel-metric", 2, "2 metrics x 10 gradients against a dense system"),
    short("linear-cost", 7, "2 metrics x 5 sizes x 7 repetitions"),
    short("any-optimizer", 2, "every optimizer of torch x 3 seeds"),
    short("any-rule", 20, "every rule x every optimizer of torch"),
    short("collapse-and-rescue", 80, "5 arms x 5 seeds, a plain net of 10 layers on digits"),
    short("sparse-storage", 1, "5 files"),
    short("on-manifold", 10, "4 manifolds x 2 updates x 3 seeds, 100 steps"),
    short("products", 12, "3 ways to share a layer out x 5 seeds, 100 steps"),
    short("known-optima", 40, "6 problems x 2 updates x 10 instances, 1,000 steps"),
    short("known-laws", 12, "4 laws x 2 dynamics, 3,000 to 10,000 chains each"),
    short("unchanged-networks", 2, "3 constraints x 3 networks"),
    Run("kernel-only", ("experiments.kernel_only", "--out", "{out}"), {"results/kernel-only/results.json": "results.json"}, 15, "7 layers x up to 18 arms x 5 seeds", ("--quick",)),
    Run(
        "deep-plain", ("weightspace", "compare", "deep-plain", "--out", "{out}"),
        {"results/deep-plain/deep-plain/table.json": "table.json", "results/deep-plain/depth/depth.json": "depth/depth.json"},
        20, "135 runs, and 45 more that are measured layer by layer", (*_FEW, "--set", "compare.tune.random.trials=2", *_SMALL), FASHION,
        then=("experiments.deep_plain", "{out}", "--out", "{out}/depth"),
    ),
    comparison("fashion-mnist-penalties", "singular-value-penalties", None, "143 runs"),
    comparison("cifar10-penalties", "singular-value-penalties", None, "143 runs"),
    comparison("fashion-mnist-vgg", "channel-directed", 20, "104 runs"),
    comparison("cifar10-vgg", "channel-directed", 20, "104 runs"),
    comparison("fashion-mnist-resnet", "channel-directed", 42, "192 runs"),
    comparison("cifar10-resnet", "channel-directed", 56, "192 runs"),
    sweep("fashion-mnist-gates-vgg", "fashion-mnist-vgg"),
    sweep("fashion-mnist-gates-alexnet", "fashion-mnist-alexnet"),
    sweep("cifar10-gates-vgg", "cifar10-vgg"),
    sweep("fashion-mnist-gates-vgg", "fashion-mnist-vgg-L2", *_VGG_L2),
    sweep("fashion-mnist-gates-vgg", "fashion-mnist-vgg-seeds", *_SEEDS),
    Run(
        "gated-compression", ("experiments.gated_compression", "vgg", "fashion-mnist", "--out", "{out}"),
        {"results/gated-penalties/compression-vgg/results.json": "results.json"}, None, "42 trials and 35 final runs of 11 epochs", ("--quick",), FASHION,
    ),
    Run("manifold-problems", ("experiments.manifold_problems", "--out", "{out}"), {"results/manifold-problems/results.json": "results.json"}, 6, "6 problems, 13 ways to step, 17 learning rates", ("--quick",)),
    comparison("fashion-mnist-submanifolds", "submanifolds", None, "55 runs"),
    comparison("fashion-mnist-submanifolds-nonorm", "submanifolds", None, "55 runs"),
    comparison("cifar10-submanifolds", "submanifolds", None, "55 runs"),
    comparison("cifar10-submanifolds-nonorm", "submanifolds", None, "55 runs"),
    comparison("fashion-mnist-submanifolds", "submanifolds", None, "30 runs", *_FIFTEEN, *arms(_BOTH.format("0.2137", "0.0005306", "0.1128", "3.316")), name="fashion-mnist-submanifolds-seeds"),
    comparison("fashion-mnist-submanifolds-nonorm", "submanifolds", None, "30 runs", *_FIFTEEN, *arms(_BOTH.format("0.2673", "0.0001769", "0.2137", "2.462")), name="fashion-mnist-submanifolds-nonorm-seeds"),
    comparison("cifar10-submanifolds", "submanifolds", None, "30 runs", *_FIFTEEN, *arms(_BOTH.format("0.2137", "0.0005306", "0.2673", "1.584")), name="cifar10-submanifolds-seeds"),
    Run("langevin-laws", ("experiments.langevin_laws", "--out", "{out}"), {"results/langevin-laws/results.json": "results.json"}, 4, "13 laws x 4 schemes x 4 time steps", ("--quick",)),
    Run("spirals", ("experiments.spirals", "--out", "{out}"), {"results/spirals/results.json": "results.json"}, 30, "60 trials of 5 seeds, 5 final runs of 12 seeds, 10,000 steps each", ("--quick",)),
    comparison("fashion-mnist-cola", "cola-fashion-mnist", None, "55 runs", losses=True),
    comparison("cifar10-cola", "cola-resnet", None, "60 runs"),
    comparison("cifar10-cola", "cola-resnet", None, "20 runs", "--set", "compare.seeds=10", *arms(_COLA_SEEDS), name="cifar10-cola-seeds"),
    comparison("kjv-transformer", "cola-transformer", None, "45 runs"),
    Run("uncertainty", ("experiments.uncertainty", "--out", "{out}"), {"results/uncertainty/results.json": "results.json"}, None, "14 ensembles x 5 repetitions, 32 trials", ("--quick",), FASHION),
    Run("combinations", ("experiments.combinations", "--runs", "{out}/runs", "--out", "{out}"), {"results/combinations/results.json": "results.json"}, None, "30 arms", ("--set", "compare.seeds=2", *_SMALL), FASHION),
    Run("contests", ("benchmarks",), {}, None, "every contest", ("--quick",), 'the peers: pip install -c constraints.txt ".[bench]"'),
    reliability("ddp", "every case on 2 and 4 processes"),
    reliability("fsdp2", "every case sharded on 2 and 4 ranks"),
    reliability("resume", "some 500 kills"),
    reliability("elastic", "15 kills under torchrun"),
    reliability("precision", "every case in 16 bits"),
    reliability("compilation", "every case under torch.compile"),
    reliability("hostile", "29,200 inputs"),
)  # fmt: skip

RUNS: dict[str, Run] = {run.name: run for run in _ALL}


def cheap_runs() -> list[Run]:
    """Those of `claims.measurements`."""
    return [run for run in RUNS.values() if run.arguments[0] == "claims.measurements"]


def duration(run: Run) -> str:
    """What it takes, in words."""
    if run.minutes is None:
        return "time not recorded"
    return (
        f"about {run.minutes:.0f} minutes on two cores"
        if run.minutes >= 2
        else f"about {60 * run.minutes:.0f} s of one core"
    )
