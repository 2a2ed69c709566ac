"""AR: token after token, p(x1) = prod_i p(x1_i | x1_<i). Nothing is noised, and time means nothing.

As a *model*: model(x, s, t) -> log p (B, L, V), x one-hot (B, L, V), t = 1 at context; row i is the
law of token i given x_<i and the context, which a causal network (causal.py) reads first, as a
puzzle. From nothing is the empty puzzle. A text, of one coordinate, goes on from a prefix.

The papers' (2605.11125 for Sudoku): the layout, next-token cross-entropy, exact likelihood, one
pass a token. Ours: clues are not drawn again and carry no loss.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator, Tensor

from baselines import begin, training_context
from baselines.causal import Causal
from fmlm import Draws, Model, cross_entropy, given, one_hot, token_mean
from harness.samplers import Sampler
from sample import Pass, sample_words


def network(task, sizes: dict) -> Causal:
    return Causal(task.vocab_size, task.coords, **sizes)


def loss(run, model: Model, x1: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token given those before it, mean over generated tokens. What stands
    behind a gap is none that it could be given, unless its model completes."""
    if run.model.completes:
        context = training_context(x1, prompt, run.draws)
    else:
        context = given(x1, prompt).cumprod(1).bool()
    time = context.to(x1.dtype)
    return token_mean(cross_entropy(model(x1, time, time), x1), ~context), context


def likelihood(model: Model, x1: Tensor, draws: Draws) -> Tensor:
    """-log p(sequence) from nothing, (B,) nats: exact."""
    nothing = torch.zeros_like(x1[..., 0])
    return cross_entropy(model(x1, nothing, nothing), x1).sum(-1)


@torch.no_grad()
def sampler(model: Model, tokens: Tensor, known: Tensor, nfe: int, greedy: bool = False,
            generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """Left to right, drawn from p or its argmax. NFE = the tokens to generate, whatever `nfe` is:
    of a batch, the places at which some sequence has none.

    A model with `following` keeps keys and values; any other is asked for all tokens at each pass.
    Raises ValueError as `sample.refine`, for an nfe of fewer passes, and, of a model of text, for
    known tokens that are no prefix.
    """
    tokens, _ = begin(model, tokens, known, nfe)
    places = (~known).any(0).nonzero()[:, 0].tolist()
    if nfe < len(places):
        raise ValueError(f"an autoregressive model takes a pass a token: {len(places)} here, so "
                         f"that an NFE of {nfe} is not enough")
    if not getattr(model, "completes", True) and (known[:, 1:] & ~known[:, :-1]).any():
        raise ValueError("an autoregressive model of text goes on from a prefix: the tokens that "
                         "are given must be the first ones, none after a gap")
    time, cache, sure = known.float(), [], known.float()
    for i in places:
        log_p = (model.following(tokens, time, i, cache) if hasattr(model, "following")
                 else model(one_hot(tokens, model.vocab_size), time, time)[:, i])
        p = log_p.double().exp()
        u = torch.rand(len(p), generator=generator, device=p.device, dtype=torch.float64)
        drawn = p.argmax(-1) if greedy else sample_words(p, u)
        here = ~known & (torch.arange(known.shape[1], device=known.device) == i)
        tokens = torch.where(here, drawn[:, None], tokens)
        sure = torch.where(here, p.gather(-1, drawn[:, None]).float(), sure)
        if trace is not None:
            trace.append(Pass(tokens, sure, here))
    return tokens


KIND = "exact"
NETWORKS = {"ar": network}
LOSSES = {"ar": loss}
SAMPLERS = {"ar": Sampler(sampler, ("ar",)),
            "ar-greedy": Sampler(partial(sampler, greedy=True), ("ar",), chance=False)}
