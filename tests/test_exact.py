"""The judge is right: toy.exact against hand arithmetic, enumeration, the plain ODE in t, and the
law of the data."""

import math

import pytest
import torch
import torch.nn.functional as F

from sudoku.boards import SHAPES, all_boards
from toy.exact import Exact, two_mode_closed_form

THREE = Exact([[0, 0, 1], [1, 2, 1], [2, 2, 0]], [0.2, 0.5, 0.3])
TWO = Exact([[0, 0], [1, 1]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def at(time, x):
    return torch.full(x.shape[:2], time, dtype=x.dtype)


# ---- diagonal

def test_the_denoiser_of_two_modes_is_the_number_worked_out_by_hand():
    # t = 1/2: rho = 1, y = 2 x, lead of mode 00 = rho <y, y_1 - y_2> = (2 - 0) + (1 - 0.5) = 2.5.
    x = torch.tensor([[[1, 0], [0.5, 0.25]]], dtype=torch.float64)
    expected = 1 / (1 + math.exp(-2.5))
    half = at(0.5, x)
    delta = TWO(x, half, half).exp()
    assert delta[0, :, 0].tolist() == pytest.approx([expected, expected], abs=1e-14)


def test_the_denoiser_is_bayes_rule_with_a_time_for_every_token():
    """The posterior of a finite set, sequence by sequence in plain Python."""
    x, t = randn(1, 3, 3), torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64)
    likelihood = []
    for sequence, weight in ([0, 0, 1], 0.2), ([1, 2, 1], 0.5), ([2, 2, 0], 0.3):
        for l, token in enumerate(sequence):
            point = F.one_hot(torch.tensor(token), 3)
            gap = (x[0, l] - t[0, l] * point).square().sum()
            weight *= math.exp(-gap / (2 * (1 - t[0, l]) ** 2))
        likelihood.append(weight)
    p = torch.tensor(likelihood, dtype=torch.float64) / sum(likelihood)
    one_hot = lambda token: F.one_hot(torch.tensor(token), 3)
    expected = torch.stack([p[0] * one_hot(a) + p[1] * one_hot(b) + p[2] * one_hot(c)
                            for a, b, c in ([0, 1, 2], [0, 2, 2], [1, 1, 0])])
    assert (THREE(x, t, t).exp()[0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("t", [1 - 1e-3, 1 - 1e-7, 1 - 1e-15, 1.0])
def test_near_the_data_the_denoiser_is_the_data_without_nan(t):
    y = F.one_hot(THREE.sequences, 3).double()
    x = (1 - t) * randn(*y.shape) + t * y
    log_delta = THREE(x, at(t, x), at(t, x))
    assert not log_delta.isnan().any() and (log_delta.exp() - y).abs().max() < 1e-9


def test_noise_decides_nothing_at_time_0_and_a_known_token_decides_what_it_can():
    """Token 1 = 2 leaves the sequences 121 and 220 with weights 5 : 3, whatever the noise says."""
    x = randn(50, 3, 3)
    x[:, 1] = torch.tensor([0.0, 0, 1])
    time = torch.tensor([[0.0, 1, 0]]).double().expand(50, 3)
    expected = torch.tensor([[0, 0.625, 0.375], [0, 0, 1], [0.375, 0.625, 0]]).double()
    assert (THREE(x, time, time).exp() - expected).abs().max() < 1e-12
    tokens, known = torch.tensor([[-1, 2, -1]]), torch.tensor([[False, True, False]])
    assert (THREE.marginals(tokens, known) - expected).abs().max() < 1e-12


# ---- off the diagonal

def test_delta_is_right_to_1e_8_against_the_scalar_equation_of_two_modes():
    """g' = n tanh(rho g / 2), n = 2, by 4,000 steps of Runge-Kutta: mean of D = mean of (1 +
    tanh(rho g / 2)) / 2."""
    s, t = 0.2, 0.75
    x = randn(200, 2, 2)
    rho, end, steps = s / (1 - s), t / (1 - t), 4000
    start = g = (x[..., 0] - x[..., 1]).sum(1) / (1 - s)
    h = (end - rho) / steps
    slope = lambda at, g: 2 * torch.tanh(at * g / 2)
    for i in range(steps):
        r = rho + i * h
        a = slope(r, g)
        b = slope(r + h / 2, g + h / 2 * a)
        c = slope(r + h / 2, g + h / 2 * b)
        g = g + h / 6 * (a + 2 * b + 2 * c + slope(r + h, g + h * c))
    first = 0.5 + (g - start) / (end - rho) / 4  # g' = 2 (2 p - 1)
    delta = TWO(x, at(s, x), at(t, x)).exp()
    assert (delta[..., 0] - first[:, None]).abs().max() < 1e-8
    assert (delta.sum(-1) - 1).abs().max() < 1e-12


def test_delta_is_right_against_the_flow_in_x_and_t_as_the_paper_writes_it():
    """dx/dt = (D_t(x) - x) / (1-t) with unequal weights and a known token, by 2,000 steps of
    Runge-Kutta in t."""
    s, t, steps = 0.1, 0.8, 2000
    x = randn(20, 3, 3)
    x[:, 1] = torch.tensor([0.0, 0, 1])
    start, h = x, (t - s) / steps

    def time(value):
        times = at(value, x)
        times[:, 1] = 1
        return times

    def v(now, x):
        return (THREE(x, time(now), time(now)).exp() - x) / (1 - now)

    for i in range(steps):
        r = s + i * h
        a = v(r, x)
        b = v(r + h / 2, x + h / 2 * a)
        c = v(r + h / 2, x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + v(r + h, x + h * c))
    expected = (x - (1 - t) / (1 - s) * start) * (1 - s) / (t - s)
    delta = THREE(start, time(s), time(t)).exp()
    assert (delta - expected)[:, [0, 2]].abs().max() < 1e-8
    assert (delta - start)[:, 1].abs().max() < 1e-14


@pytest.mark.parametrize("s", [0.0, 0.3, 0.9])
def test_one_step_of_two_equal_modes_is_the_closed_form(s):
    x = randn(5000, 2, 2)
    expected = two_mode_closed_form(x, torch.tensor([[0, 0], [1, 1]]), s, 1)
    nearer = (x.sum(1).argmax(-1))[:, None].expand(-1, 2)  # <x, y_k> = x[0, k] + x[1, k]
    assert expected.equal(F.one_hot(nearer, 2).double())
    assert (TWO(x, at(s, x), at(1.0, x)).exp() - expected).abs().max() <= 1e-12


def test_the_closed_form_on_the_diagonal_and_its_limits():
    modes = torch.tensor([[0, 1, 0], [0, 0, 2]])  # they differ in two tokens of three
    model, x = Exact(modes), randn(100, 3, 3)
    for s in (0.0, 0.3, 0.8):
        delta = model(x, at(s, x), at(s, x)).exp()
        assert (delta - two_mode_closed_form(x, modes, s, s)).abs().max() < 1e-12
    tie = torch.zeros(1, 3, 3, dtype=torch.float64)
    expected = torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]]]).double()
    assert two_mode_closed_form(tie, modes, 0, 1).equal(expected)
    assert (model(tie, at(0.0, tie), at(1.0, tie)).exp() - expected).abs().max() < 1e-12
    for s, t in (0.2, 0.5), (0.5, 0.2), (-0.1, 1), (1, 1.1):
        with pytest.raises(ValueError, match="closed form"):
            two_mode_closed_form(x, modes, s, t)


