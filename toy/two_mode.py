"""The two-mode toy of FMLM+ (2606.24773): two sequences, 00 and 11, learned beside their exact map.

    python -m toy.two_mode [--plot FILE] [--seed N] [--steps N]

Trains an FMLM+ and an MDM of 27,000 parameters in under a minute on two CPU cores and prints: how
far the learned delta_{s,t} is from the exact one, how many pairs are valid after how many network
passes, and a map of p_max over the noise. It shows the point of the paper: one pass of an MDM, or
of delta_{0,0}, knows each token's marginal only and so joins 0 and 1 half of the time; one pass of
delta_{0,1} decides on a sequence, and where it does not, it says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from fmlm import (EMA, Batch, Denoiser, Draws, Model, cross_entropy, data_and_self, flow_map_loss,
                  interpolate, mdm_loss, sample_context, sample_times)
from harness import commands
from harness.plot import new_figure, save_figure
from sample import SAMPLERS
from toy.exact import Exact

MODES = [[0, 0], [1, 1]]
STEPS = 5800  # of the FMLM+; the MDM takes a sixth
BATCH, LEARNING_RATE, WARM_UP, EMA_DECAY = 384, 5e-3, 100, 0.998
DIAGONAL = 0.8  # of the batch learns the flow from the data; the rest from the network itself
AT_00 = 0.2  # of the batch at s = t = 0 exactly, a corner that a random time never hits
AT_01 = 0.3  # of the others at (0, 1); published: 1/32, three rows of a batch as small as this one
SURE = 0.9  # p_max below is "low confidence"


def learn(model: Denoiser, optimizer: torch.optim.Optimizer, rate: Callable[[int], float],
          loss: Callable[[], Tensor],
          steps: int, decay: float, name: str, progress: bool = True) -> Denoiser:
    """`steps` steps on `loss`, at `rate` times the optimizer's own rate; returns the average of the
    weights."""
    ema, schedule = EMA(model, decay), torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    bar = trange(steps, desc=name, disable=not progress, mininterval=0.5)
    for step in bar:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(model)
        if step % 100 == 0:
            bar.set_postfix(loss=f"{value.item():.3f}")
    return ema.model


def train(objective: str, steps: int, seed: int = 0, progress: bool = True) -> Denoiser:
    """An "fmlm+" or "mdm" of two tokens with random context, trained for `steps`; returns the
    average of its weights.

    The modes come in pairs with the same noise, times and context: near t = 0, where they look
    alike, what is learned from the one label and from the other cancels exactly, not on average.
    Sequences drawn as all context, with nothing to generate, are made all unknown. The rate decays
    to 0: targets that the network makes itself want it calm.
    """
    torch.manual_seed(seed)
    draws = Draws(torch.Generator().manual_seed(seed))
    model = Denoiser(2, torch.tensor([[0], [1]]), width=32, depth=1, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0)
    rate = lambda step: min((step + 1) / WARM_UP, 1) * (1 - step / steps)
    half, pair = BATCH // 2, lambda rows: rows.repeat_interleave(2, 0)
    x1 = F.one_hot(torch.tensor(MODES), 2).float().repeat(half, 1, 1)
    prompt = torch.zeros(half, 2, dtype=torch.bool)

    def loss() -> Tensor:
        context = pair(sample_context(prompt, draws)[0])
        context = context & ~context.all(1, keepdim=True)
        if objective == "mdm":
            return mdm_loss(model, x1, context)
        s, t = map(pair, sample_times(half, int(DIAGONAL * half), draws, AT_01))
        noise, corner = pair(draws.normal(half, 2, 2)), int(AT_00 * BATCH)
        s[:corner] = t[:corner] = 0
        noise[:corner] *= 1.5  # there any noise has the same answer: be flat in the tails as well
        targets = data_and_self(model, BATCH, 2 * int(DIAGONAL * half))
        return flow_map_loss(model, Batch(x1, None, context, s, t, targets), noise)

    return learn(model, optimizer, rate, loss, steps, EMA_DECAY, f"training {objective:5}",
                 progress)


@torch.no_grad()
def probabilities(model: Model, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
    """delta_{s,t}(x), (B, 2, 2), with all tokens generated at the same s and t."""
    times = [torch.as_tensor(value).float().expand(x.shape[:2]) for value in (s, t)]
    return model(x, *times).exp()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs().sum(-1) / 2


def compare(learned: Model, exact: Exact, seed: int = 1,
            n: int = 4000) -> list[tuple[str, float, float]]:
    """(name, mean, worst) total variation of learned and exact delta, for n draws of x_s at four
    kinds of (s, t)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 2, 2, generator=generator)
    u = torch.rand(2, n, 1, generator=generator).sort(0).values
    x1 = F.one_hot(torch.tensor(MODES), 2).float().repeat(n // 2, 1, 1)
    zero, rows = torch.zeros(n, 1), []
    for name, s, t in (("delta_{0,0}", zero, zero), ("delta_{s,s}", u[0], u[0]),
                       ("delta_{0,1}", zero, zero + 1),
                       ("delta_{s,t}", u[0], u[1])):
        x = interpolate(x1, noise, s.expand(n, 2))
        gap = total_variation(probabilities(learned, x, s, t), probabilities(exact, x, s, t))
        rows.append((name, gap.mean().item(), gap.max().item()))
    return rows


def one_step(learned: Model, seed: int = 2, n: int = 20000) -> dict[str, float]:
    """What delta_{0,1} does with n draws of noise; a draw is of low confidence if one of its tokens
    is."""
    x = torch.randn(n, 2, 2, generator=torch.Generator().manual_seed(seed))
    delta = probabilities(learned, x, 0, 1)
    mode = x.sum(1).argmax(-1, keepdim=True)  # exact: the larger <x, y_k> = x[0, k] + x[1, k]
    wrong, low = (delta.argmax(-1) != mode).any(-1), (delta.amax(-1) < SURE).any(-1)
    return {"right": 1 - wrong.float().mean().item(), "low": low.float().mean().item(),
            "wrong in low": ((wrong & low).sum() / wrong.sum().clamp(min=1)).item(),
            "valid": (delta.argmax(-1) == delta.argmax(-1)[:, :1]).all(-1).float().mean().item()}


def posterior_gap(model: Model, noise_size: float, seed: int = 3, n: int = 4000) -> list[float]:
    """Mean KL(exact || model) in nats a generated token at s = t = 0, with none and with one of the
    tokens known."""
    exact, gaps = Exact(MODES), []
    for sets in ([[0, 0]], [[1, 0], [0, 1]]):
        known = torch.tensor(sets).bool().repeat_interleave(2, 0).repeat(n, 1)[:n]
        tokens = torch.tensor(MODES).repeat(n // 2, 1)
        x = noise_size * torch.randn(n, 2, 2, generator=torch.Generator().manual_seed(seed))
        x = torch.where(known[..., None], F.one_hot(tokens, 2).float(), x)
        with torch.no_grad():
            log_delta = model(x, known.float(), known.float())
        p = exact.marginals(tokens, known).float()
        gap = cross_entropy(log_delta, p) - torch.special.entr(p).sum(-1)
        gaps.append(gap[~known].mean().item())
    return gaps


def validity(learned: Model, mdm: Model, seed: int = 4, n: int = 4000) -> list[tuple]:
    """(sampler, NFE, of the network, of the exact model): the share of n pairs that are valid."""
    generator = torch.Generator().manual_seed(seed)
    empty, unknown = torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, 2, dtype=torch.bool)
    valid = lambda pairs: (pairs[:, 0] == pairs[:, 1]).float().mean().item()
    budgets = {"flow-map": (1, 2, 4), "posterior": (1, 2), "a-priori-sampled": (1, 2),
               "confidence-sampled": (1, 2), "ancestral": (1, 2, 4)}
    # Of two tokens and k steps, ancestral reveals both in one pass with probability 1/k, and then
    # half are invalid.
    theory = {"a-priori-sampled": {1: 0.5, 2: 1.0}, "confidence-sampled": {1: 0.5, 2: 1.0},
              "ancestral": {1: 0.5, 2: 0.75, 4: 0.875}}
    rows = []
    for name, nfe in [(name, nfe) for name, counts in budgets.items() for nfe in counts]:
        model = mdm if "mdm" in SAMPLERS[name].objectives else learned
        pairs = SAMPLERS[name].run(model, empty, unknown, nfe, generator=generator)
        rows.append((name, nfe, valid(pairs), theory.get(name, {}).get(nfe, 1.0)))
    return rows


def plane(n: int, reach: float = 4.0) -> tuple[Tensor, Tensor]:
    """A grid over the noise differences g_l = x[l,1] - x[l,0] of both tokens: ticks (n,) and x
    (n n, 2, 2).

    The exact map depends on x only through g_0 and g_1; the other two directions of the noise are
    held at 0.
    """
    ticks = torch.linspace(-reach, reach, n)
    g = torch.cartesian_prod(ticks, ticks)
    return ticks, torch.stack([-g / 2, g / 2], -1)


def confidence_map(model: Model, t: float, n: int) -> Tensor:
    """p_max of delta_{0,t} over the plane, of the less sure token: (n, n), first axis g_0."""
    return probabilities(model, plane(n)[1], 0, t).amax(-1).amin(-1).reshape(n, n)


def terminal_map(model: Model, t: float, rows: int = 11) -> list[str]:
    """The same in characters: '.' unsure (p_max < 0.7), 'o' (< 0.9), '#' sure; g_0 to the right,
    g_1 upwards."""
    confidence = confidence_map(model, t, 2 * rows + 1).T.flip(0)[::2]
    return ["".join("#" if c >= SURE else "o" if c >= 0.7 else "." for c in line)
            for line in confidence.tolist()]


def plot(learned: Model, exact: Exact, file: str) -> None:
    """The paper's two-mode figure: p_max over the noise, delta_{0,0} left, delta_{0,1} right,
    learned above exact."""
    n = 201
    ticks = plane(n)[0].numpy()
    figure = new_figure(6.6, 5.7)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, (name, model) in enumerate((("learned", learned), ("exact", exact))):
        for column, t in enumerate((0, 1)):
            axis, confidence = axes[row, column], confidence_map(model, t, n).T.numpy()
            image = axis.pcolormesh(ticks, ticks, confidence, vmin=0.5, vmax=1, cmap="viridis",
                                    rasterized=True)
            title = rf"{name} $\delta_{{0,{t}}}$"
            if t == 0:
                axis.text(0, 0, "1/2 everywhere:\nnoise decides nothing", color="white",
                          ha="center", va="center")
            else:
                box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 2}
                axis.text(2.2, 2.6, "11", color="white", fontsize=15, ha="center", bbox=box)
                axis.text(-2.2, -1.6, "00", color="white", fontsize=15, ha="center", bbox=box)
                note = "dashed: the exact boundary\n$g_0 + g_1 = 0$, no band at all"
                if name == "learned":  # what the imperfect transport adds to the exact step
                    axis.contour(ticks, ticks, confidence, [SURE], colors="red", linewidths=1.2)
                    note = (f"between the red lines:\n$p_{{max}} < {SURE}$, "
                            f"{one_step(learned)['low']:.1%} of draws")
                axis.plot([-4, 4], [4, -4], "w--", linewidth=0.8)
                axis.text(-3.8, -3.7, note, color="white", fontsize=8, bbox=box)
            axis.set_title(title)
            axis.set_aspect("equal")
            axis.set(xlim=(-4, 4), ylim=(-4, 4))
    for axis in axes[1]:
        axis.set_xlabel("$g_0 = x_{0,1} - x_{0,0}$  (noise of token 0)")
    for axis in axes[:, 0]:
        axis.set_ylabel("$g_1 = x_{1,1} - x_{1,0}$  (noise of token 1)")
    figure.colorbar(image, ax=axes, label="confidence $p_{max}$ (the less sure token)", shrink=0.8)
    save_figure(figure, file)


