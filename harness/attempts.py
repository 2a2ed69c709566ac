"""Does a model believe what it drew? The judge, and attempts until it does (ours, not the papers').

sudoku/FINDINGS.md has what was measured of both, sudoku/judge.py and text/judge.py the commands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fmlm import Model, interpolate, one_hot
from harness.measure import BATCH, check_tokens
from harness.samplers import Drawn, Sampler
from harness.tasks import Task


@torch.no_grad()
def log_probability(model: Model, tokens: Tensor, asked: Tensor, s: Tensor, t: Tensor,
                    generator: Generator | None = None, noise: float = 1) -> Tensor:
    """The sum over the `asked` tokens, (B, L) bool, of log delta_{s,t}(x_s)[token], (B,), x_s these
    tokens (B, L) with fresh noise of this size. s, t: (B, L)."""
    x1 = one_hot(tokens, model.vocab_size)
    x0 = noise * torch.randn(x1.shape, generator=generator, device=x1.device)
    log_p = model(interpolate(x1, x0, s), s, t).gather(-1, tokens[..., None])[..., 0]
    return torch.where(asked, log_p, 0.0).sum(1)


def judge(model: Model, tokens: Tensor, known: Tensor, s: float = 0.72,
          generator: Generator | None = None) -> Tensor:
    """How surely the model would write a finished sequence again (ours, not the papers'):

        score = sum over all tokens of log D_s(x_s)[token],   x_s = (1-s) noise + s tokens

    in one pass. A wrong one is none of the sequences of the data, so each of them disagrees with it
    in some token: the disagreements that D_s expects sum to 1 at least, and log(1 - q) <= -q, so an
    exact model scores it -1 or less at **every** s. A right one rises to 0 as s rises and all other
    sequences are ruled out. A network near 1 reads each token off x_s alone, which is all that data
    asks of it there, so s is the latest time at which wrong drafts still keep to the bound (0.72:
    of 9x9). `known` is not looked at: what is given is asked too, for a misprinted clue contradicts
    a draft that is right otherwise, and as clean context, which data never has wrong, it would go
    unnoticed.
    tokens: (B, L) int64; known: (B, L) bool. Returns (B,). ValueError for an s outside (0, 1).
    """
    everything = torch.ones_like(known)
    check_tokens(model, tokens, everything)
    if not 0 < s < 1:
        raise ValueError(f"the judge's time s must lie between 0 and 1, got {s}")
    time = torch.full(known.shape, s, device=known.device)
    return log_probability(model, tokens, everything, time, time, generator)


def judge_by_halves(model: Model, tokens: Tensor, known: Tensor, noise: float = 0,
                    generator: Generator | None = None) -> Tensor:
    """The same question to a model that knows s = t = 0 only, in two passes (ours): each of two
    random halves of the generated tokens, given the other half. An MDM's and MLFM's `noise` is 0.
    """
    check_tokens(model, tokens, torch.ones_like(known))
    order = torch.rand(known.shape, generator=generator, device=known.device)
    order = torch.where(known, -1.0, order).argsort(1).argsort(1)
    middle = (known.sum(1, keepdim=True) + known.shape[1]) // 2
    halves = order >= middle, ~known & (order < middle)
    times = ((~asked).float() for asked in halves)
    return sum(log_probability(model, tokens, asked, time, time, generator, noise)
               for asked, time in zip(halves, times))


class View(NamedTuple):
    """A symmetry of each of n sequences, under which a language is the same: where each token of
    the view stands, (n, L), and what each word is called there, (n, V)."""

    places: Tensor
    words: Tensor

    def of(self, given: Tensor) -> Tensor:
        """Sequences (n, L), -1 where unknown, seen so."""
        named = self.words.gather(1, given.clamp(min=0))
        return torch.where(given < 0, given, named).gather(1, self.places)

    def back(self, drawn: Drawn) -> Drawn:
        """What was drawn in the view, as it is without."""
        places, words = self.places.argsort(1), self.words.argsort(1)
        home = lambda values: values.gather(1, places[:len(values)])
        named = lambda tokens: home(words[:len(tokens)].gather(1, tokens))
        trace = [type(each)(named(each.draft), *map(home, each[1:])) for each in drawn.trace]
        return Drawn(named(drawn.tokens), home(drawn.sure), drawn.passes, trace)


class Judge(NamedTuple):
    """Who decides whether a finished draft is believed, and from which probability on; how what is
    not believed is seen when it is drawn anew (`Task.views`); and what may be given up before its
    last round (`Task.unique`)."""

    # (model, tokens, known, generator=) -> (B,) log-probabilities; None: the sum as committed
    score: Callable[..., Tensor] | None
    passes: int = 1
    believe: float = 0.9
    views: Callable | None = None
    unique: Callable | None = None


JUDGES = {"fmlm+": Judge(judge), "mdm": Judge(judge_by_halves, 2),
          "mlfm": Judge(judge_by_halves, 2)}


def judge_for(objective: str, task: Task) -> Judge:
    """The judge of an objective, or the task's own; an MDM knows no noise. ValueError for an
    objective that cannot judge."""
    if objective not in JUDGES:
        raise ValueError(f"a model trained as {objective} cannot judge what it drew: use "
                         f"{' or '.join(JUDGES)}, or leave --attempts out")
    judge = JUDGES[objective]
    if task.by_halves:
        noise = float(objective == "fmlm+")
        judge = Judge(partial(judge_by_halves, noise=noise), 2, task.by_halves)
    return judge._replace(views=task.views, unique=task.unique)


def judge_by_rules(task: Task) -> Judge:
    """The task's rules in place of the model. ValueError for a task that has none."""
    def by_rules(model: Model, tokens: Tensor, known: Tensor,
                 generator: Generator | None) -> Tensor:
        right = task.judge(tokens, tokens.where(known, -1))
        if right is None:
            raise ValueError(f"{task.name} has no rules to check: leave --check-rules out")
        return right.float().log()

    return Judge(by_rules, passes=0, views=task.views, unique=task.unique)


def tries_of(objective: str, task: Task, most: int | None, by_rules: bool,
             believe: float | None = None,
             otherwise: int | None = None) -> tuple[int, Judge] | None:
    """How many attempts a command line asks for, and who judges them; None where it asks for none.
    `otherwise`: how many where it does not say, by an objective that can judge. ValueError for one
    that cannot, or for how to judge without attempts."""
    if most is None and objective in JUDGES:
        most = otherwise
    if most is None:
        if by_rules or believe:
            asked = "--check-rules" if by_rules else "--believe"
            raise ValueError(f"{asked} chooses among attempts: say how many by --attempts")
        return None
    judge = judge_by_rules(task) if by_rules else judge_for(objective, task)
    return most, judge._replace(believe=believe or judge.believe)


def in_batches(score: Callable[..., Tensor], model: Model, tokens: Tensor, known: Tensor,
               generator: Generator | None) -> Tensor:
    return torch.cat([score(model, *part, generator=generator)
                      for part in zip(tokens.split(BATCH), known.split(BATCH))])


def attempt(sampler: Sampler, model: Model, given: Tensor, known: Tensor, nfe: int, judge: Judge,
            generator: Generator | None, first: bool, last: bool) -> tuple[Drawn, Tensor, Tensor]:
    """Complete `given` (n, L), but for the first time in another view, if there are any. Returns
    what was drawn, the judge's scores of all but the `known`, (n,), and the passes of both, (n,).

    Where what is given may leave one sequence alone, a round that has to guess is mostly wrong: but
    for the `last` time the last round is left out, and what would need it scores -inf, unjudged.
    """
    view = None if first or not judge.views else View(*judge.views(len(given), generator,
                                                                   given.device))
    if view:
        given, known = view.of(given), known.gather(1, view.places)
    if not last and sampler.gives_up and judge.unique and judge.unique(given).all():
        sampler = sampler._replace(run=partial(sampler.run, finish=False))
    drawn = sampler.complete(model, given, nfe, generator)
    done = (drawn.sure >= 0).all(1)
    scores = drawn.sure.log().sum(1).where(done, -torch.inf)
    if judge.score and done.any():
        scores[done] = in_batches(judge.score, model, drawn.tokens[done], known[done], generator)
    passes = drawn.passes + judge.passes * done
    return view.back(drawn) if view else drawn, scores, passes


class Answer(NamedTuple):
    """What `attempts` ends with, n sequences each: the surest attempt, whether it is believed, the
    passes and the attempts that it took. And what it went through, a tuple an attempt: which
    sequences were tried, (m,); their scores, (m,); the trace of the first batch of them."""

    tokens: Tensor
    believed: Tensor
    passes: Tensor
    tried: Tensor
    trace: list


def attempts(sampler: Sampler, model: Model, given: Tensor, nfe: int, most: int, judge: Judge,
             generator: Generator | None = None) -> Answer:
    """Complete `given` (n, L), -1 where unknown, by a `Sampler`; judge; what is not believed is
    completed anew, from fresh noise and in another view, at most `most` times (ours). The surest
    attempt is kept, a failed one otherwise forgotten.

    A first attempt to the end is `Sampler.complete` bit for bit, for judging comes after it. Later
    ones take what is left, so a sequence that is believed costs nothing more. The judge's passes
    count. All but the last may be given up before their last round: see `attempt`.
    Raises ValueError for most < 1, believe outside (0, 1], or a sampler that leaves no chance.
    """
    if most < 1 or not 0 < judge.believe <= 1:
        raise ValueError("there is 1 attempt at least, believed from a probability in (0, 1], not "
                         f"{most} and {judge.believe}")
    if most > 1 and not sampler.chance:
        raise ValueError("this sampler draws the same in every attempt: use one that is sampled")
    tokens, left, trace = given.clone(), torch.arange(len(given), device=given.device), []
    best = torch.full_like(left, -torch.inf, dtype=torch.float32)
    passes, tried = torch.zeros_like(left), torch.zeros_like(left)
    while len(left) and len(trace) < most:
        asked, first, last = given[left], not trace, len(trace) + 1 == most
        drawn, scores, used = attempt(sampler, model, asked, asked >= 0, nfe, judge, generator,
                                      first, last)
        passes[left] += used
        tried[left] += 1
        trace.append((left, scores, drawn.trace))
        surer = ~(scores < best[left])
        tokens[left[surer]], best[left[surer]] = drawn.tokens[surer], scores[surer]
        left = left[~(scores.exp() >= judge.believe)]
    return Answer(tokens, best.exp() >= judge.believe, passes, tried, trace)
