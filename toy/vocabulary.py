"""Where the decoding time tau(t) of an FLM (2602.16813) pays: python -m toy.vocabulary [-n 500]
[--train 1500] [--seed 0]

Sequences of three words over V = r^2 words, each word a pair (first, second) of digits below r; the
third word takes its first digit from the first word and its second from the second, so V^2
sequences are possible, and the three words must agree. The larger V, the later noise is decoded:
half of tau has passed at t = 0.55 for 4 words, at 0.74 for 256.
Printed: valid sequences in % by network passes, Euler steps of the exact denoiser, uniform in t or
in tau: no network's errors in it, only the steps differ.

With --train, also FLMs and FMLMs that learn pairs of 9 and of 256 words, each word with its one
partner. Their times are drawn uniformly in t or in tau, the jumps of an FMLM are halved in t or in
tau, and their networks are told t or tau: what 2602.16813 does is tau throughout.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import fmlm
from harness import commands
from harness.speed import in_bf16
from sample import flow_map_sampler
from toy.exact import Exact
from toy.two_mode import learn

NFE = [1, 2, 3, 4, 6, 8, 16]
# What is trained: times drawn in tau?, jumps halved in tau? (None: an FLM has none), told tau?
TRAINED = [(False, None, False), (True, None, False), (True, None, True), (False, False, False),
           (True, False, False), (True, True, False), (True, True, True)]


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


def valid(words: Tensor, r: int) -> Tensor:
    """Which samples of three words, (3, n), are valid: (n,)."""
    return third(*words[:2], r) == words[2]


def cell(words: Tensor, right: Tensor) -> str:
    """The share of samples, (length, n), that are right, (n,), in %; "same" where all are one."""
    return f"{100 * right.float().mean():.1f}" + " same" * bool((words == words[:, :1]).all())


def words_for(drawn: bool, halved: bool | None, told: bool) -> str:
    axis = lambda tau: "tau" if tau else "t"
    jumps = "FLM" if halved is None else f"FMLM halved in {axis(halved)}"
    return f"{jumps}, drawn in {axis(drawn)}, told {axis(told)}"


def learn_pairs(partner: Tensor, drawn: bool, steps: int, seed: int, halved: bool | None = None,
                told: bool = False) -> fmlm.Model:
    """An FLM, or FMLM where jumps are `halved`, of the pairs (word, partner[word]): the three are
    whether in tau, else in t."""
    torch.manual_seed(seed)
    generator, vocab_size = Generator().manual_seed(seed), len(partner)
    model = fmlm.Denoiser(vocab_size, torch.arange(2)[:, None], width=256, depth=2, heads=4,
                          tau=told)
    halve = partial(fmlm.midpoint_in_tau, vocab_size=vocab_size) if halved else fmlm.midpoint
    own = fmlm.Target("semigroup", 0 if halved is None else 256,
                      partial(fmlm.semigroup, model, halve=halve))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0, fused=True)

    def loss() -> Tensor:
        word = torch.randint(vocab_size, (512,), generator=generator)
        x1 = F.one_hot(torch.stack([word, partner[word]], 1), vocab_size).float()
        draws = fmlm.Draws(generator)
        s, t = (fmlm.sample_times(512, 256, draws) if own.rows else [draws.stratified(512)] * 2)
        if drawn:
            s, t = (fmlm.inverse_decoding_time(time, vocab_size) for time in (s, t))
        targets = [fmlm.Target("data", 512 - own.rows), own]
        batch = fmlm.Batch(x1, None, fmlm.given(x1, None), s, t, targets)
        with in_bf16(None, x1.device):
            return fmlm.flow_map_loss(model, batch, torch.randn(x1.shape, generator=generator))

    rate = lambda step: min(1, (step + 1) / 100, 2 * (1 - step / steps))
    return learn(model, optimizer, rate, loss, steps, 0.999,
                 words_for(drawn, halved, told))


@commands.command("toy.vocabulary")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m toy.vocabulary",
                             description="Steps uniform in t and in tau, by vocabulary.")
    parser.add_argument("-n", type=commands.COUNT, default=500, help="samples a cell (default 500)")
    parser.add_argument("--train", type=commands.whole(0, 10**6), default=0, metavar="STEPS",
                        help="also train 14 models, two to eight minutes each for 1,500")
    parser.add_argument("--seed", type=commands.SEED, default=0)
    options = parser.parse_args(arguments)
    print("| valid, %, by NFE | " + " | ".join(map(str, NFE)) + " |\n"
          + "|---" * (len(NFE) + 1) + "|")
    for r in (2, 6, 16):
        model = euler(Exact(sequences(r)))
        for tau in (False, True):
            triples = [draw(model, 3, nfe, tau, options.n, options.seed) for nfe in NFE]
            row = [cell(words, valid(words, r)) for words in triples]
            print(f"| V = {r * r}, uniform in {'tau' if tau else 't'} | " + " | ".join(row) + " |",
                  flush=True)
    for vocab_size, (drawn, halved, told) in product((9, 256), TRAINED if options.train else ()):
        partner = torch.randperm(vocab_size, generator=Generator().manual_seed(options.seed))
        model = learn_pairs(partner, drawn, options.train, options.seed, halved, told)
        for tau in (False, True):
            pairs = [draw(model, 2, nfe, tau, options.n, options.seed) for nfe in NFE]
            row = [cell(words, partner[words[0]] == words[1]) for words in pairs]
            print(f"| pairs of {vocab_size} words, {words_for(drawn, halved, told)}, "
                  f"uniform in {'tau' if tau else 't'} | " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    commands.run(main)
