"""Every road to a few-step model, side by side at equal compute: python -m sudoku.roads [--minutes M] [--seeds N]

The table of training strategies of 2606.24773 (from scratch, distilled, started from an MDM) on Sudoku, with the roads of
2602.16813 (FLM; its distillation into an FMLM) and of 2606.27617 (MLFM) beside them. Compute is counted in network
passes of the whole batch, a backward pass as two. A road that builds on another model has half of the passes, and that
model the other half, so that all totals are equal; only "a quarter" is cheaper.

Trains by running train.py, keeps the checkpoints in checkpoints/roads and uses those that are there already, so it can be
stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator

from sudoku import boards as sudoku, evaluate
from sudoku.checkpoints import CHECKPOINTS, WITHOUT_CONTEXT, load_checkpoint, read_checkpoint
from sudoku.commands import Parser, command, device

NFE = [1, 2, 4, 8, 16, 36]
TRAIN = Path(__file__).parents[1] / "train.py"


class Road(NamedTuple):
    """Options of train.py, passes a step, share of the passes, the model that it builds on, and how it is sampled."""

    options: str
    cost: float
    share: float = 1.0
    base: str | None = None
    samplers: tuple[str, ...] = ()  # none: a base only, not in the table
    label: str = ""


# A step is 3 passes (forward 1, backward 2); the semigroup target of half of the batch is 1 more, a teacher's part what it
# teaches, the Lagrangian target 1.5 (value and slope by forward mode count as two, D_t as one; of half of the batch).
ROADS = {
    "fmlm+": Road("", 4, samplers=("posterior", "flow-map"), label="FMLM+ from scratch"),
    "mdm": Road("--objective mdm", 3, samplers=("confidence-sampled", "ancestral"), label="MDM"),
    "flm": Road("--objective flm", 3, samplers=("flow-map-tau", "flow-map"), label="FLM"),
    "flm-t": Road("--objective flm --no-tau", 3, samplers=("flow-map-tau", "flow-map"), label="FLM trained uniform in t"),
    "mlfm": Road("--objective mlfm", 3, samplers=("promotion",), label="MLFM from scratch"),
    "half-mdm": Road("--objective mdm", 3, 0.5),
    "half-flm": Road("--objective flm", 3, 0.5),
    "half-fmlm+": Road("", 4, 0.5),
    "started": Road("--init", 4, 0.5, "half-mdm", ("posterior",), "FMLM+ started from an MDM"),
    "distilled": Road("--distill 0.25 --teacher", 4, 0.5, "half-mdm", ("posterior",), "FMLM+ distilled from an MDM"),
    "taught": Road("--teacher", 4.5, 0.5, "half-fmlm+", ("posterior",), "FMLM+ taught by an FMLM+"),
    "fmlm": Road("--objective fmlm --lr 1e-3 --teacher", 4.5, 0.5, "half-flm", ("flow-map-tau", "flow-map"),
                 "FMLM from an FLM, semigroup"),
    "fmlm-l": Road("--objective fmlm --lagrangian --teacher", 5, 0.5, "half-flm", ("flow-map-tau", "flow-map"),
                   "FMLM from an FLM, Lagrangian"),
    "mlfm-half": Road("--objective mlfm --init", 3, 0.5, "half-mdm", ("promotion",), "MLFM from an MDM"),
    "mlfm-quarter": Road("--objective mlfm --init", 3, 0.125, "half-mdm", ("promotion",), "MLFM from an MDM, a quarter"),
}


def train(task: str, name: str, seed: int, steps: int | None, minutes: float | None, folder: Path) -> dict:
    """The checkpoint of a road, trained now unless it is there. `steps` are those of the first road."""
    road, path = ROADS[name], folder / f"{task}-{name}-{seed}.pt"
    if not path.exists():
        part = path.with_suffix(".part.pt")
        own = max(1, round((steps or 0) * road.share * 4 / road.cost))
        length = ["--steps", str(own)] if steps else ["--minutes", str(minutes)]
        start = road.options.split() + ([folder / f"{task}-{road.base}-{seed}.pt"] if road.base else [])
        words = [sys.executable, TRAIN, task, *length, "--seed", str(seed), "--no-table", "--out", part, *start]
        if subprocess.run(words).returncode:
            raise ValueError(f"the road {name!r} ended early: run the same command again")
        part.rename(path)
    return read_checkpoint(path)


def measure(task: str, name: str, seed: int, folder: Path, n: int, clues: int, at: torch.device) -> dict:
    """{(sampler, "boards" or "puzzles", NFE): % right} of one checkpoint, and its likelihood bound if it has one."""
    model, info = load_checkpoint(folder / f"{task}-{name}-{seed}.pt", at, compile=True)
    shape, generator, result = sudoku.SHAPES[task], Generator(at).manual_seed(seed), {}
    for sampler in ROADS[name].samplers:
        for nfe in [nfe for nfe in NFE if nfe <= shape.cells]:
            result[sampler, "boards", nfe] = evaluate.unconditional(shape, model, sampler, nfe, n, generator)["percent"]
            if info["objective"] not in WITHOUT_CONTEXT:
                row = evaluate.puzzles(shape, model, sampler, nfe, n, clues, generator)
                result[sampler, "puzzles", nfe] = row["percent"]
    if info["objective"] not in WITHOUT_CONTEXT:
        result["bound"] = evaluate.likelihood_bound(shape, model, info["objective"], generator)[0]
    return result


def document(name: str, sampler: str, steps: int, runs: list[dict], seconds: list[float], options: argparse.Namespace) -> dict:
    """One line of the table, over seeds: percent is the mean, low and high are the lowest and the highest seed."""
    road, several = ROADS[name], len(ROADS[name].samplers) > 1
    own, total = 4 * steps * road.share, 4 * steps * (road.share + (ROADS[road.base].share if road.base else 0))
    rows = lambda kind: [{"sampler": sampler, "nfe": nfe, "n": options.n, "clues": options.clues, "low": min(values),
                          "high": max(values), "percent": round(statistics.mean(values), 2)}
                         for nfe in NFE if (values := [run[sampler, kind, nfe] for run in runs if (sampler, kind, nfe) in run])]
    return {"label": road.label + (f", {sampler}" if several else ""), "task": options.task, "seeds": len(runs),
            "bound": [round(run["bound"], 2) for run in runs if "bound" in run], "seconds": [round(s) for s in seconds],
            "passes": round(own), "total passes": round(total), "unconditional": rows("boards"), "puzzles": rows("puzzles")}


def report(documents: list[dict]) -> str:
    """The documents as two Markdown tables: valid boards, and puzzles solved where a model knows context."""
    lines = []
    for title, kind in (("valid boards", "unconditional"), ("puzzles solved", "puzzles")):
        first, seeds = documents[0][kind], documents[0]["seeds"]
        clues = f" with {first[0]['clues']} clues" if kind == "puzzles" else ""
        lines += ["", f"{title}{clues}, % of {first[0]['n']:,}, mean of {seeds} seeds (lowest - highest), by NFE", "",
                  "| road | " + " | ".join(str(row["nfe"]) for row in first) + " | passes, with its base | minutes | bound |",
                  "|---" * (len(first) + 4) + "|"]
        for road in [road for road in documents if road[kind]]:
            cells = ["{percent:.1f} ({low:.0f} - {high:.0f})".format(**row) for row in road[kind]]
            cells += [f"{road['passes']:,} of {road['total passes']:,}", f"{statistics.mean(road['seconds']) / 60:.1f}",
                      f"{statistics.mean(road['bound']):.2f}" if road["bound"] else ""]
            lines.append(f"| {road['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


@command("sudoku.roads")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sudoku.roads", description="Train all roads at equal compute and compare them.")
    parser.add_argument("--task", choices=sudoku.SHAPES, default="sudoku6", help="default: sudoku6")
    parser.add_argument("--minutes", type=float, default=5, help="of the first road, FMLM+ from scratch (default 5)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each road (default 2)")
    parser.add_argument("--roads", nargs="+", choices=[name for name in ROADS if ROADS[name].samplers], metavar="NAME",
                        help="default: all, of %(choices)s")
    parser.add_argument("-n", type=int, default=500, help="boards and puzzles a cell (default 500)")
    parser.add_argument("--clues", type=int, default=12, help="of the puzzles (default 12)")
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS / "roads", help="default: checkpoints/roads")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.seeds < 1 or options.n < 1:
        raise ValueError("--minutes must be more than 0, --seeds and -n 1 or more")
    options.folder.mkdir(parents=True, exist_ok=True)
    names = ["fmlm+", *(options.roads or [name for name in ROADS if ROADS[name].samplers])]  # the first gives the budget
    names = list(dict.fromkeys(names + [ROADS[name].base for name in names if ROADS[name].base]))
    steps, seconds, runs = None, {}, {}
    for seed in range(options.seeds):  # bases first: they are shorter than what builds on them
        for name in sorted(names, key=lambda name: ROADS[name].base is not None):
            state = train(options.task, name, seed, steps, options.minutes, options.folder)
            seconds[name, seed], steps = state["seconds"], steps or state["step"]
            if ROADS[name].samplers:
                runs[name, seed] = measure(options.task, name, seed, options.folder, options.n, options.clues, options.device)
    seeds = range(options.seeds)
    documents = [document(name, sampler, steps, [runs[name, seed] for seed in seeds], [seconds[name, seed] for seed in seeds],
                          options)
                 for name in ROADS if name in names for sampler in ROADS[name].samplers]
    table = options.folder / f"{options.task}.json"
    table.write_text(json.dumps(documents, indent=1))
    print(f"{report(documents)}\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