def test_delta_approaches_the_diagonal_as_t_approaches_s():
    x = randn(50, 3, 3)
    diagonal = THREE(x, at(0.4, x), at(0.4, x)).exp()
    error = [(THREE(x, at(0.4, x), at(0.4 + gap, x)).exp() - diagonal).abs().max()
             for gap in (1e-3, 1e-5)]
    # the mean of D over a path of length h is D + O(h)
    assert error[0] / error[1] == pytest.approx(100, rel=0.02)


def test_the_flow_map_carries_noise_to_the_data_with_the_weights_of_the_data():
    n = 4000
    x = randn(n, 3, 3)
    drawn = THREE(x, at(0.0, x), at(1.0, x)).exp()
    assert drawn.amax(-1).min() > 1 - 1e-12  # one step gives sequences,
    share = (drawn.argmax(-1)[:, None] == THREE.sequences).all(-1).double().mean(0)
    assert share.sum() == 1  # only those of the set,
    # and each as often as it should: 4.5 sigma
    margin = 4.5 * (THREE.weights * (1 - THREE.weights) / n).sqrt()
    assert ((share - THREE.weights).abs() < margin).all()


# ---- a mixed batch, boards, and what is refused

def test_rows_of_a_batch_do_not_mix_and_the_dtype_is_kept():
    x = randn(4, 3, 3).float()
    s, t = torch.tensor([0, 0.2, 0.5, 0.5]), torch.tensor([1, 0.6, 0.5, 0.9])
    s, t = s[:, None].expand(4, 3), t[:, None].expand(4, 3)
    together = THREE(x, s, t)
    assert together.dtype == torch.float32
    alone = torch.cat([THREE(x[i:i + 1], s[i:i + 1], t[i:i + 1]) for i in range(4)])
    assert (together.exp() - alone.exp()).abs().max() < 1e-6


