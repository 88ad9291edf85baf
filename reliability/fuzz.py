"""Attacks one target for as long as you like: `python -m reliability.fuzz "sparse files" --runs 100000`.

With `--atheris` the fuzzer of that name steers: it watches which lines of weightspace an input reaches and keeps what
reaches new ones. It is an extra (`pip install atheris`, Linux and CPython 3.11 to 3.13); without it inputs are drawn
from seeds, so that what fails can be tried again: `--first 1234 --runs 1`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliability.fuzz_guard import Target


def _with_atheris(target: Target, runs: int, corpus: Path | None) -> None:
    import atheris  # pyright: ignore[reportMissingImports] - an extra

    from reliability.fuzz_guard import judge
    from reliability.fuzz_source import BytesSource

    with atheris.instrument_imports(include=["weightspace"]):
        if target.prepare is not None:
            target.prepare()

    def one_input(data: bytes) -> None:
        outcome = judge(target.attempt, BytesSource(data))
        if outcome.kind == "crash":
            raise RuntimeError(outcome.text)

    words = [sys.argv[0], f"-atheris_runs={runs}", "-max_len=4096", "-rss_limit_mb=8192"]
    atheris.Setup([*words, *([str(corpus)] if corpus is not None else [])], one_input)
    atheris.Fuzz()


def main() -> int:
    """Reads the arguments and attacks; exit code 1 if anything crashed."""
    is_there = importlib.util.find_spec("atheris") is not None
    if is_there and "--atheris" in sys.argv:  # before anything is imported: what is imported later is instrumented
        import atheris  # pyright: ignore[reportMissingImports] - an extra

        with atheris.instrument_imports(include=["weightspace"]):
            from reliability.hostile import TARGETS, attack
    else:
        from reliability.hostile import TARGETS, attack
    names = {target.name: target for target in TARGETS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(names))
    parser.add_argument("--runs", type=int, default=1000, help="attempts")
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt")
    parser.add_argument("--atheris", action="store_true", help="let atheris steer by coverage")
    parser.add_argument("--corpus", type=Path, help="folder where atheris keeps what reaches new lines")
    options = parser.parse_args()
    if options.atheris:
        if not is_there:
            parser.error('--atheris needs the package atheris, which is not installed; run: pip install ".[fuzz]"')
        _with_atheris(names[options.target], options.runs, options.corpus)
        return 0
    tally = attack(names[options.target], options.runs, options.first)
    print(f"{tally.tried} inputs: {tally.refused} refused, {tally.accepted} accepted, {len(tally.crashes)} crashes")
    for seed, text in tally.crashes.items():
        print(f"\n{seed}\n{text}")
    return 1 if tally.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
