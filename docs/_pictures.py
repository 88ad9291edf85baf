"""Draws the documentation's diagrams as SVG: `python docs/_pictures.py`.

One file each in `_static/pictures/`: a training step, the rooms of the package, the decision page. Every drawing has a
light and a dark palette: it follows the system where it is an image (a repository's page), and the page's own switch
where it is part of the page (the site, see `_ext/inline_pictures.py`). `tests/test_site.py` fails while files and
drawings differ, or while the rooms are not those of `tests/test_architecture.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from weightspace.files import renew_text

FOLDER = Path(__file__).with_name("_static") / "pictures"
LIGHT = {
    "ink": "#1f2328",
    "soft": "#57606a",
    "line": "#818b98",
    "plain": "#f3f5f8 #c4ccd6",
    "blue": "#e1effb #4b8fc9",
    "orange": "#fdeeda #d18a3a",
    "green": "#e0f4e5 #4aa564",
    "violet": "#eeeafc #8b75d1",
    "rose": "#fce8ec #cf6c81",
}
DARK = {
    "ink": "#e6edf3",
    "soft": "#9ea7b3",
    "line": "#6e7681",
    "plain": "#22272e #444c56",
    "blue": "#16304a #4b8fc9",
    "orange": "#40290f #c68436",
    "green": "#14361f #45995d",
    "violet": "#2b2450 #8b75d1",
    "rose": "#43202a #cf6c81",
}
COLORS = ("plain", "blue", "orange", "green", "violet", "rose")
FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def _variables(palette: Mapping[str, str]) -> str:
    rows = [f"--{name}:{palette[name]}" for name in ("ink", "soft", "line")]
    for color in COLORS:
        fill, edge = palette[color].split()
        rows += [f"--{color}:{fill}", f"--{color}-edge:{edge}"]
    return ";".join(rows)


def _style() -> str:
    light, dark = _variables(LIGHT), _variables(DARK)
    colors = "".join(f".ws-art .{c}{{fill:var(--{c});stroke:var(--{c}-edge)}}" for c in COLORS)
    return (
        f".ws-art{{{light};font-family:{FONT}}}"
        f"@media (prefers-color-scheme:dark){{.ws-art{{{dark}}}}}"
        f'body[data-theme="light"] .ws-art{{{light}}}body[data-theme="dark"] .ws-art{{{dark}}}'
        ".ws-art rect,.ws-art circle{stroke-width:1.3}.ws-art text{fill:var(--ink);font-size:14px}"
        ".ws-art .head{font-weight:600}.ws-art .small{fill:var(--soft);font-size:12px}"
        ".ws-art .code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:12.5px}"
        ".ws-art .wire{fill:none;stroke:var(--line);stroke-width:1.6}.ws-art .tip{fill:var(--line)}"
        f".ws-art .band{{fill:none;stroke:var(--line);stroke-width:1;stroke-dasharray:4 4}}{colors}"
    )


@dataclass
class Drawing:
    """Shapes on a canvas, in pixels from the upper left corner.

    Attributes:
        width: Of the canvas.
        height: Of the canvas.
        label: What a reader who does not see it is told.
        parts: The SVG elements so far.
    """

    width: int
    height: int
    label: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, *, style: str = "", anchor: str = "middle") -> None:
        """One line of text."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>')

    def box(
        self, x: float, y: float, w: float, h: float, color: str, head: str, *lines: str, code: bool = False
    ) -> None:
        """A rounded box with a heading and smaller lines under it, centered."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="9" class="{color}"/>')
        top = y + h / 2 - 8.5 * len(lines) + 5
        self.text(x + w / 2, top, head, style="code head" if code else "head")
        for number, line in enumerate(lines, 1):
            self.text(x + w / 2, top + 17 * number, line, style="small")

    def wire(self, *points: tuple[float, float]) -> None:
        """A line through points with right angles or straight, an arrow head at its end."""
        path = " ".join(f"{'M' if n == 0 else 'L'}{x:g} {y:g}" for n, (x, y) in enumerate(points))
        (x0, y0), (x, y) = points[-2:]
        along, across = (x > x0) - (x < x0), (y > y0) - (y < y0)
        a = f"{x - 8 * along - 4.5 * across:g},{y - 8 * across - 4.5 * along:g}"
        b = f"{x - 8 * along + 4.5 * across:g},{y - 8 * across + 4.5 * along:g}"
        self.parts.append(f'<path d="{path}" class="wire"/><polygon points="{x:g},{y:g} {a} {b}" class="tip"/>')

    def band(self, x: float, y: float, w: float, h: float) -> None:
        """A dashed frame around others."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="12" class="band"/>')

    def svg(self) -> str:
        """The file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="ws-art" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(self.label)}">'
        )
        return "\n".join([head, f"<style>{_style()}</style>", *self.parts, "</svg>", ""])


# --------------------------------------------------------------------------- a training step


def step() -> Drawing:
    """What happens between `loss.backward()` and the next forward pass."""
    d = Drawing(
        960,
        356,
        "One training step: backward, metric, penalties behind gates, tangent projection, optimizer, proximal step, retraction, forward",
    )
    d.band(196, 16, 748, 324)
    d.text(
        930,
        36,
        "inside optimizer.step(): p.grad is lent a buffer and comes back as backward() left it",
        style="small",
        anchor="end",
    )
    d.box(16, 60, 156, 62, "plain", "loss.backward()", "yours")
    d.box(216, 60, 150, 62, "blue", "metric", "how the gradient", "is measured")
    d.parts.append('<circle cx="424" cy="91" r="15" class="plain"/>')
    d.text(424, 96, "+", style="head")
    d.box(482, 60, 172, 62, "green", "tangent projection", "nothing leads off", "the manifold")
    d.box(752, 60, 172, 62, "plain", "optimizer.step()", "any torch optimizer,", "yours")
    d.box(216, 162, 150, 62, "orange", "penalties", "where weights", "should be")
    d.box(482, 162, 172, 62, "violet", "gate", "open while the gradient", "keeps its direction")
    d.box(752, 162, 172, 62, "orange", "proximal steps", "exact zeros,", "if the gate is open")
    d.box(752, 264, 172, 62, "green", "retraction", "back onto", "the manifold")
    d.box(16, 264, 156, 62, "plain", "next forward pass", "yours: plain layers")
    d.wire((172, 91), (216, 91))
    d.wire((366, 91), (409, 91))
    d.wire((439, 91), (482, 91))
    d.wire((654, 91), (752, 91))
    d.wire((366, 205), (482, 205))
    d.wire((482, 181), (424, 181), (424, 106))
    d.wire((838, 122), (838, 162))
    d.wire((838, 224), (838, 264))
    d.wire((752, 295), (172, 295))
    return d


# --------------------------------------------------------------------------- the rooms

# Bands from the ground up. A room imports from bands below its own, and from rooms to its left in its own.
ROOMS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("everywhere", "every room may use these", "plain", {"errors": "one sentence each", "precision": "full, by request", "files": "whole or not at all", "extras": "asked for when needed"}),
    ("ground floor", "what a weight is", "plain", {"kernels": "views, selections", "operators": "layers as maps", "sharding": "who has which part", "figures": "how plots look"}),
    ("mathematics", "one algorithm, one module", "blue", {"on": "ws.on.convs", "metrics": "of gradients", "gates": "when", "penalties": "where to", "manifolds": "where"}),
    ("in force", "on your own optimizer", "orange", {"registry": "a row for each rule", "optim": "attach, SubmanifoldSGD, ConstrainedLangevin"}),
    ("judge and keep", "without any training", "green", {"inspection": "ws.inspect", "compress": "prune, shrink, store", "sampling": "average, calibrate"}),
    ("train", "needs the extra", "violet", {"training": "data, models, one run", "integrations": "Lightning, Hugging Face", "doctor": "what works here"}),
    ("compare and tell", "many runs", "violet", {"compare": "arms × seeds", "chains": "weightspace sample", "report": "one HTML file"}),
    ("words", "the command line", "rose", {"cli": "weightspace train | compare | sample | inspect | ..."}),
)  # fmt: skip


def rooms() -> Drawing:
    """The rooms of the package, floor upon floor."""
    d = Drawing(
        960,
        24 + 74 * len(ROOMS),
        "The rooms of the package, floor upon floor; a room imports from floors below it and from its left",
    )
    for number, (name, what, color, tiles) in enumerate(reversed(ROOMS)):
        y = 12 + 74 * number
        d.text(12, y + 31, name, style="head", anchor="start")
        d.text(12, y + 48, what, style="small", anchor="start")
        width = (768 - 10 * (len(tiles) - 1)) / len(tiles)
        for place, (room, words) in enumerate(tiles.items()):
            d.box(180 + place * (width + 10), y + 6, width, 58, color, room, words)
    return d


# --------------------------------------------------------------------------- the decision page

CHOICES = (
    ("my deep network does not train", "first ws.inspect: do gains grow or fade?", "orange", "SingularValueBand · Sphere(radius=2 ** 0.5)", "start with He's initialization; measured on 24 layers"),
    ("filters repeat each other", "or every direction should pass alike", "green", "Stiefel()", "ahead of tuned SGD in three of four short trainings"),
    ("one norm for every filter, cheaply", "scale is set elsewhere: batch norm, a scalar", "green", "Sphere() · Oblique() · ZeroMeanSphere()", "no gain in accuracy seen"),
    ("no layer may enlarge by more than a bound", "a number to certify, not to hope for", "orange", "LargestSingularValue + ws.norm_bound · ws.lipschitz_bound", "the penalty pulls, the bound is proved"),
    ("a smaller file, a smaller network", "and it collapses when the penalty is strong?", "violet", "L1 · GroupL1 + gate, then ws.compress", "weightspace tolerance says whether you need a gate"),
    ("how sure is it?", "one run, many networks", "rose", "ConstrainedLangevin + ws.sampling", "temperature=1 is the posterior"),
    ("gradients along channels", "a question of research, not of accuracy", "blue", "ChannelL2 · ChannelSobolev", "not ahead of tuned SGD in four comparisons"),
)  # fmt: skip


def choose() -> Drawing:
    """From what you want to what to take."""
    d = Drawing(960, 92 + 74 * len(CHOICES), "From what you want to the rule to take")
    d.box(
        12,
        12,
        936,
        52,
        "plain",
        "First tune the learning rate of what you have. Believe a difference only over seeds, with an interval.",
        "weightspace compare does that, at equal trials for all arms",
    )
    for number, (want, more, color, take, note) in enumerate(CHOICES):
        y = 84 + 74 * number
        d.box(60, y, 366, 58, "plain", want, more)
        d.wire((30, y + 29), (60, y + 29))
        d.wire((426, y + 29), (490, y + 29))
        d.box(490, y, 458, 58, color, take, note, code=True)
    d.parts.append(f'<path d="M30 64 L30 {84 + 74 * (len(CHOICES) - 1) + 29}" class="wire"/>')
    return d


PICTURES = {"step.svg": step, "rooms.svg": rooms, "choose.svg": choose}


def main() -> int:
    """Writes the pictures that are out of date; the exit code is 0."""
    for name, draw in PICTURES.items():
        if renew_text(FOLDER / name, draw().svg()):
            print(f"{name}: drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
