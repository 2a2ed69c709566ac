"""Two pictures of text.

    python -m text.plot [CKPT] --animate FILE.gif                over rounds of Posterior Refinement
    python -m text.plot --curve TABLE.json... --out FILE.png     perplexity over network passes

The first looks for what it shows: of 64 stories from nothing, or completions of what is --given, it
takes those whose first draft is not valid and whose last is, and of these the first that took most
rounds. A text that nothing can judge is shown for its rounds alone. The second draws what
text.evaluate prints with --judge and --json, a line a sampler.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harness import commands
from harness.checkpoints import load_checkpoint, newest_checkpoint, task_of
from harness.plot import (BACK, COLORS, COMMITTED, DRAFT, END, GIVEN, GIVEN_BACK, MARKERS, NOISE,
                          PLAIN, UNSURE, new_figure, refine_one, save_animation, save_figure, shade,
                          system)
from harness.samplers import choose_sampler
from harness.tasks import Task
from sample import Pass
from text import tokens as special
from text.task import Stories, suits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATCHED = 0.1  # nats: an entropy this close to that of held-out text is matched
LINE = 56  # letters, about
LONGEST = 8  # letters for which a box has room; longer words are drawn smaller
FONT = 11  # points: a letter of this monospace font is 0.6 as wide
SMALL = {special.END: "end", special.PAD: "pad", special.UNKNOWN: "unk"}  # drawn small and grey
VERDICTS = {"form": "the draft breaks the grammar", "copy": "the draft copies a word wrongly",
            "sum": "a sum of the draft is wrong", None: "the draft is a valid story"}


class Curves(NamedTuple):
    """What `read_curves` finds: {line: [(mean passes, perplexity, entropy), ...]}, and perplexity
    and entropy of the text itself."""

    lines: dict[str, list[tuple[float, float, float]]]
    perplexity: float
    entropy: float


def read_curves(*paths: str) -> Curves:
    """The JSON of text.evaluate --judge, of one command or several. ValueError for a file that is
    none, of several judges or texts, or with a row that cannot be."""
    path = " ".join(paths)
    try:
        documents = [document for file in paths for document in json.loads(Path(file).read_text())]
        same = {(document["judge"]["checkpoint"], document["data"]["perplexity"],
                 document["data"]["entropy"]) for document in documents}
        lines, twice = {}, False
        for document in documents:
            name = document.get("label") or system(document["objective"])
            for row in document["unconditional"]:
                values = tuple(float(row[key]) for key in ("passes", "perplexity", "entropy"))
                points = lines.setdefault(f"{name}, {row['sampler']}", {})
                twice |= row["nfe"] in points
                points[row["nfe"]] = values
        lines = {name: sorted(points.values()) for name, points in lines.items()}
        every = [point for points in lines.values() for point in points]
        every += [(1.0, float(perplexity), float(entropy)) for _, perplexity, entropy in same]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            RecursionError) as error:
        raise ValueError(f"{path} is not what text.evaluate prints with --judge and --json"
                         ) from error
    if not lines or not all(0 < passes < math.inf and 1 <= perplexity < math.inf
                            and 0 <= entropy < math.inf for passes, perplexity, entropy in every):
        raise ValueError(f"{path} holds no row to draw, or one that cannot be: a perplexity is at "
                         "least 1, an entropy at least 0")
    if twice:
        raise ValueError(f'{path} has two points at one NFE on a line: give each of its documents '
                         'a "label"')
    if len(same) > 1:
        raise ValueError(f"{path} has several judges or texts: evaluate all checkpoints with the "
                         "same ones")
    (_, perplexity, entropy), = same
    return Curves(lines, perplexity, entropy)


def draw_curves(curves: Curves) -> Figure:
    """Perplexity over passes, and entropy below it: a marker is full where the entropy is that of
    the text, which is where perplexities can be compared, and empty where it is not."""
    figure = new_figure(6.5, 6.2 + 0.12 * len(curves.lines))
    axes, legend = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2)), {}
    for k, (name, points) in enumerate(curves.lines.items()):
        passes, *columns = zip(*points)
        color, matched = COLORS[k % len(COLORS)], [abs(point[2] - curves.entropy) <= MATCHED
                                                   for point in points]
        for axis, values in zip(axes, columns):
            legend[name], = axis.plot(passes, values, color=color, linewidth=1.2,
                                      marker=MARKERS[k % len(MARKERS)], markersize=5.5,
                                      linestyle=["-", "--", ":"][k // len(COLORS) % 3])
            empty = [not full for full in matched]
            axis.plot([x for x, out in zip(passes, empty) if out],
                      [y for y, out in zip(values, empty) if out], linestyle="none", color=color,
                      marker=MARKERS[k % len(MARKERS)], markersize=5.5, markerfacecolor="white")
    for axis, value in zip(axes, (curves.perplexity, curves.entropy)):
        axis.axhline(value, color="black", linewidth=0.8, linestyle=(0, (6, 3)))
        axis.grid(axis="y", color="#e0e0e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].axhspan(curves.entropy - MATCHED, curves.entropy + MATCHED, color="#e0e0e0", zorder=0)
    axes[0].annotate("the text itself", (0.005, curves.perplexity), fontsize=8, va="bottom",
                     xycoords=("axes fraction", "data"))
    ticks = [2**k for k in range(12) if 2**k <= 1.2 * max(
        passes for points in curves.lines.values() for passes, *_ in points)]
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(ticks, map(str, ticks))
    axes[0].set_yscale("log")
    axes[0].set_ylabel("generative perplexity")
    axes[1].set(xlabel="mean network passes", ylabel="unigram entropy, nats")
    axes[0].set_title(f"full: entropy within {MATCHED} nats of the text's", fontsize=9, loc="left")
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False,
                  fontsize=9)
    return figure


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
    parser = commands.Parser(prog="python -m text.plot", description="Draw a text over the rounds "
                             "of Posterior Refinement, or perplexity over network passes.")
    add = parser.add_argument
    add("checkpoint", nargs="?", type=commands.path,
        help="default: the newest of stories trained here")
    add("--given", metavar="STRING", help="complete this, _ for a missing word")
    add("-n", type=commands.whole(1, 1000), default=64, help="texts to choose from (default 64)")
    add("--nfe", type=commands.NFE, default=8, help="rounds, one pass each, at most (default 8)")
    add("--seed", type=commands.SEED, default=0)
    add("--curve", metavar="TABLE.json", type=commands.path, nargs="+",
        help="what text.evaluate prints with --judge and --json")
    picture = parser.add_mutually_exclusive_group(required=True)
    picture.add_argument("--animate", metavar="FILE", type=commands.animation_file,
                         help="the rounds one after the other: .gif, or .png that moves")
    picture.add_argument("--out", metavar="FILE", type=commands.figure_file,
                         help="the curve: .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    if bool(options.out) != bool(options.curve):
        raise ValueError("--out is the picture of a --curve, and --animate that of a text")
    if options.curve:
        save_figure(draw_curves(read_curves(*options.curve)), options.out)
        return 0
    return animate(options)


def animate(options: argparse.Namespace) -> int:
    path = options.checkpoint or newest_checkpoint(suits([options.given or ""]) or "stories")
    model, info = load_checkpoint(path)
    task = task_of(info)
    if not type(task).__module__.startswith("text."):
        raise ValueError(f"{path} is of the task {task.name}, which writes no text: draw it with "
                         f"python -m {type(task).__module__.split('.')[0]}.plot")
    choose_sampler(info["objective"], "posterior")  # a ValueError for all but an FMLM+
    given = torch.tensor([task.parse(options.given or "")] * options.n)
    shown = refine_one(task, model, given, options.nfe, options.seed)
    save_animation(draw_frames(task, task.words, *shown), options.animate)
    return 0


if __name__ == "__main__":
    commands.run(main)
