"""A text over the rounds of Posterior Refinement: python -m text.plot [CKPT] --animate FILE.gif

It looks for what it shows: of 64 stories from nothing, or completions of what is --given, it takes
those whose first draft is not valid and whose last is, and of these the first that took most
rounds. A text that nothing can judge is shown for its rounds alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from fmlm import Model
from harness import commands
from harness.checkpoints import load_checkpoint, newest_checkpoint, task_of
from harness.plot import (BACK, COMMITTED, DRAFT, END, GIVEN, GIVEN_BACK, NOISE, PLAIN, UNSURE,
                          animation_file, new_figure, save_animation, shade, shows_most)
from harness.tasks import Task
from sample import Pass, choose_sampler, posterior_refinement
from text import tokens as special
from text.task import Stories, suits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 56  # letters, about
LONGEST = 8  # letters for which a box has room; longer words are drawn smaller
FONT = 11  # points: a letter of this monospace font is 0.6 as wide
SMALL = {special.END: "end", special.PAD: "pad", special.UNKNOWN: "unk"}  # drawn small and grey
VERDICTS = {"form": "the draft breaks the grammar", "copy": "the draft copies a word wrongly",
            "sum": "a sum of the draft is wrong", None: "the draft is a valid story"}


def refine_one(task: Task, model: Model, given: Tensor, nfe: int,
               seed: int) -> tuple[Tensor, list[Pass]]:
    """Refine sequences (n, L), -1 where unknown, and return the one that shows most, (L,), and its
    rounds, (L,) each. ValueError for one of which all is given."""
    known, trace = given >= 0, []
    tokens = posterior_refinement(model, given.clamp(min=0), known, nfe,
                                  generator=Generator().manual_seed(seed), trace=trace)
    if not trace:
        raise ValueError("every token of this text is given: there is nothing to refine")
    last = task.judge(tokens, given)
    corrected = torch.zeros(len(given), dtype=torch.bool)
    if last is not None:
        corrected = last & ~task.judge(trace[0].draft, given)
    best, rounds = shows_most(known, trace, corrected)
    return given[best], rounds


def verdict(task: Task, draft: Tensor) -> str:
    """What there is to say of a draft (L,): "" where nothing can judge it."""
    if not isinstance(task, Stories):
        return ""
    return VERDICTS[task.language.judge(draft.tolist()).error]


def draw_words(axis: Axes, vocabulary: Sequence[str], kinds: list[str], draft: list[int],
               p_max: list[float]) -> None:
    """A box for every token, line after line: white with a heavy border where it is committed,
    grey where given, without a border and shaded by 1 - p_max where unsure; noise is a dot."""
    from matplotlib.patches import Rectangle

    columns, rows, width = grid(vocabulary, len(draft))
    axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], frame_on=False)
    looks = {"given": (GIVEN, GIVEN_BACK, 0.6), "committed": (COMMITTED, PLAIN, 1.6)}
    for i, kind in enumerate(kinds):
        x, y = i % columns, i // columns
        word = vocabulary[draft[i]] if kind != "noise" else "·"
        back = PLAIN if kind == "noise" else shade(p_max[i])
        color, back, border = looks.get(kind, (UNSURE, back, 0))
        axis.add_patch(Rectangle((x + 0.04, y + 0.09), 0.92, 0.82, facecolor=back,
                                 edgecolor=color if border else "none", linewidth=border))
        small, size = word in SMALL, FONT * (0.7 if word in SMALL else 1.5 if word == "·" else 1)
        word = {" ": "␣"}.get(word, SMALL.get(word, word))
        axis.text(x + 0.5, y + 0.52, word, ha="center", va="center", family="monospace",
                  color=NOISE if kind == "noise" or small and border else color,
                  weight="bold" if kind == "committed" and not small else "normal",
                  fontsize=min(size, 0.85 * 72 * width / 0.6 / len(word)), parse_math=False)


def grid(vocabulary: Sequence[str], length: int) -> tuple[int, int, float]:
    """Boxes in a line, lines, and the width of a box in inches."""
    letters = 1 + min(LONGEST, max(len(SMALL.get(word, word)) for word in vocabulary))
    columns = min(length, LINE // letters)
    return columns, -(-length // columns), (letters + 0.6) * FONT * 0.6 / 72


def draw_legend(figure: Figure, given: bool) -> None:
    """What the boxes mean, below them."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    entries = {}
    if given:
        entries["given"] = Patch(facecolor=GIVEN_BACK, edgecolor=GIVEN, linewidth=0.6)
    entries["committed"] = Patch(facecolor=PLAIN, edgecolor=COMMITTED, linewidth=1.6)
    shades = tuple(Patch(facecolor=shade(p_max)) for p_max in (1, 0.7, 0.4))
    entries[r"unsure: back to noise (darker: lower $p_{\max}$)"] = shades
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=len(entries),
                  frameon=False, fontsize=9, handlelength=1.6, handleheight=1.2, columnspacing=1.8,
                  handler_map={shades: HandlerTuple(None, 0)})