@commands.command("toy.two_mode")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m toy.two_mode",
                             description="Two modes, 00 and 11: FMLM+ and MDM trained in under a "
                             "minute, beside the exact solution.")
    add = parser.add_argument
    add("--plot", metavar="FILE", type=commands.figure_file,
        help="also draw the figure there: .png, .pdf or .svg (needs matplotlib)")
    add("--seed", type=commands.SEED, default=0, help="of weights, data and noise (default 0)")
    add("--steps", type=commands.COUNT, default=STEPS,
        help=f"training steps of the FMLM+ (default {STEPS}); the MDM takes a sixth")
    options = parser.parse_args(arguments)
    start, exact = time.time(), Exact(MODES)
    mdm = train("mdm", -(-options.steps // 6), options.seed)
    learned = train("fmlm+", options.steps, options.seed)
    parameters = sum(weight.numel() for weight in learned.parameters())
    print(f"trained in {time.time() - start:.0f} s, {parameters:,} parameters each\n")

    print("learned against exact, total variation   mean    worst of 4,000")
    for name, mean, worst in compare(learned, exact):
        print(f"  {name:37}  {mean:.4f}  {worst:.4f}")
    print("\nmarginals at s = t = 0, KL(exact || .) in nats a token   none known   one known")
    for name, gap in (("MDM", posterior_gap(mdm, 0)),
                      ("FMLM+, delta_{0,0}", posterior_gap(learned, 1))):
        print(f"  {name:53}  {gap[0]:.5f}      {gap[1]:.5f}")
    step = one_step(learned)
    print(f"\ndelta_{{0,1}} in one pass: the right mode for {step['right']:.1%} of 20,000 draws; "
          f"p_max < {SURE} for {step['low']:.1%},\n  {step['wrong in low']:.0%} of the wrong ones "
          f"among these; valid {step['valid']:.1%}")
    print("\nvalid pairs, of 4,000      NFE   learned   exact")
    for name, nfe, share, theory in validity(learned, mdm):
        print(f"  {name:23}  {nfe:3}   {share:6.1%}   {theory:6.1%}")
    print(f"\np_max over the noise: # at least {SURE}, o at least 0.7, . below; right: token 0 "
          "leans to 1, up: token 1")
    maps = [terminal_map(model, t) for model, t in ((learned, 0), (learned, 1), (exact, 1))]
    names = "learned delta_{0,0}", "learned delta_{0,1}", "exact delta_{0,1}"
    print("  " + "   ".join(f"{name:23}" for name in names))
    for line in zip(*maps):
        print("  " + "   ".join(line))
    if options.plot:
        print()
        plot(learned, exact, options.plot)
    return 0


if __name__ == "__main__":
    commands.run(main)
