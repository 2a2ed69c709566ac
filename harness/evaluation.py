"""What the commands that evaluate checkpoints share: python -m sudoku.evaluate, text.evaluate."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence

from harness import commands
from harness.speed import in_bf16


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
        help="of Posterior Refinement (published: 0.999; default: 1 - 0.05 / nfe)")
    add("-n", type=commands.COUNT, default=n, help=f"sequences of each kind (default {n})")
    add("--seed", type=commands.SEED, default=0)
    commands.device_option(parser)
    add("--bf16", action="store_true",
        help="matrix products in bfloat16: faster where there are some")
    add("--compile", action="store_true", help="half a minute to start, then faster")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def run(options: argparse.Namespace, paths: Sequence[str], evaluate: Callable[..., dict],
        report: Callable[[dict], str]) -> int:
    """Evaluate all checkpoints, then print the documents, or the report of each."""
    with in_bf16(options.bf16, options.device):
        documents = [evaluate(path, options) for path in paths]
    print(json.dumps(documents) if options.json else "\n\n".join(map(report, documents)))
    return 0
