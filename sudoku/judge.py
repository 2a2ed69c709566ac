"""Whom to believe: python -m sudoku.judge [CKPT] [--clues 30 minimal few] [--attempts 16]

`harness.study` on held-out puzzles, and on boards from nothing (--clues 0); and the scores of an
exact model (--exact): all boards of 4x4, and the two modes of the toy.
"""

from __future__ import annotations

import json
from functools import partial

import torch
from torch import Generator, Tensor

from harness import commands, study
from harness.attempts import JUDGES, judge
from harness.study import TIMES, in_batches, separation, swapped, table
from harness.tasks import Task
from sample import surest
from sudoku import boards as sudoku
from sudoku.evaluate import shape_of
from toy.exact import Exact

KEEP = {
    "surest half": lambda tokens, sure, before, unknown:
        surest(sure, unknown, unknown.sum(1, keepdim=True) // 2),
    "what two agree on": lambda tokens, sure, before, unknown:
        unknown & (tokens == before) if before is not None else torch.zeros_like(unknown),
}


def exact_scores(sequences: Tensor, clues: int, n: int, seed: int) -> list[dict]:
    """D_s of an exact model, by s: n of its sequences, and the same with two tokens swapped (with
    one changed, where that is no draft either)."""
    generator, model = Generator().manual_seed(seed), Exact(sequences)
    right = sequences[torch.randint(len(sequences), (n,), generator=generator)]
    order = torch.rand(right.shape, generator=generator).argsort(1).argsort(1)
    known, wrong = order < clues, right.clone()
    if model.sequences.shape[1] > 2:
        wrong = swapped(right, known, generator)
    else:
        wrong[:, 0] = 1 - wrong[:, 0]
    rows = []
    for s in TIMES:
        good, bad = (in_batches(partial(judge, s=s), model, tokens, known,
                                Generator().manual_seed(seed)) for tokens in (right, wrong))
        every = torch.arange(2 * n) < n
        rows.append({"score": f"D_s, s = {s}", "passes": 1, "n": 2 * n, "right": n,
                     **separation(torch.cat([good, bad]), every, bad, JUDGES["fmlm+"].believe)})
    return rows


@commands.command("sudoku.judge")
def main(arguments: list[str] | None = None) -> int:
    parser = study.parser("sudoku.judge")
    add = parser.add_argument
    add("--clues", type=commands.clue_count, nargs="+", default=[30, "minimal"],
        help="kinds of puzzles, 0 for boards from nothing (default 30 minimal)")
    add("--puzzles", type=commands.SEED, default=0, help="seed of the puzzles")
    add("--exact", action="store_true", help="exact models in place of a checkpoint")
    options = parser.parse_args(arguments)
    if not options.exact:
        study.report(options, partial(puzzles, options=options), sudoku.SHAPES, KEEP)
        return 0
    sets = {"two modes": (torch.tensor([[0, 0], [1, 1]]), 0),
            "4x4, no clue": (sudoku.all_boards(sudoku.SHAPES["sudoku4"]), 0),
            "4x4, 4 clues": (sudoku.all_boards(sudoku.SHAPES["sudoku4"]), 4)}
    found = {name: exact_scores(*each, options.n, options.seed) for name, each in sets.items()}
    print(json.dumps(found) if options.json else
          "\n\n".join(table(rows, f"exact, {name}") for name, rows in found.items()))
    return 0


def puzzles(path: str, info: dict, task: Task, options) -> dict[str, study.Set]:
    """Held-out puzzles of each kind, and boards from nothing."""
    shape, sets = shape_of(path, info), {}
    for clues in options.clues:
        given = torch.full((options.n, shape.cells), -1)
        right_of = partial(sudoku.valid, shape)
        if clues != 0:
            given, solutions = sudoku.load_puzzles(shape, clues, options.n, options.puzzles)
            right_of = lambda tokens, solutions=solutions: (tokens == solutions).all(1)
        sets[clues] = given, right_of
    return sets


if __name__ == "__main__":
    commands.run(main)
