"""FMLM+: flow map language models with per-token noise, from scratch (arXiv 2606.24773).

It builds on FLM and FMLM (2602.16813) and holds masked diffusion (MDLM, 2406.07524) as its case
s = t = 0; masked language flow models (MLFM, 2606.27617) stand beside it: here their interpolant
and loss, the rest in baselines/mlfm.py. The method in the order of the papers, with their symbols:

    1. interpolant and flow map      x_t, v_t, X_{s,t}, the semigroup target
    2. time                          the law of (s, t), of the context, and tau(t)
    3. denoiser                      the network of log delta_{s,t}(x)
    4. losses                        MDM, MLFM, FLM, FMLM, FMLM+ : one cross-entropy
    5. EMA

Shapes: B sequences of L tokens over V words. Sequences are one-hot vectors or points between them,
(B, L, V). Times s <= u <= t are **per token**, (B, L), in [0, 1]: 0 is noise, 1 is data. A token
with s = t = 1 is clean context: it is never trained on and never moves.

A *model* is any callable `model(x, s, t) -> log delta_{s,t}(x)`: the network or an exact solution.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Model = Callable[[Tensor, Tensor, Tensor], Tensor]


# --------------------------------------------------------------------------------------------------
# 1. Interpolant and flow map
# --------------------------------------------------------------------------------------------------

def interpolate(x1: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Linear interpolant x_t = (1-t) x0 + t x1, token by token (2602.16813; per token: 2606.24773).

    x1, noise: (B, L, V); t: (B, L). At t = 1 it is x1 bit for bit.
    Raises ValueError for times that are not in [0, 1], or noise of another shape.
    """
    check_times(x1, t)
    check_noise(x1, noise)
    t = t[..., None]
    return (1 - t) * noise + t * x1


