"""Where the decoding time tau(t) of an FLM (2602.16813) pays: python -m toy.vocabulary [-n 500] [--seed 0]

Sequences of three words over V = r^2 words, each word a pair (first, second) of digits below r; the third word takes its
first digit from the first word and its second from the second, so V^2 sequences are possible, and the three words must
agree. The larger V, the later noise is decoded: half of tau has passed at t = 0.55 for 4 words, at 0.74 for 256.
Printed: valid sequences in % by network passes, Euler steps of the exact denoiser, uniform in t or in tau: no network's
errors in it, only the steps differ.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Generator, Tensor

import fmlm
from sample import flow_map_sampler
from toy.exact import Exact

NFE = [2, 3, 4, 6, 8, 16]


def third(first: Tensor, second: Tensor, r: int) -> Tensor:
    """The word that must follow these two."""
    return first // r * r + second % r


def sequences(r: int) -> Tensor:
    """All valid sequences, (r^4, 3)."""
    pairs = torch.cartesian_prod(torch.arange(r * r), torch.arange(r * r))
    return torch.cat([pairs, third(*pairs.T, r)[:, None]], 1)


def euler(exact: Exact) -> fmlm.Model:
    """The exact denoiser in place of the exact flow map, so that the sampler takes Euler steps, as for an FLM."""
    model = lambda x, s, t: exact(x, s, s)
    model.vocab_size = exact.vocab_size
    return model


def valid(model: fmlm.Model, r: int, nfe: int, tau: bool, n: int, seed: int) -> float:
    """The share of n samples that are valid."""
    empty = torch.zeros(n, 3, dtype=torch.int64)
    words = flow_map_sampler(model, empty, empty.bool(), nfe, tau=tau, generator=Generator().manual_seed(seed))
    return (third(words[:, 0], words[:, 1], r) == words[:, 2]).float().mean().item()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m toy.vocabulary", description="Steps uniform in t and in tau, by vocabulary.")
    parser.add_argument("-n", type=int, default=500, help="samples a cell (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.n < 1 or not 0 <= options.seed < 2**32:
        print("toy.vocabulary: -n must be 1 or more, and --seed from 0 to 2^32 - 1", file=sys.stderr)
        return 2
    print("| valid, %, by NFE | " + " | ".join(map(str, NFE)) + " |\n" + "|---" * (len(NFE) + 1) + "|")
    for r in (2, 6, 16):
        model = euler(Exact(sequences(r)))
        for tau in (False, True):
            row = [f"{100 * valid(model, r, nfe, tau, options.n, options.seed):.1f}" for nfe in NFE]
            print(f"| V = {r * r}, uniform in {'tau' if tau else 't'} | " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
