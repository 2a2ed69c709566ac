"""What tells right drafts from wrong ones: what the commands that study a judge share, python -m
sudoku.judge and text.judge.

  1. how well each score tells right drafts from wrong ones, and from right ones of which two tokens
     are swapped: the area under the curve, the gap, how many are believed; and its passes;
  2. what to keep of a failed attempt;
  3. solved against mean passes, one line a system: --json is what `python -m harness.plot` draws.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Generator, Tensor

from fmlm import Model, token_times
from harness import commands
from harness.attempts import (Judge, attempt, in_batches, judge, judge_by_halves, judge_for,
                              log_probability)
from harness.checkpoints import load_checkpoint, newest_checkpoint, task_of
from harness.measure import share
from harness.samplers import Sampler, choose_sampler
from harness.speed import in_bf16
from harness.tasks import Task

TIMES = (0.4, 0.5, 0.6, 0.7, 0.72, 0.8, 0.9, 0.95)
Score = Callable[..., Tensor]  # (model, tokens, known, generator=) -> (B,)
Keep = Callable[..., Tensor]  # (tokens, sure, tokens of the attempt before, or None, unknown)
Set = tuple[Tensor, Callable[[Tensor], Tensor]]  # what is given, (n, L); which answers are right


# ---- 1. scores


def asked_at(model: Model, tokens: Tensor, known: Tensor, s: float, t: float,
             generator: Generator) -> Tensor:
    """The sum over generated tokens of log delta_{s,t}(x_s)[token], (B,), given the others."""
    s, t = (token_times(torch.full(known.shape[:1], time, device=known.device), known)
            for time in (s, t))
    return log_probability(model, tokens, ~known, s, t, generator)


def averaged(model: Model, tokens: Tensor, known: Tensor, generator: Generator) -> Tensor:
    """`judge` over two noises."""
    return sum(judge(model, tokens, known, generator=generator) for _ in range(2)) / 2


SCORES: dict[str, tuple[int, Score]] = {  # name -> passes, score
    "a-priori, delta_00": (1, partial(asked_at, s=0.0, t=0.0)),
    **{f"delta_s1, s = {s}": (1, partial(asked_at, s=s, t=1.0)) for s in (0.4, 0.6, 0.8)},
    **{f"D_s, s = {s}": (1, partial(judge, s=s)) for s in TIMES},
    **{f"D_s, s = {s}, given clean": (1, partial(asked_at, s=s, t=s)) for s in (0.6, 0.8)},
    "default s, two noises": (2, averaged),
    "halves, delta_00": (2, partial(judge_by_halves, noise=1)),
}


def swapped(tokens: Tensor, known: Tensor, generator: Generator) -> Tensor:
    """Drafts (n, L) with two generated tokens that differ in each other's place."""
    pick = lambda among: torch.where(
        among, torch.rand(among.shape, generator=generator, device=among.device), -1.0
    ).argmax(1, keepdim=True)
    first = pick(~known)
    others = ~known & (tokens != tokens.gather(1, first))
    second = torch.where(others.any(1, keepdim=True), pick(others), first)  # none: it stays
    pair, back = torch.cat([first, second], 1), torch.cat([second, first], 1)
    return tokens.scatter(1, pair, tokens.gather(1, back))


def area(right: Tensor, wrong: Tensor) -> float | None:
    """The chance that a right draft scores above a wrong one, a tie counting half: the area under
    the curve. (n,) and (m,); None where either is empty."""
    apart = right[:, None].double() - wrong
    apart = torch.where(right[:, None] == wrong, 0.0, apart)  # -inf both
    return round(float((apart.sign() + 1).mean()) / 2, 4) if apart.numel() else None