def velocity(x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """Velocity of the probability flow, v_t(x) = (D_t(x) - x) / (1-t) (2602.16813).

    x, denoised: (B, L, V); t: (B, L). 0 at t = 1, where data rests.
    """
    check_times(x, t)
    return (denoised - x) * ratio(torch.ones_like(t), 1 - t, 0.0)[..., None]


def flow_map(x: Tensor, delta: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The flow map that a two-time denoiser stands for, its definition in 2602.16813:

        X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_{s,t}(x)

    x, delta: (B, L, V), delta as probabilities; s <= t: (B, L). The weights sum to 1. With
    delta = D_s it is one Euler step of the flow. A token at s = 1 stays as it is, bit for bit.
    """
    check_times(x, s, t)
    keep = ratio(1 - t, 1 - s, 1.0)[..., None]
    return keep * x + (1 - keep) * delta


def semigroup_target(delta_su: Tensor, delta_ut: Tensor, s: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """What X_{u,t}(X_{s,u}(x)) = X_{s,t}(x) says of delta (2606.24773); delta_ut is at X_{s,u}(x):

        delta_{s,t}(x) = lam delta_{s,u}(x) + (1-lam) delta_{u,t}(X_{s,u}(x)),
        lam = (1-t)(u-s) / ((1-u)(t-s))

    A convex combination, so the target stays on the simplex and cross-entropy applies.
    lam = 0 at t = 1 and 1 at u = t. deltas: (B, L, V) probabilities; s <= u <= t: (B, L).
    """
    check_times(delta_su, s, u, t)
    lam = torch.where(u == t, 1.0, ratio((1 - t) * (u - s), (1 - u) * (t - s), 1.0))[..., None]
    return lam * delta_su + (1 - lam) * delta_ut


def bridge(x1: Tensor, noise: Tensor, t: Tensor, sigma: float = 1.0) -> Tensor:
    """The interpolant of MLFM, a Brownian bridge from [MASK] to data (2606.27617):

        x_t = (1-t) m + t x1 + sigma sqrt(t (1-t)) noise,   m = 0 the [MASK]

    It ends at x1 bit for bit. x1, noise: (B, L, V); t: (B, L). Raises ValueError for a sigma not
    positive and finite, times not in [0, 1], or noise of another shape.
    """
    check_times(x1, t)
    check_noise(x1, noise)
    check_sigma(sigma)
    t = t[..., None]
    return t * x1 + sigma * (t * (1 - t)).sqrt() * noise


def ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """numerator / denominator, `otherwise` where the denominator is 0: no NaN, nor in gradients."""
    safe = denominator != 0
    return torch.where(safe, numerator / torch.where(safe, denominator, 1.0), otherwise)


def check_times(x: Tensor, *times: Tensor) -> None:
    """Raise ValueError unless all times are (B, L) for x of (B, L, V), in [0, 1] and in order.

    The shapes are always checked, the values only on a CPU: to read one back would stall a GPU.
    """
    for time in times:
        if x.dim() != 3 or time.shape != x.shape[:2]:
            raise ValueError("times must be (B, L) for sequences (B, L, V), its own time for every "
                             f"token, but got {tuple(time.shape)} for {tuple(x.shape)}")
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for time in times:
        if not ((time >= 0) & (time <= 1)).all():
            raise ValueError("times must lie in [0, 1]: 0 is noise, 1 is data")
    for earlier, later in zip(times, times[1:]):
        if (earlier > later).any():
            raise ValueError("times must be in order, s <= u <= t, at every token")


def check_noise(x1: Tensor, noise: Tensor) -> None:
    """Raise ValueError unless every entry of x1 has its own noise: broadcast, rows would share."""
    if noise.shape != x1.shape:
        raise ValueError(f"noise must be {tuple(x1.shape)} like x1, got {tuple(noise.shape)}")


def check_sigma(sigma: float) -> None:
    """Raise ValueError unless sigma, the size of the bridge's noise, is positive and finite."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"the bridge needs noise: sigma must be positive and finite, got {sigma}")


# --------------------------------------------------------------------------------------------------
# 2. Time: which context, which (s, t)
# --------------------------------------------------------------------------------------------------

class Draws:
    """Where a training step takes its random numbers from: one generator, on one device.

    Of `world` processes each takes every world-th stratum, so the global batch is stratified.
    Raises ValueError for a rank that is none of 0 ... world - 1.
    """

    def __init__(self, generator: Generator | None = None, device: str | torch.device = "cpu",
                 rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"of {world} processes none has the rank {rank}")
        self.generator, self.rank, self.world = generator, rank, world
        self.on = dict(generator=generator, device=device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, **self.on)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, **self.on)

    def stratified(self, n: int) -> Tensor:
        """n uniforms, one in each stratum [i/n, (i+1)/n), in random order: (n,), never 0 or 1.

        The published code draws its times so ("antithetic"): the batch covers [0, 1] evenly.
        """
        strata = torch.arange(n, device=self.on["device"]) * self.world + self.rank
        place = (strata + self.uniform(n)) / (n * self.world)
        return place[self.uniform(n).argsort()].clamp(2**-24, 1 - 2**-24)


def sample_context(prompt: Tensor, draws: Draws = Draws()) -> tuple[Tensor, Tensor]:
    """Which tokens are clean context: f ~ U(0, 1) a sequence, each token with probability f, prompt
    tokens always (2606.24773).

    prompt: (B, L) bool. Returns context (B, L) bool and the masking rate 1 - f, (B,).
    """
    rate = draws.stratified(len(prompt))
    return prompt | ~(draws.uniform(*prompt.shape) < rate[:, None]), rate


def sample_times(n: int, diagonal: int, draws: Draws = Draws(), boundary: float = 1 / 32,
                 distilled: int = 0) -> tuple[Tensor, Tensor]:
    """The "uniform_diff" law of 2606.24773: d ~ U(0, 1), s ~ U(0, 1-d), t = s + d; s, t: (n,).

    The first `diagonal` rows have s = t = d instead, the first `distilled` of them s = t = 0, where
    an MDM can teach. Of the other rows a share `boundary` is pinned at (0, 1), where one-step
    generation and Posterior Refinement ask the network. Raises ValueError for counts or a share
    that cannot be.
    """
    if not (0 <= distilled <= diagonal <= n and 0 <= boundary <= 1):
        raise ValueError(f"of {n} rows {diagonal} cannot be on the diagonal, {distilled} of them "
                         f"at s = t = 0, and a share of {boundary} of the others at (0, 1)")
    d = draws.stratified(n)
    s = draws.stratified(n) * (1 - d)
    t = (s + d).clamp(max=1)
    row = torch.arange(n, device=d.device)
    pinned = torch.cat([torch.ones_like(d[:diagonal]), draws.stratified(n - diagonal)]) < boundary
    s = torch.where(row < diagonal, d, torch.where(pinned, 0.0, s))
    t = torch.where(row < diagonal, d, torch.where(pinned, 1.0, t))
    return s * (row >= distilled), t * (row >= distilled)


def decoding_time(t: Tensor, vocab_size: int) -> Tensor:
    """tau(t): how often the argmax of x_t is right already, scaled to [0, 1] (2602.16813):

        tau(t) = V/(V-1) (E_{z~N(0,1)}[Phi(z + t/(1-t))^{V-1}] - 1/V)

    The right entry is t + (1-t) z, the V-1 others (1-t) z_j. A sum over a uniform grid of z
    converges as fast as Gauss-Hermite nodes would. t of any shape; float64 inside.
    Raises ValueError for t outside [0, 1] or a vocabulary of fewer than two words.
    """
    if vocab_size < 2:
        raise ValueError(f"a vocabulary needs at least 2 words to decode, got {vocab_size}")
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError("times must lie in [0, 1]: 0 is noise, 1 is data")
    z = torch.linspace(-9, 9, 721, dtype=torch.float64, device=t.device)
    density = torch.exp(-z**2 / 2) / torch.exp(-z**2 / 2).sum()
    shift = ratio(t.double(), 1 - t.double(), math.inf)
    log_phi = torch.special.log_ndtr(z + shift[..., None])
    right = (log_phi * (vocab_size - 1)).exp() @ density
    return ((right - 1 / vocab_size) * vocab_size / (vocab_size - 1)).clamp(0, 1).to(t.dtype)


@lru_cache
def _decoding_table(vocab_size: int) -> Tensor:
    t = torch.linspace(0, 1, 4097, dtype=torch.float64, device="cpu")
    return decoding_time(t, vocab_size).cummax(0).values  # rounding must not make it fall


def look_up(table: Tensor, t: Tensor) -> Tensor:
    """tau(t), linear between the entries of `_decoding_table` (4,097 uniform times) in t's dtype
    and on its device; t of any shape in [0, 1]. Exact at 0 and 1."""
    place = t * (len(table) - 1)
    below = place.detach().floor().clamp(max=len(table) - 2)
    index = below.long()
    return torch.lerp(table[index], table[index + 1], place - below)


def inverse_decoding_time(tau: Tensor, vocab_size: int) -> Tensor:
    """t with tau(t) = tau, by linear interpolation in a table of 4,097 times; 0 at 0 and 1 at 1.

    Uniform tau are the times at which a large vocabulary is decided; uniform t would waste most
    steps (2602.16813). tau of any shape.
    """
    if tau.device.type == "cpu" and not ((tau >= 0) & (tau <= 1)).all():
        raise ValueError("decoding times tau must lie in [0, 1]")
    return inverse_look_up(_decoding_table(vocab_size).to(tau.device), tau)


def inverse_look_up(table: Tensor, value: Tensor) -> Tensor:
    """Where a rising table (K,) over uniform places from 0 to 1, linear between them, has this
    value: in value's dtype and shape. The first place behind a step, the last of a level part."""
    last = len(table) - 1
    right = torch.searchsorted(table, value.double().contiguous(), right=True).clamp(1, last)
    below, above = table[right - 1], table[right]
    fraction = ratio(value.double() - below, above - below, 1.0).clamp(0, 1)
    return ((right - 1 + fraction) / last).to(value.dtype)


def midpoint(s: Tensor, t: Tensor) -> Tensor:
    """u = (s+t)/2, where FMLM+ halves a jump (2606.24773)."""
    return (s + t) / 2


def midpoint_in_tau(s: Tensor, t: Tensor, vocab_size: int) -> Tensor:
    """u with tau(u) = (tau(s) + tau(t)) / 2, where FMLM halves a jump (2602.16813).

    With many words (0, 1/2) is noise throughout: a midpoint in t halves nothing. s <= t of any
    shape; s <= u <= t, so context, s = t = 1, stays at 1.
    """
    table = _decoding_table(vocab_size).to(s.device)
    tau = midpoint(*(look_up(table, time.double()) for time in (s, t)))
    return inverse_decoding_time(tau, vocab_size).to(s).clamp(s, t)


# --------------------------------------------------------------------------------------------------
# 3. Denoiser: a small DiT whose adaptive layer norms see s and t of every token
# --------------------------------------------------------------------------------------------------

class TimeEmbedding(nn.Module):
    """time in [0, 1] -> vector. Slow sinusoids (0.25 to 8 rad per unit): the network is asked at
    exactly 0 and 1, where almost no random time falls, so it must extrapolate smoothly; 1000 t, the
    habit from images, did not learn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-2, 3, 16, base=2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angle = time[..., None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


def relations(coords: Tensor) -> Tensor:
    """Which pairs of tokens stand in which relation, from coords (L, K): (R, L, L) of 0 and 1.

    Several coordinates: relation k is to share the k-th (on Sudoku row, column and box: the graph
    of its constraints). One, a line of text: distances, -1, +1, then ranges that double, -3 to -2,
    2 to 3, ..., up to all that is further away; the last relation is a token with itself.
    """
    if coords.shape[1] > 1:
        return (coords[:, None] == coords).permute(2, 0, 1).float()
    distance = coords.T - coords  # (L, L): how far to the right the other token is
    ends = [1, *(2**k for k in range(1, 63) if 2**k <= distance.max()), math.inf]
    rows = [(distance.sign() == sign) & (distance.abs() >= low) & (distance.abs() < high)
            for low, high in zip(ends, ends[1:]) for sign in (-1, 1)]
    return torch.stack([*rows, distance == 0]).float()


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v: (B, heads, L, d), bias: (heads, L, L).

    A GPU has a fused kernel; on a CPU its backward pass takes three times as long as two products.
    """
    if q.is_cuda:
        expanded = bias.to(q.dtype).expand(len(q), -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, expanded)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias.to(q.dtype)).softmax(-1) @ v


