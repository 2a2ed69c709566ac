"""Where the decoding time tau(t) of an FLM (2602.16813) pays: python -m toy.vocabulary [-n 500]
[--train 1500] [--seed 0]

Sequences of three words over V = r^2 words, each word a pair (first, second) of digits below r; the
third word takes its first digit from the first word and its second from the second, so V^2
sequences are possible, and the three words must agree. The larger V, the later noise is decoded:
half of tau has passed at t = 0.55 for 4 words, at 0.74 for 256.
Printed: valid sequences in % by network passes, Euler steps of the exact denoiser, uniform in t or
in tau: no network's errors in it, only the steps differ.

With --train, also FLMs that learn pairs of 256 words, each word with its one partner, from times
uniform in t or in tau.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import fmlm
from harness import commands
from sample import flow_map_sampler
from toy.exact import Exact
from toy.two_mode import learn

NFE = [2, 3, 4, 6, 8, 16]


def third(first: Tensor, second: Tensor, r: int) -> Tensor:
    """The word that must follow these two."""
    return first // r * r + second % r


def sequences(r: int) -> Tensor:
    """All valid sequences, (r^4, 3)."""
    pairs = torch.cartesian_prod(torch.arange(r * r), torch.arange(r * r))
    return torch.cat([pairs, third(*pairs.T, r)[:, None]], 1)


def euler(exact: Exact) -> fmlm.Model:
    """The exact denoiser in place of the exact flow map, so that the sampler takes Euler steps, as
    for an FLM."""
    model = lambda x, s, t: exact(x, s, s)
    model.vocab_size = exact.vocab_size
    return model


def draw(model: fmlm.Model, length: int, nfe: int, tau: bool, n: int, seed: int) -> Tensor:
    """n samples of that many words, in steps uniform in tau or in t: the words at each place,
    (length, n)."""
    empty = torch.zeros(n, length, dtype=torch.int64)
    return flow_map_sampler(model, empty, empty.bool(), nfe, tau=tau,
                            generator=Generator().manual_seed(seed)).T


def valid(model: fmlm.Model, r: int, nfe: int, tau: bool, n: int, seed: int) -> float:
    """The share of n samples of three words that are valid."""
    words = draw(model, 3, nfe, tau, n, seed)
    return (third(*words[:2], r) == words[2]).float().mean().item()


def learn_pairs(partner: Tensor, tau: bool, steps: int, seed: int) -> fmlm.Model:
    """An FLM of the pairs (word, partner[word]), trained with times uniform in tau or in t."""
    torch.manual_seed(seed)
    generator, vocab_size = Generator().manual_seed(seed), len(partner)
    model = fmlm.Denoiser(vocab_size, torch.arange(2)[:, None], width=256, depth=2, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0, fused=True)

    def loss() -> Tensor:
        word = torch.randint(vocab_size, (512,), generator=generator)
        x1 = F.one_hot(torch.stack([word, partner[word]], 1), vocab_size).float()
        u = fmlm.Draws(generator).stratified(512)
        t = fmlm.inverse_decoding_time(u, vocab_size) if tau else u
        with torch.autocast("cpu", torch.bfloat16):
            return fmlm.flm_loss(model, x1, t, torch.randn(x1.shape, generator=generator))

    rate = lambda step: min(1, (step + 1) / 100, 2 * (1 - step / steps))
    return learn(model, optimizer, rate, loss, steps, 0.999,
                 f"trained uniform in {'tau' if tau else 't'}")


@commands.command("toy.vocabulary")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m toy.vocabulary",
                             description="Steps uniform in t and in tau, by vocabulary.")
    parser.add_argument("-n", type=commands.COUNT, default=500, help="samples a cell (default 500)")
    parser.add_argument("--train", type=commands.whole(0, 10**6), default=0, metavar="STEPS",
                        help="also train FLMs, a minute each for 1,500")
    parser.add_argument("--seed", type=commands.SEED, default=0)
    options = parser.parse_args(arguments)
    print("| valid, %, by NFE | " + " | ".join(map(str, NFE)) + " |\n"
          + "|---" * (len(NFE) + 1) + "|")
    for r in (2, 6, 16):
        model = euler(Exact(sequences(r)))
        for tau in (False, True):
            row = [f"{100 * valid(model, r, nfe, tau, options.n, options.seed):.1f}" for nfe in NFE]
            print(f"| V = {r * r}, uniform in {'tau' if tau else 't'} | " + " | ".join(row) + " |",
                  flush=True)
    partner = torch.randperm(256, generator=Generator().manual_seed(options.seed))
    for trained in (False, True) if options.train else ():
        model = learn_pairs(partner, trained, options.train, options.seed)
        for tau in (False, True):
            pairs = [draw(model, 2, nfe, tau, options.n, options.seed) for nfe in NFE]
            row = [f"{100 * (partner[first] == second).float().mean():.1f}"
                   for first, second in pairs]
            print(f"| pairs, trained uniform in {'tau' if trained else 't'}, "
                  f"uniform in {'tau' if tau else 't'} | "
                  + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    commands.run(main)
