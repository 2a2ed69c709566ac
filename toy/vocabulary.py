"""Where the decoding time tau(t) of an FLM (2602.16813) pays: python -m toy.vocabulary [--steps N] [--seed N]

Sequences of three words over V = r^2 words, each word a pair (first, second) of digits below r; the third word takes its
first digit from the first word and its second from the second, so V^2 sequences are possible, and the three words must
agree. The larger V, the later noise is decoded: half of tau has passed at t = 0.55 for 4 words, at 0.74 for 256.
Printed: valid sequences in % by network passes, with steps uniform in t or in tau; first of the exact denoiser, where
only the steps differ, then of networks whose training times follow the same law as the steps.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import trange

import fmlm
from sample import flow_map_sampler
from toy.exact import Exact

NFE = [1, 2, 3, 4, 6, 8, 16]


def third(first: Tensor, second: Tensor, r: int) -> Tensor:
    """The word that must follow these two."""
    return first // r * r + second % r


def sequences(r: int) -> Tensor:
    """All valid sequences, (V^2, 3)."""
    pairs = torch.cartesian_prod(torch.arange(r * r), torch.arange(r * r))
    return torch.cat([pairs, third(*pairs.T, r)[:, None]], 1)


def euler(exact: Exact) -> fmlm.Model:
    """The exact denoiser in place of the exact flow map, so that the sampler takes Euler steps, as for an FLM."""
    model = lambda x, s, t: exact(x, s, s)
    model.vocab_size = exact.vocab_size
    return model


def valid(model: fmlm.Model, r: int, nfe: int, tau: bool, n: int, generator: Generator) -> float:
    """The share, in %, of n samples that are valid."""
    empty = torch.zeros(n, 3, dtype=torch.int64)
    words = flow_map_sampler(model, empty, empty.bool(), nfe, tau=tau, generator=generator)
    return 100 * (third(words[:, 0], words[:, 1], r) == words[:, 2]).float().mean().item()


def train(r: int, steps: int, tau: bool, seed: int) -> fmlm.Denoiser:
    """An FLM of all valid sequences, its training times uniform in t or in tau; returns the average of its weights."""
    torch.manual_seed(seed)
    generator, vocab_size, data = Generator().manual_seed(seed), r * r, sequences(r)
    model = fmlm.Denoiser(vocab_size, torch.arange(3)[:, None], width=64, depth=3, heads=2)
    ema, optimizer = fmlm.EMA(model, 0.99), torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    bar = trange(steps, desc=f"V = {vocab_size}, uniform in {'tau' if tau else 't'}", leave=False, mininterval=1)
    for step in bar:
        x1 = F.one_hot(data[torch.randint(len(data), (256,), generator=generator)], vocab_size).float()
        t = fmlm.stratified_uniform(256, generator)
        t = fmlm.inverse_decoding_time(t, vocab_size) if tau else t
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50, 2 * (1 - step / steps))
        loss = fmlm.flm_loss(model, x1, t, torch.randn(x1.shape, generator=generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return ema.model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m toy.vocabulary", description="FLM in t and in tau, by vocabulary.")
    parser.add_argument("--steps", type=int, default=1000, help="of each training (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=1000, help="samples a cell (default 1000)")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.n < 1 or not 0 <= options.seed < 2**32:
        print("toy.vocabulary: --steps and -n must be 1 or more, and --seed from 0 to 2^32 - 1", file=sys.stderr)
        return 2
    print(f"{'valid sequences, %, by NFE':<28}" + "".join(f"{nfe:>8}" for nfe in NFE), flush=True)
    for name in ("exact", "trained"):
        for r in (2, 6, 12) if name == "exact" else (2, 16):
            for tau in (False, True):
                model = euler(Exact(sequences(r))) if name == "exact" else train(r, options.steps, tau, options.seed)
                generator = Generator().manual_seed(options.seed)
                row = [valid(model, r, nfe, tau, options.n, generator) for nfe in NFE]
                print(f"{name + f', V = {r * r}, ' + ('tau' if tau else 't'):<28}" + "".join(f"{share:>8.1f}" for share in row),
                      flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
