"""S-FLM: a flow between points of the hypersphere (Deschenaux & Gulcehre, 2605.11125).

Every word has a learned unit vector e in R^d. Noise is uniform on the sphere S^{d-1}, and a token
goes along the great circle from its noise x0 to its word: at level a, w the angle of x0 and e,

    x = [sin((1-a) w) x0 + sin(a w) e] / sin w

The paper's: the geodesic, plain cross-entropy, the exact velocity (a mean over all words), argmax
at the end, the naive and the truncated schedule. The truncated one ends at alpha*, where with
probability 0.9 the nearest word is the right one: the rest of the way decides nothing. Ours:
context at time 1 in place; points enter at unit variance, since positions are added to them.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from baselines import (EPS, begin, denoiser, record, sampling_times, training_context,
                       training_times)
from fmlm import cross_entropy, token_mean, token_times
from harness.samplers import Sampler

NEAR = 1 - 1e-6  # cosines are clamped to this, as published: no division by sin 0


class Sphere(nn.Module):
    """A Denoiser of points of S^{d-1}, d its width: x (B, L, d), s and t (B, L) to log p (B, L, V).
    The points are the residual stream, there is no input layer."""

    def __init__(self, vocab_size: int, coords: Tensor, width: int = 64, **sizes: int) -> None:
        super().__init__()
        self.vocab_size, self.scale = vocab_size, width**0.5
        self.body = denoiser(width, coords, width=width, **sizes)
        self.body.embed, self.body.head = nn.Identity(), nn.Linear(width, vocab_size)
        for zero in self.body.head.parameters():
            nn.init.zeros_(zero)
        self.table = nn.Parameter(torch.randn(vocab_size, width) / self.scale)

    def words(self) -> Tensor:
        """The unit vectors of the words, (V, d) float64."""
        return F.normalize(self.table.double(), dim=-1)

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.body(x.float() * self.scale, s, t)


def network(task, sizes: dict) -> Sphere:
    return Sphere(task.vocab_size, task.coords, **sizes)


def level(t, words: Tensor, truncated: bool):
    """a(t) = EPS + t (alpha* - EPS); naive: alpha* = 1. words: (V, d). The paper's alpha* is

        (2/pi) arcsin sqrt(2 log(2 (V-1) / 0.1) / d),

    and 1 where so few dimensions cannot tell the words apart.
    """
    (count, width), end = words.shape, 1.0
    if truncated:
        share = min(1, 2 * math.log(2 * (count - 1) / 0.1) / width)
        end = 2 / math.pi * math.asin(math.sqrt(share))
    return EPS + t * (end - EPS)


def angle(cosine: Tensor) -> Tensor:
    return cosine.clamp(-NEAR, NEAR).arccos()


def slerp(x0: Tensor, e: Tensor, a: Tensor) -> Tensor:
    """The point at level a (B, L) between x0 and e (B, L, d); e itself, bit for bit, at a = 1."""
    w, a = angle((x0 * e).sum(-1, keepdim=True)), a[..., None]
    return ((1 - a) * w).sin() / w.sin() * x0 + (a * w).sin() / w.sin() * e


def velocity(x: Tensor, p: Tensor, words: Tensor) -> Tensor:
    """sum_v p_v Log_x(e_v), Log_x(e) = w / sin w (e - cos w x): the mean way to the words.
    x: (B, L, d); p: (B, L, V); words: (V, d). Returns (B, L, d)."""
    cosine = x @ words.T
    w = angle(cosine)
    share = p * w / w.sin()
    return share @ words - (share * cosine).sum(-1, keepdim=True) * x


def exponential(x: Tensor, v: Tensor) -> Tensor:
    """Exp_x(v) = cos|v| x + sin|v| v / |v|: from x along a great circle, tangent v; (B, L, d)."""
    size = v.norm(dim=-1, keepdim=True)
    return size.cos() * x + torch.sinc(size / math.pi) * v


def loss(run, model, x1: Tensor, prompt: Tensor | None, truncated: bool = True) -> tuple:
    """Cross-entropy of x1 given the points, mean over generated tokens. No weight, no likelihood.
    The gradient reaches the words through the points, too; it keeps them apart."""
    context = training_context(x1, prompt, run.draws)
    words, t = run.model.words(), training_times(len(x1), run.draws)
    x0 = F.normalize(run.draws.normal(*x1.shape[:2], words.shape[1]).double(), dim=-1)
    a = token_times(level(t.double(), words, truncated), context)
    time = token_times(t, context)
    log_p = model(slerp(x0, words[x1.argmax(-1)], a), time, time)
    return token_mean(cross_entropy(log_p, x1), ~context), context


@torch.no_grad()
def sampler(model, tokens: Tensor, known: Tensor, nfe: int, truncated: bool = True,
            generator: Generator | None = None, trace: list | None = None) -> Tensor:
    """From uniform points, nfe - 1 moves x <- Exp_x((a_{i+1} - a_i)/(1 - a_i) velocity); the last
    pass takes argmax p. NFE = nfe. `truncated`: as in training. Arguments otherwise, and what is
    raised, as `sample.refine`; model: also has `words()`.
    """
    (tokens, passes), words = begin(model, tokens, known, nfe), model.words()
    t = sampling_times(nfe)
    x = torch.randn(*tokens.shape, words.shape[1], generator=generator, device=tokens.device,
                    dtype=torch.float64)
    x = torch.where(known[..., None], words[tokens], F.normalize(x, dim=-1))
    for i in range(passes):
        time = token_times(torch.full_like(x[:, 0, 0], t[i]).float(), known)
        p = model(x, time, time).double().exp()
        tokens = torch.where(known, tokens, p.argmax(-1))
        record(trace, tokens, p, known, ~known & (i == nfe - 1))
        if i < nfe - 1:
            a, b = (level(t[k], words, truncated) for k in (i, i + 1))
            moved = exponential(x, (b - a) / (1 - a) * velocity(x, p, words))
            x = torch.where(known[..., None], x, moved)
    return tokens


likelihood = None  # plain cross-entropy at every level bounds nothing
NETWORKS = {"sflm": network, "sflm-naive": network}
LOSSES = {"sflm": loss, "sflm-naive": partial(loss, truncated=False)}
SAMPLERS = {"sflm": Sampler(sampler, ("sflm",)),
            "sflm-naive": Sampler(partial(sampler, truncated=False), ("sflm-naive",))}
