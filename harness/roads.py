"""Every road to a few-step model at equal compute: python -m harness.roads [TASK] [--minutes M]

The table of training strategies of 2606.24773 (from scratch, distilled, started from an MDM), with
the roads of 2602.16813 (FLM; its distillation into an FMLM) and of 2606.27617 (MLFM) beside them.
Compute is counted in network passes of the whole batch, a backward pass as two. A road that builds
on another model has half of the passes, and that model the other half, so that all totals are
equal; only "a quarter" is cheaper.

Trains by running train.py, keeps the checkpoints in checkpoints/roads and uses those that are there
already, so it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from harness import commands
from harness.checkpoints import CHECKPOINTS, is_checkpoint, read_checkpoint
from harness.tasks import ROOT, TASKS, load_task

NFE = [1, 2, 4, 8, 16, 36]


class Road(NamedTuple):
    """Options of train.py, passes a step, share of the passes, what it builds on, its samplers."""

    options: str
    cost: float
    share: float = 1.0
    base: str | None = None
    samplers: tuple[str, ...] = ()  # none: a base only, not in the table
    label: str = ""

    @property
    def objective(self) -> str:
        words = self.options.split()
        return words[words.index("--objective") + 1] if "--objective" in words else "fmlm+"


# A step is 3 passes (forward 1, backward 2); the semigroup target of half of the batch is 1 more, a
# teacher's part what it teaches, the Lagrangian target 1.5 (value and slope by forward mode count
# as two, D_t as one; of half of the batch).
FLOW = ("flow-map-tau", "flow-map")
ROADS = {
    "fmlm+": Road("", 4, samplers=("posterior", "flow-map"), label="FMLM+ from scratch"),
    "mdm": Road("--objective mdm", 3, samplers=("confidence-sampled", "ancestral"), label="MDM"),
    "flm": Road("--objective flm", 3, samplers=FLOW, label="FLM"),
    "flm-t": Road("--objective flm --no-tau", 3, samplers=FLOW, label="FLM trained uniform in t"),
    "mlfm": Road("--objective mlfm", 3, samplers=("promotion",), label="MLFM from scratch"),
    "half-mdm": Road("--objective mdm", 3, 0.5),
    "half-flm": Road("--objective flm", 3, 0.5),
    "half-fmlm+": Road("", 4, 0.5),
    "started": Road("--init", 4, 0.5, "half-mdm", ("posterior",), "FMLM+ started from an MDM"),
    "distilled": Road("--distill 0.25 --teacher", 4, 0.5, "half-mdm", ("posterior",),
                      "FMLM+ distilled from an MDM"),
    "taught": Road("--teacher", 4.5, 0.5, "half-fmlm+", ("posterior",), "FMLM+ taught by an FMLM+"),
    "fmlm": Road("--objective fmlm --lr 1e-3 --teacher", 4.5, 0.5, "half-flm", FLOW,
                 "FMLM from an FLM, semigroup"),
    "fmlm-l": Road("--objective fmlm --lagrangian --teacher", 5, 0.5, "half-flm", FLOW,
                   "FMLM from an FLM, Lagrangian"),
    "mlfm-half": Road("--objective mlfm --init", 3, 0.5, "half-mdm", ("promotion",),
                      "MLFM from an MDM"),
    "mlfm-quarter": Road("--objective mlfm --init", 3, 0.125, "half-mdm", ("promotion",),
                         "MLFM from an MDM, a quarter"),
}


def train(task: str, name: str, seed: int, steps: int | None, minutes: float, folder: Path) -> dict:
    """The checkpoint of a road, trained unless it is there. `steps` are those of the first road."""
    road, path = ROADS[name], folder / f"{task}-{name}-{seed}.pt"
    if not path.exists():
        part = path.with_suffix(".part.pt")
        own = max(1, round((steps or 0) * road.share * 4 / road.cost))
        length = ["--steps", str(own)] if steps else ["--minutes", str(minutes)]
        base = [folder / f"{task}-{road.base}-{seed}.pt"] if road.base else []
        words = [sys.executable, ROOT / "train.py", task, *length, "--seed", str(seed),
                 "--no-table", "--out", part, *road.options.split(), *base]
        if part.exists() and not is_checkpoint(part):
            part.unlink()
        if subprocess.run(words).returncode:
            raise ValueError(f"the road {name!r} ended early: run the same command again")
        part.rename(path)
    other = ValueError(f"{path} is damaged or not what this command trains: move it away")
    try:
        state = read_checkpoint(path)
    except ValueError as error:
        raise other from error
    if ((state["task"], state["objective"]) != (task, road.objective)
            or not all(type(state.get(key)) is kind and 0 < state[key] < 1e9
                       for key, kind in (("step", int), ("seconds", float)))
            or not isinstance(state.get("options"), dict) or state["options"].get("seed") != seed):
        raise other
    return state


def measure(task: str, name: str, seed: int, folder: Path, n: int, device) -> dict:
    """{(sampler, kind, NFE): % right} of one checkpoint, and its likelihood bound if it has one."""
    budgets = [nfe for nfe in NFE if nfe <= len(load_task(task).coords)]
    document = load_task(task).measure(folder / f"{task}-{name}-{seed}.pt", ROADS[name].samplers,
                                       budgets, n, seed, device)
    result = {(row["sampler"], kind, row["nfe"]): row["percent"]
              for kind in ("unconditional", "puzzles") for row in document.get(kind, [])}
    if "likelihood" in document:
        result["bound"] = document["likelihood"]["bound"]
    return result


def document(name: str, sampler: str, steps: int, runs: list[dict], seconds: list[float],
             options: argparse.Namespace) -> dict:
    """One line of the table, over seeds: percent is the mean, low and high the range."""
    road, several = ROADS[name], len(ROADS[name].samplers) > 1
    own, base = 4 * steps * road.share, 4 * steps * (ROADS[road.base].share if road.base else 0)

    def rows(kind: str) -> list[dict]:
        found = {nfe: [run[sampler, kind, nfe] for run in runs if (sampler, kind, nfe) in run]
                 for nfe in NFE}
        return [{"sampler": sampler, "nfe": nfe, "n": options.n, "low": min(values), "kind": kind,
                 "high": max(values), "percent": round(statistics.mean(values), 2)}
                for nfe, values in found.items() if values]

    return {"label": road.label + (f", {sampler}" if several else ""), "task": options.task,
            "seeds": len(runs), "bound": [round(run["bound"], 2) for run in runs if "bound" in run],
            "seconds": [round(s) for s in seconds], "passes": round(own),
            "total passes": round(own + base), "unconditional": rows("unconditional"),
            "puzzles": rows("puzzles")}


def report(documents: list[dict]) -> str:
    """The documents as Markdown: valid sequences, and puzzles solved where context is known."""
    lines = []
    for title, kind in (("valid from nothing", "unconditional"), ("puzzles solved", "puzzles")):
        if not (first := documents[0][kind]):
            continue
        columns = [str(row["nfe"]) for row in first]
        lines += ["", f"{title}, % of {first[0]['n']:,}, mean of {documents[0]['seeds']} seeds "
                  "(lowest - highest), by NFE", "",
                  f"| road | {' | '.join(columns)} | passes, with its base | minutes | bound |",
                  "|---" * (len(columns) + 4) + "|"]
        for road in [road for road in documents if road[kind]]:
            cells = ["{percent:.1f} ({low:.1f} - {high:.1f})".format(**row) for row in road[kind]]
            cells += [f"{road['passes']:,} of {road['total passes']:,}",
                      f"{statistics.mean(road['seconds']) / 60:.1f}",
                      f"{statistics.mean(road['bound']):.2f}" if road["bound"] else ""]
            lines.append(f"| {road['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


@commands.command("harness.roads")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m harness.roads",
                             description="Train all roads at equal compute and compare them.")
    names = [name for name in ROADS if ROADS[name].samplers]
    add = parser.add_argument
    add("task", nargs="?", choices=TASKS, default="sudoku6", help="default: sudoku6")
    add("--minutes", type=commands.number(0, 10**5), default=5,
        help="of the first road, FMLM+ from scratch (default 5)")
    add("--seeds", type=commands.whole(1, 100), default=2, help="runs of each road (default 2)")
    add("--roads", nargs="+", choices=names, metavar="NAME", help="default: all, of %(choices)s")
    add("-n", type=commands.COUNT, default=500, help="sequences a cell (default 500)")
    add("--folder", type=commands.path, default=str(CHECKPOINTS / "roads"),
        help="default: checkpoints/roads")
    commands.device_option(parser)
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(["fmlm+", *(options.roads or names)]))  # the first gives the budget
    names += [base for base in dict.fromkeys(ROADS[name].base for name in names) if base]
    steps, seconds, runs = None, {}, {}
    for seed in range(options.seeds):  # bases first: they are shorter than what builds on them
        for name in sorted(names, key=lambda name: ROADS[name].base is not None):
            state = train(options.task, name, seed, steps, options.minutes, folder)
            seconds[name, seed], steps = state["seconds"], steps or state["step"]
            if ROADS[name].samplers:
                runs[name, seed] = measure(options.task, name, seed, folder, options.n,
                                           options.device)
    seeds = range(options.seeds)
    documents = [document(name, sampler, steps, [runs[name, seed] for seed in seeds],
                          [seconds[name, seed] for seed in seeds], options)
                 for name in ROADS if name in names for sampler in ROADS[name].samplers]
    table = folder / f"{options.task}.json"
    table.write_text(json.dumps(documents, indent=1))
    print(f"{report(documents)}\n\n{table}")
    return 0


if __name__ == "__main__":
    commands.run(main)
