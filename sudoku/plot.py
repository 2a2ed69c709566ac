"""A board over the rounds of Posterior Refinement: python -m sudoku.plot [CKPT] --out FILE.png

It looks for what it shows: of 64 held-out puzzles it takes those whose first draft is wrong and
whose last is right, and of these the first that took most rounds. --puzzle takes the puzzle as it
is, --clues 0 draws boards from nothing. --animate FILE.gif, in place of --out, shows the rounds
one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import commands
from harness.checkpoints import load_checkpoint, newest_checkpoint, task_of
from harness.plot import (BACK, COMMITTED, DRAFT, END, GIVEN, GIVEN_BACK, NOISE, PLAIN, UNSURE,
                          WRONG, new_figure, refine_one, save_animation, save_figure, shade)
from harness.samplers import choose_sampler
from sample import Pass
from sudoku import boards as sudoku
from sudoku.evaluate import shape_of
from sudoku.task import TRIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CANDIDATES = 64
KINDS = {  # of a drafted cell: color of its digit and behind it (None: `shade`), legend
    "clue": (GIVEN, GIVEN_BACK, "clue"),
    "committed": (COMMITTED, PLAIN, "committed"),
    "unsure": (UNSURE, None, "unsure: back to noise"),
    "wrong": (WRONG, None, "unsure and wrong: back to noise"),
    "lost": ("white", (0.83, 0.13, 0.16, 1), "committed, yet wrong"),
}
DOT = (NOISE, PLAIN)  # of a cell that is noise: the color of its dot, and behind it

# ---- a board over the rounds

def clashes(shape: sudoku.Shape, board: Tensor, among: Tensor) -> Tensor:
    """Which cells of a full board (L,) share a row, column or box with the same digit `among` these
    cells: (L,) bool."""
    coords = shape.coords()
    related = (coords[:, None] == coords).any(-1) & ~torch.eye(shape.cells, dtype=torch.bool)
    return (related & (board[:, None] == board) & among).any(1)


def solution_of(shape: sudoku.Shape, given: Tensor) -> Tensor | None:
    """The solution (L,) of a puzzle (L,), -1 for unknown; None where there is not exactly one, or
    the search for it takes too long."""
    with contextlib.suppress(TimeoutError):
        if sudoku.count_solutions(shape, given.tolist(), tries=TRIES) == 1:
            return torch.tensor(sudoku.solve(shape, given.tolist()))
    return None


def kinds(shape: sudoku.Shape, given: Tensor, draft: Tensor, committed: Tensor,
          solution: Tensor | None) -> list[str]:
    """What each cell of a draft is, a key of KINDS: given (L,), -1 for unknown; draft (L,); all
    committed so far (L,) bool; `solution_of` the puzzle.

    Wrong is what differs from the solution. Where that is None, a committed cell is wrong if it
    breaks a rule with a clue or a committed one, any other if it breaks one with whatever cell.
    """
    known = committed | (given >= 0)
    if solution is not None:
        wrong = draft != solution
    else:
        wrong = clashes(shape, draft, known) | ~known & clashes(shape, draft, ~known)
    names = (("unsure", "wrong"), ("committed", "lost"))
    return ["clue" if given[i] >= 0 else names[committed[i]][wrong[i]] for i in range(shape.cells)]


def behind(kind: str, p_max: float) -> tuple[float, ...]:
    """The color behind a digit."""
    return KINDS.get(kind, DOT)[1] or shade(p_max)


def draw_panel(axis: Axes, shape: sudoku.Shape, cells: list[str], digits: list[int],
               p_max: list[float], large: float = 1) -> None:
    """One board: every digit in the color of its kind, shaded by 1 - p_max; noise is a dot. Drawn
    so many times as large as a panel of 2.5 inches."""
    size = shape.size
    axis.set(xticks=[], yticks=[], frame_on=False)
    colors = torch.tensor([behind(*cell) for cell in zip(cells, p_max)])
    axis.imshow(colors.reshape(size, size, 4).numpy(), extent=(0, size, size, 0))
    for i, kind in enumerate(cells):
        axis.text(i % size + 0.5, i // size + 0.54, "·" if kind == "noise" else f"{digits[i] + 1}",
                  color=KINDS.get(kind, DOT)[0], ha="center", va="center",
                  fontsize=large * 90 / size)
    for k in range(size + 1):
        for line, box in ((axis.axhline, shape.box_rows), (axis.axvline, shape.box_cols)):
            line(k, color="black", linewidth=0.3 if k % box else 1.3, clip_on=False)


def draw_round(axis: Axes, shape: sudoku.Shape, cells: list[str], record: Pass, title: str,
               shown: list[str] | None = None, large: float = 1) -> None:
    """The draft of a round, whose cells are of these `kinds` (and `shown` so, if given), and what
    became of it in words."""
    draw_panel(axis, shape, shown or cells, record.draft.tolist(), record.confidence.tolist(),
               large)
    unsure, wrong, lost = map(cells.count, ("unsure", "wrong", "lost"))
    axis.set_title(f"{title}: {wrong + lost} wrong", fontsize=10)
    axis.set_xlabel(f"{int(record.committed.sum())} committed, {unsure + wrong} back to noise",
                    fontsize=9)


def draw_legend(figure: Figure, shown: set[str], columns: int) -> None:
    """The kinds that are there, below the boards."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = {words: (Patch(facecolor=behind(kind, 0.7), edgecolor="black", linewidth=0.4),
                       Line2D([], [], marker="$5$", color=color, linestyle="", markersize=5,
                              markeredgewidth=0))
               for kind, (color, _, words) in KINDS.items() if kind in shown}
    shades = tuple(Patch(facecolor=behind("unsure", p_max)) for p_max in (1, 0.7, 0.4))
    if shown & {"unsure", "wrong"}:
        entries[r"darker: lower $p_{\max}$"] = shades
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns,
                  frameon=False, fontsize=9, handlelength=1.3, handleheight=1.3, columnspacing=1.5,
                  handler_map={shades: HandlerTuple(None, 0)})


