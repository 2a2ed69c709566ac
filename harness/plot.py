"""Accuracy against network passes: python -m harness.plot TABLE.json --out FILE.png [--title WORDS]

Reads what an evaluation prints with --json (python -m sudoku.evaluate CKPT... --json), or the table
that python -m harness.roads saves; a document may name its line with a "label".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from harness import commands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's: safe for all eyes
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^DvP*X"  # beside seven colors; lines are dashed once all colors are used
# {panel: {line: [(NFE, %, low, high), ...]}}
Panels = dict[str, dict[str, list[tuple[float, ...]]]]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a figure needs matplotlib: pip install matplotlib") from error
    return Figure((width, height), layout="constrained")


def save_figure(figure: Figure, file: str) -> None:
    """Write a picture and say where. ValueError where matplotlib cannot draw it."""
    try:
        figure.savefig(file, dpi=200, bbox_inches="tight")
    except ValueError as error:  # a formula in a title, say
        raise ValueError(f"cannot draw {file}: {str(error).strip().splitlines()[-1]}") from error
    print(f"figure: {file}")


def read_table(path: str) -> Panels:
    """The JSON of an evaluation, by NFE: sequences from nothing, then a panel for each number of
    clues. ValueError for a file that is none, has no row, a row that cannot be, or a line of two
    points at one NFE."""
    panels: Panels = {}
    try:
        documents = json.loads(Path(path).read_text())
        found = [(kind, document, row) for kind in ("unconditional", "puzzles")
                 for document in documents for row in document.get(kind, [])]
        for kind, document, row in found:
            clues = f" with {row['clues']} clues" if "clues" in row else ""
            panel = f"puzzles{clues} solved, %" if kind == "puzzles" else "valid from nothing, %"
            line = document.get("label") or f"{document['objective'].upper()}, {row['sampler']}"
            points = panels.setdefault(panel, {}).setdefault(line, [])
            points.append(tuple(float(row[key]) for key in ("nfe", "percent", "low", "high")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what an evaluation prints with --json") from error
    if not panels:
        raise ValueError(f"{path} holds no row to draw")
    for line, points in [item for lines in panels.values() for item in lines.items()]:
        points.sort()
        if not all(1 <= nfe < math.inf and 0 <= low <= percent <= high <= 100
                   for nfe, percent, low, high in points):
            raise ValueError(f"{path} has a row that cannot be: an NFE is at least 1, a share from "
                             "0 to 100 inside its interval")
        if len({nfe for nfe, *_ in points}) < len(points):
            raise ValueError(f'{path} has two points at one NFE for "{line}": give each of its '
                             'documents a "label"')
    return panels


def draw_curves(panels: Panels, title: str | None) -> Figure:
    """One panel for each key, from `read_table`. A line looks the same in all of them; its band
    goes from low to high: the 95% interval, or the lowest and the highest seed."""
    names, legend = list(dict.fromkeys(name for lines in panels.values() for name in lines)), {}
    figure = new_figure(max(3.2 * len(panels), 5.5), 3 + 0.1 * len(names))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (panel, lines) in zip(axes, panels.items()):
        for name, points in lines.items():
            (nfe, percent, low, high), k = zip(*points), names.index(name)
            style = dict(color=COLORS[k % len(COLORS)], marker=MARKERS[k % len(MARKERS)],
                         markersize=4.5,
                         clip_on=False, linestyle=["-", "--", ":"][k // len(COLORS) % 3])
            zorder = 3 + len(names) - k  # the first line lies on top
            legend[name], = axis.plot(nfe, percent, **style, zorder=zorder)
            axis.fill_between(nfe, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ticks = sorted({nfe for points in lines.values() for nfe, *_ in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set(xlabel="network passes (NFE)", ylim=(0, 100))
        axis.set_title(panel, fontsize=10, loc="left")
        axis.grid(axis="y", color="#e0e0e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False,
                  fontsize=9)
    figure.suptitle(title)
    return figure


@commands.command("harness.plot")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m harness.plot",
                             description="Draw accuracy against network passes.")
    parser.add_argument("table", metavar="TABLE.json", type=commands.path,
                        help="what an evaluation prints with --json")
    parser.add_argument("--title", metavar="WORDS")
    parser.add_argument("--out", metavar="FILE", required=True, type=commands.figure_file,
                        help="the picture: .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    save_figure(draw_curves(read_table(options.table), options.title), options.out)
    return 0


if __name__ == "__main__":
    commands.run(main)
