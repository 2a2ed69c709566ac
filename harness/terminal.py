"""What sample.py prints: sequences, verdicts, and a refinement pass after pass."""

from __future__ import annotations

import json
import os
import sys

from torch import Tensor

from harness.tasks import Task


def trace(task: Task, given: Tensor, records: list) -> str:
    """The passes of the first sequence of a batch, from `sample.Pass`es: given (B, L), -1
    unknown."""
    color = bool(sys.stdout) and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    known, lines = given[0] >= 0, []
    for number, record in enumerate(records, 1):
        if known.all():  # others of its batch go on
            break
        record = type(record)(*(part[0] for part in record))
        known = known & ~record.reopened
        back = int((~known & ~record.committed).sum())
        lines.append(f"pass {number}: {int(record.committed.sum())} committed, {back} back to "
                     f"noise\n{task.show(record.draft, record, known, color)}\n")
        known = known | record.committed
    return "\n".join([*lines, f"{task.legend}\n"])


def verdicts(task: Task, given: Tensor, tokens: Tensor, right: Tensor | None, solving: bool) -> str:
    """Every sequence with what there is to say of it."""
    lines = []
    for i in range(len(tokens)):
        good = right is not None and bool(right[i])
        words = ["" if right is None else ("solved" if solving else "valid")
                 if good else "not valid",
                 task.remark(given[i], good)]
        lines.append("\n".join([task.show(tokens[i]), "; ".join(filter(None, words)), ""]))
    return "\n".join(lines)


def document(task: Task, tokens: Tensor, right: Tensor | None, solving: bool, passes: int) -> str:
    """The same as one line of JSON."""
    count = {"puzzles": len(tokens)} if solving else {}
    if right is not None:
        count |= {"solved" if solving else "valid": int(right.sum())}
    return json.dumps(count | {"nfe": passes, task.nouns: [task.line(row) for row in tokens]})


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


def parse_lines(task: Task, lines: list[str], path: str) -> tuple[list[list[int]], list[str]]:
    """The sequences of a file, one a line, and one sentence for every line that is none. ValueError
    if no line is one."""
    given, errors = [], []
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