def normalize(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: (1 + scale) * LayerNorm(h) + shift, (B, L, width) each."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]).to(shift.dtype), 1 + scale)


class Block(nn.Module):
    """Attention over the tokens, then an MLP on each; both shifted, scaled and gated by the times.

    This is adaLN-zero of DiT (2212.09748): a fresh block is the identity. Shifts, scales and gates
    come from one layer for all blocks, plus an offset of each block's own (PixArt, 2310.00426).

    Two tokens attend to each other more or less by the `relations` in which they stand: a bias a
    head and relation. Head h begins with a preference for relation h, the next one with none.
    """

    PREFERENCE = 3.0  # nats

    def __init__(self, width: int, heads: int, relations: int) -> None:
        super().__init__()
        self.heads = heads
        first = torch.eye(relations + 1)[torch.arange(heads) % (relations + 1), :-1]
        self.relation = nn.Parameter(self.PREFERENCE * first)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, shared: Sequence[Tensor], related: Tensor) -> Tensor:
        own = (a + b.to(a.dtype) for a, b in zip(shared, self.modulation))
        shift1, scale1, gate1, shift2, scale2, gate2 = own
        q, k, v = rearrange(self.qkv(normalize(h, shift1, scale1)), "b l (n h d) -> n b h l d",
                            n=3, h=self.heads)
        seen = attention(q, k, v, bias=torch.tensordot(self.relation, related, 1))
        h = h + gate1 * self.out(rearrange(seen, "b h l d -> b l (h d)"))
        return h + gate2 * self.down(F.relu(self.up(normalize(h, shift2, scale2))).square())


