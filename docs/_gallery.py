"""Writes the gallery of recipes from the recipes: `python docs/_gallery.py`.

docs/gallery.md shows every recipe that comes with weightspace. `tests/test_site.py` fails while page and recipes differ.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from weightspace.files import renew_text
from weightspace.training.recipe import Recipe, bundled_recipes, load_recipe
from weightspace.training.recipe_files import read_recipe

HERE = Path(__file__).parent
PAGE = HERE / "gallery.md"
REPORTS = "gallery/reports"
# Data that come with a package which the recipe needs anyway.
BUNDLED_DATA = {
    "digits": "scikit-learn's handwritten digits, 8×8; no download",
    "verses": "103 verses; come with weightspace",
}
DATA = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10", "bible-kjv": "King James Bible"}


@dataclass(frozen=True)
class Result:
    """What is known of a recipe.

    Attributes:
        page: The page of its results, relative to docs/.
        picture: A plot of them.
        shows: What the plot shows.
    """

    page: str
    picture: str
    shows: str


def _plot(page: str, picture: str, shows: str) -> Result:
    return Result(f"results/{page}.md", f"results/{page}/{picture}", shows)


_DIFFERENCES = "differences to the baseline with 95 % intervals"
_LEVELS = "accuracy against the strength of the penalty, by gate"
RESULTS = {
    "quickstart": Result("start.md", "gallery/quickstart.png", _DIFFERENCES),
    "quickstart-sample": Result("sampling/command.md", "gallery/quickstart-sample.png", "what averaging gains"),
    "fashion-mnist-vgg": _plot("channel-directed", "fashion-mnist-vgg/differences.png", _DIFFERENCES),
    "fashion-mnist-resnet": _plot("channel-directed", "fashion-mnist-resnet/differences.png", _DIFFERENCES),
    "cifar10-vgg": _plot("channel-directed", "cifar10-vgg/differences.png", _DIFFERENCES),
    "cifar10-resnet": _plot("channel-directed", "cifar10-resnet/differences.png", _DIFFERENCES),
    "deep-plain": _plot("deep-plain", "deep-plain/differences.png", _DIFFERENCES),
    "fashion-mnist-penalties": _plot(
        "singular-value-penalties", "fashion-mnist-penalties/differences.png", _DIFFERENCES
    ),
    "cifar10-penalties": _plot("singular-value-penalties", "cifar10-penalties/differences.png", _DIFFERENCES),
    "fashion-mnist-gates-vgg": _plot("gated-penalties", "fashion-mnist-vgg/tolerance.png", _LEVELS),
    "fashion-mnist-gates-alexnet": _plot("gated-penalties", "fashion-mnist-alexnet/tolerance.png", _LEVELS),
    "cifar10-gates-vgg": _plot("gated-penalties", "cifar10-vgg/tolerance.png", _LEVELS),
    "fashion-mnist-submanifolds": _plot("submanifolds", "fashion-mnist-submanifolds/differences.png", _DIFFERENCES),
    "fashion-mnist-submanifolds-nonorm": _plot(
        "submanifolds", "fashion-mnist-submanifolds-nonorm/differences.png", _DIFFERENCES
    ),
    "cifar10-submanifolds": _plot("submanifolds", "cifar10-submanifolds/differences.png", _DIFFERENCES),
    "cifar10-submanifolds-nonorm": _plot("submanifolds", "cifar10-submanifolds-nonorm/differences.png", _DIFFERENCES),
    "fashion-mnist-cola": _plot("cola-fashion-mnist", "fashion-mnist-cola/differences.png", _DIFFERENCES),
    "fashion-mnist-combinations": _plot("combinations", "combinations.png", "every combination minus plain SGD"),
    "cifar10-cola": _plot("cola-resnet", "cifar10-cola/differences.png", _DIFFERENCES),
    "kjv-transformer": _plot("cola-transformer", "kjv-transformer/differences.png", _DIFFERENCES),
}
# Sections of the page; a recipe belongs to the first whose words its name holds.
SECTIONS = {
    "First looks": ("quickstart", "verses", "mnist-mlp"),
    "Gates and strong penalties": ("-gates-",),
    "Penalties on singular values": ("-penalties", "deep-plain"),
    "Manifolds": ("-submanifolds",),
    "Constrained Langevin dynamics": ("-cola", "kjv-"),
    "All methods together": ("-combinations",),
    "Certified": ("certified", "lipschitz"),
    "Channel-directed gradients": ("-vgg", "-resnet"),
    "Others": (),
}
LAST_SECTION = "Others"
INTRODUCTION = """# Gallery of recipes

