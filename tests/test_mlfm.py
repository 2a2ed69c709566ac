"""Masked language flow models: bridge, exact posterior, SDE, loss and network, against hand
arithmetic, Bayes' rule and quadrature.

Token promotion itself is specified in test_samplers.py, and t = 0, where all is masked diffusion,
in test_correspondence.py. A statistical test has a fixed seed and a margin of five standard errors,
or a critical value, of the law that it claims.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from baselines.mlfm import (BridgeDenoiser, bridge_step, clearness, inverse_clearness,
                            law_of_clearness, losses_by_clearness, sample_bridge_context,
                            sample_bridge_times, token_promotion)
from fmlm import EMA, Denoiser, Draws, bridge, flow_map, inverse_look_up, look_up, mlfm_loss
from harness.checkpoints import load_checkpoint, read_checkpoint
from train import main
from toy.exact import Exact, ExactBridge

SEQUENCES, WEIGHTS = [[0, 0, 1], [1, 2, 1], [2, 2, 0]], [0.2, 0.5, 0.3]
MODES, SHARES = [[0, 0], [1, 1]], [0.3, 0.7]
THREE, TWO = ExactBridge(SEQUENCES, WEIGHTS), ExactBridge(MODES, SHARES)


def of_noise(sigma):
    """A model that no sampler may ask."""
    model = lambda x, s, t: pytest.fail("asked")
    model.vocab_size, model.sigma = 3, sigma
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exactly(values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def at(time, x):
    return torch.full(x.shape[:2], time, dtype=x.dtype)


def draws(exact, n, seed=0):
    """n sequences of the set as one-hot vectors, and noise."""
    tokens = exact.sequences[torch.multinomial(exact.weights, n, True, generator=seeded(seed))]
    x1 = F.one_hot(tokens, exact.vocab_size).double()
    return x1, randn(*x1.shape, seed=seed + 1)


def within_five_errors(values, expected):
    """Whether the mean of independent rows is the expected one, by five of its standard errors."""
    return ((values.mean(0) - expected).abs() <= 5 * values.std(0) / math.sqrt(len(values))
            + 1e-12).all()


# ---- the bridge

def test_the_bridge_is_the_number_worked_out_by_hand():
    """t = 1/5, sigma = 2: sqrt(t (1-t)) = 2/5, so 1/5 + 2 * 2/5 * 1/2 = 3/5 and 0 - 2 * 2/5 = -4/5.
    sigma = 1: 2/5, -2/5."""
    x1, noise = exactly([[[1.0, 0]]]), exactly([[[0.5, -1]]])
    assert bridge(x1, noise, at(0.2, x1), 2).flatten().tolist() == pytest.approx([0.6, -0.8],
                                                                                 abs=1e-15)
    assert bridge(x1, noise, at(0.2, x1)).flatten().tolist() == pytest.approx([0.4, -0.4],
                                                                              abs=1e-15)


def test_the_bridge_begins_at_mask_and_ends_at_the_data_bit_for_bit():
    x1, noise = (part.float() for part in draws(THREE, 20))
    assert not bridge(x1, 1e6 * noise, at(0.0, x1), 3).any()
    assert bridge(x1, 1e6 * noise, at(1.0, x1), 3).equal(x1)


@pytest.mark.parametrize("t, sigma", [(0.1, 1), (0.5, 0.3), (0.9, 2)])
def test_the_bridge_has_the_mean_and_the_variance_of_its_formula(t, sigma):
    n = 40000
    x1 = exactly([[0.0, 1, 0]]).expand(n, 1, 3)
    x = bridge(x1, randn(n, 1, 3), at(t, x1), sigma)
    assert within_five_errors(x, t * x1[0])
    variance = sigma**2 * t * (1 - t)
    assert ((x.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()


def test_every_token_crosses_the_bridge_at_its_own_time():
    x1, noise = draws(THREE, 5)
    times = exactly([[0.2, 1, 0.7]]).expand(5, 3)
    x = bridge(x1, noise, times, 0.5)
    for place, t in enumerate((0.2, 1.0, 0.7)):
        assert x[:, place].equal(bridge(x1, noise, at(t, x1), 0.5)[:, place])


@pytest.mark.parametrize("sigma", [0, -1, math.nan])
def test_a_bridge_without_noise_is_refused(sigma):
    x1, noise = draws(THREE, 2)
    for call in (lambda: bridge(x1, noise, at(0.5, x1), sigma),
                 lambda: ExactBridge(SEQUENCES, WEIGHTS, sigma),
                 lambda: mlfm_loss(THREE, x1, x1[..., 0] > 2, torch.tensor([0.5, 0.5]), noise,
                                   sigma)):
        words = "needs noise: sigma must be (more than 0|positive and finite), got "
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("sigma", [math.inf, -math.inf])
def test_a_bridge_of_infinite_noise_is_refused(sigma):
    x1, noise = draws(THREE, 2)
    context, half = torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0.5, 0.5])
    empty = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool)
    for call in (lambda: bridge(x1, noise, at(0.5, x1), sigma),
                 lambda: mlfm_loss(THREE, x1, context, half, noise, sigma),
                 lambda: token_promotion(of_noise(sigma), *empty, 1)):
        with pytest.raises(ValueError, match="sigma must be positive and finite"):
            call()


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (2, 1, 3), (2, 3, 1), (2, 3, 4), ()])
def test_noise_of_another_shape_than_the_data_is_refused(shape):
    x1, _ = draws(THREE, 2)
    context, half = torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0.5, 0.5])
    for call in (lambda: bridge(x1, torch.zeros(shape), at(0.5, x1)),
                 lambda: mlfm_loss(THREE, x1, context, half, torch.zeros(shape))):
        with pytest.raises(ValueError, match="noise must be"):
            call()


@pytest.mark.parametrize("t", [-0.1, 1.1])
def test_times_outside_0_and_1_are_refused(t):
    x1, noise = draws(THREE, 2)
    for call in lambda: bridge(x1, noise, at(t, x1)), lambda: bridge_step(x1, x1, at(0.5, x1),
                                                                          at(t, x1), noise):
        with pytest.raises(ValueError, match="times"):
            call()


# ---- one step of the SDE

def test_a_step_is_the_number_worked_out_by_hand():
    """s = 1/4, t = 1/2: x keeps (1-t)/(1-s) = 2/3; the noise has variance sigma^2 (t-s)(1-t)/(1-s)
    = 9/6 for sigma = 3."""
    x, clean, noise = (exactly([[row]]) for row in ([0.2, 0.4], [1, 0], [1, -1]))
    expected = [0.4 / 3 + 1 / 3 + math.sqrt(1.5), 0.8 / 3 - math.sqrt(1.5)]
    assert bridge_step(x, clean, at(0.25, x), at(0.5, x), noise,
                       3).flatten().tolist() == pytest.approx(expected, abs=1e-15)
    expected = [0.4 / 3 + 1 / 3 + math.sqrt(1 / 6), 0.8 / 3 - math.sqrt(1 / 6)]
    assert bridge_step(x, clean, at(0.25, x), at(0.5, x),
                       noise).flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_two_steps_to_the_same_clean_point_have_the_law_of_one():
    """x_t is linear in x, clean and the noises: means agree, and the variance that is carried on
    plus the new is the whole."""
    times = torch.rand(50, 3, 3, generator=seeded(), dtype=torch.float64).sort(0).values
    (x, clean), (s, u, t) = randn(2, 50, 3, 3), times.sort(-1).values.unbind(-1)
    nothing, one = torch.zeros_like(x), torch.ones_like(x)
    there = bridge_step(bridge_step(x, clean, s, u, nothing, 0.7), clean, u, t, nothing, 0.7)
    assert (there - bridge_step(x, clean, s, t, nothing, 0.7)).abs().max() < 1e-12
    spread = lambda s, t: bridge_step(nothing, nothing, s, t, one, 0.7)
    carried = bridge_step(spread(s, u), nothing, u, t, nothing, 0.7)
    assert (carried**2 + spread(u, t) ** 2 - spread(s, t) ** 2).abs().max() < 1e-12
    assert spread(s, t).min() > 1e-12


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_step_from_mask_at_0_is_the_bridge(t):
    x1, noise = draws(THREE, 20)
    step = bridge_step(torch.zeros_like(x1), x1, at(0.0, x1), at(t, x1), noise, 0.7)
    assert (step - bridge(x1, noise, at(t, x1), 0.7)).abs().max() < 1e-15


def test_without_noise_a_step_is_the_flow_map_and_the_last_one_ends_at_the_clean_point():
    x, clean, noise = randn(3, 10, 3, 3)
    assert bridge_step(x, clean, at(0.2, x), at(0.6, x), noise,
                       0).equal(flow_map(x, clean, at(0.2, x), at(0.6, x)))
    assert bridge_step(x, clean, at(0.2, x), at(1.0, x), noise, 5).equal(clean)


def test_context_stays_in_a_step_bit_for_bit_and_so_does_all_that_takes_no_time():
    x, clean, noise = randn(3, 10, 3, 3).float()
    s = torch.tensor([[1.0, 0.25, 0]]).expand(10, 3)
    t = torch.tensor([[1.0, 0.25, 0.5]]).expand(10, 3)
    after = bridge_step(x, clean, s, t, noise)
    assert after[:, :2].equal(x[:, :2]) and (after[:, 2] != x[:, 2]).all()
    assert not after.isnan().any()


# ---- its laws of time and of the context

@pytest.mark.parametrize("sigma", [0.2, 1, 2])
def test_log_noise_to_signal_is_uniform_from_minus_10_to_6_one_time_a_stratum(sigma):
    """gamma = log(sigma^2 (1-t)/t) ~ U(-10, 6): of n times one in each of n equal parts. For
    sigma = 1 the ends are 1/(1+e^6) = 0.25% of signal, and 1 - 4.5e-5."""
    n = 400

    def place(t):  # t near 1 is known to 6e-8, so gamma to 6e-8 e^10 / sigma^2
        t = t.double()
        return ((sigma**2 * (1 - t) / t).log().sort().values + 10) / 16 * n

    t = sample_bridge_times(n, Draws(seeded()), sigma)
    assert ((place(t) - torch.arange(n) - 0.5).abs() < 0.5 + 0.05).all()
    assert not t.equal(t.sort().values) and t.max() < 1
    mine = torch.cat([sample_bridge_times(n // 4, Draws(seeded(), rank=rank, world=4), sigma)
                      for rank in range(4)])
    assert ((place(mine) - torch.arange(n) - 0.5).abs() < 0.5 + 0.05).all()
    if sigma == 1:
        assert 0.00247 <= t.min() < 0.0026 and 0.99994 < t.max() <= 0.999955
        assert sample_bridge_times(n, Draws(seeded())).equal(t)


def test_no_corrupted_token_is_ever_at_time_1_however_large_the_noise():
    assert sample_bridge_times(4000, Draws(seeded()), 10).max() < 1
    assert sample_bridge_times(4000, Draws(seeded()), 1000).max() < 1


def share_below(gamma):
    """Of normal(-2.5, 2) within [-10, 6] the share below gamma, by a sum of densities."""
    x = torch.linspace(-10, 6, 160_001, dtype=torch.float64)
    density = (-(x + 2.5) ** 2 / 8).exp()
    return float(density[x < gamma].sum() / density.sum())


def test_the_law_of_times_is_a_tenth_uniform_a_fifth_normal_and_the_rest_the_losss_slope():
    """At clearness u, gamma = 6 - 16 u, noisier are 0.1 u of the uniform part and 0.2 (1 - P(gamma
    below)) of the normal one. A curve that falls by 3 from 4 and does half of it from gamma = 2 on
    in one step of 0.5 has there half of the 0.7; where it rises again nobody trains more."""
    u = torch.linspace(0, 1, 33, dtype=torch.float64)
    rest = exactly([0.1 * v + 0.2 * (1 - share_below(6 - 16 * v)) for v in u.tolist()])
    assert law_of_clearness(4 - 3 * u).tolist() == pytest.approx((rest + 0.7 * u).tolist(),
                                                                 abs=1e-4)
    curve = torch.tensor([4.0] * 9 + [2.5] * 11 + [2.8] * 3 + [1.0] * 10)
    measured = exactly([0.0] * 9 + [0.5] * 14 + [1.0] * 10)
    law = law_of_clearness(curve)
    assert law.tolist() == pytest.approx((rest + 0.7 * measured).tolist(), abs=1e-4)
    assert law[0] == 0 and law[-1] == 1 and (law.diff() > 0).all()
    assert law_of_clearness(torch.ones(33)).equal(law_of_clearness(1 - u))  # it knows no slope yet
    assert law_of_clearness(None).tolist() == [0, 1]


def test_training_times_follow_the_law_of_the_curve_one_a_stratum():
    """The share that is noisier is uniform: of 400 times one in each of 400 equal parts, but for
    the rounding of times, 6e-8 e^10 of a gamma where t is near 1."""
    curve, sigma = (-torch.linspace(-3, 5, 33)).sigmoid(), 0.5
    law = law_of_clearness(curve)
    t = sample_bridge_times(400, Draws(seeded()), sigma, curve)
    place = 400 * look_up(law, clearness(t.double(), sigma)).sort().values
    assert ((place - torch.arange(400) - 0.5).abs() < 0.5 + 0.05).all()
    assert not t.equal(sample_bridge_times(400, Draws(seeded()), sigma))
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert (look_up(law, inverse_look_up(law, share)) - share).abs().max() < 1e-12


def test_the_steps_of_a_loop_are_equal_quantiles_of_the_law_of_the_model():
    """From the noisiest time to 0.94, where the tokens are read off: at step i of 4 the share that
    is noisier is i/4 of that at 0.94."""
    class Recorder(ExactBridge):
        def __call__(self, x, s, t):
            asked.append(s[0, 0].double())
            return super().__call__(x, s, t)

    asked, exact = [], Recorder([[0, 0], [1, 1]])
    exact.curve = (-torch.linspace(-3, 5, 33)).sigmoid()
    unknown = torch.zeros(1, 2, dtype=torch.int64)
    token_promotion(exact, unknown, unknown.bool(), 1, steps=4, generator=seeded())
    shares = look_up(law_of_clearness(exact.curve), clearness(torch.stack(asked), 1))
    assert asked[-1].item() == pytest.approx(0.94)
    assert (shares / shares[-1]).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-5)
    assert abs(clearness(asked[2], 1) - clearness(asked[-1], 1) / 2) > 0.02  # no half of gamma


def test_the_curve_goes_a_200th_of_the_way_to_the_mean_loss_of_each_clearness():
    """It begins as a line from log 3 to 0. Of losses 2 and 4 at the clearest, 1 at 0.49 / 32, next
    to the noisiest, the means are 3 and 1; where nothing was measured it stays."""
    model = bridge_network()
    line = math.log(3) * torch.linspace(1, 0, 33)
    assert model.curve.equal(line)
    sums = losses_by_clearness(exactly([1, 0.49 / 32, 1]), exactly([2, 1, 4]), 33)
    assert sums[:, [0, 16, 32]].tolist() == [[1, 0, 6], [1, 0, 2]]
    average = EMA(model, 0.5).model
    model.measured(*sums.float())
    assert model.curve[0].item() == pytest.approx(0.995 * math.log(3) + 0.005)
    assert model.curve[-1].item() == pytest.approx(0.015)
    assert model.curve[1:-1].equal(line[1:-1])
    assert average.curve.equal(model.curve)  # who samples from the average has the law of training


def test_a_step_measures_the_loss_of_each_sequence_where_it_was_drawn():
    """Each is the mean over its corrupted tokens, and the loss the mean over sequences."""
    seen, (x1, context, noise) = {}, corrupted_batch()
    context[:, 0] = False
    t, model = torch.linspace(0.1, 0.9, 40), opinionated(bridge_network())
    loss = mlfm_loss(model, x1, context, t, noise, 0.5, seen)
    alone = [mlfm_loss(model, *(part[i:i + 1] for part in (x1, context, t, noise)), 0.5)
             for i in (0, 7)]
    assert seen["each"][[0, 7]].tolist() == pytest.approx([each.item() for each in alone], rel=1e-5)
    assert seen["each"].mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_clearness_is_the_number_worked_out_by_hand():
    """sigma = 2, t = 4/5: gamma = log(4 * 1/4) = 0, so 6/16. sigma = 1, t = 1/2: also 0.
    t = 1/(1 + e^6) and 1/(1 + e^-10) are the ends; beyond them, at 0 and 1 too, it is 0 and 1."""
    t = exactly([0.5, 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(7)), 0, 1])
    assert clearness(exactly([0.8]), 2).tolist() == pytest.approx([0.375], abs=1e-15)
    assert clearness(t, 1).tolist() == pytest.approx([0.375, 0, 1, 0, 0, 1], abs=1e-12)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    for sigma in 0.2, 1, 3:
        assert (clearness(inverse_clearness(u, sigma), sigma) - u).abs().max() < 1e-12
        assert (inverse_clearness(u, sigma).diff() > 0).all()


def test_corrupted_are_0_05_and_the_rest_by_cos_of_a_quarter_turn():
    """rate = 0.05 + 0.95 cos(pi U / 2), U one a stratum: of 400 sequences of 500 tokens the sorted
    shares are these rates, to five deviations of 500 coins, at most 5/2/sqrt(500); the mean is
    0.05 + 0.95 * 2/pi = 0.6548."""
    context = sample_bridge_context(torch.zeros(400, 500, dtype=torch.bool), Draws(seeded()))
    share = (~context).double().mean(1).sort(descending=True).values
    rate = 0.05 + 0.95 * (math.pi / 2 * (torch.arange(400) + 0.5) / 400).cos()
    assert ((share - rate).abs() < 2.5 / math.sqrt(500)).all()
    assert abs(share.mean() - 0.6548) < 0.005 and share.min() > 0.01


def test_at_least_one_token_is_corrupted_and_each_as_often_where_there_is_something():
    """Two tokens, one of them a prompt: the other always. Two without: when the rate would corrupt
    none, one of them by a coin, so either one alone is as frequent as the other."""
    prompt = torch.tensor([[True, False]]).expand(200, 2)
    assert sample_bridge_context(prompt, Draws(seeded())).equal(prompt)
    everything = torch.ones(200, 2, dtype=torch.bool)
    assert sample_bridge_context(everything, Draws(seeded())).all()
    context = sample_bridge_context(torch.zeros(20000, 2, dtype=torch.bool), Draws(seeded()))
    assert (~context).any(1).all()
    single = context[context.any(1)]
    assert within_five_errors(single.double(), 0.5)


def test_of_sequences_with_a_prompt_half_have_all_the_rest_corrupted():
    """By coins: 5/2/sqrt(n) around 1/2, and 500 tokens at a rate below 1 never are all corrupted
    but for the strata above 0.99."""
    prompt = torch.arange(500).expand(1000, 500) < 100
    context = sample_bridge_context(prompt, Draws(seeded()))
    assert context[prompt].all()
    whole = (context == prompt).all(1).double().mean()
    assert 0.5 - 2.5 / math.sqrt(1000) < whole < 0.5 + 2.5 / math.sqrt(1000) + 0.06
    some = context[~(context == prompt).all(1)][:, 100:]
    # the others keep the law: 0.6548 corrupted, less what the strata near 1 take from it
    assert abs((~some).double().mean() - 0.6548) < 0.04
    without = sample_bridge_context(torch.zeros_like(prompt), Draws(seeded()))
    assert (without.any(1)).double().mean() > 0.9


# ---- the exact posterior

def test_the_posterior_of_two_modes_is_the_number_worked_out_by_hand():
    """t = 1/2, sigma = 2: evidence x / (4 * 1/2); the lead of mode 00 is ((1 - 0) + (0.5 - 0.25)) /
    2 = 0.625."""
    x = torch.tensor([[[1, 0], [0.5, 0.25]]], dtype=torch.float64)
    expected = 1 / (1 + math.exp(-0.625))
    delta = ExactBridge(MODES, sigma=2)(x, at(0.5, x), at(0.5, x)).exp()
    assert delta[0, :, 0].tolist() == pytest.approx([expected, expected], abs=1e-14)


@pytest.mark.parametrize("sigma", [0.5, 1, 3])
@pytest.mark.parametrize("times", [[0.1, 0.6, 0.3], [0.4, 1.0, 0.7]], ids=["no context", "context"])
def test_the_posterior_is_bayes_rule_with_the_density_of_the_bridge(sigma, times):
    """Gaussian densities multiplied sequence by sequence; a token at t = 1 is 1 where it fits and 0
    where it does not."""
    x, t = randn(1, 3, 3), exactly([times])
    x[:, 1] = torch.where(t[:, 1:2] == 1, F.one_hot(torch.tensor(2), 3), x[:, 1])
    likelihood = []
    for sequence, weight in zip(SEQUENCES, WEIGHTS):
        for l, token in enumerate(sequence):
            point, time = F.one_hot(torch.tensor(token), 3), times[l]
            if time == 1:
                weight *= float(x[0, l].equal(point.double()))
            else:
                law = torch.distributions.Normal(time * point.double(),
                                                 sigma * math.sqrt(time * (1 - time)))
                weight *= law.log_prob(x[0, l]).sum().exp()
        likelihood.append(weight)
    p = torch.tensor(likelihood, dtype=torch.float64)
    expected = torch.einsum("k,klv->lv", p / p.sum(),
                            F.one_hot(torch.tensor(SEQUENCES), 3).double())
    assert (ExactBridge(SEQUENCES, WEIGHTS, sigma)(x, t, t).exp()[0] - expected).abs().max() < 1e-12
    assert t[0, 1] < 1 or expected[:, 0].tolist() == pytest.approx([0, 0, float(expected[2, 0])])


@pytest.mark.parametrize("sigma", [0.5, 1, 2])
def test_at_equal_signal_to_noise_the_bridge_and_the_flow_know_the_same(sigma):
    """x_t / t = x1 + sigma sqrt((1-t)/t) noise on the bridge and x1 + (1-t)/t noise in the flow:
    the flow's time t' with t'/(1-t') = sqrt(t/(1-t)) / sigma sees the same signal under the same
    noise."""
    x1, noise = draws(THREE, 200)
    for t in 0.01, 0.3, 0.8:
        rho = math.sqrt(t / (1 - t)) / sigma
        flow = rho / (1 + rho)
        expected = Exact(SEQUENCES, WEIGHTS)((1 - flow) * noise + flow * x1, at(flow, x1),
                                             at(flow, x1)).exp()
        delta = ExactBridge(SEQUENCES, WEIGHTS, sigma)(bridge(x1, noise, at(t, x1), sigma),
                                                       at(t, x1), at(t, x1)).exp()
        assert (delta - expected).abs().max() < 1e-10


def test_from_mask_on_it_moves_as_fast_as_its_formula_says():
    """p_k ~ w_k exp(<x, y_k> / sigma^2) near t = 0, where x = sigma sqrt(t) noise: D = D_0 +
    sqrt(t)/sigma Cov(y, <noise, y>) + O(t). The excess over the linear term therefore falls by 100
    from t = 1e-4 to 1e-6."""
    x1, noise = draws(THREE, 100)
    model, y = ExactBridge(SEQUENCES, WEIGHTS, 0.5), F.one_hot(torch.tensor(SEQUENCES), 3).double()
    w = exactly(WEIGHTS)
    start = torch.einsum("k,klv->lv", w, y)
    evidence = torch.einsum("blv,klv->bk", noise, y)
    slope = torch.einsum("bk,klv->blv", w * (evidence - evidence @ w[:, None]), y) / 0.5
    excess = [(model(bridge(x1, noise, at(t, x1), 0.5), at(t, x1),
                     at(t, x1)).exp() - start - math.sqrt(t) * slope).abs().max()
              for t in (1e-4, 1e-6)]
    assert slope.abs().max() > 0.5 and excess[0] < 1e-2
    assert excess[0] / excess[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("sigma", [0.1, 1])
@pytest.mark.parametrize("t", [1 - 1e-3, 1 - 1e-7, 1 - 1e-15, 1.0])
def test_near_the_data_the_posterior_is_the_data_without_nan(t, sigma):
    x1, noise = draws(THREE, 100)
    log_delta = ExactBridge(SEQUENCES, WEIGHTS, sigma)(bridge(x1, noise, at(t, x1), sigma),
                                                       at(t, x1), at(t, x1))
    assert not log_delta.isnan().any() and (log_delta.exp() - x1).abs().max() < 1e-9


@pytest.mark.parametrize("t", [0.2, 0.6])
def test_the_posterior_is_calibrated_on_the_bridge(t):
    """E[x1 given D] = D: so D has the mean of the data, and x1 - D is uncorrelated with any
    function of D, here D itself."""
    x1, noise = draws(THREE, 20000)
    delta = THREE(bridge(x1, noise, at(t, x1)), at(t, x1), at(t, x1)).exp()
    assert within_five_errors(delta, torch.einsum("k,klv->lv", THREE.weights,
                                                  F.one_hot(THREE.sequences, 3).double()))
    assert within_five_errors((x1 - delta) * delta, 0)
    assert delta.var(0).amax() > 0.02  # it does say something


def test_the_posterior_is_a_martingale_along_steps_to_a_clean_point_drawn_from_it():
    """From one x_s draw x1 from the posterior, step to x_t: the mean of D_t(x_t) is D_s(x_s)."""
    n, s, t = 20000, 0.3, 0.7
    x = bridge(*draws(THREE, 1), torch.full((1, 3), s, dtype=torch.float64))
    now = THREE(x, at(s, x), at(s, x)).exp()
    # the first tokens tell the three sequences apart
    p = torch.stack([now[0, 0, 0], now[0, 0, 1], now[0, 0, 2]])
    assert p.max() < 0.9
    clean = F.one_hot(torch.tensor(SEQUENCES)[torch.multinomial(p, n, True, generator=seeded(5))],
                      3).double()
    x = bridge_step(x.expand(n, 3, 3), clean, at(s, clean), at(t, clean), randn(n, 3, 3, seed=6))
    delta = THREE(x, at(t, x), at(t, x)).exp()
    assert within_five_errors(delta, now[0]) and delta.var(0).amax() > 0.02


def test_the_exact_model_ignores_the_second_time_and_keeps_the_dtype():
    x1, noise = (part.float() for part in draws(THREE, 10))
    x, s = bridge(x1, noise, at(0.4, x1)), at(0.4, x1)
    log_delta = THREE(x, s, s)
    assert log_delta.dtype == torch.float32 and (log_delta.exp().sum(-1) - 1).abs().max() < 1e-6
    assert THREE(x, s, at(1.0, x)).equal(log_delta) and THREE(x, s, at(0.6, x)).equal(log_delta)


def test_bad_calls_of_the_exact_model_are_refused_in_words():
    x = F.one_hot(torch.tensor([[0, 1]]), 2).double()  # 01: no such sequence
    with pytest.raises(ValueError, match="no sequence"):
        TWO(x, at(1.0, x), at(1.0, x))
    with pytest.raises(ValueError, match="finite"):
        TWO(x * math.nan, at(0.5, x), at(0.5, x))
    with pytest.raises(ValueError, match="these sequences"):
        TWO(torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.zeros(1, 3))
    for s, t in (-0.1, 0.5), (0.5, 1.1), (0.6, 0.5):
        with pytest.raises(ValueError, match="times"):
            TWO(x, at(s, x), at(t, x))


# ---- the SDE with the exact posterior: where it ends

def endpoint_law(steps, temperature=1.0, sigma=1.0):
    """The law of what a loop of token promotion draws from TWO: P(00), P(11), P(01 or 10), by
    quadrature, float64.

    Only the lead l of mode 00 in log odds matters, and in r = e^-gamma = t / (sigma^2 (1-t)) its
    step is l' = l + a tanh(l/2) + sqrt(2 a) noise, a = n (r_t - r_s), with n = 2 tokens that
    differ. It begins as pure noise of variance 2 n r_0, r_0 = e^-6, around log(3/7); r grows by
    equal factors up to 0.94 / (0.06 sigma^2). Beyond 40 nats a mode has won. The read-out draws
    both tokens with p = 1 / (1 + e^(-l/temperature)), one independent of the other. Cells of 0.05
    nats, where the narrowest step, of 8, is 0.09 or more.
    """
    cells = (torch.arange(1600).double() + 0.5) / 20 - 40
    end = 0.94 / 0.06 / sigma**2
    r = [math.exp(-6) ** (1 - i / steps) * end ** (i / steps) for i in range(steps + 1)]
    mass = (-(cells - math.log(0.3 / 0.7)) ** 2 / (8 * r[0])).exp()
    mass, won = mass / mass.sum(), exactly([0, 0])
    for before, after in zip(r, r[1:]):
        a = 2 * (after - before)
        mean = cells + a * (cells / 2).tanh()
        won += torch.stack([mass @ torch.special.ndtr((sign * mean - 40) / math.sqrt(2 * a))
                            for sign in (1, -1)])
        density = (-(cells[:, None] - mean) ** 2 / (4 * a)).exp() / math.sqrt(4 * math.pi * a)
        mass = density @ mass / 20
    p = (cells / temperature).sigmoid()
    return torch.stack([won[0] + mass @ p**2, won[1] + mass @ (1 - p) ** 2,
                        mass @ (2 * p * (1 - p))])


def endpoints(exact, n, steps, temperature=1.0):
    """Of n draws, how many are each of the sequences, and how many none of them."""
    length = exact.sequences.shape[1]
    nothing = torch.zeros(n, length, dtype=torch.int64), torch.zeros(n, length, dtype=torch.bool)
    drawn = token_promotion(exact, *nothing, 1, steps=steps, temperature=temperature,
                            generator=seeded())
    counts = (drawn[:, None] == exact.sequences).all(-1).sum(0)
    return torch.cat([counts, n - counts.sum(0, keepdim=True)]).double()


def chi_square(counts, law):
    expected = counts.sum() * law
    return ((counts - expected) ** 2 / expected).sum()


def test_the_read_out_alone_draws_tokens_apart_and_cold_it_takes_the_likelier():
    """On nearly [MASK]: 0.3^2 = 9%, 0.7^2 = 49%, and 2 * 0.3 * 0.7 = 42% that is no sequence, but
    for a noise of 0.1 nats. At temperature 0.1 the odds are (3/7)^10 = 1 : 4780, with that noise
    less than 1 : 1000 on average."""
    law = exactly([0.09, 0.49, 0.42])
    assert chi_square(endpoints(TWO, 4000, 0), law) < 13.82
    assert endpoints(TWO, 4000, 0, 0.1)[1] > 3980


def test_quadrature_agrees_with_arithmetic_on_one_step():
    """One step: a = 2 (r_1 - r_0) from a start that is normal with variance 4 r_0."""
    z = torch.linspace(-8, 8, 801, dtype=torch.float64)
    weight = (-z * z / 2).exp() / math.sqrt(2 * math.pi) / 50
    start = math.log(0.3 / 0.7) + 2 * math.exp(-3) * z
    a = 2 * (0.94 / 0.06 - math.exp(-6))
    p = (start + a * (start / 2).tanh() + math.sqrt(2 * a) * z[:, None]).sigmoid()
    expected = [float(weight @ v @ weight) for v in (p**2, (1 - p) ** 2, 2 * p * (1 - p))]
    assert endpoint_law(1).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature, sigma", [(1, 1), (0.1, 1), (1, 0.5)])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_loop_ends_in_the_law_of_its_number_of_steps(steps, temperature, sigma):
    """4,000 draws, three kinds of them: chi-square of 2 degrees of freedom, beyond 13.82 once in
    1,000. The law of twice as many steps is another, where they are few."""
    counts = endpoints(ExactBridge(MODES, SHARES, sigma), 4000, steps, temperature)
    law = endpoint_law(steps, temperature, sigma)
    assert law.sum() == pytest.approx(1, abs=1e-6)
    assert chi_square(counts, law) < 13.82
    if steps < 4:
        assert chi_square(counts, endpoint_law(2 * steps, temperature, sigma)) > 13.82


@pytest.mark.parametrize("exact, critical",
                         [(TWO, 10.83), (THREE, 13.82), (ExactBridge(MODES, SHARES, 0.5), 10.83)],
                         ids=["two modes", "three sequences", "two modes, sigma 0.5"])
def test_as_published_an_exact_model_draws_from_the_law_of_the_data(exact, critical):
    """256 steps and a read-out at 0.1, 2,000 draws: nothing but sequences of the set, and as often
    as they should be: the chi-square test, whose critical value is passed once in 1,000. It would
    see a share that is 3.4 points off; quadrature says 0.4 points for 64 steps of TWO."""
    counts = endpoints(exact, 2000, 256, 0.1)
    assert counts[-1] == 0 and chi_square(counts[:-1], exact.weights) < critical


# ---- the loss

def test_the_loss_is_a_mean_within_each_sequence_first_and_asks_on_the_bridge():
    """Three sequences of three tokens, a model that gives the right token e^-1, e^-2, e^-6 by
    place; corrupted are places 1 and 3 of the first, 2 of the second and none of the third:
    ((1 + 6) / 2 + 2) / 2 = 2.75, where a mean over tokens would be 3."""
    x1 = torch.tensor([[1.0, 0]]).expand(3, 3, 2)
    context = torch.tensor([[False, True, False], [True, False, True], [True, True, True]])
    noise, asked = torch.randn(3, 3, 2, generator=seeded()), []

    def model(x, s, t):
        asked.append((x, s, t))
        return torch.tensor([-1.0, -2, -6])[None, :, None].expand(3, 3, 2)

    times = torch.tensor([0.2, 0.5, 0.7])
    assert mlfm_loss(model, x1, context, times, noise, 2) == 2.75
    x, s, t = asked[0]
    expected = torch.tensor([[0.2, 1, 0.2], [1, 0.5, 1], [1, 1, 1]])
    assert s.equal(expected) and t.equal(expected) and x[context].equal(x1[context])
    # sigma sqrt(t (1-t)) = 2 * 2/5 and 2 * 1/2
    spread = torch.tensor([0.8, 1.0, 0])[:, None, None]
    assert (x - expected[..., None] * x1 - spread * noise)[~context].abs().max() < 1e-6
    assert mlfm_loss(model, x1, torch.ones_like(context), times, noise) == 0
    mlfm_loss(model, x1, context, times, noise)
    (x, _, _), spread = asked[-1], spread / 2
    assert (x - expected[..., None] * x1 - spread * noise)[~context].abs().max() < 1e-6


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_loss_of_the_exact_posterior_is_the_entropy_that_is_left_and_no_model_has_less(t):
    """The lead of 00 given its mode is N(+-A, 2A) from log(3/7), A = n t / (sigma^2 (1-t)) with n =
    2; the entropy of each token is that of a coin of that lead, integrated here. Other models pay
    the divergence, on the same draws."""
    n = 40000
    x1, noise = draws(TWO, n)
    x = bridge(x1, noise, at(t, x1))
    # one a sequence: their spread is the error
    losses = lambda model: -(model(x, at(t, x), at(t, x)) * x1).sum(-1).mean(1)
    a, z = 2 * t / (1 - t), torch.linspace(-10, 10, 4001, dtype=torch.float64)
    weight, entropy = (-z * z / 2).exp() / math.sqrt(2 * math.pi) / 200, 0
    for share, sign in (0.3, 1), (0.7, -1):
        p = (math.log(0.3 / 0.7) + sign * a + math.sqrt(2 * a) * z).sigmoid()
        entropy += share * weight @ (torch.special.entr(p) + torch.special.entr(1 - p))
    exact = losses(TWO)
    loss = mlfm_loss(TWO, x1, torch.zeros(n, 2, dtype=torch.bool),
                     torch.full((n,), t, dtype=torch.float64), noise)
    assert loss.item() == pytest.approx(exact.mean().item(), rel=1e-12)
    assert within_five_errors(exact, entropy) and entropy > 0.1
    for other in ExactBridge(MODES, SHARES, 1.3), ExactBridge(MODES, SHARES,
                                                              0.8), ExactBridge(MODES, [0.5, 0.5]):
        excess = losses(other) - exact
        assert excess.mean() > 5 * excess.std() / math.sqrt(n)


# ---- the network

FOURS = torch.tensor([[i, j] for i in range(2) for j in range(3)])


def opinionated(model, seed=1):
    """Random weights, away from the zeros of the start."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def corrupted_batch(n=40, vocab_size=3):
    """x1, context and noise for `FOURS`."""
    x1 = F.one_hot(torch.randint(vocab_size, (n, 6), generator=seeded(3)), vocab_size).float()
    context = torch.rand(n, 6, generator=seeded(4)) < 0.4
    return x1, context, torch.randn(x1.shape, generator=seeded(5))


