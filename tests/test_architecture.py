"""The house's walls, checked by reading the source: who may import whom, and what no module may contain.

docs/architecture.md explains the arrows. `problems(root)` is run on the package, where it must find nothing, and on
fabricated trees with one defect each, where it must find exactly that defect.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from code_measures import PACKAGE, ROOT, Function, code_lines, line_count, modules, undocumented

# room -> rooms it may import besides itself and GROUND. A new room starts with a row here.
ARROWS: dict[str, frozenset[str]] = {
    room: frozenset(targets.split())
    for room, targets in {
        "errors": "",
        "precision": "",
        "files": "",
        "extras": "",
        "figures": "",
        "kernels": "",
        "operators": "",
        "sharding": "",
        "on": "kernels",
        "metrics": "kernels",
        "manifolds": "kernels",
        "gates": "kernels",
        "penalties": "kernels operators gates",
        "registry": "kernels metrics manifolds penalties gates",
        "optim": "kernels operators sharding metrics manifolds penalties gates registry",
        "sampling": "figures",
        "compress": "kernels operators optim",
        "inspection": "kernels operators figures",
        "training": "kernels optim registry sharding",
        "integrations": "kernels optim training",
        "compare": "gates training",
        "chains": "training sampling compare figures",
        "report": "training compare chains figures",
        "doctor": "training",
    }.items()
}
GROUND = ("errors", "precision", "files", "extras")  # what every room may import
UPPER = ("training", "integrations", "compare", "chains", "report", "doctor", "cli", "__main__")
# What `import weightspace` must not load: these come with extras, cost seconds, or both.
HEAVY = (
    *(
        "lightning",
        "transformers",
        "ray",
        "lightning_fabric",
        "sklearn",
        "pydantic",
        "typer",
        "matplotlib",
        "pyarrow",
        "arviz",
        "safetensors",
    ),
    "weightspace.training",
)
# The library's own dependencies (pyproject.toml); everything else belongs to extras and so to the upper rooms.
LIBRARY_NEEDS = frozenset({*sys.stdlib_module_names, "torch", "rich", "weightspace"})
# What draws pictures needs an extra too: these are imported when a picture is asked for, never before.
PICTURES = (
    "weightspace.figures",
    "weightspace.inspection.plots",
    "weightspace.inspection.page",
    "weightspace.sampling.plots",
)
PICTURES_NEED = frozenset({"matplotlib", "numpy", "jinja2"})
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
UNPICKLERS = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})

# The package itself, which shows the rooms of the library to users: a room for cycles, but no row in the table.
FACE = "the face"


def room_of(module: str) -> str:
    """`weightspace.kernels.views` -> "kernels"; the package itself -> FACE."""
    return module.partition(".")[2].partition(".")[0] or FACE


def imported_modules(tree: ast.Module, name: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Every absolute module name that is imported anywhere in the module, inside functions and blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [base])))
            for alias in node.names:
                # `from weightspace import metrics` imports a room, `from weightspace import attach` the face.
                child = f"{base}.{alias.name}"
                yield child if child in known else base


def import_problems(root: Path) -> Iterator[str]:
    """Arrows against the table, packages outside the library's dependencies, and cycles between rooms."""
    tree = modules(root)
    graph: dict[str, set[str]] = {}
    for name, (path, parsed) in tree.items():
        room = room_of(name)
        for target in imported_modules(parsed, name, path.name == "__init__.py", set(tree)):
            if target.partition(".")[0] != "weightspace":
                needs = LIBRARY_NEEDS | (PICTURES_NEED if name in PICTURES else frozenset())
                if room not in UPPER and target.partition(".")[0] not in needs:
                    yield f"{name} imports {target}, which only an extra installs"
                continue
            graph.setdefault(room, set()).add(room_of(target))
            if (reason := refusal(room, room_of(target))) is not None:
                yield f"{name} imports {target}: {reason}"
    for room in sorted({room_of(name) for name in tree} - {FACE, "cli", "__main__", *ARROWS}):
        yield f"room {room} has no row in ARROWS"
    yield from (f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(graph))


