"""Copies tables and plots of finished comparisons into a results page.

`python docs/_results_page.py docs/results/channel-directed.md runs/fashion-mnist-vgg runs/cifar10-vgg ...` puts each
comparison's `table.md` between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->` of the page, NAME being the
folder's name, and its plots and `table.json` into a folder beside the page. With `--without-times` first, the columns
of times are left out: for runs on a machine that did other work too.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PLOTS = ("differences.png", "accuracy.png", "tuning.png", "shrinkage.png")


def without_times(table: str) -> str:
    """The table without its last two columns (ms/step, time ratio) and without the note on them."""
    lines = [line for line in table.splitlines() if not line.startswith("- ms/step")]
    return "\n".join("|".join(line.split("|")[:-3]) + "|" if line.startswith("|") else line for line in lines) + "\n"


def section(run: Path, beside: str, *, times: bool) -> str:
    """The Markdown of one comparison, headings one level down."""
    table = (run / "table.md").read_text().replace("\n## ", "\n### ").removeprefix("## ")
    title, _, rest = (table if times else without_times(table)).partition("\n")
    title = f"{run.name}:{title.partition(':')[2]}"  # several comparisons may be of one recipe
    figures = "\n\n".join(f"![{run.name}: {Path(p).stem}]({beside}/{run.name}/{p})" for p in PLOTS[:2])
    return f"### {title}\n{rest.rstrip()}\n\n{figures}\n"


def main() -> None:
    """Rewrites the page."""
    arguments = [a for a in sys.argv[1:] if a != "--without-times"]
    times = len(arguments) == len(sys.argv) - 1
    page, *runs = map(Path, arguments)
    text = page.read_text()
    for run in runs:
        target = page.with_suffix("") / run.name
        target.mkdir(parents=True, exist_ok=True)
        for plot in (plot for plot in PLOTS if (run / "plots" / plot).exists()):  # no layers, no shrinkage
            shutil.copyfile(run / "plots" / plot, target / plot)
        shutil.copyfile(run / "table.json", target / "table.json")
        begin, end = f"<!-- {run.name}:begin -->", f"<!-- {run.name}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{section(run, page.stem, times=times)}{end}{tail}"
    page.write_text(text)


if __name__ == "__main__":
    main()