def bridge_network(sigma=0.5):
    model = BridgeDenoiser(3, FOURS, width=16, depth=2, heads=2)
    model.sigma.fill_(sigma)
    return model


@pytest.mark.parametrize("sigma", [0.2, 1])
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.1, 0.5, 0.94, 1 - 1e-6])
def test_the_weights_of_an_mdm_give_its_answer_at_every_time_bit_for_bit(t, sigma):
    """Also of an MDM that began as a flow map, whose second time has learned."""
    mdm = opinionated(Denoiser(3, FOURS, width=16, depth=2, heads=2))
    model, (x1, context, noise) = bridge_network(sigma), corrupted_batch()
    missing, unknown = model.load_state_dict(mdm.state_dict(), strict=False)
    assert not unknown and {name.split(".")[0] for name in missing} == {"sigma", "curve",
                                                                        "gate", "time_bridge"}
    time = torch.where(context, 1.0, t)
    masked = mdm(x1 * context[..., None], context.float(), context.float())
    assert model(bridge(x1, noise, time, sigma), time, time).equal(masked)


def test_from_an_mdm_on_the_gate_and_the_time_learn_and_then_the_answer_depends_on_both():
    model = bridge_network()
    mdm = opinionated(Denoiser(3, FOURS, width=16, depth=2, heads=2))
    model.load_state_dict(mdm.state_dict(), strict=False)
    x1, context, noise = corrupted_batch()
    loss = lambda: mlfm_loss(model, x1, context, torch.full((40,), 0.4), noise, 0.5)
    loss().backward()
    new = [model.gate.weight, model.gate.bias, model.time_bridge.mlp[-1].weight]
    assert all(weight.grad.abs().max() > 1e-6 for weight in new)
    optimizer, first = torch.optim.SGD(model.parameters(), lr=1e-3), loss().item()
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        loss().backward()
    assert loss() < first
    ask = lambda x, t: model(torch.where(context[..., None], x1, x), *2 * (
        torch.where(context, 1.0, t),))
    assert (ask(noise, 0.4) - ask(-noise, 0.4)).abs().max() > 1e-5
    assert (ask(noise, 0.4) - ask(noise, 0.8)).abs().max() > 1e-5


