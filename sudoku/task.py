"""Sudoku as a task: boards of 4x4, 6x6 and 9x9 as a language of digits (see harness/tasks.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from harness.recipes import decided_rows, distilled_rows
from harness.tasks import Draw, Task
from sudoku import boards as rules
from sudoku.recipe import BOARDS_FIRST, recipe

SETTINGS = {  # chosen for two CPU cores
    "sudoku4": dict(minutes=2.3, batch=256, width=64, depth=5, heads=4),
    "sudoku6": dict(minutes=9.5, batch=128, width=96, depth=6, heads=4),
    "sudoku9": dict(minutes=100., batch=128, width=128, depth=12, heads=4, optimizer="muon"),
}
FEWEST = {"sudoku4": 4, "sudoku6": 8, "sudoku9": 17}  # clues of a puzzle with one solution
TRIES = 50_000  # of the search for what a puzzle's solutions are: seconds
DATA = {"sudoku4": (288, 0), "sudoku6": (20_000, 0), "sudoku9": (50_000, 20_000)}


def make(name: str, state: dict) -> Sudoku:
    """The task of that name. ValueError for a state: boards need none."""
    if state:
        raise ValueError(f"{name} keeps no state, got {', '.join(map(str, state))}")
    return Sudoku(name)


def suits(texts: Sequence[str]) -> str | None:
    """The size whose number of cells one of these puzzle strings has, or comes closest to."""
    shape = rules.shape_of(texts)
    return shape.name if shape else None


class Sudoku(Task):
    nouns, puzzle, attempts = "boards", "puzzle", 64
    without_context = {"puzzles": 0}
    legend = "5 known   [5] committed now   back to noise: 5' p >= 0.9   5~ p >= 0.5   5? less"

    def __init__(self, name: str) -> None:
        self.name, self.shape = name, rules.SHAPES[name]
        self.vocab_size, self.coords = self.shape.size, self.shape.coords()
        self.settings, self.recipe = SETTINGS[name], recipe
        self.budgets = (1, 3, 9, 27, 81) if self.shape.size == 9 else Task.budgets
        boards, puzzles = DATA[name]
        self.own = {"boards": (boards, 10**7, "different solved boards"),
                    "puzzles": (puzzles, 10**7, "of other boards; they come in with --recipe late")}

    def load(self, options, device: torch.device) -> Draw:
        """Random training boards, each under a random symmetry; some with the clues of a minimal
        puzzle as their prompt, if there are any, and with the recipe once it is time."""
        if not options.boards:
            raise ValueError("--boards 0 leaves nothing to learn from: ask for 1 at least")
        late = BOARDS_FIRST if options.recipe else 0

        @cache
        def made() -> tuple[Tensor, Tensor | None]:  # at the first draw: it can take minutes
            boards = rules.load_boards(self.shape, "train", options.boards).to(device)
            if not options.puzzles:
                return boards, None
            clues, solutions = rules.load_puzzles(self.shape, "minimal", options.puzzles,
                                                  split="train")
            # a cell that is a clue is marked by a digit higher by `size`
            return boards, (solutions + self.shape.size * (clues >= 0)).to(device)

        def draw(n: int, generator: Generator, progress: float) -> tuple[Tensor, Tensor | None]:
            boards, marked = made()
            some = lambda of, count: of[torch.randint(len(of), (count,), generator=generator,
                                                      device=device)]
            drawn, shown = some(boards, n), marked is not None and progress >= late
            if shown:
                rows = decided_rows(n, distilled_rows(n, options.distill))
                drawn[rows] = some(marked, rows.stop - rows.start)
            drawn = rules.augment(self.shape, drawn, generator)
            return drawn % self.shape.size, drawn >= self.shape.size if shown else None

        return draw

    def views(self, n: int, generator: Generator | None,
              device: torch.device) -> tuple[Tensor, Tensor]:
        return rules.symmetries(self.shape, n, generator, device)

    def unique(self, given: Tensor) -> Tensor:
        return (given >= 0).sum(1) >= FEWEST[self.name]

    def held_out(self, n: int) -> Tensor:
        return rules.load_boards(self.shape, "test", n)

    def parse(self, text: str) -> list[int]:
        return rules.parse(self.shape, text)

    def show(self, tokens: Tensor, record=None, known: Tensor | None = None,
             color: bool = False) -> str:
        if record is None:
            return rules.pretty(self.shape, tokens.tolist())
        return rules.pretty_draft(self.shape, record.draft, record.confidence, record.committed,
                                  known, color)

    def line(self, tokens: Tensor) -> str:
        return rules.to_string(self.shape, tokens.tolist())

    def judge(self, tokens: Tensor, given: Tensor) -> Tensor:
        return rules.valid(self.shape, tokens) & ((tokens == given) | (given < 0)).all(1)

    def remark(self, given: Tensor, good: bool) -> str:
        if not (given >= 0).any():
            return ""
        try:
            solutions = rules.count_solutions(self.shape, given.tolist(), tries=TRIES)
        except TimeoutError:
            return "how many solutions this puzzle has was not found out"
        if solutions == 1:
            return ""
        if not solutions:
            return "this puzzle has no solution"
        found = "; the board found is one of them, another attempt may find another" * good
        return f"this puzzle has 2 or more solutions{found}"

    def measure(self, path, samplers: Sequence[str], budgets: Sequence[int], n: int, seed: int,
                device: torch.device, threshold: float | None = None) -> dict:
        from sudoku import evaluate  # here: it knows the samplers, which know no task

        return evaluate.measure(self, path, samplers, budgets, n, seed, device, threshold)

    def table(self, path: str, device: torch.device) -> int:
        from sudoku import evaluate

        return evaluate.main([path, "--device", str(device)])
