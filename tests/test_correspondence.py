"""Masked diffusion is delta_{0,0}, and the MLFM at t = 0: exactly, in the loss, and after a short
training."""

import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from fmlm import (Batch, Denoiser, Draws, Target, cross_entropy, flow_map_loss, mdm_loss, mlfm_loss,
                  sample_context)
from sudoku.boards import SHAPES, all_boards
from toy.exact import Exact, ExactBridge
from toy.two_mode import MODES, main, train

THREE = Exact([[0, 0, 1], [1, 2, 1], [2, 2, 0]], [0.2, 0.5, 0.3])
BOARDS = Exact(all_boards(SHAPES["sudoku4"]))
each_set = pytest.mark.parametrize("exact", [THREE, BOARDS], ids=["three sequences", "288 boards"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def contexts(exact, n=200):
    """n sequences of the set, one-hot in float64, with context of every size."""
    tokens = exact.sequences[torch.multinomial(exact.weights, n, True, generator=seeded())]
    known, _ = sample_context(torch.zeros(tokens.shape, dtype=torch.bool), Draws(seeded(1)))
    assert n < 200 or len(known.sum(1).unique()) == tokens.shape[1] + 1
    return tokens, F.one_hot(tokens, exact.vocab_size).double(), known


# ---- 1. exactly

@each_set
@pytest.mark.parametrize("noise_size", [0.0, 1.0, 100.0])
def test_delta_00_is_the_posterior_of_an_ideal_mdm_whatever_the_noise(exact, noise_size):
    tokens, x1, known = contexts(exact)
    time = known.double()
    noise = noise_size * torch.randn(x1.shape, generator=seeded(2), dtype=torch.float64)
    delta = exact(torch.where(known[..., None], x1, noise), time, time).exp()
    assert (delta - exact.marginals(tokens, known)).abs().max() < 1e-12


@each_set
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_so_is_the_posterior_on_the_bridge_at_mask_whatever_its_noise(exact, sigma):
    """MLFM at t = 0 = MDM = delta_{0,0} with the noise turned off: one call, one answer; marginals
    are counted."""
    tokens, x1, known = contexts(exact)
    time = known.double()
    bridge = ExactBridge(exact.sequences, exact.weights, sigma)
    delta = bridge(x1 * time[..., None], time, time).exp()
    assert (delta - exact.marginals(tokens, known)).abs().max() < 1e-12
    assert (delta - exact(x1 * time[..., None], time, time).exp()).abs().max() < 1e-12


def test_of_three_sequences_it_is_so_in_every_context():
    for known in itertools.product([False, True], repeat=3):
        known = torch.tensor([known]).expand(3, 3)
        x, time = F.one_hot(THREE.sequences, 3) * known[..., None].double(), known.double()
        delta = ExactBridge(THREE.sequences, THREE.weights)(x, time, time).exp()
        assert (delta - THREE.marginals(THREE.sequences, known)).abs().max() < 1e-12


@each_set
def test_the_denoiser_converges_to_it_as_fast_as_its_formula_says(exact):
    """p_k ~ w_k exp(rho <y, y_k>) and y = x0 at rho = 0, so D = D_0 + rho Cov(y_k, <x0, y_k>) +
    O(rho^2)."""
    tokens, x1, known = contexts(exact, 20)
    noise = torch.randn(x1.shape, generator=seeded(2), dtype=torch.float64)
    free = ~known[..., None]
    points = F.one_hot(exact.sequences, exact.vocab_size).double()
    match = ((exact.sequences == tokens[:, None]) | ~known[:, None]).all(-1) * exact.weights
    p = match / match.sum(-1, keepdim=True)
    evidence = torch.einsum("blv,klv->bk", noise * free, points)
    slope = torch.einsum("bk,klv->blv", p * (evidence - (p * evidence).sum(-1, keepdim=True)),
                         points)
    assert slope.abs().max() > 0.1

    def excess(rho):  # x = (1-t) x0: the sequence behind it counts only in order rho^2
        time = torch.where(known, 1.0, rho / (1 + rho)).double()
        x = torch.where(free, noise / (1 + rho), x1)
        return exact(x, time, time).exp() - exact.marginals(tokens, known)

    assert (excess(1e-5) / 1e-5 - slope).abs().max() < 1e-3
    first, second = ((excess(rho) - rho * slope).abs().max() for rho in (1e-2, 1e-3))
    assert first / second == pytest.approx(100, rel=0.2)


@each_set
def test_the_elbo_of_the_exact_mdm_is_the_entropy_of_the_data(exact):
    """2406.07524: the bound is tight for the true marginals. 4x4 Sudoku: log 288 = 5.663 nats."""
    n = 20000
    tokens = exact.sequences[torch.multinomial(exact.weights, n, True, generator=seeded())]
    x1 = F.one_hot(tokens, exact.vocab_size).double()
    context, rate = sample_context(torch.zeros(tokens.shape, dtype=torch.bool), Draws(seeded(1)))
    each = torch.stack([mdm_loss(exact, x1[i::10], context[i::10], rate[i::10].double(), "elbo")
                        for i in range(10)])
    # The variance from single sequences: the loss is a mean of independent terms (stratified, so at
    # most this).
    time = context.double()
    terms = (cross_entropy(exact(x1 * time[..., None], time, time), x1) * ~context).sum(-1) / rate
    entropy = -(exact.weights * exact.weights.log()).sum()
    assert each.mean().item() == pytest.approx(terms.mean().item(), rel=1e-9)
    assert abs(each.mean() - entropy) < 4.5 * terms.std() / math.sqrt(n) < 0.1 * entropy
    if exact is BOARDS:
        assert entropy.item() == pytest.approx(math.log(288))


# ---- 2. in the loss

def network(seed=0):
    torch.manual_seed(seed)
    model = Denoiser(3, torch.arange(5)[:, None], width=16, depth=2, heads=2)
    # away from the zeros of the start, where every gradient would be 0
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def batch(n=7):
    x1 = F.one_hot(torch.randint(3, (n, 5), generator=seeded(3)), 3).float()
    context, rate = sample_context(torch.zeros(n, 5, dtype=torch.bool), Draws(seeded(4)))
    assert context.any() and not context.all()
    return x1, context, rate


def at_0(model, x1, context, noise):
    """The loss of FMLM+ where all that is generated has s = t = 0 and learns the data."""
    zero = torch.zeros(len(x1))
    batch = Batch(x1, None, context, zero, zero, [Target("data", len(x1))])
    return flow_map_loss(model, batch, noise)


def test_the_loss_at_0_is_the_mdm_loss_bit_for_bit_and_so_are_its_gradients():
    x1, context, _ = batch()
    gradients = []
    for loss in (lambda model: at_0(model, x1, context, torch.zeros_like(x1)),
                 lambda model: mdm_loss(model, x1, context)):
        model = network()
        value = loss(model)
        value.backward()
        gradients.append([value.detach()] + [w.grad for w in model.parameters()])
    assert gradients[0][0] > 0 and any(g.abs().max() > 0 for g in gradients[0][1:])
    assert all(a.equal(b) for a, b in zip(*gradients))


def test_the_mlfm_loss_at_0_is_the_mean_of_the_mdm_losses_of_its_sequences_and_so_are_gradients():
    """The MDM's own is a mean over all masked tokens: of one sequence they are the same."""
    x1, context, _ = batch()
    noise, rows = torch.randn(x1.shape, generator=seeded(5)), (~context).any(1).nonzero()[:, 0]
    gradients = []
    for loss in (lambda model: mlfm_loss(model, x1, context, torch.zeros(len(x1)), noise, 3),
                 lambda model: sum(mdm_loss(model, x1[i:i + 1], context[i:i + 1])
                                   for i in rows) / len(rows)):
        model = network()
        value = loss(model)
        value.backward()
        gradients.append([value.detach()] + [w.grad for w in model.parameters()])
    assert gradients[0][0] > 0 and any(g.abs().max() > 0 for g in gradients[0][1:])
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients))


