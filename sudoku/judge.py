"""Whom to believe: python -m sudoku.judge [CKPT] [--clues 30 minimal few] [--attempts 16]

`harness.study` on held-out puzzles, as they are or with a clue misprinted (--misprint), and on
boards from nothing (--clues 0); and the scores of an exact model (--exact): all boards of 4x4, and
the two modes of the toy.
"""

from __future__ import annotations

import contextlib
import json
import random
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
from sudoku.task import TRIES
from toy.exact import Exact

KEEP = {
    "surest half": lambda tokens, sure, before, unknown:
        surest(sure, unknown, unknown.sum(1, keepdim=True) // 2),
    "what two agree on": lambda tokens, sure, before, unknown:
        unknown & (tokens == before) if before is not None else torch.zeros_like(unknown),
}


def exact_scores(sequences: Tensor, n: int, seed: int) -> list[dict]:
    """D_s of an exact model, by s: n of its sequences, and the same with two tokens swapped (with
    one changed, where that is no draft either)."""
    generator, model = Generator().manual_seed(seed), Exact(sequences)
    right = sequences[torch.randint(len(sequences), (n,), generator=generator)]
    known, wrong = torch.zeros_like(right, dtype=torch.bool), right.clone()
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
    add("--misprint", action="store_true", help="one clue of each puzzle is another digit: it has "
        "no solution, and nothing is to be believed")
    add("--exact", action="store_true", help="exact models in place of a checkpoint")
    options = parser.parse_args(arguments)
    if not options.exact:
        keep = {} if options.misprint else KEEP
        study.report(options, partial(puzzles, options=options), sudoku.SHAPES, keep)
        return 0
    sets = {"two modes": torch.tensor([[0, 0], [1, 1]]),
            "4x4": sudoku.all_boards(sudoku.SHAPES["sudoku4"])}
    found = {name: exact_scores(each, options.n, options.seed) for name, each in sets.items()}
    print(json.dumps(found) if options.json else
          "\n\n".join(table(rows, f"exact, {name}") for name, rows in found.items()))
    return 0


def misprinted(shape: sudoku.Shape, puzzles: Tensor, seed: int) -> Tensor:
    """These puzzles (n, L), in each of which one clue is another digit, so that it has no solution.
    ValueError where that cannot be done."""
    rng, rows = random.Random(seed), []
    for puzzle in puzzles.tolist():
        clues = [(cell, digit) for cell, digit in enumerate(puzzle) if digit >= 0]
        wrong = [(cell, (digit + more) % shape.size) for cell, digit in clues
                 for more in range(1, shape.size)]
        for cell, digit in rng.sample(wrong, len(wrong)):
            with contextlib.suppress(TimeoutError):
                row = [*puzzle[:cell], digit, *puzzle[cell + 1:]]
                if not sudoku.count_solutions(shape, row, limit=1, tries=TRIES):
                    break
        else:
            raise ValueError("a puzzle has a solution whichever clue is misprinted: ask for more "
                             "clues, or leave --misprint out")
        rows.append(row)
    return torch.tensor(rows)


def puzzles(path: str, info: dict, task: Task, options) -> dict[str, study.Set]:
    """Held-out puzzles of each kind, and boards from nothing."""
    shape, sets = shape_of(path, info), {}
    for clues in options.clues:
        given = torch.full((options.n, shape.cells), -1)
        right_of = partial(sudoku.valid, shape)
        if clues != 0:
            given, solutions = sudoku.load_puzzles(shape, clues, options.n, options.puzzles)
            if options.misprint:
                given = misprinted(shape, given, options.puzzles)
            right_of = lambda tokens, solutions=solutions: (tokens == solutions).all(1)
        sets[clues] = given, right_of
    return sets


if __name__ == "__main__":
    commands.run(main)
