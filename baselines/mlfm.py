"""MLFM: masked language flow models (2606.27617), an MDM that is trained on beside a flow.

Data and [MASK], the zero vector, are the ends of a Brownian bridge (`fmlm.bridge`). The network
learns D_s(x), the clean tokens given a point of it (`fmlm.mlfm_loss`), and its sampler goes over
the bridge from [MASK] to data, promotes the tokens that are sure, and begins again with the rest.

The paper's: all but what says otherwise. Ours: the network's gate, in one-hot space; sigma = 0.5
there (published: 0.2, in a space of embeddings).

1. the laws of context and of times   2. the network   3. the loss   4. the sampler
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import fmlm
from baselines import denoiser
from fmlm import (Denoiser, Draws, Model, TimeEmbedding, check_sigma, check_times, flow_map, given,
                  inverse_look_up, look_up, ratio)
from harness.samplers import Sampler
from sample import Draft, at_most_tokens, refine, surest

READ_OUT = 0.94  # time at which tokens are read off; as published
NOISIEST, CLEAREST = 6.0, -10.0  # log noise-to-signal of training: nearly [MASK], nearly data
STRAIGHT = torch.linspace(1, 0, 33)  # a loss that falls alike in every half unit of it


def sample_bridge_context(prompt: Tensor, draws: Draws = Draws()) -> Tensor:
    """The context of MLFM training, (B, L) bool (2606.27617): each token is corrupted at the rate
    0.05 + 0.95 cos(pi U / 2) of its sequence, and at least one is. Of the sequences with a prompt
    one half, by coins, has all that is no prompt corrupted.

    prompt: (B, L) bool, context always.
    """
    rate = 0.05 + 0.95 * (math.pi / 2 * draws.stratified(len(prompt))).cos()
    whole = prompt.any(1) & (draws.uniform(len(prompt)) < 0.5)
    u = draws.uniform(*prompt.shape).masked_fill(prompt, 1)
    corrupted = (u < rate.where(~whole, 1)[:, None]) | (u == u.amin(1, keepdim=True))
    return prompt | ~corrupted


def clearness(t: Tensor, sigma: float | Tensor) -> Tensor:
    """How clear x_t of the bridge is, in [0, 1], by its log noise-to-signal (2606.27617):

        gamma = log(sigma^2 (1-t) / t),   (6 - gamma) / 16, and 0 above gamma = 6, 1 below -10

    The posterior weighs x by e^-gamma / t (toy/exact.py): given gamma it does not depend on sigma.
    t of any shape.
    """
    gamma = (sigma**2 * (1 - t) / t).log()
    return ((NOISIEST - gamma) / (NOISIEST - CLEAREST)).clamp(0, 1)


def inverse_clearness(u: Tensor, sigma: float | Tensor) -> Tensor:
    """The time t at which x_t is as clear as u in [0, 1]: t = 1 / (1 + e^gamma / sigma^2)."""
    gamma = NOISIEST + (CLEAREST - NOISIEST) * u
    return 1 / (1 + gamma.exp() / sigma**2)


def law_of_clearness(curve: Tensor | None) -> Tensor:
    """The law of MLFM's training times (2606.27617): the share that is noisier, for clearnesses in
    equal steps from 0 to 1, (K,) float64, to `look_up`. A mixture in gamma of 0.1 uniform, 0.2
    normal(-2.5, 2) within [-10, 6], and 0.7 in proportion to the slope of the loss, whose share is

        (C(0) - C(u)) / (C(0) - C(1)),   C the loss at clearness u, made to fall

    curve: C, (K,). A straight line makes the last part uniform; so does one that never falls.
    Without a curve all is uniform in gamma, and K = 2.
    """
    if curve is None:
        return torch.tensor([0.0, 1.0], dtype=torch.float64)
    u = torch.linspace(0, 1, len(curve), dtype=torch.float64, device=curve.device)
    below = torch.special.ndtr((NOISIEST + (CLEAREST - NOISIEST) * u + 2.5) / 2)
    normal = (below[0] - below) / (below[0] - below[-1])
    loss = curve.double().cummin(0).values
    span = (loss[0] - loss[-1]).expand(len(u))
    measured = torch.where(span > 0, ratio(loss[0] - loss, span, 0.0), u)
    return 0.1 * u + 0.2 * normal + 0.7 * measured


def sample_bridge_times(n: int, draws: Draws = Draws(), sigma: float = 1.0,
                        curve: Tensor | None = None) -> Tensor:
    """Times of MLFM training, (n,), by `law_of_clearness`."""
    u = draws.stratified(n)
    u = inverse_look_up(law_of_clearness(curve).to(u.device), u)
    return inverse_clearness(u, sigma).clamp(max=1 - 2**-24)


def losses_by_clearness(u: Tensor, losses: Tensor, steps: int) -> Tensor:
    """Sum of the losses (B,) nearest to each of `steps` clearnesses, and their number: (2, steps).
    u: the clearness of each, (B,)."""
    place = (u * (steps - 1)).round().long()
    both = torch.stack([losses, torch.ones_like(losses)])
    return both.new_zeros(2, steps).index_add(1, place, both)


class BridgeDenoiser(Denoiser):
    """The network of an MLFM (2606.27617): log D_s(x) on the bridge; it ignores t, and context is
    at s = 1.

    An MDM and what begins at zero: the MDM's embedders are told 0 or 1, corrupted or context, which
    is all that they have seen; an embedder of its own is told how clear x is; and x enters through
    a gate, scaled to unit size. So the weights of an MDM load here as they are, and give its answer
    at every s. `sigma`, of the bridge, and `curve`, the mean loss of a token by how clear x is, as
    training measures it, are kept with the weights.
    """

    def __init__(self, *layout, **sizes) -> None:
        super().__init__(*layout, **sizes)
        width = self.embed.out_features
        self.register_buffer("sigma", torch.tensor(1.0))
        self.register_buffer("curve", math.log(self.vocab_size) * STRAIGHT)
        self.time_bridge, self.gate = TimeEmbedding(width), nn.Linear(width, 1)
        for zero in (self.time_bridge.mlp[-1], self.gate):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    @torch.no_grad()
    def measured(self, losses: Tensor, number: Tensor) -> None:
        """Move the curve towards a batch's losses, given as `losses_by_clearness` gives them: a
        mean that forgets half in 140 steps."""
        towards = torch.lerp(self.curve, losses / number.clamp(min=1), 0.005)
        self.curve.copy_(torch.where(number > 0, towards, self.curve))

    def logits(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        check_times(x, s, t)
        context = (s == 1).to(s.dtype)
        told = self.time_s(context) + self.time_t(context)
        when = F.silu(told + self.time_bridge(clearness(s, self.sigma)))
        # s^2 and sigma^2 s (1-s) are the squares of its signal and of its noise
        size = (s**2 + self.sigma**2 * s * (1 - s)).sqrt()
        scaled = x * ratio(torch.ones_like(s), size, 0.0)[..., None]
        return self.read(torch.where(context[..., None] == 1, x, self.gate(when) * scaled), when)


def loss(run, model: Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """The loss at the times of the law that it is measured for, and the curve moved by it."""
    context, sigma = sample_bridge_context(given(x1, prompt), run.draws), run.options.sigma
    curve, seen = run.model.curve, {}
    t = sample_bridge_times(len(x1), run.draws, sigma, curve)
    mean = fmlm.mlfm_loss(model, x1, context, t, run.draws.normal(*x1.shape), sigma, seen)
    measured = losses_by_clearness(clearness(t, sigma), seen["each"].float(), len(curve))
    if run.world > 1:  # all processes draw by one law
        dist.all_reduce(measured)
    run.model.measured(*measured)
    return mean, context.all(1, keepdim=True)  # sequences count alike, not tokens


def bridge_step(x: Tensor, clean: Tensor, s: Tensor, t: Tensor, noise: Tensor,
                sigma: float = 1.0) -> Tensor:
    """One step of MLFM's SDE, from x_s to x_t on the bridge to a predicted clean x (2606.27617):

        x_t = x_s + (t-s)/(1-s) (clean - x_s) + sigma sqrt((t-s)(1-t)/(1-s)) noise

    x, clean, noise: (B, L, V); s <= t: (B, L). Without noise it is `flow_map`. A token at s = 1
    stays, bit for bit.
    """
    spread = ratio((t - s) * (1 - t), 1 - s, 0.0).sqrt()[..., None]
    return flow_map(x, clean, s, t) + sigma * spread * noise


def token_promotion(model: Model, tokens: Tensor, known: Tensor, rounds: int,
                    threshold: float = 0.8, steps: int = 256, temperature: float = 0.1,
                    generator: Generator | None = None, **options) -> Tensor:
    """MLFM (2606.27617): over the bridge from nearly [MASK] to t = 0.94 in `steps` steps of its
    SDE, there read the tokens off in one pass more; promote those that are sure, at least the
    surest one, return the rest to [MASK], repeat. The last loop promotes all.

    Tokens are drawn at `temperature`; how sure they are is the probability that they were drawn
    with, and `threshold` is sure. The times are equal quantiles of their law in training. model:
    a `BridgeDenoiser`, which has that law. Defaults as published; 0 steps read off nearly [MASK].
    NFE = rounds * (steps + 1), less where all tokens are promoted before.
    Raises ValueError for a threshold outside [0, 1], a temperature or sigma that is not positive
    and finite, or steps < 0.
    """
    rounds, sigma = at_most_tokens(rounds, tokens), float(model.sigma)
    check_sigma(sigma)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if steps < 0:
        raise ValueError(f"a loop of {steps} steps makes no sense: at least 1, or 0 to read the "
                         "tokens off at once")

    def move(x: Tensor, delta: Tensor, s: Tensor, t: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return bridge_step(x, delta, s, t, noise, sigma)

    def rule(confidence: Tensor, unknown: Tensor, rounds_left: int) -> Tensor:
        return (confidence >= threshold) | surest(confidence, unknown, 1)

    law = law_of_clearness(model.curve).cpu()
    end = look_up(law, clearness(torch.tensor(READ_OUT, dtype=torch.float64), sigma))
    part = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = inverse_clearness(inverse_look_up(law, end * part), sigma).tolist()
    how = Draft([*times, times[-1]], noise=sigma * (times[0] * (1 - times[0])) ** 0.5, move=move,
                draw="sample", sure="drawn", temperature=temperature)
    return refine(model, tokens, known, rounds, how, rule, generator=generator, **options)


def loops_of_promotion(model: Model, tokens: Tensor, known: Tensor, nfe: int,
                       **options) -> Tensor:
    """As many whole loops of token promotion, 256 steps and a read-out, as fit into nfe; where none
    does, one loop of nfe passes."""
    passes = min(nfe, 257)
    rounds = min(nfe // max(passes, 1), tokens.shape[-1])
    return token_promotion(model, tokens, known, rounds, steps=passes - 1, **options)


def network(task, sizes: dict) -> Denoiser:
    return denoiser(task.vocab_size, task.coords, BridgeDenoiser, **sizes)


def start(objective: str, weights: dict) -> dict:
    """Those of an MDM, or of an MLFM without the curve and the sigma of its own training."""
    return {name: value for name, value in weights.items() if name not in ("sigma", "curve")}


likelihood = None  # it is measured as the MDM that it is at s = 0
NETWORKS, LOSSES = {"mlfm": network}, {"mlfm": loss}
SAMPLERS = {"promotion": Sampler(loops_of_promotion, ("mlfm",))}
