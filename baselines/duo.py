"""Duo: uniform-state diffusion (Sahoo et al., 2506.10892). A token is its own, or any word at all.

    z = x1 with probability a(t), else uniform over the V words:    q(j | x1) = a x1_j + (1 - a) / V

The network reads z one-hot and learns p, the posterior of a token given the *other* tokens: what
the token itself says comes back through the sampler, P(x1 = v | z) ~ p_v (1 - a + V a [v = z]).

The paper's: the bound (its Rao-Blackwellized form), the ancestral step, the greedy tail. Ours:
context at time 1 in place; no Gaussian curriculum (nor had Duo one in its published Sudoku rows);
the N-th pass draws the tokens (2605.11125; the authors' code takes one pass more).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator, Tensor

from baselines import (EPS, begin, denoiser, record, sampling_times, signal, training_context,
                       training_times)
from fmlm import Denoiser, Draws, Model, given, one_hot, token_mean, token_times
from harness.samplers import Sampler
from sample import sample_words

DENSE = 32  # words up to which the sum over all pairs is written out


def network(task, sizes: dict) -> Denoiser:
    return denoiser(task.vocab_size, task.coords, **sizes)


def corrupt(x1: Tensor, context: Tensor, a: Tensor, draws: Draws) -> Tensor:
    """z (B, L) of x1 (B, L, V) at level a (B,); context (B, L) stays."""
    words = x1.shape[-1]
    kept = context | (draws.uniform(*context.shape) < a[:, None])
    other = (draws.uniform(*context.shape) * words).long().clamp(max=words - 1)
    return torch.where(kept, x1.argmax(-1), other)


def bound(log_p: Tensor, x1: Tensor, z: Tensor, a: Tensor, dense: bool | None = None) -> Tensor:
    """The integrand of the bound on -log p(x1), (B, L) in nats: its mean over t ~ U(0, 1) is one.

        y_j = V a x1_j + 1 - a,   R_j = y_j / y_z;   with p for x1: yh_j, Rh_j
        l = a'/(V a) sum_j [ R_j log(R_j / Rh_j) - R_j + Rh_j ],   a' = 1 - EPS

    0 where p = x1. Expanded (for many words) only sums of logs are left: with r = (1-a)/(Va + 1-a),
    m the token and S = sum_j log(yh_z / yh_j), the sum over R log(R / Rh) is
        r S + (V-1) r log r                                     where z = m
        S + Va/(1-a) log(yh_z / yh_m) - log(r) / r              elsewhere
    log_p, x1: (B, L, V); z: (B, L); a: (B,), below 1. float64 inside: the terms nearly cancel.
    """
    words, a = x1.shape[-1], a.double()[:, None]
    at = lambda values, index: values.gather(-1, index[..., None])
    y, hat = (words * a[..., None] * p.double() + 1 - a[..., None] for p in (x1, log_p.exp()))
    y_z, hat_z = at(y, z), at(hat, z)
    if dense or dense is None and words <= DENSE:
        ratio, guess = y / y_z, hat / hat_z
        total = (ratio * (ratio / guess).log() - ratio + guess).sum(-1)
    else:
        m, r = x1.argmax(-1), (1 - a) / (words * a + 1 - a)
        spread = (hat_z / hat).log().sum(-1)
        apart = words * a / (1 - a) * (hat_z / at(hat, m)).log()[..., 0] - r.log() / r
        total = torch.where(z == m, r * spread + (words - 1) * r * r.log(), spread + apart)
        total = total + words * (1 / hat_z - 1 / y_z)[..., 0]
    return (1 - EPS) / (words * a) * total


def loss(run, model: Model, x1: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of the bound's integrand over generated tokens, one level a sequence."""
    context = training_context(x1, prompt, run.draws)
    values = at_times(model, x1, context, training_times(len(x1), run.draws), run.draws)
    return token_mean(values, ~context), context


def at_times(model: Model, x1: Tensor, context: Tensor, t: Tensor, draws: Draws) -> Tensor:
    a, time = signal(t.double()), token_times(t.float().clamp(max=1 - 2**-24), context)
    z = corrupt(x1, context, a, draws)
    return bound(model(one_hot(z, x1.shape[-1]), time, time), x1, z, a)


def likelihood(model: Model, x1: Tensor, draws: Draws) -> Tensor:
    """A draw of the bound on -log p(sequence), (B,) nats, with stratified times: 1 - t = (1 - u)^2
    of weight dt/du, since where a late token is wrong the integrand is about 1 / (1 - t)."""
    left = 1 - draws.stratified(len(x1)).double()
    return 2 * left * at_times(model, x1, given(x1, None), 1 - left**2, draws).sum(-1)


def reverse(p: Tensor, z: Tensor, a: float, b: float) -> Tensor:
    """The law of a token at level b > a, given z at a and p, as the paper has it:

        q = [V a p_z e_z + (a/b - a) e_z + (b-a) p + (1 - a/b)(1-b)/V] / [V a p_z + 1 - a]

    p: (B, L, V); z: (B, L). Returns (B, L, V), which sums to 1.
    """
    words, p_z = p.shape[-1], p.gather(-1, z[..., None])
    own = one_hot(z, words) * (words * a * p_z + a / b - a)
    return (own + (b - a) * p + (1 - a / b) * (1 - b) / words) / (words * a * p_z + 1 - a)


@torch.no_grad()
def sampler(model: Model, tokens: Tensor, known: Tensor, nfe: int, greedy: bool = False,
            generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """From uniform words, `nfe` ancestral steps; the last goes to a = 1. NFE = nfe.

    greedy: the last takes argmax p. Arguments otherwise, and what is raised, as `sample.refine`.
    """
    (tokens, passes), words = begin(model, tokens, known, nfe), model.vocab_size
    t = sampling_times(nfe)
    draw = dict(generator=generator, device=tokens.device)
    tokens = torch.where(known, tokens, torch.randint(words, tokens.shape, **draw))
    for i in range(passes):
        last = i == nfe - 1
        time = token_times(torch.full_like(tokens[:, 0], t[i], dtype=torch.float32), known)
        p = model(one_hot(tokens, words), time, time).double().exp()
        law = reverse(p, tokens, signal(t[i]), 1.0 if last else signal(t[i + 1]))
        u = torch.rand(tokens.shape, dtype=torch.float64, **draw)
        drawn = p.argmax(-1) if last and greedy else sample_words(law, u)
        tokens = torch.where(known, tokens, drawn)
        record(trace, tokens, p, known, ~known & last)
    return tokens


KIND = "bound"
NETWORKS = {"duo": network}
LOSSES = {"duo": loss}
SAMPLERS = {"duo": Sampler(sampler, ("duo",)),
            "duo-greedy": Sampler(partial(sampler, greedy=True), ("duo",))}
