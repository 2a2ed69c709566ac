"""What the commands that evaluate checkpoints share: python -m sudoku.evaluate, text.evaluate."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Generator, Tensor

from fmlm import Denoiser
from harness import commands
from harness.attempts import Judge, attempts, tries_of
from harness.checkpoints import BASELINES, IN_TAU, task_of
from harness.measure import likelihood_bound, own_likelihood
from harness.samplers import Sampler, choose_sampler, samplers_for
from harness.speed import in_bf16
from harness.tasks import Task


def parser(name: str, what: str, samplers: Sequence[str], aside: Sequence[str], budgets: str,
           n: int) -> commands.Parser:
    """A command line: checkpoints, samplers and their budgets, how many, how, and in which form."""
    parser = commands.Parser(prog=f"python -m {name}",
                             description=f"Evaluate checkpoints on {what}.")
    add = parser.add_argument
    add("checkpoints", nargs="*", metavar="CKPT", type=commands.path,
        help="default: the newest trained here")
    add("--nfe", type=commands.NFE, nargs="+",
        help=f"network passes for each sequence; default: {budgets}")
    add("--sampler", nargs="+", metavar="NAME",
        help=f"default: all that suit, but not {', '.join(aside)}; of {', '.join(samplers)}")
    add("--threshold", type=commands.number(0, math.inf, open=False), metavar="P",
        help="of Posterior Refinement (published: 0.999; default: 1 - 0.05 / nfe, of "
        "posterior-left 0.999, of posterior-gumbel inf)")
    add("-n", type=commands.COUNT, default=n, help=f"sequences of each kind (default {n})")
    add("--seed", type=commands.SEED, default=0)
    commands.device_option(parser)
    add("--bf16", action="store_true",
        help="matrix products in bfloat16: faster where there are some")
    add("--compile", action="store_true", help="half a minute to start, then faster")
    add("--attempts", type=commands.whole(1, 10**5), metavar="K",
        help="draw anew what the model does not believe, K times at most")
    add("--check-rules", action="store_true",
        help="let the rules decide in place of the model: the upper bound")
    add("--json", action="store_true", help="print one JSON document")
    return parser


Tries = tuple[int, Judge] | None  # how many attempts, and who judges them; None: one, unjudged


def samplers_of(info: dict, options: argparse.Namespace,
                aside: Sequence[str]) -> tuple[list[tuple[str, Sampler]], Tries]:
    """The samplers to evaluate a checkpoint with, by name: those asked for, or all that suit, but
    for those aside, which the default never is; and their tries. ValueError for a sampler that does
    not suit, or attempts or an NFE that cannot be."""
    task, objective = task_of(info), info["objective"]
    tries = tries_of(objective, task, options.attempts, options.check_rules)
    default, *others = samplers_for(objective)
    names = options.sampler or [default, *(name for name in others if name not in aside)]
    chosen = [choose_sampler(objective, name, options.threshold) for name in names]
    if objective not in BASELINES:  # no sequence at all: a sampler says what it cannot do
        nothing = torch.zeros(0, len(task.coords), dtype=torch.int64)
        for (_, sampler), nfe in product(chosen, options.nfe or []):
            sampler.run(argparse.Namespace(vocab_size=task.vocab_size), nothing, nothing.bool(),
                        nfe)
    if tries and tries[0] > 1:  # for what draws the same there is no second
        chosen = [(name, each) for name, each in chosen if each.chance or options.sampler]
    return chosen, tries


def complete(model: Denoiser, sampler: Sampler, given: Tensor, nfe: int, generator: Generator,
             tries: Tries) -> tuple[Tensor, Tensor | None, dict]:
    """Complete `given` (n, L), in at most so many attempts, so judged, if there are `tries`.
    Returns sequences (n, L), which are believed, (n,) bool or None, and the passes they took."""
    if not tries:
        drawn = sampler.complete(model, given, nfe, generator)
        return drawn.tokens, None, {"passes": round(float(drawn.passes.float().mean()), 2)}
    answer = attempts(sampler, model, given, nfe, *tries, generator)
    row = {"attempts": tries[0], "passes": round(float(answer.passes.float().mean()), 2),
           "most_passes": int(answer.passes.max()),
           "believed": round(100 * float(answer.believed.float().mean()), 2)}
    return answer.tokens, answer.believed, row


def head(path: str, info: dict, model: Denoiser, options: argparse.Namespace) -> dict:
    """What a document says of a checkpoint and of how it was evaluated."""
    threshold = "inf" if options.threshold == math.inf else options.threshold  # JSON has none
    return {"checkpoint": str(path), "task": info["task"], "objective": info["objective"],
            "steps": steps_of(info),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "seed": options.seed, "bf16": options.bf16, "check_rules": options.check_rules,
            "threshold": threshold}


def steps_of(info: dict) -> int | None:
    return info["step"] if type(info.get("step")) is int else None


def likelihood(task: Task, model: Denoiser, objective: str, generator: Generator) -> dict:
    """The bound on held-out sequences in nats, and its 95% half-width; its kind, of another system.
    Nothing where there is none."""
    found = None if objective in IN_TAU else likelihood_bound(task, model, objective, generator)
    if not found:
        return {}
    system = own_likelihood(objective)
    return ({"bound": round(found[0], 3), "plus_minus": round(found[1], 3)}
            | ({"kind": system.KIND} if system else {}))


def wrongly(believed: Tensor | None, good: Tensor) -> dict:
    """How many were believed and are not good, (n,) bool each; nothing where none were judged."""
    return {} if believed is None else {"believed_and_wrong": int((believed & ~good).sum())}


def run(options: argparse.Namespace, paths: Sequence[str], evaluate: Callable[..., dict],
        report: Callable[[dict], str]) -> int:
    """Evaluate all checkpoints, then print the documents, or the report of each."""
    with in_bf16(options.bf16, options.device):
        documents = [evaluate(path, options) for path in paths]
    print(json.dumps(documents) if options.json else "\n\n".join(map(report, documents)))
    return 0
