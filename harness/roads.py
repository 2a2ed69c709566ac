"""Every road to a few-step model, and the other systems, at equal compute: python -m harness.roads

The table of training strategies of 2606.24773 (from scratch, distilled, started from an MDM), with
the roads of 2602.16813 (FLM, its distillation into an FMLM) and of 2606.27617 (MLFM), and the other
systems of the papers' tables (baselines/). Compute is counted in network passes of the whole batch,
a backward pass as two. A road that builds on another model has a half of the passes, or a third of
them where there are two, and these models have the rest: all totals are equal. Only "a quarter" is
cheaper.

Trains by running train.py. The checkpoints are in checkpoints/roads, with what was measured of each
beside it; what is there already is used, so that the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from harness import commands
from harness.checkpoints import CHECKPOINTS, is_checkpoint, read_checkpoint
from harness.files import replace
from harness.measure import usual
from harness.tasks import ROOT, TASKS, load_task


class Road(NamedTuple):
    """Options of train.py, in which {NAME} is the checkpoint of another road; passes a step; share
    of the passes; the samplers that draw from it; its name in the table."""

    options: str
    cost: float
    share: float = 1.0
    samplers: tuple[str, ...] = ()  # none: a base only, not in the table
    label: str = ""

    @property
    def objective(self) -> str:
        words = self.options.split()
        return words[words.index("--objective") + 1] if "--objective" in words else "fmlm+"

    @property
    def bases(self) -> list[str]:
        return re.findall(r"{(.+?)}", self.options)


# Passes a step: 3 to learn (forward 1, backward 2), and those of the targets by the share of the
# batch that they are made for. A teacher's is 1. Off the diagonal, half of the batch, or 3/8 beside
# a quarter at s = t = 0: the semigroup target is 2; the Lagrangian 3 (value and slope by forward
# mode count as two, D_t as one). FMLM as released has no diagonal: the residual map's two half
# jumps are 2 of the student and 2 of its teacher, the first of which the jump itself shares; what
# the compression learns is a jump of that map, 1 of either network. Where a recipe has rows that
# learn the data off the diagonal, FMLM+ makes up to an eighth fewer than are counted.
FLOW, POSTERIOR = ("flow-map-tau", "flow-map"), ("posterior",)
MASKED, PROMOTION = ("confidence-sampled", "ancestral"), ("promotion",)
THIRD = 1 / 3
ROADS = {
    "fmlm+": Road("", 4, 1, ("posterior", "flow-map"), "FMLM+ from scratch"),
    "mdm": Road("--objective mdm", 3, 1, MASKED, "MDM"),
    "mdm-elbo": Road("--objective mdm --weighting elbo", 3, 1, MASKED, "MDM, 1/f weight"),
    "ar": Road("--objective ar", 3, 1, ("ar", "ar-greedy"), "AR"),
    "duo": Road("--objective duo", 3, 1, ("duo", "duo-greedy"), "Duo"),
    "candi": Road("--objective candi", 3, 1, ("candi",), "CANDI"),
    "sflm": Road("--objective sflm", 3, 1, ("sflm",), "S-FLM"),
    "sflm-naive": Road("--objective sflm-naive", 3, 1, ("sflm-naive",), "S-FLM, naive schedule"),
    "flm": Road("--objective flm", 3, 1, FLOW, "FLM"),
    "flm-t": Road("--objective flm --no-tau", 3, 1, FLOW, "FLM in t, not τ"),
    "flm+": Road("--objective flm+", 3, 1, ("flow-map",), "FLM+"),
    "mlfm": Road("--objective mlfm", 3, 1, PROMOTION, "MLFM from scratch"),
    "half-mdm": Road("--objective mdm", 3, 1 / 2),
    "half-flm": Road("--objective flm", 3, 1 / 2),
    "half-fmlm+": Road("", 4, 1 / 2),
    "third-mdm": Road("--objective mdm", 3, THIRD),
    "third-flm": Road("--objective flm", 3, THIRD),
    "third-flm+": Road("--objective flm+", 3, THIRD),
    "third-fmlm": Road("--objective fmlm --lr 1e-3 --teacher {third-flm}", 4.5, THIRD),
    "third-residual": Road("--objective fmlm-residual --teacher {third-flm}", 7, THIRD),
    "started": Road("--init {half-mdm}", 4, 1 / 2, POSTERIOR, "FMLM+ started from an MDM"),
    "started-fmlm": Road("--init {third-fmlm}", 4, THIRD, POSTERIOR, "FMLM+ started from an FMLM"),
    "distilled": Road("--distill 0.25 --teacher {half-mdm}", 4, 1 / 2, POSTERIOR,
                      "FMLM+ distilled from an MDM"),
    "taught": Road("--teacher {half-fmlm+}", 4.5, 1 / 2, POSTERIOR, "FMLM+ taught by an FMLM+"),
    "taught-twice": Road("--distill 0.25 --teacher {third-mdm} --teacher {third-flm+}", 4.375,
                         THIRD, POSTERIOR, "FMLM+ taught by an MDM and an FLM+"),
    "fmlm": Road("--objective fmlm --lr 1e-3 --teacher {half-flm}", 4.5, 1 / 2, FLOW,
                 "FMLM from an FLM, semigroup"),
    "fmlm-l": Road("--objective fmlm --lagrangian --teacher {half-flm}", 5, 1 / 2, FLOW,
                   "FMLM from an FLM, Lagrangian"),
    "compressed": Road("--objective fmlm-compressed --teacher {third-residual}", 5, THIRD, FLOW,
                       "FMLM as released, two stages"),
    "mlfm-half": Road("--objective mlfm --init {half-mdm}", 3, 1 / 2, PROMOTION,
                      "MLFM from an MDM"),
    "mlfm-quarter": Road("--objective mlfm --init {half-mdm}", 3, 1 / 8, PROMOTION,
                         "MLFM from an MDM, a quarter"),
}
NOTES = {"ar": "AR: NFE is one a token. A pass reads L tokens, on boards L + L: a puzzle, then its "
               "solution."}


def below(name: str) -> list[str]:
    """The roads that this one builds on, each behind those that it builds on itself."""
    bases = ROADS[name].bases
    return list(dict.fromkeys(road for base in bases for road in (*below(base), base)))


def steps_of(name: str, steps: int) -> int:
    """The steps of a road whose passes are those of `steps` of the first one, times its share."""
    return max(1, round(steps * ROADS[name].share * ROADS["fmlm+"].cost / ROADS[name].cost))


def passes_of(name: str, steps: int) -> float:
    """Its own passes of the whole batch, without its bases'."""
    return ROADS[name].cost * steps_of(name, steps)


