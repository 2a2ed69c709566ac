"""The evaluation tables: python -m text.evaluate CKPT... [--nfe 1 4 16] [--sampler posterior]

Stories, by the number of network passes (NFE): valid ones in % of those drawn from nothing, with a
95% interval; how many different ones are among these; the errors by kind; and the total variation
distance of each marginal to the law. Then held-out questions: how many of their stories are valid,
and how many answers are right, whatever the work says; with --gaps also stories whose events are
missing. The generator's own stories stand below.
Any text: different samples, runs of 8 tokens that are copied from the training text, unknown
tokens; held-out text stands below. Where its lines are questions, how many are answered right.
Both: unigram entropy of a sample, and its words, which are all tokens but end and padding; with
--judge AR.pt the perplexity of what is drawn to that model. Few words, and the same again and
again, are not perplexing: compare where entropy and words are those of held-out text. With
--lengths also sequences whose end and padding are given; with --attempts K what the model does
not believe is drawn anew, K times at most (`harness.attempts`). The likelihood bound for all that
have a delta_{0,0}; of AR it is exact.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from fmlm import Model, one_hot
from harness import commands, evaluation
from harness.checkpoints import (ONE_BY_ONE, baseline, completes, load_checkpoint,
                                 newest_checkpoint, read_checkpoint, task_of)
from harness.measure import BATCH, share, usual
from harness.tasks import Task
from sample import SAMPLERS
from text import corpus
from text.stories import total_variation
from text.task import SETTINGS, Stories
from text.tokens import END, PAD, UNKNOWN, join

ASIDE = ("block", "posterior-early")  # on demand: not in the paper's tables
BUDGETS = [1, 2, 4, 8, 16]
KINDS = ("form", "copy", "sum")  # of errors
ANSWER = "####"  # what GSM8K writes before the answer


# ---- stories


def drawn_stories(task: Stories, tokens: Tensor) -> dict:
    """Of stories from nothing, (n, L): valid ones, different valid ones, errors, and distances."""
    verdicts = [task.language.judge(row) for row in tokens.tolist()]
    good = torch.tensor([verdict.valid for verdict in verdicts])
    errors = [verdict.error for verdict in verdicts]
    return {**share(good), "distinct": len(tokens.cpu()[good].unique(dim=0)),
            "errors": {kind: round(100 * errors.count(kind) / len(errors), 2) for kind in KINDS},
            "tv": {name: round(apart, 4)
                   for name, apart in total_variation(task.language, verdicts).items()}}


def asked_stories(task: Stories, tokens: Tensor, stories: Tensor, prompt: Tensor) -> dict:
    """Of stories of which a part was given, (n, L), against those it was taken from: valid ones,
    and in how many the answer is right, whatever else is."""
    read, kept = task.language, ((tokens == stories) | ~prompt).all(1).tolist()
    verdicts = [read.judge(row) for row in tokens.tolist()]
    good = torch.tensor([verdict.valid and same for verdict, same in zip(verdicts, kept)])
    right = [read.answer(read.text(row)) == read.answer(read.text(true))
             for row, true in zip(tokens.tolist(), stories.tolist())]
    errors = [verdict.error for verdict in verdicts]
    return {**share(good), "answers": round(100 * sum(right) / len(right), 2),
            "errors": {kind: round(100 * errors.count(kind) / len(errors), 2) for kind in KINDS}}


# ---- any text


def drawn_text(task: Task, tokens: Tensor, training: Tensor) -> dict:
    """Of text from nothing, (n, L): what there is to say without another model as its judge."""
    return {"distinct": len(tokens.unique(dim=0)),
            "copied": round(100 * corpus.copied(tokens, training), 2),
            "unknown": round(100 * float((tokens == task.ids[UNKNOWN]).double().mean()), 2)}


def asked_text(task: Task, tokens: Tensor, truth: Tensor, lengths: Tensor) -> dict:
    """Of questions that were answered, (n, L): how many as the text does. Where it marks its
    answers by ####, what stands behind the last one counts, but for commas and spaces: 1,000 is
    1000; else all of it does. An answer that the vocabulary cannot write is never right."""
    def answer(row: list[int], start: int) -> tuple[str, str]:
        words = [task.words[token] for token in row[start:]]
        words = words[:words.index(END)] if END in words else words
        _, mark, said = join(task.kind, words).rpartition(ANSWER)
        return mark, re.sub(r"[,\s]", "", said) if mark else said

    rows = zip(tokens.tolist(), truth.tolist(), lengths.tolist())
    answers = [(answer(row, start), answer(true, start)) for row, true, start in rows]
    right = [said == true and UNKNOWN not in true[1] for said, true in answers]
    return share(torch.tensor(right))


# ---- both


@torch.no_grad()
def perplexity(judge: Model, tokens: Tensor) -> float:
    """exp(mean of -log p(token | those before it)) over all tokens (n, L), end and padding among
    them, to an autoregressive model: generative perplexity, of one that did not draw them."""
    nats = [baseline("ar").likelihood(judge, one_hot(part, judge.vocab_size), None)
            for part in tokens.split(BATCH)]
    return math.exp(float(torch.cat(nats).double().mean()) / tokens.shape[1])


def fluency(task: Task, tokens: Tensor, judge: Model | None) -> dict:
    """Of sequences (n, L): entropy, words, and how perplexing they are to a judge, if any."""
    ends = torch.tensor([task.ids[END], task.ids[PAD]], device=tokens.device)
    said = {"entropy": round(float(corpus.unigram_entropy(tokens).mean()), 3),
            "words": round(float((~torch.isin(tokens, ends)).sum(1).double().mean()), 2)}
    return said | ({"perplexity": round(perplexity(judge, tokens), 2)} if judge else {})


def choose_judge(paths: Sequence[str], held_out: Tensor,
                 training: Tensor) -> tuple[Model | None, dict]:
    """The one of these AR models to which held-out text (n, L) is least perplexing: of trainings of
    different length, early stopping. And what there is to say of it, among this how perplexing
    the text that it was trained on is."""
    judges = [load_checkpoint(path, held_out.device) for path in paths]
    if not judges:
        return None, {}
    found = [perplexity(model, held_out) for model, _ in judges]
    best = min(range(len(found)), key=found.__getitem__)
    model, info = judges[best]
    return model, {"judge": {
        "checkpoint": str(paths[best]), "steps": evaluation.steps_of(info),
        "held_out": round(found[best], 2), "training": round(perplexity(model, training), 2)}}


def check_judge(path: str, judge: str) -> None:
    """ValueError for a judge that is no AR model of the same task and tokens."""
    info, other = read_checkpoint(path), read_checkpoint(judge)
    if other["objective"] != "ar" or any(info[key] != other[key] for key in ("task", "state")):
        raise ValueError(f"{judge} cannot judge {path}: a judge is trained with --objective ar on "
                         "the same task, of a text with the same tokens, vocabulary and length")


def evaluate(path: str, options: argparse.Namespace) -> dict:
    """Everything there is to say about one checkpoint, as one dictionary. Each figure draws from
    the seed alone: it is the same whatever else was asked, and two checkpoints meet the same
    draws. ValueError for a checkpoint of another task, or whose text is not there."""
    model, info = load_checkpoint(path, options.device, options.compile)
    task, objective = language_of(path, info), info["objective"]
    stories, length = isinstance(task, Stories), len(task.coords)
    draws = lambda: Generator(options.device).manual_seed(options.seed)
    samplers, tries = evaluation.samplers_of(info, options, ASIDE)
    if stories:
        given, law = task.held_out(options.n), task.language.draw(options.n, draws())
        prompts = {"puzzles": task.questions(given), "gaps": task.gaps(given)}
        training = task.language.draw_split(options.n, False, Generator().manual_seed(0))
        of_task, asked = drawn_stories, asked_stories
    else:
        task.read(options.data if options.data is not None else trained_on(info))
        given, lengths = task.held_out_pairs(options.n)
        prompts = {"puzzles": torch.arange(length) < lengths[:, None]}
        law, training = given, task.corpus.part(test=False)[0]
        of_task = lambda task, tokens: drawn_text(task, tokens.cpu(), training)
        asked = lambda task, tokens, given, prompt: asked_text(task, tokens, given, lengths)
    given, law = given.to(options.device), law.to(options.device)
    ends = ending(task, given)
    if options.lengths and not ends.any():
        raise ValueError(f"--lengths gives end and padding, and no sequence of {path} has any: "
                         "running text fills them")
    chosen = torch.randperm(len(training), generator=Generator().manual_seed(0))[:options.n]
    judge, judged = choose_judge(options.judge or [], given, training[chosen].to(options.device))
    drawn = lambda task, tokens: {**of_task(task, tokens), **fluency(task, tokens, judge)}
    nothing = torch.full((options.n, length), -1, device=options.device)
    document = {**evaluation.head(path, info, model, options), **judged,
                "data": {"n": len(law), **drawn(task, law)}}
    budgets = options.nfe or usual(objective, length, BUDGETS)

    def rows(prompt: Tensor, say: Callable[[Tensor], dict]) -> list[dict]:
        found = []
        for name, sampler in samplers:
            for nfe in budgets:
                tokens, believed, passes = evaluation.complete(model, sampler, prompt, nfe, draws(),
                                                               tries)
                found.append({"sampler": name, "nfe": nfe, "n": len(prompt), **passes,
                              **say(tokens)})
                if stories and tries:
                    found[-1] |= evaluation.wrongly(believed, task.judge(tokens, prompt))
        return found

    document["unconditional"] = rows(nothing, lambda tokens: drawn(task, tokens))
    if not completes(info):
        return document
    if options.lengths:
        document["lengths"] = rows(given.where(ends, -1), lambda tokens: drawn(task, tokens))
    for kind in ("puzzles", "gaps") if options.gaps else ("puzzles",):
        prompt = prompts[kind].to(options.device)
        if prompt.any():
            document[kind] = rows(given.where(prompt, -1),
                                  lambda tokens: asked(task, tokens, given, prompt))
    if found := evaluation.likelihood(task, model, objective, draws()):
        document["likelihood"] = found | {
            "bits_a_token": round(found["bound"] / length / math.log(2), 4)}
        if stories:
            document["likelihood"]["limit"] = round(task.language.entropy, 3)
    return document


def ending(task: Task, tokens: Tensor) -> Tensor:
    """(n, L) bool: the padding of each sequence, and the END before it."""
    pad = tokens == task.ids[PAD]
    return pad | pad.roll(-1, 1) & (tokens == task.ids[END])


def language_of(path: str, info: dict) -> Task:
    """The task of a checkpoint. ValueError where it is not one of this folder."""
    task = task_of(info)
    if not type(task).__module__.startswith("text."):
        raise ValueError(f"{path} is of the task {task.name}: evaluate it with python -m "
                         f"{type(task).__module__.split('.')[0]}.evaluate")
    return task


def trained_on(info: dict) -> str:
    """The text that a checkpoint was trained on, "" for the Bible."""
    options = info.get("options")
    data = options.get("data") if isinstance(options, dict) else None
    if not isinstance(data, str):
        raise ValueError("this checkpoint does not say which text it was trained on: name it with "
                         "--data")
    return data


def measure(path: str, samplers: Sequence[str], budgets: Sequence[int], n: int, seed: int,
            device: torch.device, threshold: float | None = None) -> dict:
    """What `harness.roads` compares: of text, only what has a share in % that is right."""
    document = evaluate(path, argparse.Namespace(
        device=device, compile=True, bf16=False, threshold=threshold, data=None, gaps=False,
        lengths=False, judge=None, attempts=None, check_rules=False, sampler=samplers, nfe=budgets,
        n=n, seed=seed))
    return {name: rows for name, rows in document.items()
            if name == "likelihood" or name in ("unconditional", "puzzles")
            and all("percent" in row for row in rows)}


def report(document: dict) -> str:
    """The document as tables for a terminal."""
    lines = ["{checkpoint}: {task}, {objective}, {parameters:,} parameters, {steps} steps"
             .format(**document)]
    nouns = "texts" if document["task"] == "text" else "stories"
    if judge := document.get("judge"):
        lines.append("judged by {checkpoint}, {steps} steps: perplexity {held_out} of held-out "
                     "text, {training} of what it was trained on".format(**judge))
    titles = {"unconditional": f"{nouns} from nothing",
              "lengths": f"{nouns} of which end and padding are given",
              "puzzles": "held-out questions",
              "gaps": "held-out stories whose events are missing"}
    for kind, title in titles.items():
        rows = document.get(kind)
        if not rows:
            continue
        lines += ["", f"{title}, {rows[0]['n']:,}"]
        lines.append(f"{'NFE':<22}" + "".join(f"{row:>22}" for row in
                                              dict.fromkeys(row["nfe"] for row in rows)))
        for name in dict.fromkeys(row["sampler"] for row in rows):
            lines += table(name, [row for row in rows if row["sampler"] == name])
        if kind == "unconditional":
            law = document["data"]
            source = "held-out text" if nouns == "texts" else "the generator"
            lines += table(f"{source}, {law['n']:,}", [law])
    if "likelihood" in document:
        bound = document["likelihood"]
        lines += ["", "likelihood {kind} {bound} +- {plus_minus} nats a sequence, {bits_a_token} "
                  "bits a token".format(**dict(kind="bound") | bound)]
        if "limit" in bound:
            lines[-1] += f"; no honest one is below the entropy of the law, {bound['limit']}"
    return "\n".join(lines)


def table(name: str, rows: list[dict]) -> list[str]:
    """What there is in the rows of a sampler, a line each."""
    first, lines = rows[0], []
    if "percent" in first:
        lines.append(("right, % (95%)", "{percent:.1f} ({low:.1f} - {high:.1f})"))
    lines += [(words, f"{{{key}}}") for words, key in (
        ("answer right, %", "answers"), ("perplexity", "perplexity"), ("entropy, nats", "entropy"),
        ("words", "words"), ("distinct", "distinct"), ("copied, %", "copied"),
        ("unknown, %", "unknown"), ("mean passes", "passes"), ("most passes", "most_passes"),
        ("believed, %", "believed"), ("and wrong", "believed_and_wrong"))
        if key in first]
    for group, words in (("errors", "error of {}, %"), ("tv", "TV of {}")):
        names = dict.fromkeys(key for row in rows for key in row.get(group, ()))
        lines += [(words.format(key), f"{group}:{key}") for key in names]

    def cell(row: dict, form: str) -> str:
        group, _, key = form.partition(":")
        return str(row[group].get(key, "-")) if group in ("errors", "tv") else form.format(**row)

    return [name] + [f"{'  ' + words:<22}" + "".join(cell(row, form).rjust(22) for row in rows)
                     for words, form in lines]


@commands.command("text.evaluate")
def main(arguments: list[str] | None = None) -> int:
    budgets = " ".join(map(str, BUDGETS))
    parser = evaluation.parser("text.evaluate", "stories, or on text", SAMPLERS, ASIDE, budgets,
                               n=500)
    parser.add_argument("--data", type=commands.path, metavar="FILE", help="of a text: what it was "
                        "trained on, if that lies elsewhere; a tenth was held out")
    parser.add_argument("--gaps", action="store_true",
                        help="also fill in the events of held-out stories")
    parser.add_argument("--lengths", action="store_true",
                        help="also draw sequences of which end and padding are given, as held-out "
                        "ones have them")
    parser.add_argument("--judge", type=commands.path, metavar="AR", nargs="+",
                        help="an AR model that says how perplexing the drawn text is; of several, "
                        "such as of trainings of different length, the best on held-out text")
    options = parser.parse_args(arguments)
    paths = options.checkpoints or [newest_checkpoint(*SETTINGS)]
    for path in paths:  # all of them, before the first is evaluated
        info = read_checkpoint(path)
        task, _ = language_of(path, info), evaluation.samplers_of(info, options, ASIDE)
        if options.gaps and not isinstance(task, Stories):
            raise ValueError(f"--gaps is for stories, and {path} is of {task.name}")
        if options.data is not None and isinstance(task, Stories):
            raise ValueError(f"--data is for a text, and {path} is of {task.name}")
        for name in ("gaps", "lengths"):
            if getattr(options, name) and info["objective"] in ONE_BY_ONE:
                raise ValueError(f"--{name} gives what stands behind missing tokens, but {path} is "
                                 f"of {info['objective']}, which goes on from a prefix")
        for judge in options.judge or []:
            check_judge(path, judge)
    return evaluation.run(options, paths, evaluate, report)


if __name__ == "__main__":
    commands.run(main)
