"""Whom to believe: python -m text.judge [CKPT] [--attempts 16]

`harness.study` on held-out questions of stories, right where the whole story is, and on stories
from nothing.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator

from harness import commands, study
from harness.tasks import Task
from text.stories import LANGUAGES
from text.task import Stories


@commands.command("text.judge")
def main(arguments: list[str] | None = None) -> int:
    parser = study.parser("text.judge")
    parser.add_argument("--questions", type=commands.SEED, default=0,
                        help="seed of the questions; 0: those of text.evaluate")
    options = parser.parse_args(arguments)
    study.report(options, partial(questions, options=options), LANGUAGES, named="set")
    return 0


def questions(path: str, info: dict, task: Task, options) -> dict[str, study.Set]:
    """Held-out questions, and as many stories from nothing. ValueError for another task."""
    if not isinstance(task, Stories):
        raise ValueError(f"{path} is of the task {info['task']}, whose answers nobody can check: "
                         "name a checkpoint of stories or stories-large")
    generator = Generator().manual_seed(options.questions)
    stories = task.language.draw_split(options.n, True, generator)
    sets = {"questions": stories.where(task.questions(stories), -1),
            "stories from nothing": torch.full_like(stories, -1)}
    return {kind: (given, partial(task.judge, given=given)) for kind, given in sets.items()}


if __name__ == "__main__":
    commands.run(main)
