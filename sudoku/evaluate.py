"""The evaluation tables: python -m sudoku.evaluate CKPT... [--nfe 1 3 9 27 81] [--clues 40 35 30]

For every sampler that suits a checkpoint: valid boards in % by the number of network passes (NFE),
with a 95% interval, how many different boards are among the valid ones, and how many passes a board
took on average. With --clues, the share of held-out puzzles solved exactly. For 4x4, where the law
is known: the total variation distance between what was drawn and the uniform law, and delta_{0,0}
against the exact conditional marginals. The likelihood bound for all that have a delta_{0,0}.
--attempts K draws anew, K times at most, what the model does not believe (`harness.attempts`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import fmlm
from harness import commands, evaluation
from harness.checkpoints import (completes, load_checkpoint, newest_checkpoint, read_checkpoint,
                                 task_of)
from harness.measure import posterior, share, usual
from harness.samplers import Sampler, choose_sampler
from harness.tasks import Task
from sample import SAMPLERS
from sudoku import boards as sudoku

ASIDE = ("block", "posterior-4", "posterior-8", "posterior-early", "posterior-gumbel",
         "confidence-gumbel", "posterior-left", "a-priori-left", "confidence-left",
         "flow-map-tau")  # on demand: not in the paper's tables of Sudoku
COMPARED = {4: {6: None}, 6: {12: None},  # puzzles that `measure` solves, by size: clues, and NFE,
            9: {clues: [4, 81] for clues in (40, 35, 30, "minimal")}}  # if not those of boards
BUDGETS = {4: [1, 2, 4, 8, 16], 6: [1, 3, 9, 27], 9: [1, 3, 9, 27, 81]}  # default NFE, by size


def unconditional(shape: sudoku.Shape, model: fmlm.Denoiser, sampler: Sampler, nfe: int, n: int,
                  generator: Generator, tries: evaluation.Tries = None) -> dict:
    """Draw n boards from nothing: the share that is valid, how many different valid boards there
    are, and the passes they took; with `tries`, of `complete`, how many were believed and wrong."""
    nothing = torch.full((n, shape.cells), -1, device=generator.device)
    boards, believed, passes = evaluation.complete(model, sampler, nothing, nfe, generator, tries)
    good = sudoku.valid(shape, boards)
    distinct, times = boards[good].unique(dim=0, return_counts=True)
    row = {"nfe": nfe, "n": n, **share(good), **passes, "distinct": len(distinct),
           **evaluation.wrongly(believed, good)}
    if shape.size == 4:  # 1/2 sum_k |share of board k - 1/288|; what is not valid counts in full
        drawn = times.double() / n
        never = (288 - len(distinct)) / 288
        apart = never + float((drawn - 1 / 288).abs().sum()) + 1 - float(drawn.sum())
        row |= {"tv": round(apart / 2, 4)}
    return row


@cache
def difficulty(shape: sudoku.Shape, clues: int | str, n: int) -> Tensor:
    """How many guesses each of these held-out puzzles wants, 2 for more: (n,)."""
    given, _ = sudoku.load_puzzles(shape, clues, n)
    return torch.tensor([min(2, sudoku.guesses(shape, puzzle)) for puzzle in given.tolist()])


def puzzles(shape: sudoku.Shape, model: fmlm.Denoiser, sampler: Sampler, nfe: int, n: int,
            clues: int | str, generator: Generator,
            tries: evaluation.Tries = None) -> dict:
    """Solve n held-out puzzles that have one solution: the share for which it was found, and of
    those that singles alone solve, that want one guess, and more (`sudoku.guesses`), how many."""
    given, solutions = (part.to(generator.device) for part in sudoku.load_puzzles(shape, clues, n))
    boards, believed, passes = evaluation.complete(model, sampler, given, nfe, generator, tries)
    solved = (boards == solutions).all(1)
    row = {"nfe": nfe, "n": n, "clues": clues, **share(solved), **passes}
    hard = difficulty(shape, clues, n)
    row["by_guesses"] = [f"{int(solved.cpu()[hard == k].sum())} of {int((hard == k).sum())}"
                         for k in range(3)]
    return row | evaluation.wrongly(believed, solved)


def against_exact(shape: sudoku.Shape, model: fmlm.Denoiser, objective: str, generator: Generator,
                  n: int = 200) -> dict:
    """4x4: mean KL(exact marginals || delta_{0,0}) in nats per unknown cell, by the number of
    clues, over n contexts each.

    Exact by enumeration: the share of each digit among the 288 boards that agree with the clues.
    """
    everything = sudoku.all_boards(shape).to(generator.device)
    one_hot, result = F.one_hot(everything, 4).float(), {}
    for clues in range(shape.cells):
        which = torch.randint(288, (n,), generator=generator, device=everything.device)
        boards = everything[which]
        order = torch.rand(boards.shape, generator=generator, device=boards.device)
        context = order.argsort(1).argsort(1) < clues
        agrees = ((boards[:, None] == everything) | ~context[:, None]).all(-1).float()  # (n, 288)
        exact = torch.einsum("nk,klv->nlv", agrees, one_hot) / agrees.sum(1)[:, None, None]
        log_delta = posterior(model, objective, boards, context, generator)
        kl = fmlm.cross_entropy(log_delta, exact) + torch.xlogy(exact, exact).sum(-1)
        result[clues] = round(float(fmlm.token_mean(kl, ~context)), 4)
    return result


def shape_of(path: str, info: dict) -> sudoku.Shape:
    """The boards that a checkpoint was trained on. ValueError for one of another task."""
    if info["task"] not in sudoku.SHAPES:
        raise ValueError(f"{path} is of the task {info['task']}, which is no Sudoku: name a "
                         f"checkpoint of {', '.join(sudoku.SHAPES)}")
    return sudoku.SHAPES[info["task"]]


def asked(path: str, info: dict,
          options: argparse.Namespace) -> tuple[list[tuple[str, Sampler]], evaluation.Tries]:
    """The samplers to evaluate a checkpoint with, by name, and their tries. ValueError for what it
    cannot do."""
    shape_of(path, info)
    objective = info["objective"]
    if options.clues and not completes(info):
        raise ValueError(f"{path} is an {objective} trained without prompts, so it cannot solve "
                         "puzzles: leave --clues out, or train it with --puzzles")
    return evaluation.samplers_of(info, options, ASIDE)


def evaluate(path: str, options: argparse.Namespace) -> dict:
    """Everything there is to say about one checkpoint, as one dictionary. Each figure draws from
    the seed alone: it is the same whatever else was asked, and two checkpoints meet the same
    draws."""
    model, info = load_checkpoint(path, options.device, options.compile)
    task, objective = task_of(info), info["objective"]
    shape, (samplers, tries) = task.shape, asked(path, info, options)
    draws = lambda: Generator(options.device).manual_seed(options.seed)
    document = evaluation.head(path, info, model, options)
    document["unconditional"] = [
        {"sampler": name,
         **unconditional(shape, model, sampler, nfe, options.n, draws(), tries=tries)}
        for name, sampler in samplers
        for nfe in options.nfe or usual(objective, shape.cells, BUDGETS[shape.size])]
    if not completes(info):
        return document
    document["puzzles"] = [
        {"sampler": name, **puzzles(shape, model, sampler, nfe, options.n, clues, draws(),
                                    tries=tries)}
        for name, sampler in samplers for clues in options.clues or []
        for nfe in options.nfe or usual(objective, shape.cells, [1, 2, 4, 8, 16])]
    if found := evaluation.likelihood(task, model, objective, draws()):
        document["likelihood"] = found | {
            "limit": round(math.log(sudoku.BOARD_COUNT[shape.name]), 3)}
        if "kind" not in found and shape.size == 4:
            document["kl"] = against_exact(shape, model, objective, draws())
    return document


def measure(task: Task, path: str, samplers: Sequence[str], budgets: Sequence[int], n: int,
            seed: int, device: torch.device, threshold: float | None = None) -> dict:
    """What `harness.roads` compares: boards from nothing, and puzzles. Figures are drawn as those
    of `evaluate`, and are equal to them."""
    model, info = load_checkpoint(path, device, compile=True)
    objective, shape = info["objective"], task.shape
    chosen = [choose_sampler(objective, name, threshold) for name in samplers]
    draws = lambda: Generator(device).manual_seed(seed)
    document = {"unconditional": [
        {"sampler": name, **unconditional(shape, model, sampler, nfe, n, draws())}
        for name, sampler in chosen for nfe in budgets]}
    if not completes(info):
        return document
    document["puzzles"] = [
        {"sampler": name, **puzzles(shape, model, sampler, nfe, n, clues, draws())}
        for name, sampler in chosen for clues, own in COMPARED[shape.size].items()
        for nfe in usual(objective, shape.cells, own or budgets)]
    if found := evaluation.likelihood(task, model, objective, draws()):
        document["likelihood"] = found
    return document


def report(document: dict) -> str:
    """The document as tables for a terminal."""
    steps = "an unknown number of" if document["steps"] is None else document["steps"]
    lines = ["{checkpoint}: {task}, {objective}, {parameters:,} parameters, {0} steps"
             .format(steps, **document)]
    tables = {"valid boards, %": document["unconditional"]}
    for row in document.get("puzzles", []):
        tables.setdefault(f"puzzles with {row['clues']} clues solved, %", []).append(row)
    for title, rows in tables.items():
        lines += ["", f"{title} of {rows[0]['n']:,} (95% interval)"]
        budgets = dict.fromkeys(row["nfe"] for row in rows)
        lines.append(f"{'NFE':<19}" + "".join(f"{nfe:>24}" for nfe in budgets))
        for name in dict.fromkeys(row["sampler"] for row in rows):
            mine = [row for row in rows if row["sampler"] == name]
            cells = {name: "{percent:>7.1f} ({low:.1f} - {high:.1f})",
                     "  mean passes": "{passes:.2f}"}
            if "attempts" in mine[0]:
                cells |= {"  most passes": "{most_passes}", "  believed, %": "{believed:.1f}",
                          "  and wrong": "{believed_and_wrong}"}
            if "by_guesses" in mine[0]:
                cells |= {f"  {label}": f"{{by_guesses[{k}]}}"
                          for k, label in enumerate(("singles only", "one guess", "more"))}
            if "distinct" in mine[0]:
                cells["  distinct"] = "{distinct}"
            if "tv" in mine[0]:
                cells["  TV to uniform"] = "{tv:.3f}"
            lines += [f"{label:<19}" + "".join(cell.format(**row).rjust(24) for row in mine)
                      for label, cell in cells.items()]
    if "likelihood" in document:
        count = f"{sudoku.BOARD_COUNT[document['task']]:,}"
        lines += ["",
                  "likelihood {kind} {bound} +- {plus_minus} nats a board; no honest one is below "
                  "log {0} = {limit}".format(count, **dict(kind="bound") | document["likelihood"])]
    elif "puzzles" in document:
        lines += ["", f"no likelihood: {document['objective']} has none, and no bound"]
    if "kl" in document:
        kl = document["kl"]
        lines += ["",
                  "KL(exact marginals || delta_00), nats per unknown cell, by the number of clues: "
                  f"mean {sum(kl.values()) / len(kl):.4f}",
                  "clues" + "".join(f"{clues:>7}" for clues in kl),
                  "KL   " + "".join(f"{value:>7.3f}" for value in kl.values())]
    return "\n".join(lines)


@commands.command("sudoku.evaluate")
def main(arguments: list[str] | None = None) -> int:
    parser = evaluation.parser("sudoku.evaluate", "Sudoku", SAMPLERS, ASIDE, "by size", n=1000)
    parser.add_argument("--clues", type=commands.clue_count, nargs="+",
                        help="also solve puzzles with so many clues, or minimal, symmetric or few")
    options = parser.parse_args(arguments)
    paths = options.checkpoints or [newest_checkpoint(*sudoku.SHAPES)]
    infos = {path: read_checkpoint(path) for path in paths}
    for path, info in infos.items():  # all of them, before the first is evaluated
        asked(path, info, options)
    shapes = {shape_of(path, info) for path, info in infos.items()}
    for shape, clues in product(shapes, options.clues or []):  # and what cannot be made is said
        sudoku.load_puzzles(shape, clues, options.n)
    return evaluation.run(options, paths, evaluate, report)


if __name__ == "__main__":
    commands.run(main)