class Denoiser(nn.Module):
    """The network of log delta_{s,t}(x): x (B, L, V) and s, t (B, L) in, log-probabilities out.

    `coords` (L, K) integers say where each token is, one embedding table a column: text has one
    (its index), Sudoku three (row, column, box). Nothing marks context but its times (1, 1), and
    [MASK] is the zero vector at time 0, so a masked diffusion model *is* this network at s = t = 0
    and its weights load here as they are. The second time enters through an embedder that begins at
    zero: delta_{s,t} starts out as delta_{s,s}. Published: 8 blocks, width 512, rotary positions.

    `tau`: the embedders are told tau(s) and tau(t), as in FLM and FMLM (2602.16813); who calls the
    network speaks of s and t all the same.
    """

    def __init__(self, vocab_size: int, coords: Tensor, width: int = 64, depth: int = 3,
                 heads: int = 2, tau: bool = False) -> None:
        super().__init__()
        if min(vocab_size, width, depth, heads) < 1 or width % heads:
            raise ValueError("vocab_size, width, depth and heads must be at least 1, and width "
                             f"{width} a multiple of heads {heads}")
        if coords.dim() != 2 or coords.dtype.is_floating_point or coords.min() < 0:
            raise ValueError("coords must be (L, K) integers >= 0, one column a kind of position")
        self.vocab_size = vocab_size
        self.register_buffer("coords", coords)
        self.register_buffer("related", relations(coords), persistent=False)
        decided = _decoding_table(vocab_size).float().to(coords.device) if tau else None
        self.register_buffer("decided", decided, persistent=False)
        self.embed = nn.Linear(vocab_size, width)
        self.positions = nn.ModuleList(nn.Embedding(int(column.max()) + 1, width)
                                       for column in coords.T)
        self.time_s, self.time_t = TimeEmbedding(width), TimeEmbedding(width)
        self.evidence = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, len(self.related)) for _ in range(depth))
        self.shared = nn.Linear(width, 6 * width)
        self.modulation = nn.Linear(width, 2 * width)  # of the last layer norm, before the head
        self.head = nn.Linear(width, vocab_size)
        for table in self.positions:
            nn.init.normal_(table.weight, std=0.5)
        for zero in (self.time_t.mlp[-1], self.evidence, self.shared, self.modulation, self.head):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def told(self, time: Tensor) -> Tensor:
        """What the embedders are told of a time: the time, or its tau."""
        return time if self.decided is None else look_up(self.decided, time)

    def logits(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """What the head says, (B, L, V); ValueError for another L or V, or as `check_times`."""
        check_times(x, s, t)
        return self.read(x, F.silu(self.time_s(self.told(s)) + self.time_t(self.told(t))))

    def read(self, x: Tensor, when: Tensor) -> Tensor:
        """The same, given what the time embedders say, `when` (B, L, width)."""
        if x.shape[1:] != (len(self.coords), self.vocab_size):
            expected = f"(B, {len(self.coords)}, {self.vocab_size})"
            raise ValueError(f"this network reads {expected}, got {tuple(x.shape)}")
        # The exact posterior weighs x by s / (1-s)^2 (toy/exact.py): the times scale the input.
        h = self.embed(x) * (1 + self.evidence(when))
        h = h + sum(table(column) for table, column in zip(self.positions, self.coords.T))
        shared = self.shared(when).chunk(6, -1)
        for block in self.blocks:
            h = block(h, shared, self.related)
        shift, scale = self.modulation(when).chunk(2, -1)
        return self.head(normalize(h, shift, scale)).float()

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        logits = self.logits(x, s, t)
        return F.log_softmax(30 * torch.tanh(logits / 30), -1)  # soft-capped, as published


# --------------------------------------------------------------------------------------------------
# 4. Losses: cross-entropy over the generated tokens, of the network at (x, s, t), to some target
# --------------------------------------------------------------------------------------------------

def cross_entropy(log_delta: Tensor, target: Tensor) -> Tensor:
    """-sum_v target log delta for every token, (B, L), in nats; a target of 0 counts 0 always."""
    return -torch.where(target > 0, target * log_delta, 0.0).sum(-1)


def token_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values (B, L) over the chosen tokens (B, L) bool; 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def one_hot(tokens: Tensor, words: int) -> Tensor:
    """Tokens (B, L) as vectors (B, L, V) of 0 and 1, in single precision; without the integers of
    F.one_hot, which at V of a thousand take longer than a layer."""
    empty = torch.zeros(*tokens.shape, words, device=tokens.device)
    return empty.scatter_(-1, tokens[..., None], 1.0)


def sequence_means(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values (B, L) over the chosen tokens of each sequence, (B,); 0 for none."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def token_times(time: Tensor, context: Tensor) -> Tensor:
    """One time a sequence, (B,), to one a token, (B, L): context is clean, so its time is 1."""
    return torch.where(context, 1.0, time[:, None])


def given(x1: Tensor, prompt: Tensor | None) -> Tensor:
    """The prompt, (B, L) bool, or that there is none."""
    return torch.zeros_like(x1[..., 0], dtype=torch.bool) if prompt is None else prompt


def mdm_loss(model: Model, x1: Tensor, context: Tensor, rate: Tensor | None = None,
             weighting: str = "uniform") -> Tensor:
    """Masked diffusion (MDLM, 2406.07524): predict the masked tokens from the others.

    A [MASK] is the zero vector at s = t = 0. x1: (B, L, V) one-hot; context: (B, L) bool.
    "uniform": mean over masked tokens, the loss that FMLM+ has at s = t = 0. "elbo": the sum over
    the masked tokens of a sequence divided by its masking rate (B,), averaged over sequences: with
    rate ~ U(0, 1) an upper bound on -log p(sequence) in nats; a rate of 0 counts 0.
    Raises ValueError for another weighting, or "elbo" without rates.
    """
    time = context.to(x1.dtype)
    entropies = cross_entropy(model(x1 * time[..., None], time, time), x1)
    if weighting == "uniform":
        return token_mean(entropies, ~context)
    if weighting != "elbo" or rate is None:
        raise ValueError('weighting must be "uniform", or "elbo" with the rate of each sequence')
    return ratio((entropies * ~context).sum(-1), rate, 0.0).mean()


def mlfm_loss(model: Model, x1: Tensor, context: Tensor, t: Tensor, noise: Tensor,
              sigma: float = 1.0, parts: dict | None = None) -> Tensor:
    """MLFM (2606.27617): predict the corrupted tokens from the bridge between [MASK] and data; a
    mean over the corrupted tokens of each sequence, then over the sequences that have one.

    x1, noise: (B, L, V); context: (B, L) bool, clean; t: (B,), the time of the others. At t = 0 the
    task is an MDM's. `parts` receives the mean of "each", (B,). Raises ValueError for sigma <= 0.
    """
    t = token_times(t, context)
    entropies = cross_entropy(model(bridge(x1, noise, t, sigma), t, t), x1)
    each = sequence_means(entropies, ~context)
    if parts is not None:
        parts["each"] = each.detach()
    return each.sum() / (~context).any(1).sum().clamp(min=1)


class Target(NamedTuple):
    """What some rows of a batch learn: x1, or `of(x_s, s, t)`, (B, L, V) probabilities."""

    name: str
    rows: int
    of: Model | None = None


class Batch(NamedTuple):
    """B sequences to learn the flow map from: x1 (B, L, V); prompt, what a task gives, or None, and
    context, (B, L) bool; s, t (B,) of the other tokens; and whom the rows learn from, in order."""

    x1: Tensor
    prompt: Tensor | None
    context: Tensor
    s: Tensor
    t: Tensor
    targets: Sequence[Target]


def flow_map_loss(model: Model, batch: Batch, noise: Tensor, parts: dict | None = None) -> Tensor:
    """Flow map matching, the loss of FMLM+ (2606.24773): cross-entropy of delta_{s,t}(x_s).

    Its cases: without context FMLM; with s = t and x1 as target an FLM; at s = t = 0 masked
    diffusion. x1 is right where s = t, since delta is the denoiser there; and at any s <= t where
    the context leaves one sequence, for all noise flows to it (ours). Off the diagonal the target
    is `semigroup` or `lagrangian`, no gradient passes through it. noise: (B, L, V).
    Loss = sum over generated tokens / their number. `parts` receives the mean of each target.
    Raises ValueError unless the targets have every row once.
    """
    counts = [target.rows for target in batch.targets]
    if min(counts, default=0) < 0 or sum(counts) != len(batch.x1):
        raise ValueError(f"the targets must share out {len(batch.x1)} rows, but have {counts}")
    s, t = token_times(batch.s, batch.context), token_times(batch.t, batch.context)
    x_s = interpolate(batch.x1, noise, s)
    shares = [whole.split(counts) for whole in (x_s, s, t, batch.x1)]
    with torch.no_grad():
        target = torch.cat([of(x, s, t) if of and rows else x1
                            for (_, rows, of), x, s, t, x1 in zip(batch.targets, *shares)])
    entropies = cross_entropy(model(x_s, s, t), target)
    if parts is not None:
        each = zip(batch.targets, entropies.split(counts), batch.context.split(counts))
        parts.update({name: token_mean(mine, ~context).detach()
                      for (name, *_), mine, context in each})
    return token_mean(entropies, ~batch.context)


def flm_loss(model: Model, x1: Tensor, t: Tensor, noise: Tensor,
             prompt: Tensor | None = None) -> Tensor:
    """FLM (2602.16813): cross-entropy of D_t(x_t) against x1, all tokens at one time t, (B,), but
    for a clean prompt, (B, L) bool. With random context in its place it is FLM+ (2606.24773)."""
    batch = Batch(x1, prompt, given(x1, prompt), t, t, [Target("data", len(x1))])
    return flow_map_loss(model, batch, noise)


def semigroup(model: Model, x: Tensor, s: Tensor, t: Tensor,
              halve: Callable[[Tensor, Tensor], Tensor] = midpoint) -> Tensor:
    """Off-diagonal target at x = x_s: jump from s to u = halve(s, t), then from u to t (2606.24773;
    in FMLM u is `midpoint_in_tau`).

    Both jumps are the running network's, not its average's: two passes.
    """
    u = halve(s, t)
    delta_su = model(x, s, u).exp()
    delta_ut = model(flow_map(x, delta_su, s, u), u, t).exp()
    return semigroup_target(delta_su, delta_ut, s, u, t)


def data_and_self(model: Model, n: int, data: int) -> list[Target]:
    """Of n rows the first `data` learn x1, the others by `semigroup` from the network itself."""
    return [Target("data", data), Target("semigroup", n - data, partial(semigroup, model))]


def lagrangian(model: Model, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The other off-diagonal target: a jump must go on, at its end, as the flow does (2602.16813),

        delta_{s,t}(x) = D_t(X_{s,t}(x)) - (t-s)(1-t)/(1-s) d/dt delta_{s,t}(x)

    with d/dt by forward-mode differentiation: a pass for value and slope, one for D_t. Where a
    learned slope leaves the simplex, negative entries are put to 0 and the sum to 1 (ours).
    At t = 1 it says nothing, for D_1(x) = x.
    """
    generated = (s < 1).to(t.dtype)  # the times of context do not move
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention of a GPU has no forward mode
        delta, slope = torch.func.jvp(lambda time: model(x, s, time).exp(), (t,), (generated,))
    denoised = model(flow_map(x, delta, s, t), t, t).exp()
    weight = ratio((t - s) * (1 - t), 1 - s, 0.0)[..., None]
    target = (denoised - weight * slope).clamp(min=0)
    return target / target.sum(-1, keepdim=True)


def denoised(teacher: Model) -> Model:
    """The target that a frozen teacher gives on the diagonal: its D_s(x_s) for x1 (2606.24773)."""
    return lambda x, s, t: teacher(x, s, s).exp()


def masked(mdm: Model) -> Model:
    """An MDM as a teacher at s = t = 0: for noise it is shown [MASK], the zero vector."""
    return lambda x, s, t: mdm(x * s[..., None], s, t)


# --------------------------------------------------------------------------------------------------
# 5. EMA
# --------------------------------------------------------------------------------------------------

class EMA:
    """Exponential moving average of the weights: decay = min(decay, (1+n)/(10+n)) at update n.

    `ema.model` is a copy of the network to sample from, without gradient; what is no weight it
    shares. Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {decay}")
        shared = {id(buffer): buffer for buffer in model.buffers()}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