def draw_frames(task: Task, vocabulary: Sequence[str], given: Tensor,
                trace: list[Pass]) -> Iterator[tuple[Figure, int]]:
    """From `refine_one`, one figure that changes, and for how many milliseconds it is to be seen:
    the noise, every draft, and what is left once its unsure words are noise again."""
    columns, rows, width = grid(vocabulary, len(given))
    figure, known = new_figure(columns * width + 0.2, 0.3 * rows + 1), given >= 0
    axis = figure.add_subplot()
    draw_legend(figure, bool(known.any()))
    kinds = ["given" if known[i] else "noise" for i in range(len(given))]

    def draw(title: str, below: str, kinds: list[str], draft: Tensor, p_max: Tensor) -> Figure:
        axis.clear()
        draw_words(axis, vocabulary, kinds, draft.tolist(), p_max.tolist())
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(below or " ", fontsize=9)
        return figure

    draw("Noise", f"{kinds.count('noise')} words to draft", kinds, given, torch.ones(len(given)))
    figure.draw_without_rendering()  # finds a place for everything
    figure.set_layout_engine("none")  # where it stays
    yield figure, BACK
    committed = known
    for number, record in enumerate(trace, 1):
        committed, last = committed | record.committed, number == len(trace)
        back = int((~committed).sum())
        title = (f"Round {number} of {len(trace)}: {int(record.committed.sum())} committed, "
                 f"{back} back to noise")
        for left, time in ((False, END if last else DRAFT), (True, BACK))[:1 if last else 2]:
            kinds = ["given" if known[i] else "committed" if committed[i]
                     else "noise" if left else "unsure" for i in range(len(given))]
            yield draw(title, verdict(task, record.draft), kinds, record.draft,
                       record.confidence), time


@commands.command("text.plot")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m text.plot",
                             description="Draw a text over the rounds of Posterior Refinement.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest of stories trained here")
    add("--given", metavar="STRING", help="complete this, _ for a missing word")
    add("-n", type=commands.whole(1, 1000), default=64, help="texts to choose from (default 64)")
    add("--nfe", type=commands.NFE, default=8, help="rounds, one pass each, at most (default 8)")
    add("--seed", type=commands.SEED, default=0)
    add("--animate", metavar="FILE", type=animation_file, required=True,
        help="the rounds one after the other: .gif, or .png that moves")
    options = parser.parse_args(arguments)
    path = options.checkpoint or newest_checkpoint(suits([options.given or ""]) or "stories")
    model, info = load_checkpoint(path)
    task = task_of(info)
    if not type(task).__module__.startswith("text."):
        raise ValueError(f"{path} is of the task {task.name}, which writes no text: draw it with "
                         f"python -m {type(task).__module__.split('.')[0]}.plot")
    choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
    given = torch.tensor([task.parse(options.given or "")] * options.n)
    vocabulary = task.language.words if isinstance(task, Stories) else task.words
    shown = refine_one(task, model, given, options.nfe, options.seed)
    save_animation(draw_frames(task, vocabulary, *shown), options.animate)
    return 0


if __name__ == "__main__":
    commands.run(main)
