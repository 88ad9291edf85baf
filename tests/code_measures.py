"""Measures of the tree as a reader meets it. `python tests/code_measures.py` prints them; `--types` adds the share of public types
that a type checker knows (pyright, about a minute).

tests/test_architecture.py holds the tree to those that are cheap: every public name is documented, and how long things are.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "weightspace"
LONG_FUNCTION = 40
LONG_MODULE = 300

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Every module of a package called weightspace, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(("weightspace", *parts)).removesuffix(".__init__")
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


# ---------------------------------------------------------------- what is documented


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and methods, those of branches too (`if TYPE_CHECKING`, `try`).

    A class with an underscore counts as well where it has public methods: public classes inherit them. Overloads, overrides and
    setters show another's docstring.
    """
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            for block in (node.body, node.orelse, *handlers):
                yield from definitions(block, prefix)
        elif isinstance(node, Function | ast.ClassDef):
            is_public = not node.name.startswith("_")
            if is_public and not _shows_another(node):
                yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef) and (is_public or not _is_handed_to_torch(node)):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def _shows_another(node: Function | ast.ClassDef) -> bool:
    return any(ast.unparse(d).endswith((".setter", "overload", "override")) for d in node.decorator_list)


def _is_handed_to_torch(node: ast.ClassDef) -> bool:
    """Whether torch calls the methods and nobody else: `forward` and `backward` of an autograd function."""
    return any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)


def undocumented(tree: dict[str, tuple[Path, ast.Module]]) -> Iterator[str]:
    """Public modules, definitions and exported names that say nothing about themselves."""
    for name, (_, parsed) in tree.items():
        if ast.get_docstring(parsed) is None:
            yield f"{name} has no docstring"
        yield from (
            f"{name}: {n} has no docstring" for n, node in definitions(parsed.body) if not ast.get_docstring(node)
        )
        for exported in exports(parsed):
            if (problem := _export_problem(tree, name, exported)) is not None:
                yield f"{name}: {exported} {problem}"


def exports(parsed: ast.Module) -> list[str]:
    """The names in `__all__`; none where a module has no such list."""
    for node in parsed.body:
        if isinstance(node, ast.Assign) and "__all__" in _names(node):
            return list(ast.literal_eval(node.value))
    return []


def _names(node: ast.stmt) -> set[str]:
    """What a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _export_problem(tree: dict[str, tuple[Path, ast.Module]], module: str, name: str) -> str | None:
    """What is wrong with a name in `__all__`, followed through imports to where it is made; docstrings are seen there."""
    body = tree[module][1].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return None
        if name in _names(node):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            return None if said else "has no line of explanation below it"
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name:
                source = node.module or ""
                is_module = f"{source}.{alias.name}" in tree
                return _export_problem(tree, source, alias.name) if source in tree and not is_module else None
    return "is in __all__ and nowhere else"


# ---------------------------------------------------------------- how long things are


def code_lines(function: Function) -> int:
    """Lines of a function without its docstring: explaining is not what makes a function long."""
    first = function.body[0]
    doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    return total - ((first.end_lineno or first.lineno) - first.lineno + 1 if doc else 0)


def line_count(folder: Path) -> int:
    """Lines of all Python files below a folder, blank ones and comments included."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(folder.rglob("*.py")))


def long_functions(tree: dict[str, tuple[Path, ast.Module]], more_than: int = LONG_FUNCTION) -> list[tuple[int, str]]:
    """Lines and name of the functions that are longer, the longest first."""
    found = [
        (code_lines(node), f"{module}.{node.name}")
        for module, (_, parsed) in tree.items()
        for node in ast.walk(parsed)
        if isinstance(node, Function) and code_lines(node) > more_than
    ]
    return sorted(found, reverse=True)


def long_modules(tree: dict[str, tuple[Path, ast.Module]], more_than: int = LONG_MODULE) -> list[tuple[int, str]]:
    """Lines and name of the modules that are longer, the longest first."""
    counts = ((len(path.read_text(encoding="utf-8").splitlines()), name) for name, (path, _) in tree.items())
    return sorted(((count, name) for count, name in counts if count > more_than), reverse=True)


# ---------------------------------------------------------------- what a type checker knows


def type_score() -> str:
    """The summary of `pyright --verifytypes` for the package as a user has it installed: a copy that is no checkout.

    Raises:
        SystemExit: If pyright is missing or does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "weightspace", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--verifytypes", "weightspace"]
        environment = {**os.environ, "PYTHONPATH": folder}  # before the checkout, where it is installed as editable
        result = subprocess.run(
            [*command, "--ignoreexternal"], capture_output=True, text=True, check=False, cwd=folder, env=environment
        )
    found = re.search(
        r"With known type: (\d+).*?ambiguous type: (\d+).*?unknown type: (\d+).*?score: ([\d.]+)%",
        result.stdout,
        re.DOTALL,
    )
    if found is None:
        raise SystemExit(f"pyright gave no score:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return f"{found[4]} % of the public types ({found[1]} known, {found[2]} ambiguous, {found[3]} unknown)"


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description="Measures of the tree as a reader meets it.")
    parser.add_argument("--types", action="store_true", help="ask pyright too, which takes about a minute")
    arguments = parser.parse_args()
    tree = modules(PACKAGE)
    public = sum(1 + sum(1 for _ in definitions(parsed.body)) + len(exports(parsed)) for _, parsed in tree.values())
    silent = list(undocumented(tree))
    code, tests = line_count(PACKAGE), line_count(ROOT / "tests")
    print(f"documented    {public - len(silent)} of {public} public modules, definitions and exported names")
    print(f"lines         {code} of code, {tests} of tests: {tests / code:.2f} times the code")
    print(f"modules       {len(tree)}, of which {len(long_modules(tree))} have more than {LONG_MODULE} lines")
    print(f"functions     {len(long_functions(tree))} have more than {LONG_FUNCTION} lines")
    for entry in (*silent, *(f"{lines:4d} {name}" for lines, name in (*long_modules(tree), *long_functions(tree)))):
        print(f"  {entry}")
    if arguments.types:
        print(f"types         {type_score()}")


if __name__ == "__main__":
    main()