def test_with_noise_it_is_still_the_mdm_loss_for_a_model_that_ignores_the_noise():
    x1, context, _ = batch()
    model = network()
    blind = lambda x, s, t: model(x * (s == 1)[..., None], s, t)
    noise = torch.randn(x1.shape, generator=seeded(5))
    assert at_0(blind, x1, context, noise).equal(mdm_loss(model, x1, context))


def test_a_network_that_reads_the_noise_pays_for_it():
    """Jensen: the mean over noise of -log delta exceeds -log of the mean delta: the price of
    reading."""
    x1, context, _ = batch()
    x1, context = x1.repeat(200, 1, 1), context.repeat(200, 1)
    noise, model, time = torch.randn(x1.shape, generator=seeded(5)), network(), context.float()
    loss = at_0(model, x1, context, noise)
    x = torch.where(context[..., None], x1, noise)
    mean = model(x, time, time).exp().unflatten(0, (200, 7)).mean(0).repeat(200, 1, 1).log()
    assert loss > at_0(lambda *_: mean, x1, context, noise) + 1e-3


def test_mdm_weights_are_the_stated_ones_by_hand():
    """Two sequences of three tokens, V = 2, a model that gives the right token e^-1, e^-2, e^-3 by
    place.

    Masked: places 1 and 3 of the first (rate 1/2), place 2 of the second (rate 1/4).
    uniform: (1 + 3 + 2) / 3 = 2.   elbo: ((1 + 3) / (1/2) + 2 / (1/4)) / 2 = 8.
    """
    x1 = torch.tensor([[1.0, 0]]).expand(2, 3, 2)
    context = torch.tensor([[False, True, False], [True, False, True]])
    asked = []

    def model(x, s, t):
        asked.append((x, s, t))
        return torch.tensor([-1.0, -2, -3])[None, :, None].expand(2, 3, 2)

    rate = torch.tensor([0.5, 0.25])
    assert mdm_loss(model, x1, context) == 2 and mdm_loss(model, x1, context, rate) == 2
    assert mdm_loss(model, x1, context, rate, "elbo") == 8
    x, s, t = asked[0]  # [MASK] is the zero vector at time 0, a context token itself at time 1
    assert x.equal(x1 * context[..., None]) and s.equal(context.float()) and t.equal(s)
    everything = torch.ones_like(context)
    assert mdm_loss(model, x1, everything) == 0
    assert mdm_loss(model, x1, everything, rate, "elbo") == 0


