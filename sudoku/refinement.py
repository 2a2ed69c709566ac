"""Posterior Refinement, understood: python -m sudoku.refinement [CKPT] [--clues 30] [--nfe 4 16]

Three questions to an FMLM+, on held-out puzzles with one solution, so that every drafted cell is
right or wrong:
  1. Are the errors of one pass inside its low-confidence set (p_max < p), as 2606.24773 claims?
     Then forgetting this set forgets the errors.
  2. Is p_max calibrated? An exact delta_{0,1} is one-hot: all doubt in p_max is the network's doubt
     about itself.
  3. What do the threshold, several flow steps a round and fresh noise do for the share of puzzles
     solved, at equal NFE?
"""

from __future__ import annotations

import json
import math

import torch
from torch import Generator, Tensor

from fmlm import Model
from harness import commands
from harness.checkpoints import load_checkpoint, newest_checkpoint
from harness.measure import BATCH, passes_used, share
from harness.samplers import choose_sampler
from sample import Pass, posterior_refinement
from sudoku import boards as sudoku
from sudoku.evaluate import shape_of

THRESHOLDS = (0.5, 0.9, 0.99, 0.999)  # p_max below one of these is "low confidence"
EDGES = (0.0, 0.5, 0.7, 0.9, 0.99, 0.999, 1.0)  # of the calibration bins: narrow where cells are
VARIANTS = {  # of the sweep: what differs from 1 flow step a round, fresh noise, default threshold
    "threshold 0: all at once": dict(threshold=0.0),
    "threshold 0.9": dict(threshold=0.9),
    "threshold 0.99": dict(threshold=0.99),
    "default: 1 - 0.05 / rounds": dict(),
    "threshold 0.999: published": dict(threshold=0.999),
    "threshold 0.9999": dict(threshold=0.9999),
    "threshold inf: uniform budget": dict(threshold=math.inf),
    "2 flow steps a round": dict(flow_steps=2),
    "4 flow steps a round": dict(flow_steps=4),
    "noise kept": dict(fresh=False),
}


def percent(part: Tensor, whole: Tensor) -> float | None:
    """How many % of the cells in `whole` are in `part` too; None where `whole` is empty. Both bool,
    of one shape."""
    return round(100 * float((part & whole).sum() / whole.sum()), 2) if whole.any() else None


def low_confidence(p_max: Tensor, wrong: Tensor) -> list[dict]:
    """For each threshold: how many % of all cells, and of the wrong cells, have a p_max below it.
    Both (N,)."""
    return [{"threshold": threshold, "cells": percent(p_max < threshold, torch.ones_like(wrong)),
             "wrong": percent(p_max < threshold, wrong)} for threshold in THRESHOLDS]


def calibration(p_max: Tensor, right: Tensor) -> dict:
    """Cells binned by p_max, both (N,): their number, mean p_max and share right, None where a bin
    is empty. "error" is the expected calibration error: |mean p_max - share right|, averaged over
    the cells."""
    place = torch.bucketize(p_max, torch.tensor(EDGES[1:-1], device=p_max.device), right=True)
    bins, error = [], 0.0
    for k, (low, high) in enumerate(zip(EDGES, EDGES[1:])):
        mine, row = place == k, {"from": low, "to": high, "cells": 0, "p_max": None, "right": None}
        if mine.any():
            said, true = float(p_max[mine].double().mean()), float(right[mine].double().mean())
            row |= {"cells": int(mine.sum()), "p_max": round(said, 4), "right": round(true, 4)}
            error += row["cells"] / len(p_max) * abs(said - true)
        bins.append(row)
    return {"bins": bins, "error": round(error, 4)}