def rows_of(name: str, threshold: float) -> list[tuple[str, float | None]]:
    """Sampler and threshold of a road's lines in the table. Posterior Refinement has the threshold
    that was asked for; the first road also its own default, None."""
    rows = [(sampler, threshold if sampler == "posterior" else None)
            for sampler in ROADS[name].samplers]
    return rows + [("posterior", None)] * (name == "fmlm+")


def train(task: str, name: str, seed: int, steps: int, folder: Path, device) -> dict:
    """The checkpoint of a road, trained unless it is there. `steps` are those of the first road.
    ValueError where training ends early, or for a file that this command does not train."""
    at = lambda name: folder / f"{task}-{name}-{seed}.pt"
    path, own = at(name), steps_of(name, steps)
    if not path.exists():
        part, begun = path.with_suffix(".part.pt"), {}
        if is_checkpoint(part):
            begun = read_checkpoint(part)
        else:
            part.unlink(missing_ok=True)
        words = [str(at(word[1:-1])) if word[0] == "{" else word
                 for word in ROADS[name].options.split()]
        words = [task, "--steps", str(own), "--seed", str(seed), "--out", str(part), *words]
        if begun.get("options", {}).get("steps") == own:
            words = ["--resume", str(part)]
        if begun.get("step") != own:
            words = [sys.executable, ROOT / "train.py", *words, "--no-table", "--device", device]
            if subprocess.run(list(map(str, words))).returncode:
                raise ValueError(f"the road {name!r} ended early: run the same command again")
        part.rename(path)
    other = ValueError(f"{path} is damaged or not what this command trains: move it away")
    try:
        state = read_checkpoint(path)
    except ValueError as error:
        raise other from error
    if ((state["task"], state["objective"]) != (task, ROADS[name].objective)
            or not all(type(state.get(key)) is kind and 0 < state[key] < 1e9
                       for key, kind in (("step", int), ("seconds", float)))
            or not isinstance(state.get("options"), dict) or state["options"].get("seed") != seed):
        raise other
    if state["step"] != own:
        raise ValueError(f"{path} has {state['step']} steps, and --steps {steps} asks for {own}: "
                         "ask for those of its table, or name another --folder")
    return state