Every recipe that comes with weightspace, made from the recipes by `docs/_gallery.py`. A recipe is one YAML file: `weightspace show NAME` prints it with all defaults, [recipes](recipes.md) explains the keys, `--set KEY=VALUE` changes any of them.

Names with `-full` are the same at full size, meant for an accelerator; where no result stands beside them, none was run. CIFAR-10 is read from a folder of yours; what we measured is from CIFAR-10 (JPEG), a re-encoding whose numbers must not be compared with published ones. A report is one HTML file: the one that `weightspace report` writes for a finished run, made on an AMD EPYC with 2 cores, torch 2.13.0+cpu (folders' names shortened).
"""


def section_of(name: str) -> str:
    """The section that a recipe belongs to: the first that knows a word of its name, else the last."""
    return next((section for section, words in SECTIONS.items() if any(word in name for word in words)), LAST_SECTION)


def command_of(recipe: Recipe) -> str:
    """The command that runs a recipe."""
    if recipe.compare is not None:
        word = "compare"
    elif recipe.sweep is not None:
        word = "tolerance"
    else:
        word = "sample" if recipe.sample is not None else "train"
    folder = " --set data.root=FOLDER" if recipe.data.name == "cifar10" else ""
    return f"weightspace {word} {recipe.name}{folder}"


def _data(recipe: Recipe) -> str:
    data = recipe.data
    name = BUNDLED_DATA.get(data.name) or DATA.get(data.name, data.name)
    unit = "tokens" if data.level is not None else "images"
    size = f", {data.train_size:,} {unit} to train on" if data.train_size is not None else ""
    return f"{name}{size} ([data sets](data.md))"


def _what(recipe: Recipe) -> str:
    train = recipe.train
    steps = f"{train.epochs} epochs, batches of {train.batch_size}"
    if recipe.compare is not None:
        arms = recipe.compare.arms
        return f"{len(arms)} arms, {recipe.compare.seeds} seeds each, {steps}: {', '.join(arms)}"
    if recipe.sweep is not None:
        return f"a sweep of strengths under {len(recipe.sweep.gates)} gates, {steps}"
    rules = ", ".join(str(rule.get("rule")) for rule in recipe.rules) if recipe.rules else "no rules"
    return (
        f"one run of {train.optimizer.name}, {rules}, {steps}"
        if recipe.sample is None
        else f"chains of {train.optimizer.name}, {steps}"
    )


def entry(name: str, names: tuple[str, ...]) -> str:
    """The Markdown of one recipe.

    Args:
        name: The recipe.
        names: All recipes: is there one at full size?
    """
    recipe = load_recipe(name)
    rows = [
        ("data", _data(recipe)),
        ("network", f"`{recipe.model.name}` ([models](models.md))"),
        ("what runs", _what(recipe)),
    ]
    if f"{name}-full" in names:
        rows.append(("full size", f"`{name}-full`: {read_recipe(f'{name}-full')[0]['description']}"))
    result = RESULTS.get(name)
    links = [f"[results]({result.page})"] if result else []
    if (HERE / REPORTS / f"{name}.html").exists():
        links.append(f'<a href="{REPORTS}/{name}.html">report</a>')
    if links:
        rows.append(("what came out", ", ".join(links)))
    table = "\n".join(
        ["| | |", "|---|---|", *(f"| {left} | {right.replace('|', chr(92) + '|')} |" for left, right in rows)]
    )
    sentence = recipe.description[0].upper() + recipe.description[1:]
    parts = [f"### {name}", f"{sentence}.", f"```bash\n{command_of(recipe)}\n```", table]
    if result:
        parts.append(f"![{name}: {result.shows}]({result.picture})")
    return "\n\n".join(parts) + "\n"


def render() -> str:
    """The whole page."""
    names = tuple(sorted(bundled_recipes()))
    short = [name for name in names if not (name.endswith("-full") and name.removesuffix("-full") in names)]
    parts = [INTRODUCTION]
    for section in SECTIONS:
        found = [name for name in short if section_of(name) == section]
        parts += [f"## {section}\n", *(entry(name, names) for name in found)] if found else []
    return "\n".join(parts)


def main() -> int:
    """Writes the page if it is out of date; the exit code is 0."""
    if renew_text(PAGE, render()):
        print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