def test_the_network_ignores_the_second_time_and_context_is_read_as_it_is():
    model, (x1, context, noise) = opinionated(bridge_network()), corrupted_batch()
    s = torch.where(context, 1.0, 0.3)
    x = bridge(x1, noise, s, 0.5)
    assert model(x, s, torch.where(context, 1.0, 0.9)).equal(model(x, s, s))
    assert not model(torch.where(context[..., None], 2 * x, x), s, s).equal(model(x, s, s))


@pytest.mark.parametrize("other", [0.2, 2])
def test_given_the_noise_to_signal_neither_the_posterior_nor_the_network_depends_on_sigma(other):
    """x_t = t (x1 + e^(gamma/2) noise): sigma only says at which t a gamma is. So a network learns
    the same from either, and what sigma decides is the noise at t = 0.94, where a loop ends."""
    x1, context, noise = corrupted_batch()
    answers = []
    for sigma in 1, other:
        model, exact = opinionated(bridge_network(sigma)), ExactBridge([[0, 0, 1, 1, 2, 2],
                                                                        [1, 1, 2, 2, 0, 0]],
                                                                       sigma=sigma)
        for u in 0.1, 0.3, 0.6:
            t = torch.full((40, 6), float(inverse_clearness(exactly([u]), sigma)))
            x = bridge(x1, noise, t, sigma)
            answers.append(torch.cat([model(x, t, t), exact(x, t, t)]).exp())
    one, two = answers[:3], answers[3:]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(one, two))
    assert (one[0] - one[1]).abs().max() > 0.01


