"""The two figures of 2606.24773 on Sudoku: a board over the rounds of Posterior Refinement, and accuracy against NFE.

    python -m sudoku.plot board [CKPT] --out FILE.png [--puzzle STRING | --clues 30] [--nfe 4] [--seed 0]
    python -m sudoku.plot curves TABLE.json --out FILE.png [--title WORDS]

`board` looks for what it shows: of 64 held-out puzzles it takes those whose first draft is wrong and whose last is right,
and of these the first that took most rounds. --puzzle takes the puzzle as it is, --clues 0 draws boards from nothing.
`curves` reads what `python -m sudoku.evaluate CKPT... --json` prints, or the table that `python -m sudoku.roads` saves; a
document may name its line with a "label".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from fmlm import Model
from sample import Pass, choose_sampler, posterior_refinement
from sudoku import boards as sudoku
from sudoku.checkpoints import load_checkpoint, newest_checkpoint
from sudoku.commands import Parser, clue_count, command
from sudoku.refinement import passes_used

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CANDIDATES = 64
SHADE = (1.0, 0.66, 0.1)  # behind a digit that goes back to noise, at full strength for p_max = 0
KINDS = {  # of a drafted cell: color of its digit, color behind it (None: SHADE), words of the legend
    "clue": ("black", (0.9, 0.9, 0.9, 1), "clue"),
    "committed": ("#0b5394", (1, 1, 1, 1), "committed"),
    "unsure": ("#6b6b6b", None, "unsure: back to noise"),
    "wrong": ("#d3202a", None, "unsure and wrong: back to noise"),
    "lost": ("white", (0.83, 0.13, 0.16, 1), "committed, yet wrong"),
}
WORDS = {"posterior": "Posterior Refinement", "posterior-reopened": "Posterior Refinement, reopened",
         "a-priori": "a-priori confidence", "flow-map": "flow map",
         "a-priori-sampled": "a-priori confidence, sampled", "block": "block diffusion", "confidence": "most confident first",
         "confidence-sampled": "most confident first, sampled", "flow-map-tau": r"flow map, uniform in $\tau$",
         "promotion": "token promotion"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe & Ito's: safe for all eyes
MARKERS = "os^DvP*X"  # beside seven colors; lines are dashed once all colors are used


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a figure needs matplotlib: pip install matplotlib") from error
    return Figure((width, height), layout="constrained")


# ---- a board over the rounds

def clashes(shape: sudoku.Shape, board: Tensor, among: Tensor) -> Tensor:
    """Which cells of a full board (L,) share a row, column or box with the same digit `among` these cells: (L,) bool."""
    coords = shape.coords()
    related = (coords[:, None] == coords).any(-1) & ~torch.eye(shape.cells, dtype=torch.bool)
    return (related & (board[:, None] == board) & among).any(1)


def kinds(shape: sudoku.Shape, given: Tensor, draft: Tensor, committed: Tensor) -> list[str]:
    """What each cell of a draft is, a key of KINDS: given (L,), -1 for unknown; draft (L,); all committed so far (L,) bool.

    Wrong is what differs from the puzzle's solution. Without exactly one solution, a committed cell is wrong if it breaks
    a rule with a clue or a committed one, any other if it breaks one with whatever cell.
    """
    known = committed | (given >= 0)
    if sudoku.count_solutions(shape, given.tolist()) == 1:
        wrong = draft != torch.tensor(sudoku.solve(shape, given.tolist()))
    else:
        wrong = clashes(shape, draft, known) | ~known & clashes(shape, draft, ~known)
    names = (("unsure", "wrong"), ("committed", "lost"))
    return ["clue" if given[i] >= 0 else names[committed[i]][wrong[i]] for i in range(shape.cells)]


def refine_one(shape: sudoku.Shape, model: Model, given: Tensor, nfe: int, seed: int) -> tuple[Tensor, list[Pass]]:
    """Refine puzzles (n, L) and return the one that shows most, (L,), and its rounds, (L,) each: of those that went from a
    wrong draft to a right board (of all, where none did) the first that took most rounds. ValueError for no empty cell."""
    known, trace = given >= 0, []
    boards = posterior_refinement(model, given.clamp(min=0), known, nfe, generator=Generator().manual_seed(seed), trace=trace)
    if not trace:
        raise ValueError("this puzzle has no empty cell: there is nothing to refine")
    rounds = passes_used(known, trace)
    corrected = sudoku.valid(shape, boards) & ~sudoku.valid(shape, trace[0].draft)
    best = int((rounds + corrected * (nfe + 1)).argmax())
    return given[best], [Pass(*(part[best] for part in record)) for record in trace[:rounds[best]]]


def draw_board(shape: sudoku.Shape, given: Tensor, trace: list[Pass]) -> Figure:
    """One panel a round, from `refine_one`: every digit of the draft in the color of its kind, shaded by 1 - p_max."""
    columns, size = min(len(trace), 4), shape.size
    rows = -(-len(trace) // columns)
    figure = new_figure(2.5 * columns, 2.9 * rows + 0.4)
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    behind = lambda kind, p_max: KINDS[kind][1] or (*SHADE, 0.12 + 0.88 * (1 - p_max))
    committed, shown = torch.zeros_like(given, dtype=torch.bool), set()
    for number, record in enumerate(trace, 1):
        committed = committed | record.committed
        cells = kinds(shape, given, record.draft, committed)
        shown |= set(cells)
        axis = figure.add_subplot(rows, columns, number, xticks=[], yticks=[], frame_on=False)
        colors = [behind(*cell) for cell in zip(cells, record.confidence.tolist())]
        axis.imshow(torch.tensor(colors).reshape(size, size, 4).numpy(), extent=(0, size, size, 0))
        for i, kind in enumerate(cells):
            axis.text(i % size + 0.5, i // size + 0.54, f"{record.draft[i] + 1}", color=KINDS[kind][0], ha="center",
                      va="center", fontsize=90 / size)
        for k in range(size + 1):
            axis.axhline(k, color="black", linewidth=0.3 if k % shape.box_rows else 1.3, clip_on=False)
            axis.axvline(k, color="black", linewidth=0.3 if k % shape.box_cols else 1.3, clip_on=False)
        back, wrong = cells.count("unsure") + cells.count("wrong"), cells.count("wrong") + cells.count("lost")
        axis.set_title(f"Round {number}: {wrong} wrong", fontsize=10)
        axis.set_xlabel(f"{int(record.committed.sum())} committed, {back} back to noise", fontsize=9)
    entries = {words: (Patch(facecolor=behind(kind, 0.7), edgecolor="black", linewidth=0.4),
                       Line2D([], [], marker="$5$", color=color, linestyle="", markersize=5, markeredgewidth=0))
               for kind, (color, _, words) in KINDS.items() if kind in shown}
    shades = tuple(Patch(facecolor=behind("unsure", p_max)) for p_max in (1, 0.7, 0.4))
    if shown & {"unsure", "wrong"}:
        entries[r"darker: lower $p_{\max}$"] = shades
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns + 1, frameon=False, fontsize=9,
                  handlelength=1.3, handleheight=1.3, columnspacing=1.5, handler_map={shades: HandlerTuple(None, 0)})
    return figure


# ---- accuracy against NFE

def read_table(path: str) -> dict[str, dict[str, list[tuple[float, ...]]]]:
    """The JSON of sudoku.evaluate as {panel: {line: [(NFE, percent, low, high), ...]}}, by NFE: valid boards, then a panel
    for each number of clues. ValueError for a file that is none, has no row, or gives a line two points at one NFE."""
    panels: dict = {}
    try:
        documents = json.loads(Path(path).read_text())
        for key, document, row in [(key, document, row) for key in ("unconditional", "puzzles") for document in documents
                                   for row in document.get(key, [])]:
            panel = "valid boards, %" if key == "unconditional" else f"puzzles with {row['clues']} clues solved, %"
            line = document.get("label") or f"{document['objective'].upper()}, {WORDS.get(row['sampler'], row['sampler'])}"
            points = panels.setdefault(panel, {}).setdefault(line, [])
            points.append(tuple(float(row[key]) for key in ("nfe", "percent", "low", "high")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what `python -m sudoku.evaluate CKPT... --json` prints") from error
    if not panels:
        raise ValueError(f"{path} holds no row to draw")
    for line, points in [item for lines in panels.values() for item in lines.items()]:
        points.sort()
        if len({nfe for nfe, *_ in points}) < len(points):
            raise ValueError(f'{path} has two points at one NFE for "{line}": give each of its documents a "label"')
    return panels


def draw_curves(panels: dict[str, dict[str, list[tuple[float, ...]]]], title: str | None) -> Figure:
    """One panel for each key, from `read_table`. A line looks the same in all of them; its band goes from low to high:
    the 95% interval of sudoku.evaluate, the lowest and the highest seed of sudoku.roads."""
    names, legend = list(dict.fromkeys(name for lines in panels.values() for name in lines)), {}
    figure = new_figure(max(3.2 * len(panels), 5.5), 3 + 0.1 * len(names))
    for axis, (panel, lines) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        for name, points in lines.items():
            (nfe, percent, low, high), k = zip(*points), names.index(name)
            style = dict(color=COLORS[k % len(COLORS)], marker=MARKERS[k % len(MARKERS)], markersize=4.5, clip_on=False,
                         linestyle=["-", "--", ":"][k // len(COLORS) % 3])
            legend[name], = axis.plot(nfe, percent, **style, zorder=3 + len(names) - k)  # the first line lies on top
            axis.fill_between(nfe, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ticks = sorted({nfe for points in lines.values() for nfe, *_ in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set(xlabel="network passes (NFE)", ylim=(0, 100))
        axis.set_title(panel, fontsize=10, loc="left")
        axis.grid(axis="y", color="#e0e0e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


@command("sudoku.plot")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sudoku.plot", description="Draw a board being refined, or accuracy against NFE.")
    commands = parser.add_subparsers(dest="command", required=True)
    board = commands.add_parser("board", help="a board over the rounds of Posterior Refinement")
    board.add_argument("checkpoint", nargs="?", help="default: the newest trained here, of the puzzle's size, else the shipped 9x9 weights")
    puzzle = board.add_mutually_exclusive_group()
    puzzle.add_argument("--puzzle", metavar="STRING", help="refine this: row after row, . or 0 for an empty cell")
    puzzle.add_argument("--clues", type=clue_count, default=30, help='of a held-out puzzle, or "minimal" (default 30); 0: none')
    board.add_argument("--nfe", type=int, default=4, help="rounds, one network pass each, at most (default 4)")
    board.add_argument("--seed", type=int, default=0)
    curves = commands.add_parser("curves", help="accuracy against NFE")
    curves.add_argument("table", metavar="TABLE.json", help="what python -m sudoku.evaluate --json prints")
    curves.add_argument("--title", metavar="WORDS")
    for either in board, curves:
        either.add_argument("--out", metavar="FILE", required=True, help="the picture: .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    if options.command == "curves":
        figure = draw_curves(read_table(options.table), options.title)
    else:
        if options.nfe < 1 or not 0 <= options.seed < 2**32:
            raise ValueError("--nfe must be 1 or more, and --seed from 0 to 2^32 - 1")
        model, info = load_checkpoint(options.checkpoint or newest_checkpoint(sudoku.shape_of([options.puzzle or ""])))
        choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
        shape = sudoku.SHAPES[info["task"]]
        if options.puzzle is not None:
            given = torch.tensor([sudoku.parse(shape, options.puzzle)])
        else:
            given = (sudoku.load_puzzles(shape, options.clues, CANDIDATES)[0] if options.clues
                     else torch.full((CANDIDATES, shape.cells), -1))
        figure = draw_board(shape, *refine_one(shape, model, given, options.nfe, options.seed))
    figure.savefig(options.out, dpi=200, bbox_inches="tight")
    print(f"figure: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