def test_a_sequence_of_rate_0_counts_0_in_the_bound():
    """Rates 0, with nothing masked, and 1/4, with one token that costs 2 nats: (0 + 2 / (1/4)) /
    2."""
    logits = torch.tensor([-1.0, -2, -3])[None, :, None].repeat(2, 1, 2).requires_grad_()
    context = torch.tensor([[True, True, True], [True, False, True]])
    x1, rate = torch.tensor([[1.0, 0]]).expand(2, 3, 2), torch.tensor([0, 0.25])
    loss = mdm_loss(lambda x, s, t: logits, x1, context, rate, "elbo")
    loss.backward()
    assert loss == 4 and logits.grad[1, 1].tolist() == [-2, 0] and logits.grad.abs().sum() == 2
    assert mdm_loss(lambda x, s, t: logits, x1, context, 0 * rate, "elbo") == 0


def test_another_weighting_or_a_bound_without_rates_is_refused():
    x1, context, rate = batch()
    for call in (lambda: mdm_loss(network(), x1, context, rate, "mean"),
                 lambda: mdm_loss(network(), x1, context, None, "elbo"),
                 lambda: mdm_loss(network(), x1, context, weighting="mean")):
        with pytest.raises(ValueError, match='"uniform", or "elbo"'):
            call()


def test_the_weights_of_an_mdm_load_into_an_fmlm_plus_as_they_are():
    mdm, student = network(1), network(2)
    student.load_state_dict(mdm.state_dict())
    x1, context, _ = batch()
    time = context.float()
    assert student(x1 * time[..., None], time, time).equal(mdm(x1 * time[..., None], time, time))


# ---- 3. after training

@pytest.mark.parametrize("objective", ["mdm", "fmlm+"])
def test_after_a_short_training_both_have_the_exact_marginals(objective):
    """KL(exact || learned) <= 0.02 nats a token at every size of context, after 250 steps of the
    toy."""
    model, exact = train(objective, steps=250, seed=0, progress=False), Exact(MODES)
    for known in ([False, False], [True, False], [False, True]):
        known = torch.tensor([known]).repeat(400, 1)
        tokens = torch.tensor(MODES).repeat(200, 1)
        x = torch.randn(400, 2, 2, generator=seeded(7)) * (objective == "fmlm+")
        x = torch.where(known[..., None], F.one_hot(tokens, 2).float(), x)
        with torch.no_grad():
            learned = model(x, known.float(), known.float())
        marginals = exact.marginals(tokens, known).float()
        kl = cross_entropy(learned, marginals) - torch.special.entr(marginals).sum(-1)
        assert kl[~known].mean() < 0.02


# ---- the command

def test_without_matplotlib_the_command_prints_its_table_and_says_what_is_missing(
        monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["--steps", "1", "--plot", str(tmp_path / "figure.png")]) == 2
    printed = capsys.readouterr()
    assert "delta_{0,1}" in printed.out and "ancestral" in printed.out
    assert printed.err.strip().splitlines()[-1] == (
        "toy.two_mode: a figure needs matplotlib: pip install matplotlib")


@pytest.mark.parametrize("options", [["--steps", "0"], ["--seed", "-1"],
                                     ["--plot", "no/such/folder/figure.png"]])
def test_bad_options_end_in_one_sentence_and_status_2(options, capsys):
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("toy.two_mode: ") and options[0] in said and said.count("\n") == 1