# ---- sigma, from the command line to the sampler

TINY = ("sudoku4 --width 16 --depth 1 --heads 1 --batch 8 --no-compile --device cpu "
        "--no-table").split()


def trained(path, *arguments):
    assert main([*TINY, "--objective", "mlfm", "--steps", "2", "--out", str(path),
                 *arguments]) == 0
    return path


def test_sigma_travels_with_the_weights_and_the_sampler_uses_it(tmp_path):
    """At its start x is noise of variance sigma^2 t (1-t), t = 1 / (1 + e^6 / sigma^2)."""
    for sigma, words in (0.5, []), (0.7, ["--sigma", "0.7"]):
        path = trained(tmp_path / f"{sigma}.pt", *words)
        model, info = load_checkpoint(path)
        assert info["options"]["sigma"] == sigma
        assert float(model.sigma) == pytest.approx(sigma, abs=1e-7)
        asked, forward = [], model.forward
        model.forward = lambda x, s, t: asked.append((x, s)) or forward(x, s, t)
        nothing = torch.zeros(200, 16, dtype=torch.int64), torch.zeros(200, 16, dtype=torch.bool)
        token_promotion(model, *nothing, 1, steps=1, generator=seeded())
        start = 1 / (1 + math.exp(6) / sigma**2)
        assert asked[0][1].unique().tolist() == pytest.approx([start], rel=1e-5)
        variance = float(asked[0][0].var()) / (sigma**2 * start * (1 - start))
        assert abs(variance - 1) < 5 * math.sqrt(2 / 12800)
        assert asked[1][1].unique().tolist() == pytest.approx([0.94])