def refusal(room: str, target: str) -> str | None:
    """Why `room` may not import `target`; None if it may."""
    if target in {room, *GROUND} or room in {"cli", "__main__"} or room not in {FACE, *ARROWS}:
        return None
    if target in UPPER and room not in UPPER:
        return f"nothing below training/ may import {target}"
    if room == FACE or (target == FACE and room in UPPER):
        return None  # the face shows every room of the library, and the upper rooms are users of it
    return None if target in ARROWS[room] else f"no arrow from {room} to {target}"


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for each room that reaches itself through others, starting at its alphabetically first room."""
    found = []
    for start in sorted(graph):
        stack, seen = [[start]], set()
        while stack:
            way = stack.pop()
            for target in sorted(graph.get(way[-1], ())):
                if target == start and len(way) > 1:
                    found += [[*way, start]] if start == min(way) else []
                    stack = []
                    break
                if target not in seen and target != way[-1]:
                    seen.add(target)
                    stack.append([*way, target])
    return found


def content_problems(root: Path) -> Iterator[str]:
    """Length, assertions, unpickling, and what is public and says nothing of itself."""
    tree = modules(root)
    yield from undocumented(tree)
    for name, (path, parsed) in tree.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{name} has {lines} lines, more than {MAX_MODULE_LINES}"
        for node in ast.walk(parsed):
            if (text := node_problem(node)) is not None:
                yield f"{name}: {text}"


def node_problem(node: ast.AST) -> str | None:
    """What is wrong with one node, if anything."""
    if isinstance(node, ast.Assert):
        return "assert (python -O removes it: raise an error of weightspace.errors)"
    if isinstance(node, Function) and (length := code_lines(node)) > MAX_FUNCTION_LINES:
        return f"{node.name} has {length} lines of code, more than {MAX_FUNCTION_LINES}"
    return next(unpickling(node), None)


def unpickling(node: ast.AST) -> Iterator[str]:
    """The ways to run a program that hides in a file."""
    if isinstance(node, ast.Import):
        yield from (f"imports {alias.name}" for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS)
    elif isinstance(node, ast.ImportFrom):
        if (node.module or "").partition(".")[0] in UNPICKLERS:
            yield f"imports {node.module}"
        if node.module in TORCH_LOADERS and any(alias.name == "load" for alias in node.names):
            yield "torch.load"
    elif isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) in TORCH_LOADERS:
        yield "torch.load"
    elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not is_false(node.value):
        yield "allow_pickle"


TORCH_LOADERS = frozenset({"torch", "torch.serialization"})


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def problems(root: Path) -> list[str]:
    return [*import_problems(root), *content_problems(root)]


# ---------------------------------------------------------------- the package


def test_imports_obey_the_arrows():
    assert list(import_problems(PACKAGE)) == []


def test_modules_are_short_documented_and_free_of_assert_and_pickle():
    assert list(content_problems(PACKAGE)) == []


def test_the_table_itself_has_no_cycle_and_no_way_up():
    assert cycles({room: set(targets) for room, targets in ARROWS.items()}) == []
    below = [room for room in ARROWS if room not in UPPER]
    assert all(not ARROWS[room] & set(UPPER) for room in below)
    assert ARROWS["kernels"] == ARROWS["operators"] == frozenset()
    assert not ARROWS["metrics"] & {"optim", "manifolds"}


def test_there_are_neither_too_few_tests_nor_too_many():
    assert 0.6 <= line_count(ROOT / "tests") / line_count(PACKAGE) <= 1.2


def test_importing_the_package_loads_nothing_heavy():
    script = f"import sys, weightspace; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


# ---------------------------------------------------------------- the checker, on bad trees

GOOD = {
    "__init__.py": '"""Face."""\nfrom weightspace import metrics, optim\n',
    "errors.py": '"""Errors."""\n',
    "kernels/__init__.py": '"""Kernels."""\nimport torch\nfrom weightspace.errors import X\n',
    "metrics/__init__.py": '"""Metrics."""\nfrom ..kernels import view\nfrom . import base\n',
    "metrics/base.py": '"""Base."""\nimport math\n\n\ndef _private():\n    pass\n',
    "optim/__init__.py": '"""Optim."""\nfrom weightspace.metrics import base\n',
    "training/__init__.py": '"""Training."""\nimport pydantic\nfrom weightspace import attach\n',
    "compare/__init__.py": '"""Compare."""\nfrom weightspace.training import run\n',
    "report/__init__.py": '"""Report."""\n',
    "cli.py": '"""Words."""\nfrom weightspace import compare, kernels, report\n',
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_the_good_tree_is_accepted(tmp_path):
    assert problems(write_tree(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("file", "added", "found"),
    [
        ("kernels/__init__.py", "import weightspace.metrics", ["no arrow from kernels to metrics", "import cycle"]),
        ("kernels/__init__.py", "from ..metrics import base", ["no arrow from kernels to metrics", "import cycle"]),
        (
            "kernels/__init__.py",
            "from weightspace import operators",
            ["no arrow from kernels to the face", "import cycle"],
        ),
        ("metrics/base.py", "from weightspace.optim import attach", ["no arrow from metrics to optim", "import cycle"]),
        ("metrics/base.py", "def _f():\n    from weightspace import report", ["may import report"]),
        ("metrics/base.py", "if TYPE_CHECKING:\n    from weightspace import cli", ["may import cli", "import cycle"]),
        (
            "optim/__init__.py",
            "from ..training import loop",
            ["nothing below training/ may import training", "import cycle"],
        ),
        (
            "__init__.py",
            "from weightspace import compare",
            ["nothing below training/ may import compare", "import cycle"],
        ),
        ("training/__init__.py", "from weightspace import compare", ["no arrow from training", "import cycle"]),
        ("training/__init__.py", "from weightspace.metrics import ChannelL2", ["no arrow from training to metrics"]),
        ("kernels/__init__.py", "import numpy as np", ["imports numpy, which only an extra installs"]),
        ("attic/__init__.py", '"""Attic."""', ["room attic has no row in ARROWS"]),
        ("metrics/base.py", "assert True", ["assert"]),
        ("training/__init__.py", "import pickle", ["imports pickle"]),
        ("training/__init__.py", "from pickle import load", ["imports pickle"]),
        ("training/__init__.py", "import torch\nx = torch.load('f', weights_only=True)", ["torch.load"]),
        ("training/__init__.py", "from torch import load", ["torch.load"]),
        ("training/__init__.py", "import numpy\nx = numpy.load('f', allow_pickle=True)", ["allow_pickle"]),
        ("metrics/base.py", "def public():\n    return 1", ["public has no docstring"]),
        ("metrics/base.py", "class Public:\n    x = 1", ["Public has no docstring"]),
        ("metrics/base.py", 'class P:\n    """P."""\n    def f(self):\n        pass', ["P.f has no docstring"]),
        ("metrics/base.py", "if x:\n    def f():\n        pass", ["f has no docstring"]),
        ("metrics/base.py", "class _P:\n    def f(self):\n        pass", ["_P.f has no docstring"]),
        ("metrics/base.py", "X = 1\n__all__ = ['X']", ["X has no line of explanation"]),
        ("metrics/__init__.py", "X = 1\n__all__ = ['X']", ["X has no line of explanation"]),
        ("metrics/base.py", "__all__ = ['y']", ["y is in __all__ and nowhere else"]),
        ("metrics/base.py", "x = 1\n" * 400, ["more than 400"]),
        ("metrics/base.py", "def _f():\n" + "    x = 1\n" * 60, ["_f has 61 lines of code"]),
    ],
)
def test_every_defect_is_found_and_nothing_else(tmp_path, file, added, found):
    root = write_tree(tmp_path, {**GOOD, file: GOOD.get(file, "") + added + "\n"})
    reported = problems(root)
    assert len(reported) == len(found), reported
    assert all(text in line for text, line in zip(found, reported, strict=True))


def test_a_module_without_docstring_is_found(tmp_path):
    assert problems(write_tree(tmp_path, {**GOOD, "cli.py": "x = 1\n"})) == ["weightspace.cli has no docstring"]


def test_explaining_does_not_make_a_function_long(tmp_path):
    text = 'def f():\n    """' + "Words.\n    " * 80 + '"""\n'
    assert problems(write_tree(tmp_path, {**GOOD, "cli.py": '"""Words."""\n\n\n' + text})) == []


def test_cycles_of_three_rooms_are_found_once():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}}) == [["a", "b", "c", "a"]]
