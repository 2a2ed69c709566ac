"""FMLM+: flow map language models with per-token noise, from scratch (arXiv 2606.24773; FLM / FMLM: 2602.16813;
masked language flow models: 2606.27617).

The whole method, in the order of the paper and with its symbols:

    1. interpolant and flow map      x_t, v_t, X_{s,t}, the semigroup target
    2. time                          the law of (s, t), of the context, and tau(t)
    3. denoiser                      the network of log delta_{s,t}(x)
    4. losses                        MDM, MLFM, FLM, FMLM, FMLM+ : one cross-entropy, of some input against some target
    5. EMA

Shapes: B sequences of L tokens over V words. Sequences are one-hot vectors or points between them, (B, L, V).
Times s <= u <= t are **per token**, (B, L), in [0, 1]: 0 is noise, 1 is data. A token with s = t = 1 is clean
context: it is never trained on and never moves. A *model* is any callable `model(x, s, t) -> log delta_{s,t}(x)`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Model = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# 1. Interpolant and flow map
# ---------------------------------------------------------------------------------------------------------------------


def check_times(x: Tensor, *times: Tensor) -> None:
    """Raise ValueError unless all times are (B, L) for x of (B, L, V), lie in [0, 1] and are in order.

    The shapes are always checked, the values only on a CPU: reading a value back from a GPU would stall it.
    """
    for time in times:
        if x.dim() != 3 or time.shape != x.shape[:2]:
            raise ValueError(f"times must be (B, L) and sequences (B, L, V), but got {tuple(time.shape)} "
                             f"for {tuple(x.shape)}: give every token its own time")
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for time in times:
        if not ((time >= 0) & (time <= 1)).all():
            raise ValueError("times must lie in [0, 1]: 0 is noise, 1 is data")
    for earlier, later in zip(times, times[1:]):
        if (earlier > later).any():
            raise ValueError("times must be in order, s <= u <= t, at every token")


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """numerator / denominator, and `otherwise` where the denominator is 0: no NaN in the value nor in the gradient."""
    safe = denominator != 0
    return torch.where(safe, numerator / torch.where(safe, denominator, 1.0), otherwise)


def interpolate(x1: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Linear interpolant x_t = (1-t) x0 + t x1, token by token (2602.16813; per-token t: 2606.24773).

    x1, noise: (B, L, V); t: (B, L). At t = 1 it is x1 bit for bit. Raises ValueError for times that are not in [0, 1].
    """
    check_times(x1, t)
    t = t[..., None]
    return (1 - t) * noise + t * x1


