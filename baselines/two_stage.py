"""FMLM as released with 2602.16813 (its authors' code): two stages of squared error.

1. The residual map. A frozen FLM has the velocity v, a network g learns what a jump adds to it:

    X_{s,t}(x) = x + D v_s(x) + D^2/2 g(x, s, t),   D = t - s

   Written as a flow map, X = (1-t)/(1-s) x + (t-s)/(1-s) delta, its clean point is

    delta_{s,t}(x) = D_s(x) + (t-s)(1-s)/2 g(x, s, t)

   so that the diagonal is the teacher's, exactly, and g = 0 an Euler step. Two half jumps, each
   with the teacher's velocity and the network's own g, are the target: the semigroup identity for
   this delta (`fmlm.semigroup_target`; linear, so that leaving the simplex does not matter).

2. Compression. A network with a softmax, which begins as that FLM, is shown where the frozen map of
   stage 1 ends. It is an ordinary denoiser, and the one to sample from.

The paper's: the maps, targets, squared errors, shares at (0, 1), the learned weight, tau (s, t are
drawn and halved in it, the networks are told it). Ours: g begins with the teacher's body; a prompt
stays clean, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fmlm
from fmlm import Denoiser, Model, TimeEmbedding, flow_map, given, token_mean, token_times
from harness.samplers import Sampler
from sample import flow_map_sampler

RESIDUAL_AT_01, COMPRESSED_AT_01 = 1 / 64, 1 / 128  # shares of the batch; as published


class Residual(nn.Module):
    """The map of stage 1: x (B, L, V), s <= t (B, L) to its clean point (B, L, V), **not** a log.
    `teacher` is the FLM inside it, frozen; `body` is g, a Denoiser read before its softmax."""

    def __init__(self, vocab_size: int, coords: Tensor, width: int = 64, **sizes: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.teacher = Denoiser(vocab_size, coords, width, **sizes).requires_grad_(False)
        self.body = Denoiser(vocab_size, coords, width, **sizes)
        self.weight = nn.Sequential(TimeEmbedding(width), nn.Linear(width, 1))
        for zero in self.weight[1].parameters():
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, denoised: Tensor | None = None) -> Tensor:
        """denoised: D_s(x), where it is known; else the teacher is asked, one more pass."""
        denoised = self.teacher(x, s, s).exp() if denoised is None else denoised
        return denoised + ((t - s) * (1 - s) / 2)[..., None] * self.body.logits(x, s, t)

    def log_weight(self, s: Tensor) -> Tensor:
        """w(s), (B, L): the loss is exp(-w) L + w, at its least where w is the log of L's mean."""
        return self.weight(self.body.told(s))[..., 0].float()


def half_jumps(model: Callable, teacher: Model, x: Tensor, s: Tensor, t: Tensor,
               denoised: Tensor, halve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The clean point of two half jumps from x = x_s, by way of u = halve(s, t): the target of
    stage 1. denoised: D_s(x). No gradient is wanted. Passes: two of g, one of the teacher."""
    u = halve(s, t)
    first = model(x, s, u, denoised)
    x_u = flow_map(x, first, s, u)
    second = model(x_u, u, t, teacher(x_u, u, u).exp())
    return fmlm.semigroup_target(first, second, s, u, t)


def residual_loss(model: Callable, teacher: Model, x: Tensor, s: Tensor, t: Tensor,
                  halve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Squared error of the clean point against `half_jumps`, (B, L); x = x_s (B, L, V)."""
    with torch.no_grad():
        denoised = teacher(x, s, s).exp()
        target = half_jumps(model, teacher, x, s, t, denoised, halve)
    return (model(x, s, t, denoised) - target).square().sum(-1)


def compressed_loss(model: Model, stage_1: Callable, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Squared error of the end of a jump against that of the frozen map, (B, L); x = x_s."""
    with torch.no_grad():
        end = flow_map(x, stage_1(x, s, t), s, t)
    return (flow_map(x, model(x, s, t).exp(), s, t) - end).square().sum(-1)


def draw(run, x1: Tensor, prompt: Tensor | None, boundary: float) -> tuple[Tensor, ...]:
    """x_s (B, L, V), s, t (B, L) and the context: no row on the diagonal, `boundary` at (0, 1)."""
    context = given(x1, prompt)
    s, t = (token_times(time, context) for time in run.sample_times(x1, 0, boundary))
    return fmlm.interpolate(x1, run.draws.normal(*x1.shape), s), s, t, context


def residual(run, model: Callable, x1: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stage 1, mean over generated tokens. 7 passes: 3 of g, 2 more in the target, 2 of the teacher
    (its D_s(x) serves both sides)."""
    x, s, t, context = draw(run, x1, prompt, RESIDUAL_AT_01)
    errors = residual_loss(model, run.teacher, x, s, t, run.halve)
    run.parts["error"] = token_mean(errors, ~context).detach()
    w = run.model.log_weight(s)
    return token_mean((-w).exp() * errors + w, ~context), context


def compressed(run, model: Model, x1: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stage 2, mean over generated tokens. 5 passes: 3 of the student, 2 of the map."""
    x, s, t, context = draw(run, x1, prompt, COMPRESSED_AT_01)
    return token_mean(compressed_loss(model, run.teacher, x, s, t), ~context), context


def start(objective: str, weights: dict) -> dict:
    """What a stage begins with, of the checkpoint before it: the residual map with an FLM as its
    teacher, and as its body but for the head, which is zero; the student with the teacher inside
    the residual map."""
    if objective == "fmlm-compressed":
        return {name.removeprefix("teacher."): weight for name, weight in weights.items()
                if name.startswith("teacher.")}
    body = {f"body.{name}": weight for name, weight in weights.items() if "head" not in name}
    return body | {f"teacher.{name}": weight for name, weight in weights.items()}


class Point(NamedTuple):
    """A clean point that may lie off the simplex, as samplers read it: `model(x, s, t).exp()`."""

    at: Tensor

    def exp(self) -> Tensor:
        return self.at


def sampler(model: Callable, tokens: Tensor, known: Tensor, nfe: int, tau: bool = False,
            **options) -> Tensor:
    """`sample.flow_map_sampler` of either stage. A jump of the residual map counts one pass; it is
    one of g and one of the teacher."""
    asked = model
    if hasattr(model, "teacher"):
        asked = lambda x, s, t: Point(model(x, s, t))
        asked.vocab_size = model.vocab_size
    return flow_map_sampler(asked, tokens, known, nfe, tau=tau, **options)


likelihood = None  # a jump has no density
NETWORKS = {"fmlm-residual": lambda task, sizes: Residual(task.vocab_size, task.coords, **sizes),
            "fmlm-compressed": lambda task, sizes: Denoiser(task.vocab_size, task.coords, **sizes)}
LOSSES = {"fmlm-residual": residual, "fmlm-compressed": compressed}
SAMPLERS = {"flow-map-tau": Sampler(partial(sampler, tau=True), tuple(LOSSES)),
            "flow-map": Sampler(sampler, tuple(LOSSES))}