def measure(state: dict, path: Path, sampler: str, threshold: float | None, n: int, seed: int,
            device) -> dict:
    """What `Task.measure` says of a checkpoint and a sampler. It is kept in a file beside it, and
    not measured again where all that was asked is the same. ValueError for a file that is none."""
    task, file, kept = load_task(state["task"], state["state"]), path.with_suffix(".json"), []
    length = len(task.coords)
    budgets = usual(state["objective"], length, task.budgets)
    asked = {"sampler": sampler, "threshold": None if threshold is None else str(threshold),
             "n": n, "seed": seed, "nfe": list(budgets)}
    asked |= {key: state[key] for key in ("step", "seconds")}  # which training it was
    if file.exists():
        try:
            kept = json.loads(file.read_text())
            done = [(each["asked"], dict(each["measured"])) for each in kept]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file} is not what this command keeps: move it away") from error
        if found := [measured for these, measured in done if these == asked]:
            return found[0]
    measured = task.measure(path, [sampler], budgets, n, seed, device, threshold)
    replace(file, json.dumps([*kept, {"asked": asked, "measured": measured}], indent=1).encode())
    return measured


def document(name: str, sampler: str, threshold: float | None, runs: list[dict],
             seconds: list[float], options: argparse.Namespace) -> dict:
    """One line of the table, over seeds: percent is the mean, low and high the range."""
    road = ROADS[name]
    words = [road.label] + [sampler] * (len(road.samplers) > 1 and sampler != name)
    words += ["default threshold"] * (sampler == "posterior" and threshold is None)

    def rows(kind: str) -> list[dict]:
        found: dict = {}
        for row in [row for run in runs for row in run.get(kind, [])]:
            found.setdefault((row.get("clues"), row["nfe"]), []).append(row)
        result = []
        for (clues, nfe), rows in found.items():
            values = [row["percent"] for row in rows]
            result.append({"sampler": sampler, "nfe": nfe, "n": rows[0].get("n", options.n),
                           "percent": round(statistics.mean(values), 2), "low": min(values),
                           "high": max(values)})
            result[-1] |= {} if clues is None else {"clues": clues}
            if "distinct" in rows[0]:
                result[-1]["distinct"] = max(row["distinct"] for row in rows)
        return result

    likelihoods = [run["likelihood"] for run in runs if "likelihood" in run]
    own = passes_of(name, options.steps)
    total = own + sum(passes_of(base, options.steps) for base in below(name))
    return {"label": ", ".join(words), "road": name, "task": options.task, "seeds": len(runs),
            "threshold": None if threshold is None else str(threshold),
            "bound": [round(each["bound"], 2) for each in likelihoods],
            "kind": likelihoods[0].get("kind", "bound") if likelihoods else None,
            "seconds": [round(s) for s in seconds], "passes": round(own),
            "total passes": round(total), "unconditional": rows("unconditional"),
            "puzzles": rows("puzzles")}