def test_all_288_boards_of_4x4_are_exact_in_one_step_and_in_their_marginals():
    boards = all_boards(SHAPES["sudoku4"])
    model, x = Exact(boards), randn(16, 16, 4)
    drawn = model(x, at(0.0, x), at(1.0, x)).exp()
    assert drawn.amax(-1).min() > 1 - 1e-12
    assert (drawn.argmax(-1)[:, None] == boards).all(-1).any(-1).all()
    nothing = torch.zeros(1, 16, dtype=torch.bool)
    # digits can be renamed
    assert (model.marginals(boards[:1], nothing) - 0.25).abs().max() < 1e-12


def test_weights_are_normalized_copies_merged_and_impossible_sequences_dropped():
    model = Exact([[0, 1], [1, 0], [0, 1], [2, 2]], [1, 4, 3, 0])
    assert model.sequences.tolist() == [[0, 1], [1, 0]] and model.weights.tolist() == [0.5, 0.5]
    one = Exact([[1, 0]])
    x = randn(3, 2, 2)
    assert one(x, at(0.0, x), at(0.5, x)).exp()[0].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("sequences, weights, words", [
    ([[0, 1], [0]], None, "same length"), ([], None, "at least one"), ([[0, -1]], None, ">= 0"),
    ([[0.5, 1.0]], None, "integers"), ([[0], [1]], [1, -1], "weights"),
    ([[0], [1]], [0, 0], "weights"),
    ([[0], [1]], [1], "weights"), ([[0], [1]], [1, math.nan], "weights")])
def test_bad_sets_are_refused_in_words(sequences, weights, words):
    with pytest.raises(ValueError, match=words):
        Exact(sequences, weights)


def test_bad_calls_are_refused_in_words():
    x = randn(1, 2, 2)
    x[0, 0], x[0, 1] = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])  # 01: no such sequence
    with pytest.raises(ValueError, match="no sequence"):
        TWO(x, at(1.0, x), at(1.0, x))
    with pytest.raises(ValueError, match="no sequence"):
        TWO.marginals(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no sequence"):  # a known token must be a token
        TWO(torch.zeros(1, 2, 2), torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="share"):
        TWO(x, torch.tensor([[0.0, 0.1]]), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="finite"):
        TWO(x * math.nan, at(0.0, x), at(1.0, x))
    with pytest.raises(ValueError, match="these sequences"):
        TWO(randn(1, 3, 2), torch.zeros(1, 3), torch.zeros(1, 3))
    for s, t in (-0.1, 0.5), (0.5, 1.1), (0.6, 0.5):
        with pytest.raises(ValueError, match="times"):
            TWO(x, at(s, x), at(t, x))
