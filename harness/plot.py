"""Accuracy against network passes: python -m harness.plot TABLE.json... --out FILE.png

Reads what evaluations print with --json (python -m sudoku.evaluate CKPT... --json), or the table
that python -m harness.roads saves, of which --roads picks a line a system; a document may name its
line with a "label". Of judged attempts (--attempts) it draws one mark, at their mean passes.

Also what the pictures of refinement share (sudoku/plot.py, text/plot.py): which sequence to show,
its colors, and how frames become one file that moves.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from fmlm import Model
from harness import commands
from harness.files import replace
from harness.measure import passes_used
from harness.samplers import choose_sampler
from harness.tasks import TASKS, Task, load_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"duo": "Duo", "sflm": "S-FLM"}  # of systems, where capitals are not all of it
# Okabe & Ito's: safe for all eyes
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^DvP*X"  # beside seven colors; lines are dashed once all colors are used
ATTEMPTS = " attempts"  # so the name of a line ends that is judged attempts
# {panel: {line: [(NFE, %, low, high), ...]}}
Panels = dict[str, dict[str, list[tuple[float, ...]]]]
# of a sequence that is refined: what is given, committed, unsure, wrong; the dot that is noise
GIVEN, COMMITTED, UNSURE, WRONG, NOISE = "black", "#0b5394", "#6b6b6b", "#d3202a", "#9a9a9a"
PLAIN, GIVEN_BACK = (1, 1, 1, 1), (0.9, 0.9, 0.9, 1)  # behind a token, and behind a given one
DRAFT, BACK, END = 1500, 800, 4000  # milliseconds that a frame of an animation is shown


def system(objective: str) -> str:
    """The name of a system in a figure."""
    return NAMES.get(objective, objective.upper())


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


def read_table(*paths: str, roads: Sequence[str] | None = None) -> Panels:
    """The JSON of evaluations, by NFE, of judged attempts by mean passes: sequences from nothing,
    then a panel for each number of clues. roads: of a table of `harness.roads` only the first line
    of each of these, in this order. ValueError for files that are none, have no row, a row that
    cannot be, a line of two points at one NFE, or lack a road."""
    panels: Panels = {}
    documents, path = [], ""
    try:
        for path in paths:
            documents += json.loads(Path(path).read_text())
        path = " and ".join(paths)
        named = {document.get("road"): document for document in reversed(documents)}
        chosen = [named[road] for road in roads if road in named] if roads else documents
        found = [(kind, document, row) for kind in ("unconditional", "puzzles")
                 for document in chosen for row in document.get(kind, [])
                 if "percent" in row or "entropy" not in row]  # of text no share is right
        for kind, document, row in found:
            clues = f" with {row['clues']} clues" if "clues" in row else ""
            task = document.get("task")
            asked = load_task(task).asked if task in TASKS else "puzzles"
            panel = f"{asked}{clues} solved, %" if kind == "puzzles" else "valid from nothing, %"
            panel = f"{row['set']} right, %" if "set" in row else panel
            line = document.get("label") or f"{system(document['objective'])}, {row['sampler']}"
            passes = "nfe"
            if "sampler" in row and "attempts" in row:
                line, passes = f"{line}, {row['attempts']}{ATTEMPTS}", "passes"
            points = panels.setdefault(panel, {}).setdefault(line, [])
            points.append(tuple(float(row[key]) for key in (passes, "percent", "low", "high")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            RecursionError) as error:
        raise ValueError(f"{path} is not what an evaluation prints with --json") from error
    for road in roads or ():
        if road not in named:
            there = ", ".join(name for name in reversed(named) if name) or "none"
            raise ValueError(f"{path} has no road {road!r}: choose from {there}")
    if not panels:
        raise ValueError(f"{path} holds no row to draw")
    for line, points in [item for lines in panels.values() for item in lines.items()]:
        points.sort()
        if not all(1 <= nfe < 1e9 and 0 <= low <= percent <= high <= 100
                   for nfe, percent, low, high in points):
            raise ValueError(f"{path} has a row that cannot be: an NFE is at least 1, a share from "
                             "0 to 100 inside its interval")
        if len({nfe for nfe, *_ in points}) < len(points):
            raise ValueError(f'{path} has two points at one NFE for "{line}": give each of its '
                             'documents a "label"')
    return panels


def draw_curves(panels: Panels, title: str | None) -> Figure:
    """One panel for each key, from `read_table`, three in a row, four two by two. A line looks the
    same in all of them, attempts as what they are attempts of; its band, or bar where it is one
    point, goes from low to high: the 95% interval, or the lowest and the highest seed."""
    names, legend = list(dict.fromkeys(name for lines in panels.values() for name in lines)), {}
    tried = lambda name: name.rpartition(", ")[0] if name.endswith(ATTEMPTS) else name
    looks = list(dict.fromkeys(map(tried, names)))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(3.2 * columns + 2.6, max(3.2 * rows, 0.23 * len(names) + 0.7))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axis in axes[len(panels):]:
        axis.remove()
    for axis, (panel, lines) in zip(axes, panels.items()):
        for name, points in lines.items():
            (nfe, percent, low, high), k = zip(*points), looks.index(tried(name))
            judged = tried(name) != name
            style = dict(color=COLORS[k % len(COLORS)], marker=MARKERS[k % len(MARKERS)],
                         markersize=4.5 if len(points) > 1 else 7, linewidth=1.3, clip_on=False,
                         linestyle="" if judged else ["-", "--", ":"][k // len(COLORS) % 3],
                         markeredgecolor="black" if judged else None)
            zorder = 3 + len(names) - names.index(name)  # the first line lies on top
            legend[name], = axis.plot(nfe, percent, **style, zorder=zorder)
            if len(points) > 1:
                axis.fill_between(nfe, low, high, color=style["color"], alpha=0.12, linewidth=0)
            else:
                axis.vlines(nfe, low, high, color=style["color"], clip_on=False)
        ticks = sorted({nfe for points in lines.values() for nfe, *_ in points})
        if any(tick % 1 for tick in ticks):  # means: there are many, and none is a round number
            first, last = math.floor(math.log2(ticks[0])), math.ceil(math.log2(ticks[-1]))
            ticks = [2**k for k in range(first, last + 1, 2 if last - first > 6 else 1)]
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set(xlabel=f"network passes ({'NFE' if looks == names else 'attempts: mean'})",
                 ylim=(0, 100))
        axis.set_title(panel, fontsize=9.5, loc="left")
        axis.grid(axis="y", color="#e0e0e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend([legend[name] for name in names], names, loc="outside right upper",
                  frameon=False, fontsize=9, handlelength=3)
    figure.suptitle(title)
    return figure


# ---- a sequence over the rounds of Posterior Refinement


def shows_most(known: Tensor, trace: list, corrected: Tensor) -> tuple[int, list]:
    """Which of the refined sequences shows most, and its own rounds, (L,) each: of those whose
    first draft is wrong and whose last is right (of all, where none is) the first that took most
    rounds. known: (n, L) bool, what was given; trace: their `sample.Pass`es; corrected: (n,) bool.
    """
    rounds = passes_used(known, trace)
    best = int((rounds + corrected * (len(trace) + 1)).argmax())
    return best, [type(record)(*(part[best] for part in record)) for record in trace[:rounds[best]]]


def refine_one(task: Task, model: Model, given: Tensor, nfe: int,
               seed: int) -> tuple[Tensor, list]:
    """Refine sequences (n, L), -1 where unknown, and return the one that `shows_most`, (L,), and
    its rounds, (L,) each. ValueError for one of which all is given."""
    known, trace = given >= 0, []
    refine = choose_sampler("fmlm+", "posterior")[1].run
    tokens = refine(model, given.clamp(min=0), known, nfe, trace=trace,
                    generator=Generator().manual_seed(seed))
    if not trace:
        raise ValueError(f"all of this {task.puzzle} is given: there is nothing to refine")
    last, corrected = task.judge(tokens, given), torch.zeros(len(given), dtype=torch.bool)
    if last is not None:
        corrected = last & ~task.judge(trace[0].draft, given)
    best, rounds = shows_most(known, trace, corrected)
    return given[best], rounds


def shade(p_max: float) -> tuple[float, ...]:
    """The color behind a token that goes back to noise: the stronger, the less sure it is."""
    return (1.0, 0.66, 0.1, 0.12 + 0.88 * (1 - p_max))


def save_animation(frames: Iterator[tuple[Figure, int]], file: str) -> None:
    """Write figures, each shown for so many milliseconds, as one picture that moves, and say where.
    All frames have the palette of the first draft, which keeps the file small. The file is replaced
    whole or not at all. ValueError where pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("an animation needs pillow: pip install matplotlib pillow") from error
    pictures, times = [], []
    for figure, time in frames:
        pictures.append(Image.fromarray(pixels(figure)).convert("RGB"))
        times.append(time)
    palette = pictures[min(1, len(pictures) - 1)].quantize(128)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pictures[0].save(data := io.BytesIO(), Path(file).suffix[1:], save_all=True,
                     append_images=pictures[1:], duration=times, loop=0)
    replace(Path(file), data.getvalue())
    print(f"animation: {file}")


def pixels(figure: Figure) -> np.ndarray:
    """A figure as (height, width, 4) bytes, at 100 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(100)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@commands.command("harness.plot")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m harness.plot",
                             description="Draw accuracy against network passes.")
    parser.add_argument("tables", nargs="+", metavar="TABLE.json", type=commands.path,
                        help="what an evaluation prints with --json")
    parser.add_argument("--title", metavar="WORDS")
    parser.add_argument("--roads", nargs="+", metavar="NAME",
                        help="of a table of harness.roads: only the first line of each of these")
    parser.add_argument("--out", metavar="FILE", required=True, type=commands.figure_file,
                        help="the picture: .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    panels = read_table(*options.tables, roads=options.roads)
    save_figure(draw_curves(panels, options.title), options.out)
    return 0


if __name__ == "__main__":
    commands.run(main)