def report(documents: list[dict]) -> str:
    """The documents as Markdown: a table of valid sequences, and one of each kind of puzzles where
    context is known. A column an NFE of any road."""
    asked = load_task(documents[0]["task"]).asked
    titles = {"unconditional": "valid from nothing", "puzzles": f"{asked}{{}} solved"}
    of = lambda road, kind, clues: {row["nfe"]: row for row in road.get(kind, ())
                                    if row.get("clues") == clues}
    tables = dict.fromkeys((kind, row.get("clues")) for kind in titles for road in documents
                           for row in road[kind])
    lines, notes = [], [f"posterior: threshold {value}" for value in dict.fromkeys(
        road["threshold"] for road in documents) if value]
    notes += [NOTES[road] for road in dict.fromkeys(each["road"] for each in documents)
              if road in NOTES]
    for kind, clues in tables or [("likelihood", None)]:  # of some texts nothing else is known
        roads = [road for road in documents if of(road, kind, clues) or not tables]
        columns = sorted({nfe for road in roads for nfe in of(road, kind, clues)})
        seeds = documents[0]["seeds"]
        title = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
        if tables:
            named = titles[kind].format("" if clues is None else f" with {clues} clues")
            n = next(iter(of(roads[0], kind, clues).values()))["n"]
            title = f"{named}, % of {n:,}, {title}{' (lowest - highest)' * (seeds > 1)}, by NFE"
        heads = ["road", *map(str, columns), "passes, with its bases", "minutes", "bound, nats"]
        lines += ["", title, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for road in roads:
            mine = of(road, kind, clues)
            cells = [cell(mine[nfe], seeds) if nfe in mine else "" for nfe in columns]
            cells += [f"{road['passes']:,} of {road['total passes']:,}",
                      f"{statistics.mean(road['seconds']) / 60:.1f}"]
            exact = " (exact)" * (road["kind"] == "exact")
            cells += [f"{statistics.mean(road['bound']):.2f}{exact}" if road["bound"] else ""]
            lines.append(f"| {' | '.join([road['label'], *cells])} |")
    if any(" same |" in line for line in lines):
        notes.append("same: all draws of a seed are one sequence")
    return "\n".join([*lines[1:], *[""] * bool(notes), *notes])


def cell(row: dict, seeds: int) -> str:
    same = row.get("distinct") == 1 < row["n"] and row["high"] == 100  # one valid, all equal
    spread = " ({low:.1f} - {high:.1f})" if seeds > 1 else ""
    return ("{percent:.1f}" + spread).format(**row) + " same" * same


@commands.command("harness.roads")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m harness.roads", description="Train all roads and the "
                             "other systems at equal compute and compare them.")
    names = [name for name in ROADS if ROADS[name].samplers]
    add = parser.add_argument
    add("task", nargs="?", choices=TASKS, default="sudoku6", help="default: sudoku6")
    add("--steps", type=commands.COUNT, default=1500,
        help="of FMLM+ from scratch; the others have as many passes (default 1500)")
    add("--seeds", type=commands.whole(1, 100), default=3, help="runs of each road (default 3)")
    add("--roads", nargs="+", choices=names, metavar="NAME", help="default: all, of %(choices)s")
    add("-n", type=commands.COUNT, default=500, help="sequences a cell (default 500)")
    add("--threshold", type=commands.number(0, math.inf, open=False), default=0.999, metavar="P",
        help="of Posterior Refinement (default: 0.999, as published)")
    add("--folder", type=commands.path, default=str(CHECKPOINTS / "roads"),
        help="default: checkpoints/roads")
    commands.device_option(parser)
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in names if name in (options.roads or names)]
    seconds, runs = {}, {}
    for seed in range(options.seeds):
        for name in dict.fromkeys(road for name in names for road in (*below(name), name)):
            state = train(options.task, name, seed, options.steps, folder, options.device)
            seconds.setdefault(name, []).append(state["seconds"])
            for row in rows_of(name, options.threshold) if name in names else ():
                path = folder / f"{options.task}-{name}-{seed}.pt"
                runs.setdefault((name, *row), []).append(
                    measure(state, path, *row, options.n, seed, options.device))
    documents = [document(*line, measured, seconds[line[0]], options)
                 for line, measured in sorted(runs.items(), key=lambda run: names.index(run[0][0]))]
    table = folder / f"{options.task}.json"
    replace(table, json.dumps(documents, indent=1).encode())
    print(f"{report(documents)}\n\n{table}")
    return 0


if __name__ == "__main__":
    commands.run(main)