def separation(score: Tensor, right: Tensor, spoiled: Tensor, believe: float) -> dict:
    """What a score says of drafts, (n,) and whether they are right, (n,) bool, and of right ones
    that were spoiled, (m,). Scores are in nats; `low_right`: of 1 right one in 100."""
    good, wrong, bound = score[right], score[~right], math.log(believe)
    number = lambda value: round(max(float(value), -1e4), 3)
    return {"area": area(good, wrong), "area_swapped": area(good, spoiled),
            "low_right": number(good.sort().values[len(good) // 100]) if len(good) else None,
            "high_wrong": number(wrong.max()) if len(wrong) else None,
            "high_swapped": number(spoiled.max()) if len(spoiled) else None,
            "right_believed": (round(100 * float((good >= bound).float().mean()), 2)
                               if len(good) else None),
            "wrong_believed": int((wrong >= bound).sum()),
            "swapped_believed": int((spoiled >= bound).sum())}


def scores(model: Model, sampler: Sampler, given: Tensor, right_of: Callable[[Tensor], Tensor],
           nfe: int, seed: int, believe: float) -> list[dict]:
    """Every score of the same drafts, one attempt each."""
    fresh = lambda: Generator(given.device).manual_seed(seed)  # every score meets the same noise
    generator = fresh()
    tokens, sure, *_ = sampler.complete(model, given, nfe, generator)
    right, known = right_of(tokens), given >= 0
    spoiled = swapped(tokens[right], known[right], generator)
    own = sure.log().sum(1)
    rows = [{"score": "as committed", "passes": 0, "n": len(given), "right": int(right.sum()),
             **separation(own, right, own[:0], believe)}]
    for name, (passes, score) in SCORES.items():
        values = in_batches(score, model, tokens, known, fresh())
        planted = (in_batches(score, model, spoiled, known[right], fresh()) if right.any()
                   else values[:0])
        rows.append({"score": name, "passes": passes, "n": len(given), "right": int(right.sum()),
                     **separation(values, right, planted, believe)})
    return rows


# ---- 2. and 3. attempts


def climb(model: Model, sampler: Sampler, given: Tensor, right_of: Callable[[Tensor], Tensor],
          nfe: int, most: int, judge: Judge, seed: int, keep: Keep | None = None) -> list[dict]:
    """`harness.attempts`, with a row for 1, 2, 4, ... attempts. `keep`: what of a failed attempt is
    context for the next one, or None."""
    generator, n = Generator(given.device).manual_seed(seed), len(given)
    kept, best = given.clone(), torch.full((n,), -torch.inf)
    context, before, passes = given.clone(), None, torch.zeros(n, dtype=torch.int64)
    left, rows = torch.arange(n), []
    for tried in range(1, most + 1):
        known = given[left] >= 0
        (tokens, sure, *_), scores, used = attempt(sampler, model, context[left], known, nfe, judge,
                                                   generator, tried == 1, tried == most)
        passes[left] += used
        surer = ~(scores < best[left])
        kept[left[surer]], best[left[surer]] = tokens[surer], scores[surer]
        unsure = ~(scores.exp() >= judge.believe)
        stays = (keep(tokens, sure, before, ~known) if keep else known)[unsure]
        left, before = left[unsure], tokens[unsure]
        context[left] = torch.where(stays, before, given[left])
        if tried & (tried - 1) == 0 or tried == most or not len(left):
            right, believed = right_of(kept), best.exp() >= judge.believe
            rows.append({"attempts": tried, "n": n, **share(right),
                         "nfe": round(float(passes.float().mean()), 3), "most": int(passes.max()),
                         "unsure": n - int(believed.sum()),
                         "believed_and_wrong": int((believed & ~right).sum())})
        if not len(left):
            break
    return rows


# ---- the command


def table(rows: list[dict], title: str) -> str:
    """Rows of one kind, for a terminal."""
    width = max(len(str(row[key])) for row in rows for key in list(row)[:1])
    head = f"{title}\n{'':<{width}}" + "".join(f"{key:>19}" for key in list(rows[0])[1:])
    return "\n".join([head] + [f"{list(row.values())[0]:<{width}}" + "".join(
        f"{'-' if value is None else value:>19}" for value in list(row.values())[1:])
        for row in rows])


def parser(name: str) -> commands.Parser:
    """A command line without what is given."""
    parser = commands.Parser(prog=f"python -m {name}", description="Whom to believe: scores of "
                             "finished drafts, and attempts until one is believed.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest trained here, else the weights that ship")
    add("-n", type=commands.COUNT, default=400, help="sequences of each kind (default 400)")
    add("--nfe", type=commands.NFE, default=4, help="passes of an attempt, at most (default 4)")
    add("--threshold", type=commands.number(0, math.inf, open=False), metavar="P",
        help="of Posterior Refinement (default: 1 - 0.05 / nfe)")
    add("--attempts", type=commands.whole(1, 10**5), default=16, help="at most (default 16)")
    add("--seed", type=commands.SEED, default=0, help="of the noise")
    add("--bf16", action="store_true", help="matrix products in bfloat16")
    add("--json", action="store_true", help="print one JSON document, for harness.plot")
    return parser


def measure(model: Model, task: Task, objective: str, given: Tensor,
            right_of: Callable[[Tensor], Tensor], options: argparse.Namespace,
            keep: dict[str, Keep]) -> dict:
    """Everything about one set: {"scores", "kept", "systems"}."""
    judged, name = judge_for(objective, task), "a-priori-sampled"
    sampler, foil = (choose_sampler(objective, each, threshold)[1] for each, threshold in (
        ("posterior", options.threshold), (name, None)))
    run = partial(climb, model, given=given, right_of=right_of, nfe=options.nfe,
                  most=options.attempts, seed=options.seed)
    result = {"scores": scores(model, sampler, given, right_of, options.nfe, options.seed,
                               judged.believe)}
    own = judged._replace(score=None, passes=0)
    result["kept"] = {"nothing": run(sampler=sampler, judge=judged)}
    result["kept"] |= {what: run(sampler=sampler, judge=judged, keep=of)
                       for what, of in keep.items()}
    result["systems"] = {"posterior, judge": result["kept"]["nothing"],
                         "posterior, as committed": run(sampler=sampler, judge=own),
                         f"{name}, judge": run(sampler=foil, judge=judged),
                         f"{name}, as committed": run(sampler=foil, judge=own)}
    return result


def report(options: argparse.Namespace, sets_of: Callable[[str, dict, Task], dict[str, Set]],
           tasks: Iterable[str], keep: dict[str, Keep] = {}, named: str = "clues") -> None:
    """Load the checkpoint, else the newest of these tasks, measure each of the sets that there are
    for it, print. `named`: what the name of a set says, for `harness.plot`."""
    path = str(options.checkpoint or newest_checkpoint(*tasks))
    model, info = load_checkpoint(path)
    task = task_of(info)
    choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
    sets = sets_of(path, info, task)
    with in_bf16(options.bf16, torch.device("cpu")):
        found = {name: measure(model, task, info["objective"], *each, options, keep)
                 for name, each in sets.items()}
    if options.json:
        systems = {name: [{named: kind, **row} for kind, each in found.items()
                          for row in each["systems"][name]]
                   for name in next(iter(found.values()))["systems"]}
        print(json.dumps([{"label": name, "checkpoint": path, "seed": options.seed, "puzzles": rows}
                          for name, rows in systems.items()]
                         + [{"label": "study", named: kind, **each}
                            for kind, each in found.items()]))
        return
    for kind, each in found.items():
        print(table(each["scores"], f"drafts of {kind}, {options.nfe} passes") + "\n")
        for what, lines in (("kept of a failed attempt: ", each["kept"]), ("", each["systems"])):
            for name, rows in lines.items():
                print(table(rows, f"{kind}, {what}{name}") + "\n")