def kinds_of_rounds(shape: sudoku.Shape, given: Tensor, trace: list[Pass]) -> list[list[str]]:
    """The `kinds` of every round's draft."""
    committed, rounds = torch.zeros_like(given, dtype=torch.bool), []
    solution = solution_of(shape, given)
    for record in trace:
        committed = committed | record.committed
        rounds.append(kinds(shape, given, record.draft, committed, solution))
    return rounds


def draw_board(shape: sudoku.Shape, given: Tensor, trace: list[Pass]) -> Figure:
    """One panel a round, from `refine_one`: every digit of the draft in the color of its kind,
    shaded by 1 - p_max."""
    columns = min(len(trace), 4)
    rows = -(-len(trace) // columns)
    figure = new_figure(2.5 * columns, 2.9 * rows + 0.4)
    rounds = kinds_of_rounds(shape, given, trace)
    for number, (cells, record) in enumerate(zip(rounds, trace), 1):
        axis = figure.add_subplot(rows, columns, number)
        draw_round(axis, shape, cells, record, f"Round {number}")
    draw_legend(figure, set().union(*rounds), columns + 1)
    return figure


def draw_frames(shape: sudoku.Shape, given: Tensor,
                trace: list[Pass]) -> Iterator[tuple[Figure, int]]:
    """The same, one round after the other in one figure, and for how many milliseconds it is to be
    seen: the noise, every draft, and what is left once its unsure cells are noise again."""
    figure, rounds = new_figure(4.6, 5.8), kinds_of_rounds(shape, given, trace)
    axis = figure.add_subplot()
    draw_legend(figure, set().union(*rounds), 2)
    noise = ["noise" if digit < 0 else "clue" for digit in given.tolist()]
    draw_panel(axis, shape, noise, given.tolist(), [1.0] * shape.cells, large=1.7)
    axis.set_title("Noise", fontsize=10)
    axis.set_xlabel(f"{noise.count('noise')} cells to draft", fontsize=9)
    figure.draw_without_rendering()  # finds a place for everything
    figure.set_layout_engine("none")  # where it stays
    yield figure, BACK
    for number, (cells, record) in enumerate(zip(rounds, trace), 1):
        last = number == len(trace)
        left = ["noise" if kind in ("unsure", "wrong") else kind for kind in cells]
        for shown, time in ((cells, END if last else DRAFT), (left, BACK))[:1 if last else 2]:
            axis.clear()
            title = f"Round {number} of {len(trace)}"
            draw_round(axis, shape, cells, record, title, shown, large=1.7)
            yield figure, time


@commands.command("sudoku.plot")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m sudoku.plot",
                             description="Draw a board over the rounds of Posterior Refinement.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest trained here, of the puzzle's size, else the weights that ship")
    puzzle = parser.add_mutually_exclusive_group()
    puzzle.add_argument("--puzzle", metavar="STRING",
                        help="refine this: row after row, . or 0 for an empty cell")
    puzzle.add_argument("--clues", type=commands.clue_count, default=30,
                        help='of a held-out puzzle, or "minimal" (default 30); 0: none')
    add("--nfe", type=commands.NFE, default=4, help="rounds, one pass each, at most (default 4)")
    add("--seed", type=commands.SEED, default=0)
    picture = parser.add_mutually_exclusive_group(required=True)
    picture.add_argument("--out", metavar="FILE", type=commands.figure_file,
                         help="the picture: .png, .pdf or .svg")
    picture.add_argument("--animate", metavar="FILE", type=commands.animation_file,
                         help="the rounds one after the other: .gif, or .png that moves")
    options = parser.parse_args(arguments)
    size = sudoku.shape_of([options.puzzle or ""])
    path = options.checkpoint or newest_checkpoint(*([size.name] if size else sudoku.SHAPES))
    model, info = load_checkpoint(path)
    shape = shape_of(path, info)
    choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
    if options.puzzle is not None:
        given = torch.tensor([sudoku.parse(shape, options.puzzle)])
    elif options.clues:
        given, _ = sudoku.load_puzzles(shape, options.clues, CANDIDATES)
    else:
        given = torch.full((CANDIDATES, shape.cells), -1)
    shown = refine_one(task_of(info), model, given, options.nfe, options.seed)
    if options.animate:
        save_animation(draw_frames(shape, *shown), options.animate)
    else:
        save_figure(draw_board(shape, *shown), options.out)
    return 0


if __name__ == "__main__":
    commands.run(main)
