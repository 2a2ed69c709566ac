"""CANDI: discrete and Gaussian noise at once (Pynadath et al., 2510.22510).

At time t a token is revealed with probability a(t); the others are x1 + sigma(t) noise, (B, L, V).
sigma follows from a rank error, the share of words that look better than the right one, asked to be

    rho(t) = RHO[0] + (1 - a(t)) (RHO[1] - RHO[0])

The paper's: both noises, rho, the loss (the weight of masked diffusion on what is hidden), the
sampler in one-hot space with its step. Ours: Bernoulli reveals (the code draws one of V + 1 words,
which reveals 1/(V + 1) of the tokens at pure noise); sigma in closed form, not a table; context
and revealed tokens at time 1 in place of a mask vector; one sigma a pass (their network is told the
next one's); a reveal with probability 1 / passes left (theirs up to 0.1%); no step beyond p.

Even with the exact posterior and many passes its law is not the data's (a test measures it): the
start lacks the signal that sigma(0) leaves, and the step is faster than the probability flow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from baselines import (begin, denoiser, record, sampling_times, signal, training_context,
                       training_times)
from fmlm import Denoiser, Model, cross_entropy, token_mean, token_times
from harness.samplers import Sampler
from sample import sample_words

RHO = (0.01, 0.25)  # rank error at data and at noise; as published for Sudoku


def network(task, sizes: dict) -> Denoiser:
    rank_noise(torch.zeros(0), task.vocab_size)
    return denoiser(task.vocab_size, task.coords, **sizes)


def rank_noise(rho: Tensor, words: int) -> Tensor:
    """sigma of a rank error: (V-1)/V Phi(-1 / (sigma sqrt 2)) = rho, solved. rho of any shape.

    Raises ValueError for fewer than 3 words: of two, no noise has a rank error above 1/4.
    """
    if words < 3:
        raise ValueError(f"CANDI needs at least 3 words for a rank error of {RHO[1]}, not {words}")
    return -(0.5**0.5) / torch.special.ndtri(rho.double() * words / (words - 1))


def noise_at(t: Tensor, words: int) -> Tensor:
    """sigma(t), float64; t of any shape."""
    return rank_noise(RHO[0] + (1 - signal(t.double())) * (RHO[1] - RHO[0]), words)


def shown(x: Tensor, x1: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """What the network reads: x1 where clean (B, L), else x / sqrt(1 + sigma^2); sigma (B,)."""
    return torch.where(clean[..., None], x1, x / (1 + sigma**2).sqrt()[:, None, None]).float()


def loss(run, model: Model, x1: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what is hidden, over 1 - t = (1 - a) / a'; mean over generated tokens."""
    context = training_context(x1, prompt, run.draws)
    t = training_times(len(x1), run.draws)
    clean = context | (run.draws.uniform(*context.shape) < signal(t)[:, None])
    sigma = noise_at(t, x1.shape[-1])
    x = x1 + sigma[:, None, None] * run.draws.normal(*x1.shape)
    time = token_times(t, clean)
    entropies = cross_entropy(model(shown(x, x1, clean, sigma), time, time), x1)
    return token_mean(entropies * ~clean / (1 - t)[:, None], ~context), context


@torch.no_grad()
def sampler(model: Model, tokens: Tensor, known: Tensor, nfe: int,
            generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """From sigma_0 noise, `nfe` passes. In each a token that is not clean yet moves,

        x <- x - min(1, (sigma_i - sigma_{i+1}) / sigma_{i+1}^2) (x - p),

    and is drawn from p and clean from then on with probability 1 / passes left. NFE = nfe, less
    where all is clean before. Faster than the probability flow, whose factor is
    (sigma_i - sigma_{i+1}) / sigma_i: so it is published. Arguments otherwise, and what is raised,
    as `sample.refine`.
    """
    (tokens, passes), words = begin(model, tokens, known, nfe), model.vocab_size
    draw = dict(generator=generator, device=tokens.device, dtype=torch.float64)
    t = torch.tensor(sampling_times(nfe), dtype=torch.float64, device=tokens.device)
    sigma, clean, sure = noise_at(t, words), known, 1.0
    x = sigma[0] * torch.randn(*tokens.shape, words, **draw)
    for i in range(passes):
        if clean.all():
            break
        time = token_times(t[i].float().expand(len(x)), clean)
        seen = shown(x, F.one_hot(tokens, words), clean, sigma[i].expand(len(x)))
        p = model(seen, time, time).double().exp()
        x = x - ((sigma[i] - sigma[i + 1]) / sigma[i + 1] ** 2).clamp(max=1) * (x - p)
        drawn = torch.where(clean, tokens, sample_words(p, torch.rand(tokens.shape, **draw)))
        now = ~clean & (torch.rand(tokens.shape, **draw) < 1 / (nfe - i))
        sure = record(trace, drawn, p, clean, now, sure)
        tokens, clean = torch.where(now, drawn, tokens), clean | now
    return tokens


likelihood = None  # the loss bounds nothing once the noisy tokens say something
NETWORKS = {"candi": network}
LOSSES = {"candi": loss}
SAMPLERS = {"candi": Sampler(sampler, ("candi",))}
