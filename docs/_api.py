"""Writes the API reference's pages from the modules: `python docs/_api.py`.

docs/api/index.md lists every public name with its first sentence; docs/api/MODULE.rst tells Sphinx to set the module's
docstrings. `tests/test_site.py` fails while pages and modules differ.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from weightspace.files import renew_text

FOLDER = Path(__file__).with_name("api")
MODULES = (
    "on",
    "metrics",
    "manifolds",
    "penalties",
    "gates",
    "optim",
    "compress",
    "sampling",
    "inspection",
    "operators",
    "registry",
    "kernels",
    "errors",
)
# What needs another trainer: their modules are imported only where that trainer is.
INTEGRATIONS = {
    "integrations.lightning": "`RulesCallback` for Lightning's `Trainer`",
    "integrations.huggingface": "`RulesCallback` for Hugging Face's `Trainer`",
}
# What a constant or a type alias is: they have no docstring.
CONSTANTS = {
    "on.biases": "Biases of all layers, normalization included.",
    "on.convs": "Weights of convolutions, transposed and grouped ones included.",
    "on.dense_convs": "Weights of convolutions with `groups == 1`.",
    "on.embeddings": "Weights of embeddings.",
    "on.everything": "Every parameter.",
    "on.grouped_convs": "Weights of convolutions with more than one group.",
    "on.head": "The weight of the last convolution or linear layer in registration order.",
    "on.linears": "Weights of `nn.Linear`.",
    "on.norms": "Weights and biases of normalization layers.",
    "penalties.SPECTRAL_TERMS": "The penalties on singular values by name.",
    "gates.SCOPES": "Values of `scope=`: `layer`, `global`.",
    "gates.Scope": "The type of `scope=`.",
    "gates.Against": "The type of `Coherent(against=)`: `total`, `history`, `previous`, `lookahead`.",
    "gates.LooksAt": "What a gate compares the gradient with, `nothing` included.",
    "optim.LANGEVIN_PRESETS": "Settings of the method's authors by name, for `langevin_preset`.",
    "inspection.DETAILS": "Values of `detail=`: `moments`, `extremes`, `spectra`, `exact`.",
    "inspection.Detail": "The type of `detail=`.",
    "operators.PADDING_MODES": "Values of `padding_mode=`: `zeros`, `circular`, `reflect`, `replicate`.",
    "operators.PaddingMode": "The type of `padding_mode=`.",
    "registry.GATES": "One `GateEntry` for each gate, by name.",
    "registry.REGISTRY": "One `RuleEntry` for each rule, by name.",
    "kernels.GROUPINGS": "Values of a manifold's `grouping=`.",
    "kernels.Grouping": "The type of `grouping=`.",
    "kernels.VIEWS": "The ways to see a weight as `(batch, length, inner)`, by name.",
    "kernels.ViewName": "The type of a view's name.",
}
# Names that a module gives on, and the module that documents them.
GIVEN_ON = {"on.Selection": "kernels"}
INTRODUCTION = """# API reference

Made from the docstrings by `docs/_api.py`. Every name below is public; a module or name that begins with an underscore is not, and may change without a word.
With `import weightspace as ws`, what stands under [weightspace](#weightspace) is `ws.attach` and so on, the rest `ws.metrics.ChannelL2`. The command line has [a page of its own](../cli.md).
"""


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        name: As it is imported.
        module: The short name of the module whose page documents it.
        summary: The first sentence of its docstring; of a constant its line in `CONSTANTS`.
    """

    name: str
    module: str
    summary: str


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or what the module defines itself under names without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    constants = (name for name in vars(module) if name.isupper() and not name.startswith("_"))
    return [name for name in dict.fromkeys((*constants, *own)) if not name.startswith("_")]


def is_documented(value: object) -> bool:
    """Whether a docstring can be expected: classes, functions and modules, not constants or aliases of types."""
    return inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)


def summary_of(short: str, name: str, value: object) -> str:
    """The first sentence of a docstring; of a constant its line in `CONSTANTS`, empty if there is none."""
    return first_sentence(inspect.getdoc(value) or "") if is_documented(value) else CONSTANTS.get(f"{short}.{name}", "")


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    sentence = re.match(r"(.+?[.:])(?: |$)(?=[A-Z`]|$)", paragraph)
    return (sentence[1] if sentence else paragraph).rstrip(".:") + "."


def home_of(name: str, value: object) -> str:
    """The short name of the module on whose page a top-level name is documented."""
    for short in MODULES:
        module = importlib.import_module(f"weightspace.{short}")
        if name in public_names(module) and getattr(module, name) is value:
            return short
    return ""


def names_of(short: str) -> list[Name]:
    """The public names of a module of the library, sorted as it sorts them."""
    module = importlib.import_module(f"weightspace.{short}")
    return [
        Name(name, GIVEN_ON.get(f"{short}.{name}", short), summary_of(short, name, getattr(module, name)))
        for name in public_names(module)
    ]


def top_level() -> list[Name]:
    """What `import weightspace as ws` gives: functions and classes, without modules and the version."""
    package = importlib.import_module("weightspace")
    values = ((name, getattr(package, name)) for name in package.__all__ if not name.startswith("__"))
    return [
        Name(name, home := home_of(name, value), summary_of(home, name, value))
        for name, value in values
        if not inspect.ismodule(value)
    ]


def _table(names: list[Name]) -> str:
    rows = [f"| [`{n.name}`]({n.module}.rst) | {n.summary.replace('|', chr(92) + '|')} |" for n in names]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _heading(short: str) -> str:
    module = importlib.import_module(f"weightspace.{short}")
    return f"## [weightspace.{short}]({short}.rst)\n\n{first_sentence(module.__doc__ or '')}"


def render_index() -> str:
    """docs/api/index.md."""
    parts = [INTRODUCTION, f"## weightspace\n\n{_table(top_level())}\n"]
    parts += [f"{_heading(short)}\n\n{_table(names_of(short))}\n" for short in MODULES]
    rows = [f"| [`weightspace.{name}`]({name}.rst) | {what} |" for name, what in INTEGRATIONS.items()]
    parts.append("\n".join(["## Other trainers", "", "| module | what it holds |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def render_module(short: str) -> str:
    """docs/api/MODULE.rst."""
    title = f"weightspace.{short}"
    line = "=" * len(title)
    given_on = [name.partition(".")[2] for name in GIVEN_ON if name.startswith(f"{short}.")]
    options = ["members:", *([f"exclude-members: {', '.join(given_on)}"] if given_on else []), "show-inheritance:"]
    return "\n".join([title, line, "", f".. automodule:: {title}", *(f"   :{option}" for option in options), ""])


def pages() -> dict[Path, str]:
    """Every page of the reference, by path."""
    found = {FOLDER / f"{short}.rst": render_module(short) for short in (*MODULES, *INTEGRATIONS)}
    return {FOLDER / "index.md": render_index(), **found}


def main() -> int:
    """Writes the pages that are out of date; the exit code is 0."""
    for path, text in pages().items():
        if renew_text(path, text):
            print(f"{path.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
