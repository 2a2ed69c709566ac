"""The exact FMLM+ of a finite set of sequences: the judge of every network, loss and sampler in
this repository.

With finitely many sequences y_k of weight w_k the posterior given x_t = (1-t) x0 + t x1 is a
softmax over the set, and the denoiser D = sum_k p_k y_k (arXiv 2602.16813, 2606.24773). A change of
variables makes its flow readable:

    rho = t / (1-t)  in [0, inf],   y = x / (1-t) = x0 + rho x1   (noise of size 1, signal grows)

    p_k proportional to w_k exp(-|x - t y_k|^2 / 2(1-t)^2) = w_k exp(-|y - rho y_k|^2 / 2)
        proportional to w_k exp(rho <y, y_k>)                  (|y_k|^2 = L is the same for all k)
    dx/dt = (D - x) / (1-t)   becomes   dy/drho = D            (without the singularity at t = 1)
    delta_{s,t}(x) = (y(rho_t) - y(rho_s)) / (rho_t - rho_s)   (the definition of delta, rewritten)

so **delta_{s,t} is the mean of D over the path in rho**. As rho grows one sequence takes all the
posterior and D stays there for good: the mean up to rho = inf, delta_{s,1}, is that one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fmlm import check_sigma, check_times

# Local error of one step of y; delta is then right to 1e-8 but for the noise that hardly decides.
TOLERANCE = 1e-12
DECIDED = 45.0  # nats by which one sequence leads all others: exp(-45) is nothing to a float64
ENDLESS = 1e3  # no lead by here is an exact tie: one of 1e-16 at rho = 0 is 45 nats before rho = 20

# Dormand & Prince's pair of orders 5 and 4: how each stage is mixed from the slopes before it; the
# last is the step.
STAGES = [[1 / 5],
          [3 / 40, 9 / 40],
          [44 / 45, -56 / 15, 32 / 9],
          [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
          [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
          [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]]
ERROR = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]


class Exact:
    """log delta_{s,t} of a finite set of sequences, with the call signature of the network.

    sequences: K of them, of L tokens each, as lists or a (K, L) int64 tensor; copies are merged,
    their weights added.
    weights: K numbers >= 0 that need not sum to 1; all equal if None. Raises ValueError for
    sequences of different lengths or none, negative tokens, and weights that are negative, not
    finite, of another number or sum to zero.
    """

    def __init__(self, sequences: Sequence[Sequence[int]] | Tensor,
                 weights: Sequence[float] | Tensor | None = None) -> None:
        if len({len(sequence) for sequence in sequences}) != 1:
            raise ValueError("give at least one sequence, and all of the same length")
        tokens = torch.as_tensor(sequences)
        if (tokens.dtype != torch.int64 or tokens.dim() != 2 or tokens.numel() == 0
                or tokens.min() < 0):
            raise ValueError("sequences must be integers >= 0, (K, L)")
        w = torch.as_tensor([1.0] * len(tokens) if weights is None else weights,
                            dtype=torch.float64)
        if w.shape != (len(tokens),) or not w.isfinite().all() or (w < 0).any() or w.sum() == 0:
            raise ValueError("weights must be one number >= 0 for each sequence, and not all zero")
        tokens, place = tokens[w > 0].unique(dim=0, return_inverse=True)
        self.sequences = tokens  # (K, L)
        self.weights = torch.zeros(len(tokens), dtype=torch.float64)  # (K,)
        self.weights.index_add_(0, place, w[w > 0] / w.sum())
        self.vocab_size = int(tokens.max()) + 1
        self._y = F.one_hot(tokens, self.vocab_size).double().flatten(1)  # (K, L V): the points y_k

    def marginals(self, tokens: Tensor, known: Tensor) -> Tensor:
        """p(x1^l = v given the known tokens), what an ideal MDM predicts, by counting the sequences
        that match.

        tokens: (B, L) int64, looked at where known, (B, L) bool. Returns (B, L, V) float64. No
        formula of diffusion is used: it judges the others. Raises ValueError for a context that no
        sequence has.
        """
        match = ((self.sequences == tokens[:, None]) | ~known[:, None]).all(-1)  # (B, K)
        if not match.any(-1).all():
            raise ValueError("no sequence of the set has this context")
        weights = match * self.weights
        marginals = weights / weights.sum(-1, keepdim=True) @ self._y
        return marginals.unflatten(-1, (tokens.shape[1], self.vocab_size))

    def __call__(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """log delta_{s,t}(x): x (B, L, V) and s <= t (B, L) to (B, L, V), of x's dtype; float64
        inside.

        In a sequence with s = t throughout, every token may have its own time and the result is the
        denoiser D_s(x); in any other, tokens at s < 1 must share one (s, t), and dy/drho = D is
        integrated from rho_s to rho_t. Tokens at s = 1 are context, a hard constraint; the zero
        vector at time 0 is a [MASK]. Raises ValueError for wrong shapes or times or x not finite,
        for a context that no sequence has, and for s < t that differ within a sequence.
        """
        check_times(x, s, t)
        if x[0].numel() != self._y.shape[1] or x.shape[-1] != self.vocab_size:
            raise ValueError(f"these sequences are (B, {self.sequences.shape[1]}, "
                             f"{self.vocab_size}), got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError("x must be finite")
        z, s, t = x.double().cpu(), s.double().cpu(), t.double().cpu()
        context = s == 1
        # |x - y_k|^2 over the context, expanded to be one product of matrices: 0 where y_k fits.
        clean = (z * context[..., None]).flatten(1)
        distance = (clean.square().sum(-1, keepdim=True) - 2 * clean @ self._y.T
                    + context.sum(-1, keepdim=True))
        prior = torch.where(distance < 1e-3, self.weights.log(), -torch.inf)  # (B, K)
        if prior.isinf().all(-1).any():
            raise ValueError("no sequence of the set has this context")
        one = torch.where(context, 1.0, 1 - s)  # no division by 0 at context: it has said all
        y = torch.where(context[..., None], 0.0, z / one[..., None])
        delta = self._posterior(prior, (s / one)[..., None] * y) @ self._y  # D_s = delta_{s,s}
        rows = (s < t).any(-1).nonzero()[:, 0]
        if len(rows):
            first = (~context[rows]).int().argmax(-1, keepdim=True)  # a generated token of each
            s0, t0 = s[rows].gather(1, first), t[rows].gather(1, first)
            if not (((s[rows] == s0) & (t[rows] == t0)) | context[rows]).all():
                raise ValueError("where s < t, all generated tokens of a sequence must share the "
                                 "same s and t")
            free = (~context[rows])[..., None].expand_as(x[rows]).flatten(1)
            delta[rows] = self._mean_of_path(prior[rows], y[rows].flatten(1), free, s0, t0)
        return delta.unflatten(-1, x.shape[1:]).log().to(x)

    def _posterior(self, prior: Tensor, evidence: Tensor) -> Tensor:
        """p_k, (B, K), from log w_k and evidence = rho y, each token with its own rho."""
        return (prior + evidence.flatten(1) @ self._y.T).softmax(-1)

    def _mean_of_path(self, prior: Tensor, y: Tensor, free: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Mean of D over rho_s < rho < rho_t along dy/drho = D.

        prior: (B, K); y, free: (B, L V); s, t: (B, 1).

        Every row has its own step size. A row ends at rho_t, or jumps there once its posterior is
        decided: D is constant from then on. (A sequence that trails by 45 nats before any evidence
        counts as not there.)
        """
        rho, length = s / (1 - s), (t - s) / ((1 - s) * (1 - t))  # rho_t - rho_s, inf at t = 1
        gone, moved = torch.zeros_like(rho), torch.zeros_like(y)  # y has come to y + moved
        step = length.clamp(max=0.05)
        scores = lambda at, by: prior + (rho + at) * ((y + by) * free @ self._y.T)
        slope_at = lambda at, by: scores(at, by).softmax(-1) @ self._y
        while True:
            slope, score = slope_at(gone, moved), scores(gone, moved)
            # (B, 1); (B, 0) where there is a single sequence
            lead = -score.topk(min(2, score.shape[-1]), -1).values.diff(dim=-1)
            decided = (lead > DECIDED).all(-1, keepdim=True) | (gone >= ENDLESS)
            left = length - gone
            # The mean of what lies behind and of the rest, in which D stays as it is; at t = 1 the
            # rest is everything.
            ending = decided | (left <= 0)
            if ending.all():
                share = torch.where(length.isinf(), 0.0, gone / length)
                return share * moved / gone.clamp(min=1e-300) + (1 - share) * slope
            step = torch.where(ending, 0.0, torch.minimum(step, left))
            slopes = [slope]
            for stage in STAGES:  # the last of these slopes is the one at the end of the step
                by = step * sum(a * k for a, k in zip(stage, slopes))
                slopes.append(slope_at(gone + sum(stage) * step, moved + by))
            error = (step * sum(e * k for e, k in zip(ERROR, slopes))).abs().amax(-1, keepdim=True)
            good = error <= TOLERANCE
            # A last step ends at rho_t exactly. The next is as long as an error of order 5 allows.
            gone = torch.where(good, torch.where(step == left, length, gone + step), gone)
            moved = torch.where(good, moved + by, moved)
            step = step * (0.9 * (TOLERANCE / error.clamp(min=1e-18)) ** 0.2).clamp(0.2, 5)