def refined(model: Model, given: Tensor, rounds: int, seed: int,
            **variant: float) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior Refinement of puzzles (n, L), -1 for unknown, in batches: boards (n, L), the passes
    each used (n,), and p_max of the first pass (n, L). The same seed is the same first noise:
    variants differ in nothing else."""
    generator, parts = Generator(given.device).manual_seed(seed), []
    for part in given.split(BATCH):
        trace: list[Pass] = []
        boards = posterior_refinement(model, part.clamp(min=0), part >= 0, rounds,
                                      generator=generator, trace=trace, **variant)
        parts.append((boards, passes_used(part >= 0, trace), trace[0].confidence))
    boards, passes, p_max = map(torch.cat, zip(*parts))
    return boards, passes, p_max


def one_pass(model: Model, given: Tensor, solutions: Tensor, seed: int) -> dict:
    """What one pass of delta_{0,1} drafts into the empty cells: how much of it is wrong, and what
    p_max says of it."""
    boards, _, p_max = refined(model, given, 1, seed)
    p_max, wrong = p_max[given < 0], (boards != solutions)[given < 0]
    return {"cells": len(wrong), "wrong": int(wrong.sum()),
            "low_confidence": low_confidence(p_max, wrong),
            "calibration": calibration(p_max, ~wrong)}


def sweep(model: Model, given: Tensor, solutions: Tensor, nfe: int, seed: int) -> list[dict]:
    """Every variant at NFE passes, rounds = NFE / flow_steps: the share of puzzles solved, and the
    passes a board used on average. A variant whose flow steps do not divide the NFE has no row."""
    rows = []
    for name, variant in VARIANTS.items():
        rounds, rest = divmod(nfe, variant.get("flow_steps", 1))
        if not rest:
            boards, passes, _ = refined(model, given, rounds, seed, **variant)
            rows.append({"variant": name, "nfe": nfe, **share((boards == solutions).all(1)),
                         "passes": round(float(passes.double().mean()), 2)})
    return rows


def report(document: dict) -> str:
    """The document as tables for a terminal."""
    first, budgets = document["one_pass"], document["nfe"]
    number = lambda value, form: f"{'-' if value is None else format(value, form):>9}"
    lines = ["{checkpoint}: {task}, {n:,} held-out puzzles with {clues} clues".format(**document),
             "",
             "one pass of delta_01 drafts {cells:,} cells, {wrong:,} of them wrong".format(**first),
             "low confidence, p_max below"
             + "".join(f"{row['threshold']:>9}" for row in first["low_confidence"])]
    for key, title in (("cells", "  % of all drafted cells"), ("wrong", "  % of the wrong cells")):
        lines.append(f"{title:<27}"
                     + "".join(number(row[key], ".1f") for row in first["low_confidence"]))
    lines += ["", f"{'calibration, p_max in':<27}{'cells':>9}{'p_max':>9}{'right':>9}"]
    for row in first["calibration"]["bins"]:
        said, true = number(row["p_max"], ".3f"), number(row["right"], ".3f")
        lines.append("  {from:<5} to {to:<16}{cells:>9,}".format(**row) + said + true)
    lines += [f"expected calibration error {first['calibration']['error']:.4f}", "",
              "puzzles solved, % (95% interval), passes used",
              f"{'NFE':<28}" + "".join(f"{nfe:>30}" for nfe in budgets)]
    for name in VARIANTS:
        cells = {row["nfe"]: "{percent:.1f} ({low:.1f} - {high:.1f}) {passes:>6.2f}".format(**row)
                 for row in document["sweep"] if row["variant"] == name}
        lines.append(f"{name:<28}" + "".join(f"{cells.get(nfe, '-'):>30}" for nfe in budgets))
    return "\n".join(lines)


@commands.command("sudoku.refinement")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m sudoku.refinement",
                             description="Posterior Refinement, understood: where the errors of "
                             "one pass are, whether p_max is calibrated, what each part of the "
                             "sampler is worth.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest trained here, else the weights that ship")
    add("-n", type=commands.COUNT, default=500, help="held-out puzzles (default 500)")
    add("--clues", type=commands.clue_count, default=30,
        help='clues of a puzzle, or "minimal" (default 30)')
    add("--nfe", type=commands.NFE, nargs="+", default=[4, 16],
        help="passes for each puzzle (default 4 16)")
    add("--seed", type=commands.SEED, default=0)
    commands.device_option(parser)
    add("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    path = str(options.checkpoint or newest_checkpoint(*sudoku.SHAPES))
    model, info = load_checkpoint(path, options.device)
    shape = shape_of(path, info)
    choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
    if options.clues == shape.cells:
        raise ValueError(f"a puzzle with {shape.cells} clues leaves nothing to draft: ask for "
                         "fewer")
    given, solutions = (part.to(options.device)
                        for part in sudoku.load_puzzles(shape, options.clues, options.n))
    document = {"checkpoint": path, "task": info["task"], "clues": options.clues, "n": options.n,
                "nfe": options.nfe, "seed": options.seed,
                "one_pass": one_pass(model, given, solutions, options.seed),
                "sweep": [row for nfe in options.nfe
                          for row in sweep(model, given, solutions, nfe, options.seed)]}
    print(json.dumps(document) if options.json else report(document))
    return 0


if __name__ == "__main__":
    commands.run(main)