def test_another_run_may_start_from_it_with_a_sigma_of_its_own_and_ships_it(tmp_path):
    first = trained(tmp_path / "first.pt", "--sigma", "0.3")
    second = trained(tmp_path / "second.pt", "--init", str(first))
    assert float(read_checkpoint(second)["model"]["sigma"]) == 0.5
    assert main(["--resume", str(first), "--ship", str(tmp_path / "ship.pt")]) == 0
    assert float(load_checkpoint(tmp_path / "ship.pt")[0].sigma) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("words, said", [
    *((["--objective", "mlfm", "--sigma", text], "argument --sigma: must be a number above 0")
      for text in ("0", "-1", "inf", "nan", "some")),
    *((["--objective", objective, "--sigma", "1"], f"--sigma is for mlfm, not for {objective}")
      for objective in ("mdm", "fmlm+", "flm"))])
def test_a_sigma_that_makes_no_sense_is_refused_in_one_sentence(words, said, tmp_path, capsys):
    assert main([*TINY, *words, "--out", str(tmp_path / "x.pt")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("train.py: ") and said in printed and printed.count("\n") == 1


def test_a_run_goes_on_with_its_sigma_alone(tmp_path, capsys):
    path = trained(tmp_path / "run.pt", "--sigma", "0.3")
    assert main(["--resume", str(path), "--sigma", "0.4", "--steps", "3"]) == 2
    assert "a run with sigma 0.3, not 0.4" in capsys.readouterr().err
    assert main(["--resume", str(path), "--steps", "3", "--no-compile", "--no-table"]) == 0
    state = read_checkpoint(path)
    assert (state["step"], state["options"]["sigma"]) == (3, 0.3)
    assert float(state["model"]["sigma"]) == pytest.approx(0.3)


def test_an_mlfm_of_an_older_form_is_refused_in_one_sentence_for_all_it_could_be_used(
        tmp_path, capsys):
    """Its network was an MDM's, and its options knew no sigma. One of another objective without
    sigma among its options goes on."""
    path, other = trained(tmp_path / "old.pt"), tmp_path / "mdm.pt"
    state = torch.load(path)
    for part in "model", "running":
        state[part] = {name: weight for name, weight in state[part].items()
                       if name.split(".")[0] not in (
                           "sigma", "curve", "gate", "time_bridge")}
    del state["options"]["sigma"]
    torch.save(state, path)
    capsys.readouterr()
    for words in (["--resume", str(path), "--steps", "3"],
                  [*TINY, "--objective", "mlfm", "--init", str(path), "--out", f"{path}.new"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"{path} is an MLFM of an older form" in said and said.count("\n") == 1
    with pytest.raises(ValueError, match="is an MLFM of an older form"):
        load_checkpoint(path)
    assert main([*TINY, "--objective", "mdm", "--steps", "2", "--out", str(other)]) == 0
    state = torch.load(other)
    del state["options"]["sigma"]
    torch.save(state, other)
    assert main(["--resume", str(other), "--steps", "3", "--no-compile", "--no-table"]) == 0
