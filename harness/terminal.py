"""The command line of sample.py, and what it prints: sequences, verdicts, refinement."""

from __future__ import annotations

import json
import math
import os
import sys

from torch import Tensor

from harness import commands
from harness.measure import known_after
from harness.tasks import Task


def parser(samplers: list[str]) -> commands.Parser:
    """The command line of sample.py."""
    parser = commands.Parser(prog="sample.py", description="Draw sequences, or complete given "
                             "ones, with a trained checkpoint.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest trained here, of the puzzle's task, else the weights that ship")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--puzzle", "--given", metavar="STRING",
                       help="complete this: a puzzle, row after row, . or 0 for an empty cell; or "
                       "words, _ for a missing one")
    given.add_argument("--puzzles", type=commands.path, metavar="FILE", help="complete one a line")
    add("-n", type=commands.COUNT, default=4, help="sequences to draw (default 4)")
    add("--sampler", metavar="NAME",
        help=f"{', '.join(samplers)}, or another system's; default: what suits the checkpoint")
    add("--nfe", type=commands.NFE, help="network passes for each, at most (default 4; for "
        "ar, which takes no fewer, the tokens of a sequence)")
    add("--threshold", type=commands.number(0, math.inf, open=False), metavar="P",
        help="of Posterior Refinement: p_max from which a token is committed (published: 0.999; "
        "inf: never more than the budget; default: 1 - 0.05 / nfe, of posterior-left 0.999, of "
        "posterior-gumbel inf)")
    add("--attempts", type=commands.whole(1, 10**5), metavar="K",
        help="draw, let the model judge what it drew, and draw anew what it does not believe, K "
        "times at most (default for puzzles: 64, for stories: 8; else nothing is judged)")
    add("--believe", type=commands.number(0, 1), metavar="P",
        help="of --attempts: the probability from which the judge believes a draft (default 0.9; "
        "of stories 0.2)")
    add("--check-rules", action="store_true",
        help="let the rules of the task decide in place of the model's judgement")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--trace", action="store_true", help="show the first one pass after pass")
    shown.add_argument("--json", action="store_true", help="print one JSON document")
    add("--bench", action="store_true", help="time the sampler by batch and NFE")
    add("--bf16", action="store_true", help="matrix products in bfloat16")
    add("--compile", action="store_true", help="half a minute to start, then faster: for thousands")
    add("--seed", type=commands.SEED, default=0)
    commands.device_option(parser)
    return parser


def trace(task: Task, given: Tensor, records: list) -> str:
    """The passes of the first sequence of a batch, from `sample.Pass`es: given (B, L), -1
    unknown."""
    color = bool(sys.stdout) and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    known, lines = given[0] >= 0, []
    for number, record in enumerate(records, 1):
        if known.all():  # others of its batch go on
            break
        record = type(record)(*(part[0] for part in record))
        back = int((~known & ~record.committed).sum())
        lines.append(f"pass {number}: {int(record.committed.sum())} committed, {back} back to "
                     f"noise\n{task.show(record.draft, record, known, color)}\n")
        known = known | record.committed
    return "\n".join([*lines, f"{task.legend}\n"])


def trace_of_attempts(task: Task, given: Tensor, answer) -> str:
    """The attempts at the first sequence, from an `Answer`: the passes of the one that is
    kept, and a line for every one that was given up."""
    tries = [(float(scores[0]), trace) for _, scores, trace in answer.trace[:int(answer.tried[0])]]
    kept, lines = max(range(len(tries)), key=lambda i: (tries[i][0], i)), []
    for i, (score, passes) in enumerate(tries):
        fate = "given up" if i != kept else "believed" if answer.believed[0] else "not sure, kept"
        draft = task.line(passes[-1].draft[0]) if passes else ""
        done = known_after(given[:1] >= 0, passes)[0].all()
        sure = f"probability {math.exp(score):.3g}" if done else "unsure before its last round"
        lines.append(f"attempt {i + 1}: {sure}, {fate}"
                     + (f"\n\n{trace(task, given, passes)}" if i == kept else f": {draft}"))
    return "\n".join(lines)


def verdicts(task: Task, given: Tensor, tokens: Tensor, right: Tensor | None, solving: bool,
             answer=None, by_rules: bool = False) -> str:
    """Every sequence with what there is to say of it; of an `Answer`, if it is believed."""
    lines = []
    for i in range(len(tokens)):
        good = right is not None and bool(right[i])
        words = ["" if right is None else ("solved" if solving else "valid")
                 if good else "not valid",
                 "" if answer is None else trust(answer, i, by_rules), task.remark(given[i], good)]
        lines.append("\n".join([task.show(tokens[i]), "; ".join(filter(None, words)), ""]))
    return "\n".join(lines)


def trust(answer, i: int, by_rules: bool) -> str:
    """Whether sequence i of an `Answer` is believed, in words."""
    word = ("believed" if answer.believed[i] else "not sure") + " by the rules" * by_rules
    tried = int(answer.tried[i])
    return f"{word} after {tried} attempt{'s' * (tried > 1)}"


def count(right: Tensor | None, n: int, solving: bool) -> str:
    """How many of n sequences are right; how many there are where nothing can be checked."""
    if right is None:
        return f"{n} drawn"
    return f"{int(right.sum())} of {n} {'solved' if solving else 'valid'}"


def document(task: Task, tokens: Tensor, right: Tensor | None, solving: bool, passes: int,
             answer=None, by_rules: bool = False) -> str:
    """The same as one line of JSON."""
    count = {"puzzles": len(tokens)} if solving else {}
    if right is not None:
        count |= {"solved" if solving else "valid": int(right.sum())}
    count |= {"nfe": passes, task.nouns: [task.line(row) for row in tokens]}
    if answer is not None:
        count |= {"believed": answer.believed.tolist(), "attempts": answer.tried.tolist(),
                  "decided by": "the rules" if by_rules else "the model"}
    return json.dumps(count)


def lines_of(path: str, most: int = 2**26) -> list[str]:
    """The lines of a text file of at most 64 MiB. ValueError if it cannot be read, or has no
    end."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(most + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if len(text) > most:
        raise ValueError(f"{path} is longer than {most:,} characters: split it")
    return text.splitlines()


def lines_given(options) -> list[str] | None:
    """What is to be completed, a line each; None where sequences are drawn from nothing."""
    if options.puzzles is not None:
        return lines_of(options.puzzles)
    return None if options.puzzle is None else [options.puzzle]


def read_given(task: Task, lines: list[str] | None, options) -> tuple[list[list[int]], list[str]]:
    """These lines as sequences, -1 for unknown, and one sentence for every line of a file that is
    none; nothing but unknowns where nothing is given. ValueError if no line is one."""
    if lines is None:
        return [[-1] * len(task.coords)] * options.n, []
    if options.puzzles is None:
        return [task.parse(lines[0])], []
    path, given, errors = options.puzzles, [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                given.append(task.parse(line))
        except ValueError as error:
            errors.append(f"{path}, line {number}: {error}")
    if not given:
        raise ValueError(errors[0]
                         if errors else f"{path} holds no {task.puzzle}: write one a line")
    return given, errors
