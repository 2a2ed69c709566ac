"""What a task is: a language to learn. The method, its samplers and its training know no more.

A new task is one folder with a `task.py`, and one line in TASKS. The module has
`make(name, state) -> Task` and `suits(texts) -> name or None`, whose sequences these texts are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Generator, Tensor

ROOT = Path(__file__).parents[1]
TASKS = {"sudoku4": "sudoku.task", "sudoku6": "sudoku.task", "sudoku9": "sudoku.task",
         "stories": "text.task", "stories-large": "text.task", "text": "text.task"}

# draw(n, generator, progress) -> tokens (n, L) int64, and prompt (n, L) bool: what is given, and
# never trained on; None where nothing is. progress: the share of the training that is done.
Draw = Callable[[int, Generator, float], tuple[Tensor, Tensor | None]]


class Task:
    """A language of sequences of L tokens over V words. `vocab_size`, `coords` and `load` are all
    that training needs; the rest has defaults."""

    name: str
    vocab_size: int  # V
    coords: Tensor  # (L, K) int64, where each token is, for `fmlm.Denoiser`
    settings: dict = {}  # defaults of train.py's options for this task
    own: dict = {}  # its own options of train.py: name -> (default, largest, help)
    without_context: dict = {}  # what these are for an flm or fmlm: it needs no prompt
    state: dict = {}  # plain data that a checkpoint keeps to rebuild the task
    views: Callable | None = None  # (n, generator, device) -> symmetries: `attempts.View`, or None
    unique: Callable | None = None  # given (n, L) -> (n,) bool: whether it may leave one sequence
    recipe: Callable | None = None  # (Batch, model, Draws) -> Batch: its addition to the paper's
    by_halves: float | None = None  # believe by delta_{0,0} from this on, an FMLM+ too
    attempts: int | None = None  # sample.py's at what is given, where the model can judge
    nouns: str = "sequences"
    puzzle: str = "sequence to complete"
    asked: str = "puzzles"  # what these are called in tables
    budgets: Sequence[int] = (1, 2, 4, 8, 16, 36)  # NFE of the columns of `harness.roads`

    def load(self, options, device: torch.device) -> Draw:
        """The training data. `options` has the task's own; may set `state` and `vocab_size`."""
        raise NotImplementedError

    def held_out(self, n: int) -> Tensor:
        """(n, L) tokens that no training sees, for the likelihood bound."""
        raise ValueError(f"{self.name} holds nothing out")

    def parse(self, text: str) -> list[int]:
        """L tokens, -1 where unknown. ValueError, in one sentence, for text that is no sequence."""
        words = text.split()
        if len(words) != len(self.coords):
            raise ValueError(f"{self.name} has {len(self.coords)} tokens, got {len(words)}")
        for word in words:
            if word != "_" and not (word.isdecimal() and int(word) < self.vocab_size):
                raise ValueError(f"{word[:40]!r} is neither _ nor a token from 0 to "
                                 f"{self.vocab_size - 1}")
        return [-1 if word == "_" else int(word) for word in words]

    def show(self, tokens: Tensor, record=None, known: Tensor | None = None,
             color: bool = False) -> str:
        """A sequence (L,) for a terminal; with a `sample.Pass` of it, one pass of refinement, where
        the tokens `known` before are set apart."""
        return self.line(tokens)

    legend = ""  # of the marks of `show`

    def line(self, tokens: Tensor) -> str:
        """A sequence (L,) in one line, which `parse` reads."""
        return " ".join(map(str, tokens.tolist()))

    def judge(self, tokens: Tensor, given: Tensor) -> Tensor | None:
        """(B, L) each, given -1 where unknown -> (B,) bool; None where nothing can be checked."""
        return None

    def remark(self, given: Tensor, good: bool) -> str:
        """What there is to say of a given sequence (L,) beside the verdict."""
        return ""

    def measure(self, path, samplers: Sequence[str], budgets: Sequence[int], n: int, seed: int,
                device: torch.device, threshold: float | None = None) -> dict:
        """What `harness.roads` compares, of a checkpoint: {"unconditional": rows, "puzzles": rows,
        "likelihood": {"bound": nats}}, a row {"sampler", "nfe", "percent"} and, of puzzles of
        several kinds, "clues"; what there is of it. threshold: that of Posterior Refinement, None
        for its default and for any other sampler."""
        return {}

    def table(self, path: str, device: torch.device) -> int:
        """Evaluate a checkpoint and print the table; returns an exit status."""
        return 0


def load_task(name: str, state: dict | None = None) -> Task:
    """The task of that name, rebuilt from what a checkpoint kept. ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r} here: choose from {', '.join(TASKS)}")
    return import_module(TASKS[name]).make(name, state or {})


def name_of(texts: Sequence[str]) -> str | None:
    """The task whose sequences these texts look like, by each module's `suits`; None for none.
    The last module is asked first: Sudoku takes any text for the puzzle that it is closest to."""
    modules = [import_module(module) for module in reversed(dict.fromkeys(TASKS.values()))]
    return next((name for module in modules if (name := module.suits(texts))), None)


def check_draw(task: Task, draw: Draw, n: int, device: torch.device) -> None:
    """ValueError unless `draw` gives what it must, at the start and at the end of a training."""
    shape = (n, len(task.coords))
    for progress in (0.0, 1.0):
        tokens, prompt = draw(n, Generator(device).manual_seed(0), progress)
        if tokens.shape != shape or tokens.dtype != torch.int64:
            raise ValueError(f"the task {task.name} draws {tuple(tokens.shape)} {tokens.dtype}, "
                             f"but {n} sequences are {shape} torch.int64")
        if tokens.min() < 0 or tokens.max() >= task.vocab_size:
            raise ValueError(f"the task {task.name} draws tokens from {int(tokens.min())} to "
                             f"{int(tokens.max())}, but its words are 0 to {task.vocab_size - 1}")
        if prompt is not None and (prompt.shape != shape or prompt.dtype != torch.bool):
            raise ValueError(f"the task {task.name} draws a prompt {tuple(prompt.shape)} "
                             f"{prompt.dtype}, but it must be {shape} torch.bool, or None")
