"""The systems beside FMLM+ in the papers' tables, a short file each: AR, Duo, CANDI, S-FLM, MLFM,
and FMLM in the two stages of its release.

A module has
    NETWORKS    objective -> network(task, sizes): fmlm's blocks, with what the system needs
    LOSSES      objective -> loss(run, model, x1, prompt) -> (loss, context), as in train.py
    SAMPLERS    name -> sample.Sampler: run(model, tokens, known, nfe, generator=None, trace=None)
    likelihood(model, x1, draws) -> (B,) nats a sequence, and KIND, "exact" or "bound"; or None
    start(objective, weights) -> weights      to begin with, of a checkpoint's: where it can do so
and is found by its name at run time. Here is what they share.

Signal level a and time t: a(t) = 0.001 + 0.999 t, "log-linear" in the sources. All are trained and
sampled with context in place, at per-token time 1, as FMLM+ is (ours: in the sources clues stand in
a prefix, so that position tells them from noise).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmlm import Denoiser, Draws, given, sample_context
from harness.measure import check_tokens
from sample import Pass

EPS = 1e-3  # the signal at t = 0, and what training leaves of the noise at the other end


def denoiser(vocab_size: int, coords: Tensor, kind: type[Denoiser] = Denoiser,
             **sizes: int) -> Denoiser:
    """fmlm's network, or one of its kind, at one time: the second, silent at first, stays so."""
    network = kind(vocab_size, coords, **sizes)
    network.time_t.requires_grad_(False)
    return network


def signal(t):
    """a(t) = EPS + (1 - EPS) t; t and the result: numbers, or tensors of any shape."""
    return EPS + (1 - EPS) * t


def training_times(n: int, draws: Draws) -> Tensor:
    """One time a sequence, (n,), uniform in [0, 1 - EPS] and stratified over the batch."""
    return (1 - EPS) * draws.stratified(n)


def sampling_times(nfe: int) -> list[float]:
    """t_0 ... t_N of N passes: i / N, of 1 - 1e-5 of the way."""
    return [i / nfe * (1 - 1e-5) for i in range(nfe + 1)]


def training_context(x1: Tensor, prompt: Tensor | None, draws: Draws) -> Tensor:
    """(B, L) bool: every second sequence completes a context drawn as FMLM+ draws it, the others
    have their prompt alone, if any.

    Ours. FMLM+ commits tokens, so that every context is one that sampling meets. These systems keep
    the context that they start with: from nothing is half of what they are asked.
    """
    prompt = given(x1, prompt)
    context, _ = sample_context(prompt, draws)
    odd = torch.arange(len(x1), device=x1.device) % 2 == 1
    return prompt | context & odd[:, None]


def begin(model, tokens: Tensor, known: Tensor, nfe: int) -> tuple[Tensor, int]:
    """Tokens with 0 where unknown, and the passes to make: none where all is known. ValueError for
    tokens or known of the wrong shape, type or value, or for no passes."""
    check_tokens(model, tokens, known)
    if nfe < 1:
        raise ValueError("a sampler needs at least one network pass: NFE must be 1 or more")
    return tokens.where(known, 0), 0 if known.all() else nfe


def record(trace: list | None, drawn: Tensor, p: Tensor, known: Tensor, committed: Tensor,
           sure: Tensor | float = 1.0) -> Tensor:
    """Append to a trace the pass that drew these tokens (B, L) from p (B, L, V). Returns how sure
    each is; `sure`: how sure those that were known before are."""
    sure = torch.where(known, sure, p.gather(-1, drawn[..., None])[..., 0].float())
    if trace is not None:
        trace.append(Pass(drawn, sure, committed))
    return sure