def velocity(x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """Velocity of the probability flow, v_t(x) = (D_t(x) - x) / (1-t): (B, L, V); 0 at t = 1, where data rests."""
    check_times(x, t)
    return (denoised - x) * _ratio(torch.ones_like(t), 1 - t, 0.0)[..., None]


def flow_map(x: Tensor, delta: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The flow map that a two-time denoiser stands for, its definition in 2602.16813:

        X_{s,t}(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_{s,t}(x)

    x, delta: (B, L, V), delta as probabilities; s <= t: (B, L). The weights sum to 1. With delta = D_s it is one
    Euler step of the flow. A token at s = 1 (then t = 1) stays as it is, bit for bit.
    """
    check_times(x, s, t)
    keep = _ratio(1 - t, 1 - s, 1.0)[..., None]
    return keep * x + (1 - keep) * delta


def semigroup_target(delta_su: Tensor, delta_ut: Tensor, s: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """What X_{u,t}(X_{s,u}(x)) = X_{s,t}(x) says of delta (2606.24773), with delta_ut taken at X_{s,u}(x):

        delta_{s,t}(x) = lam delta_{s,u}(x) + (1-lam) delta_{u,t}(X_{s,u}(x)),   lam = (1-t)(u-s) / ((1-u)(t-s))

    A convex combination, so the target stays on the simplex and cross-entropy applies. lam = 0 at t = 1; lam = 1
    at u = t. deltas: (B, L, V) probabilities; s <= u <= t: (B, L).
    """
    check_times(delta_su, s, u, t)
    lam = torch.where(u == t, 1.0, _ratio((1 - t) * (u - s), (1 - u) * (t - s), 1.0))[..., None]
    return lam * delta_su + (1 - lam) * delta_ut


def bridge(x1: Tensor, noise: Tensor, t: Tensor, sigma: float = 1.0) -> Tensor:
    """The interpolant of masked language flow models, a Brownian bridge from [MASK] to data (arXiv 2606.27617):

        x_t = (1-t) m + t x1 + sigma sqrt(t (1-t)) noise,   m = 0 the [MASK]

    It starts where a masked diffusion model stands, at x = 0, and ends at x1 bit for bit. x1, noise: (B, L, V);
    t: (B, L). Raises ValueError for sigma <= 0 or times that are not in [0, 1].
    """
    check_times(x1, t)
    if not sigma > 0:
        raise ValueError(f"the bridge needs noise: sigma must be more than 0, got {sigma}")
    t = t[..., None]
    return t * x1 + sigma * (t * (1 - t)).sqrt() * noise


def bridge_step(x: Tensor, clean: Tensor, s: Tensor, t: Tensor, noise: Tensor, sigma: float = 1.0) -> Tensor:
    """From x_s to x_t on the bridge that ends at the predicted clean point: one step of MLFM's SDE (2606.27617),

        x_t = x_s + (t-s)/(1-s) (clean - x_s) + sigma sqrt((t-s)(1-t)/(1-s)) noise

    x, clean, noise: (B, L, V); s <= t: (B, L). With sigma = 0 it is `flow_map`. A token at s = 1 stays, bit for bit.
    """
    return flow_map(x, clean, s, t) + sigma * _ratio((t - s) * (1 - t), 1 - s, 0.0).sqrt()[..., None] * noise


# ---------------------------------------------------------------------------------------------------------------------
# 2. Time: which context, which (s, t)
# ---------------------------------------------------------------------------------------------------------------------


def stratified_uniform(n: int, generator: Generator | None = None, device: str | torch.device = "cpu",
                       rank: int = 0, world: int = 1) -> Tensor:
    """n uniforms, one in each stratum [i/n, (i+1)/n), in random order: the batch covers [0, 1] evenly: (n,).

    Of `world` processes each takes every world-th stratum, so that the global batch is stratified.
    """
    place = torch.arange(n, device=device) * world + rank + torch.rand(n, generator=generator, device=device)
    order = torch.rand(n, generator=generator, device=device).argsort()
    return place[order] / (n * world)


def sample_context(prompt: Tensor, generator: Generator | None = None, rank: int = 0, world: int = 1,
                   cosine: bool = False) -> tuple[Tensor, Tensor]:
    """Which tokens are clean context: f ~ U(0, 1) a sequence, each token with probability f, prompt tokens always.

    prompt: (B, L) bool. Returns context (B, L) bool and the masking rate 1 - f, (B,), that `mdm_loss` weighs by.
    `cosine`: the rate is cos(pi U / 2) instead, MaskGIT's law (arXiv 2202.04200), that masks more; for MLFM.
    """
    rate = stratified_uniform(len(prompt), generator, prompt.device, rank, world)
    rate = (math.pi / 2 * rate).cos() if cosine else rate
    hidden = torch.rand(prompt.shape, generator=generator, device=prompt.device) < rate[:, None]
    return prompt | ~hidden, rate


def sample_times(n: int, diagonal: int, boundary: float = 1 / 32, generator: Generator | None = None,
                 device: str | torch.device = "cpu", rank: int = 0, world: int = 1, distilled: int = 0,
                 ) -> tuple[Tensor, Tensor]:
    """The "uniform_diff" law of 2606.24773: d ~ U(0, 1), s ~ U(0, 1-d), t = s + d. Returns s, t: (n,).

    The first `diagonal` rows have s = t = d instead, the first `distilled` of them s = t = 0, where an MDM can teach; of
    the other rows a share `boundary` is pinned at (0, 1), the one pair at which one-step generation and Posterior Refinement
    ask the network.
    """
    draw = lambda count: stratified_uniform(count, generator, device, rank, world)
    d = draw(n)
    s = draw(n) * (1 - d)
    t = (s + d).clamp(max=1)
    on_diagonal = torch.arange(n, device=device) < diagonal
    pinned = torch.cat([torch.ones(diagonal, device=device), draw(n - diagonal)]) < boundary
    s = torch.where(on_diagonal, d, torch.where(pinned, 0.0, s))
    t = torch.where(on_diagonal, d, torch.where(pinned, 1.0, t))
    free = torch.arange(n, device=device) >= distilled
    return s * free, t * free


def sample_bridge_times(n: int, generator: Generator | None = None, device: str | torch.device = "cpu",
                        rank: int = 0, world: int = 1) -> Tensor:
    """Times of MLFM training, (n,): logit(t) ~ U(-5, 5), so that log noise-to-signal, log(sigma^2 (1-t)/t), is uniform.

    The posterior sees x_t as evidence of strength t / (sigma^2 (1-t)) (toy/exact.py), so this law gives every order of
    magnitude of evidence its share, whatever sigma is: from 0.7% signal, nearly a [MASK], to 99.3%.
    """
    return torch.sigmoid(10 * stratified_uniform(n, generator, device, rank, world) - 5)


def decoding_time(t: Tensor, vocab_size: int) -> Tensor:
    """tau(t): how often the argmax of x_t is already the right token, scaled to go from 0 to 1 (2602.16813):

        tau(t) = V/(V-1) (E_{z~N(0,1)}[Phi(z + t/(1-t))^{V-1}] - 1/V)

    The right entry is t + (1-t) z, the V-1 others (1-t) z_j. The expectation is a sum over a uniform grid of z, which
    for a smooth integrand under a Gaussian converges as fast as Gauss-Hermite nodes. t of any shape; float64 inside.
    Raises ValueError for t outside [0, 1] or a vocabulary of fewer than two words.
    """
    if vocab_size < 2:
        raise ValueError(f"a vocabulary needs at least 2 words to decode, got {vocab_size}")
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError("times must lie in [0, 1]: 0 is noise, 1 is data")
    z = torch.linspace(-9, 9, 721, dtype=torch.float64, device=t.device)
    density = torch.exp(-z**2 / 2) / torch.exp(-z**2 / 2).sum()
    shift = _ratio(t.double(), 1 - t.double(), math.inf)
    right = (torch.special.log_ndtr(z + shift[..., None]) * (vocab_size - 1)).exp() @ density
    return ((right - 1 / vocab_size) * vocab_size / (vocab_size - 1)).clamp(0, 1).to(t.dtype)


@lru_cache
def _decoding_table(vocab_size: int) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0, 1, 4097, dtype=torch.float64)
    return t, decoding_time(t, vocab_size).cummax(0).values  # rounding near 1 must not make it fall


def inverse_decoding_time(tau: Tensor, vocab_size: int) -> Tensor:
    """t with tau(t) = tau, by linear interpolation in a table of 4,097 times; 0 at 0 and 1 at 1. tau of any shape.

    Uniform tau are the times at which a large vocabulary is decided; uniform t would waste most steps (2602.16813).
    """
    if tau.device.type == "cpu" and not ((tau >= 0) & (tau <= 1)).all():
        raise ValueError("decoding times tau must lie in [0, 1]")
    t, table = (column.to(tau.device) for column in _decoding_table(vocab_size))
    right = torch.searchsorted(table, tau.double().contiguous(), right=True).clamp(1, len(t) - 1)
    fraction = _ratio(tau.double() - table[right - 1], table[right] - table[right - 1], 1.0)
    return torch.lerp(t[right - 1], t[right], fraction.clamp(0, 1)).to(tau.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Denoiser: a small DiT whose adaptive layer norms see s and t of every token
# ---------------------------------------------------------------------------------------------------------------------


class TimeEmbedding(nn.Module):
    """time in [0, 1] -> vector. Slow sinusoids (0.25 to 8 rad per unit): the network is asked at exactly 0 and 1,
    where almost no random time falls, so it must extrapolate smoothly; 1000 t, the habit from images, did not learn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-2, 3, 16, base=2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angle = time[..., None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v: (B, heads, L, d), bias: (heads, L, L). A GPU has a fused kernel; on a
    CPU the backward pass of the fused one takes three times as long as the two products written out."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype).expand(len(q), -1, -1, -1))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias.to(q.dtype)).softmax(-1) @ v


def normalize(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: (1 + scale) * LayerNorm(h) + shift, (B, L, width) each."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]).to(shift.dtype), 1 + scale)


class Block(nn.Module):
    """Attention over the tokens, then an MLP on each; both shifted, scaled and gated by the times (adaLN-zero of DiT,
    arXiv 2212.09748: at the start every gate is 0 and the block is the identity). The six vectors come from one layer
    for all blocks, plus an offset of each block's own (PixArt, arXiv 2310.00426): a third fewer products, as good.

    Two tokens attend to each other more or less by the coordinates that they share: a bias a head and coordinate. Head 0
    begins with a preference for the first coordinate, head 1 for the second ..., every (K+1)th head for none.
    """

    def __init__(self, width: int, heads: int, relations: int) -> None:
        super().__init__()
        self.heads = heads
        self.relation = nn.Parameter(3 * torch.eye(relations + 1)[torch.arange(heads) % (relations + 1), :-1])
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, times: Sequence[Tensor], related: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (a + b.to(a.dtype) for a, b in zip(times, self.modulation))
        q, k, v = rearrange(self.qkv(normalize(h, shift1, scale1)), "b l (n h d) -> n b h l d", n=3, h=self.heads)
        bias = torch.tensordot(self.relation, related, 1)
        h = h + gate1 * self.out(rearrange(attention(q, k, v, bias), "b h l d -> b l (h d)"))
        return h + gate2 * self.down(F.relu(self.up(normalize(h, shift2, scale2))).square())


class Denoiser(nn.Module):
    """The network of log delta_{s,t}(x): x (B, L, V) and s, t (B, L) in, log-probabilities (B, L, V) out.

    `coords` (L, K) integers say where each token is, one embedding table a column: text has one (its index), Sudoku
    three (row, column, box). Nothing marks context but its times (1, 1), and [MASK] is the zero vector at time 0,
    so a masked diffusion model *is* this network at s = t = 0 and its weights load here as they are.
    The second time enters through an embedder that begins at zero: delta_{s,t} starts out as delta_{s,s}.
    """

    def __init__(self, vocab_size: int, coords: Tensor, width: int = 64, depth: int = 3, heads: int = 2) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        if coords.dim() != 2 or coords.dtype.is_floating_point or coords.min() < 0:
            raise ValueError("coords must be (L, K) integers >= 0, one column for each kind of position")
        self.vocab_size = vocab_size
        self.register_buffer("coords", coords)
        self.register_buffer("related", (coords[:, None] == coords).permute(2, 0, 1).float(), persistent=False)
        self.embed = nn.Linear(vocab_size, width)
        self.positions = nn.ModuleList(nn.Embedding(int(column.max()) + 1, width) for column in coords.T)
        self.time_s, self.time_t = TimeEmbedding(width), TimeEmbedding(width)
        self.evidence = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, coords.shape[1]) for _ in range(depth))
        self.shared = nn.Linear(width, 6 * width)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, vocab_size)
        for table in self.positions:
            nn.init.normal_(table.weight, std=0.5)
        for zero in (self.time_t.mlp[-1], self.evidence, self.shared, self.modulation, self.head):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        check_times(x, s, t)
        if x.shape[1:] != (len(self.coords), self.vocab_size):
            raise ValueError(f"this network reads (B, {len(self.coords)}, {self.vocab_size}), got {tuple(x.shape)}")
        times = F.silu(self.time_s(s) + self.time_t(t))
        # The exact posterior weighs what x says by s / (1-s)^2 (toy/exact.py): let the times scale the input, not only h.
        h = self.embed(x) * (1 + self.evidence(times))
        h = h + sum(table(column) for table, column in zip(self.positions, self.coords.T))
        shared = self.shared(times).chunk(6, -1)
        for block in self.blocks:
            h = block(h, shared, self.related)
        shift, scale = self.modulation(times).chunk(2, -1)
        logits = self.head(normalize(h, shift, scale)).float()
        return F.log_softmax(30 * torch.tanh(logits / 30), -1)  # soft-capped, as published


# ---------------------------------------------------------------------------------------------------------------------
# 4. Losses: cross-entropy over the generated tokens, of the network at some (x, s, t) against some target
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy(log_delta: Tensor, target: Tensor) -> Tensor:
    """-sum_v target log delta for every token, (B, L), in nats; a target of 0 counts 0 even where log delta = -inf."""
    return -torch.where(target > 0, target * log_delta, 0.0).sum(-1)


def token_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values (B, L) over the chosen tokens (B, L) bool; 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def token_times(time: Tensor, context: Tensor) -> Tensor:
    """One time a sequence, (B,), to one a token, (B, L): context is clean, so its time is 1."""
    return torch.where(context, 1.0, time[:, None])


def mdm_loss(model: Model, x1: Tensor, context: Tensor, rate: Tensor | None = None,
             weighting: str = "uniform") -> Tensor:
    """Masked diffusion (MDLM, arXiv 2406.07524): predict the masked tokens from the others.

    A [MASK] is the zero vector at s = t = 0. x1: (B, L, V) one-hot; context: (B, L) bool, the unmasked tokens.
    "uniform": mean over masked tokens, the loss that FMLM+ has at s = t = 0. "elbo": the sum over the masked tokens
    of a sequence divided by its masking rate (B,), averaged over sequences: with rate ~ U(0, 1) an upper bound on the
    negative log-likelihood of a sequence in nats. Raises ValueError for another weighting, or "elbo" without rates.
    """
    time = context.to(x1.dtype)
    entropies = cross_entropy(model(x1 * time[..., None], time, time), x1)
    if weighting == "uniform":
        return token_mean(entropies, ~context)
    if weighting != "elbo" or rate is None:
        raise ValueError('weighting must be "uniform", or "elbo" together with the masking rate of each sequence')
    return ((entropies * ~context).sum(-1) / rate).mean()


def mlfm_loss(model: Model, x1: Tensor, context: Tensor, t: Tensor, noise: Tensor, sigma: float = 1.0) -> Tensor:
    """Masked language flow model (2606.27617): predict the corrupted tokens from the bridge between [MASK] and data.

    x1, noise: (B, L, V); context: (B, L) bool, clean; t: (B,), the time of the others. At t = 0 it is `mdm_loss`, so an
    MDM needs only be trained on. Raises ValueError for sigma <= 0.
    """
    t = token_times(t, context)
    return token_mean(cross_entropy(model(bridge(x1, noise, t, sigma), t, t), x1), ~context)


def flm_loss(model: Model, x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Flow language model (2602.16813): cross-entropy of D_t(x_t) against x1, all tokens at one time t (B,).

    The case of `flow_map_loss` without context and with s = t everywhere.
    """
    nothing = torch.zeros(x1.shape[:2], dtype=torch.bool, device=x1.device)
    return flow_map_loss(model, x1, nothing, t, t, noise, from_data=len(x1))


def semigroup(model: Model, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Off-diagonal target at x = x_s: jump from s to u = (s+t)/2, then from u to t, with the running network."""
    u = (s + t) / 2
    delta_su = model(x, s, u).exp()
    delta_ut = model(flow_map(x, delta_su, s, u), u, t).exp()
    return semigroup_target(delta_su, delta_ut, s, u, t)


def lagrangian(model: Model, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The other off-diagonal target (2602.16813): the jump must go on, at its end, as the flow does there,

        delta_{s,t}(x) = D_t(X_{s,t}(x)) - (t-s)(1-t)/(1-s) d/dt delta_{s,t}(x)

    with d/dt by forward-mode differentiation: one pass for value and slope, one for D_t. Right for an exact map, the
    slope of a learned one can leave the simplex, so the target is put back: negative entries to 0, the sum to 1. At
    t = 1 it says nothing, for D_1(x) = x.
    """
    generated = (s < 1).to(t.dtype)  # the times of context do not move
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention of a GPU has no forward mode
        delta, slope = torch.func.jvp(lambda time: model(x, s, time).exp(), (t,), (generated,))
    denoised = model(flow_map(x, delta, s, t), t, t).exp()
    target = (denoised - _ratio((t - s) * (1 - t), 1 - s, 0.0)[..., None] * slope).clamp(min=0)
    return target / target.sum(-1, keepdim=True)


def masked(mdm: Model) -> Model:
    """An MDM as a teacher at s = t = 0: where a flow map sees noise, at time 0, it sees [MASK], the zero vector."""
    return lambda x, s, t: mdm(x * s[..., None], s, t)


def flow_map_loss(model: Model, x1: Tensor, context: Tensor, s: Tensor, t: Tensor, noise: Tensor, from_data: int,
                  parts: dict | None = None, teacher: Model | None = None, taught: int = 0,
                  off_diagonal: Callable[[Model, Tensor, Tensor, Tensor], Tensor] = semigroup) -> Tensor:
    """FMLM+ (2606.24773); without context it is FMLM, with from_data = B and s = t an FLM, at s = t = 0 masked diffusion.

    The first `from_data` sequences learn x1, or the first `taught` of them the D_s(x_s) of a frozen teacher. That is right
    on the diagonal, s = t, where delta is the denoiser; and at any s <= t where the context leaves one sequence, for all
    noise flows to it (not in the paper). The others learn the flow map from the network itself, held fixed: by `semigroup`,
    from its own two shorter jumps, or by `lagrangian`. x1, noise: (B, L, V); context: (B, L) bool; s, t: (B,).
    Loss = sum over generated tokens / number of generated tokens. `parts` receives the means of the two kinds.
    """
    s, t = token_times(s, context), token_times(t, context)
    x_s = interpolate(x1, noise, s)
    target = x1
    with torch.no_grad():
        if taught:
            target = torch.cat([teacher(x_s[:taught], s[:taught], s[:taught]).exp(), x1[taught:]])
        if from_data < len(x1):
            target = torch.cat([target[:from_data], off_diagonal(model, x_s[from_data:], s[from_data:], t[from_data:])])
    entropies = cross_entropy(model(x_s, s, t), target)
    if parts is not None:
        parts["data"] = token_mean(entropies[:from_data], ~context[:from_data]).detach()
        parts["self"] = token_mean(entropies[from_data:], ~context[from_data:]).detach()
    return token_mean(entropies, ~context)


# ---------------------------------------------------------------------------------------------------------------------
# 5. EMA
# ---------------------------------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average of the weights, with warm-up: decay = min(decay, (1+n)/(10+n)) at update n.

    `ema.model` is a copy of the network to sample from. It takes no gradient; the targets of the loss use the running network.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