class ExactBridge(Exact):
    """log D_s under the bridge of masked language flow models (2606.27617), for the same set of
    sequences.

    x_s = s x1 + sigma sqrt(s (1-s)) noise, [MASK] = 0. Of the Gaussian density only the mixed
    product depends on k:

        p_k proportional to w_k exp(-|x - s y_k|^2 / (2 sigma^2 s (1-s)))
            proportional to w_k exp(<x, y_k> / (sigma^2 (1-s)))

    At s = 0 the bridge stands at x = 0 and p_k = w_k: the MDM's posterior, delta_{0,0}. Raises
    ValueError for sigma <= 0.
    """

    def __init__(self, sequences: Sequence[Sequence[int]] | Tensor,
                 weights: Sequence[float] | Tensor | None = None,
                 sigma: float = 1.0) -> None:
        super().__init__(sequences, weights)
        check_sigma(sigma)
        self.sigma, self.curve = sigma, None  # without training there is no law of its times

    def __call__(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """As the network of an MLFM, which ignores t: x (B, L, V) and s <= t (B, L) to (B, L, V),
        each token at its own s."""
        check_times(x, s, t)
        # The flow weighs what it sees by s / (1-s)^2, which is 2 at s = 1/2: there it is shown the
        # bridge's evidence.
        context, z = (s == 1)[..., None], x.double()
        evidence = z / torch.where(context, 1.0, self.sigma**2 * (1 - s.double())[..., None])
        half = torch.where(s == 1, 1.0, 0.5)
        return super().__call__(torch.where(context, z, evidence / 2), half, half).to(x)


def two_mode_closed_form(x: Tensor, modes: Tensor, s: float, t: float) -> Tensor:
    """delta_{s,t}(x) of two equally likely sequences, all of whose tokens are generated, where it
    has a closed form.

    The flow moves only the lead g = <y, y_1 - y_2> of the first mode: dg/drho = n tanh(rho g / 2),
    n the number of tokens in which the modes differ. It never changes sign, and
        t = 1:  delta_{s,1} is the mode with the larger <x, y_k>  (2606.24773; a tie is (1/2, 1/2))
        t = s:  delta_{s,s} = (1 + tanh(rho g / 2)) / 2 for the first mode
    while for s < t < 1 the equation for g has no elementary solution. x: (B, L, V); modes: (2, L).
    Returns (B, L, V). Raises ValueError for such a t, and if there are not two modes.
    """
    if len(modes) != 2 or not 0 <= s <= t <= 1 or (s < t < 1):
        raise ValueError("the closed form is for two modes, and for t = s or t = 1")
    y = F.one_hot(modes, x.shape[-1]).to(x)  # (2, L, V)
    lead = ((y[0] - y[1]) * x).sum((-1, -2))  # (B,), of x; that of y = x / (1-s) has the same sign
    first = (1 + (lead.sign() if t == 1 else torch.tanh(s / (1 - s) ** 2 * lead / 2))) / 2
    return first[:, None, None] * y[0] + (1 - first)[:, None, None] * y[1]
