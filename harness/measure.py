"""What every evaluation shares: shares with their intervals, the posterior, the likelihood
bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Generator, Tensor

import fmlm
from fmlm import one_hot
from harness.checkpoints import MASKED, ONE_BY_ONE, baseline
from harness.tasks import Task

BATCH = 100  # sequences at a time: bounds the memory, and a CPU's caches hold what a layer computes
SIXTEENS = 96  # the same where noise is drawn: in whole sixteens it is that of one draw for all


def interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, in %: sensible at 0 and 100% too."""
    z, p = 1.96, successes / n
    middle = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = (100 * (middle + side * spread) / (1 + z * z / n) for side in (-1, 1))
    return tuple(min(max(0.0, end), 100.0) for end in ends)  # rounding: no -0.0


def share(hits: Tensor) -> dict:
    """How many of these, (n,) bool, in %, with its interval."""
    low, high = interval(int(hits.sum()), len(hits))
    percent = 100 * float(hits.float().mean())
    return {"percent": round(percent, 2), "low": round(low, 2), "high": round(high, 2)}


@torch.no_grad()
def posterior(model: fmlm.Denoiser, objective: str, tokens: Tensor, context: Tensor,
              generator: Generator) -> Tensor:
    """log delta_{0,0}, (B, L, V), of a flow map (noise in the unknown tokens) or of an MDM or MLFM
    (no noise). tokens, context: (B, L)."""
    x1 = one_hot(tokens, model.vocab_size)
    noise = torch.randn(x1.shape, generator=generator, device=x1.device)
    time = context.float()
    x = fmlm.interpolate(x1, noise * (objective not in MASKED), time)
    parts = zip(x.split(BATCH), time.split(BATCH))
    return torch.cat([model(x, time, time) for x, time in parts])


def own_likelihood(objective: str) -> ModuleType | None:
    """The module of another system, which says what its likelihood is; None where it is the MDM
    bound of delta_{0,0}."""
    return None if objective in MASKED else baseline(objective)


@torch.no_grad()
def likelihood_bound(task: Task, model: fmlm.Denoiser, objective: str, generator: Generator,
                     n: int = 5000) -> tuple[float, float] | None:
    """The MDM bound on -log p(sequence), nats, on held-out ones: its mean over n draws and its 95%
    half-width. Of another system its own, exact or a bound, or None if it has none.

    A sequence with m of its L tokens masked, m uniform on 1 ... L, counts L/m times the sum of its
    cross-entropies: the 1/f weight of MDLM with f integrated out, given m. The m are stratified, so
    only the spread at equal m counts as error.
    """
    system = own_likelihood(objective)
    if system and not system.likelihood:
        return None
    tokens = task.held_out(min(n, 2000)).to(generator.device)
    tokens = tokens[torch.arange(n, device=tokens.device) % len(tokens)]
    if system:
        draws = fmlm.Draws(generator, tokens.device)
        nats = torch.cat([system.likelihood(model, one_hot(part, task.vocab_size), draws)
                          for part in tokens.split(BATCH)])
        return float(nats.mean()), 1.96 * float(nats.std()) / math.sqrt(n)
    length = tokens.shape[1]
    strata = fmlm.Draws(generator, tokens.device).stratified(n)
    masked = (strata * length).long().clamp(max=length - 1) + 1
    order = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    context = order.argsort(1).argsort(1) >= masked[:, None]
    entropies = torch.cat([
        fmlm.cross_entropy(posterior(model, objective, *part, generator),
                           one_hot(part[0], task.vocab_size))
        for part in zip(tokens.split(SIXTEENS), context.split(SIXTEENS))])
    nats = (entropies * ~context).sum(1) * length / masked
    # Neighbours in m: their difference is free of it.
    first, second = nats[masked.argsort()][:n // 2 * 2].view(-1, 2).T
    return float(nats.mean()), 1.96 * math.sqrt(float((first - second).square().mean()) / 2 / n)


def usual(objective: str, length: int, budgets: Sequence[int]) -> Sequence[int]:
    """The NFE to try where none is asked for: these, at most one a token, or one a token where no
    fewer will do."""
    if objective in ONE_BY_ONE:
        return [length]
    return list(dict.fromkeys(min(nfe, length) for nfe in budgets))


def known_after(known: Tensor, trace: list) -> Tensor:
    """What is known after the `sample.Pass`es of a trace, (B, L) bool, of what was at the start."""
    return sum((record.committed for record in trace), known)


def passes_used(known: Tensor, trace: list) -> Tensor:
    """How many passes drafted a sequence before nothing was left to commit: known (B, L) at the
    start, a trace of `sample.Pass`; returns (B,)."""
    passes = torch.zeros(len(known), dtype=torch.int64, device=known.device)
    for record in trace:
        passes = passes + ~known.all(1)
        known = known | record.committed
    return passes


def check_tokens(model: fmlm.Model, tokens: Tensor, known: Tensor) -> None:
    """ValueError unless tokens are (B, L) int64, known (B, L) bool, and known tokens are words."""
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be (B, L) int64, got {tuple(tokens.shape)} {tokens.dtype}")
    if known.shape != tokens.shape or known.dtype != torch.bool:
        raise ValueError(f"known must be bool of the shape of tokens, {tuple(tokens.shape)}, "
                         f"got {tuple(known.shape)} {known.dtype}")
    if (known & ((tokens < 0) | (tokens >= model.vocab_size))).any():
        raise ValueError(f"known tokens must lie in 0 ... {model.vocab_size - 1}")
