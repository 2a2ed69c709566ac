"""Time: the law of (s, t) by moments and strata, the law of context, tau(t) against Monte Carlo,
and its inverse."""

import math

import pytest
import torch

import fmlm
from baselines.mlfm import sample_bridge_context, sample_bridge_times
from fmlm import Draws, decoding_time, inverse_decoding_time, sample_context, sample_times
from toy import vocabulary
from toy.exact import Exact


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(seed=0, rank=0, world=1):
    return Draws(seeded(seed), rank=rank, world=world)


def strata(values, n):
    """How many values lie in each of n equal parts of [0, 1]; rounding may move one across an edge
    by 1e-6."""
    return torch.histc(values.double(), n, 0, 1)


# ---- stratified uniforms

def test_every_stratum_holds_one_uniform_in_random_order():
    n = 1000
    u = draws().stratified(n)
    assert (strata(u, n) == 1).all() and u.shape == (n,)
    within = u.sort().values * n - torch.arange(n)
    # A uniform within its stratum: mean 1/2 and variance 1/12, within 4.5 standard errors.
    assert abs(within.mean() - 0.5) < 4.5 * math.sqrt(1 / 12 / n)
    assert abs(within.var() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n)
    place = torch.arange(n).double()
    assert abs(torch.corrcoef(torch.stack([u.double(), place]))[0, 1]) < 4.5 / math.sqrt(n)


def test_processes_share_out_the_strata_of_the_global_batch():
    n, world = 50, 3
    parts = [draws(rank, rank, world).stratified(n) for rank in range(world)]
    assert (strata(torch.cat(parts), n * world) == 1).all()
    for rank, part in enumerate(parts):
        assert ((part * n * world).long() % world == rank).all()


def test_draws_follow_the_generator_and_no_other_source():
    nothing = torch.zeros(8, 5, dtype=torch.bool)
    for draw in (lambda from_: from_.stratified(8), lambda from_: from_.uniform(8),
                 lambda from_: from_.normal(8),
                 lambda from_: torch.stack(sample_times(8, 4, from_)),
                 lambda from_: sample_context(nothing, from_)[0].float(),
                 lambda from_: sample_context(nothing, from_)[1],
                 lambda from_: sample_bridge_times(8, from_)):
        torch.manual_seed(1)
        first = draw(draws(5))
        torch.manual_seed(2)
        assert first.equal(draw(draws(5))) and not first.equal(draw(draws(6)))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24], ids=["all 0", "all just below 1"])
@pytest.mark.parametrize("rank, world", [(0, 1), (0, 4), (3, 4)])
def test_a_stratified_uniform_is_never_0_or_1(monkeypatch, uniform, rank, world):
    """A float32 uniform is 0 or at most 1 - 2^-24, and (n-1 + 1 - 2^-24) / n rounds to 1."""
    monkeypatch.setattr(torch, "rand", lambda shape, **on: torch.full(shape, uniform))
    for n in (1, 2, 3, 64, 1000, 4096):
        u = draws(rank=rank, world=world).stratified(n)
        assert u.shape == (n,) and (u > 0).all() and (u < 1).all()
        assert ((u.sort().values * n * world - rank) / world - torch.arange(n)).abs().max() < 1.001


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24], ids=["all 0", "all just below 1"])
def test_no_law_of_time_gives_a_generated_token_the_times_of_context(monkeypatch, uniform):
    """s = t = 1 marks context, so at least s is below 1; and no rate of masking is 0."""
    monkeypatch.setattr(torch, "rand", lambda shape, **on: torch.full(shape, uniform))
    for diagonal in (0, 40, 64):
        s, t = sample_times(64, diagonal, draws())
        assert (s < 1).all() and (s <= t).all() and (t <= 1).all() and (t[:diagonal] < 1).all()
    for vocab_size in (2, 9, 50000):
        t = inverse_decoding_time(draws().stratified(64), vocab_size)
        assert (t > 0).all() and (t < 1).all()
    t = sample_bridge_times(64, draws())
    assert (t > 0).all() and (t < 1).all()
    nothing = torch.zeros(64, 2, dtype=torch.bool)
    _, rate = sample_context(nothing, draws())
    assert (rate > 0).all() and (rate < 1).all()
    assert not sample_bridge_context(nothing, draws()).all(1).any()


def test_uniforms_and_normals_have_their_laws_and_their_shape():
    """n = 12,000: means within 4.5 standard errors, the variance of the normals too."""
    uniform, normal = draws().uniform(3, 4000), draws().normal(3, 4000)
    assert uniform.shape == normal.shape == (3, 4000) and 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 1 / 2) < 4.5 * math.sqrt(1 / 12 / 12000)
    assert abs(normal.mean()) < 4.5 / math.sqrt(12000)
    assert abs(normal.var() - 1) < 4.5 * math.sqrt(2 / 12000)


# ---- context

def test_a_token_is_hidden_with_the_rate_of_its_sequence_and_rates_are_stratified():
    n, length = 500, 200
    context, rate = sample_context(torch.zeros(n, length, dtype=torch.bool), draws())
    assert (strata(rate, n) == 1).all() and context.dtype == torch.bool
    assert context.shape == (n, length)
    hidden = (~context).double().mean(1)
    # Hidden is binomial(length, rate): the sum of squared z-scores of n sequences is chi-square of
    # n degrees.
    z = (hidden - rate) / (rate * (1 - rate) / length).sqrt()
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n) and z.mean().abs() < 4.5 / math.sqrt(n)


def test_the_number_of_hidden_tokens_is_uniform():
    """Binomial(L, U(0,1)) is uniform on 0 ... L: every size of context is equally common."""
    n, length = 20000, 4
    context, _ = sample_context(torch.zeros(n, length, dtype=torch.bool), draws())
    counts = torch.bincount(context.sum(1), minlength=length + 1)
    assert ((counts / n - 1 / 5).abs() < 4.5 * math.sqrt(0.2 * 0.8 / n)).all()


def test_prompt_tokens_are_always_context_and_the_others_do_not_notice():
    prompt = torch.zeros(300, 6, dtype=torch.bool)
    free, rate = sample_context(prompt, draws())
    prompt[:, :2] = True
    context, same_rate = sample_context(prompt, draws())
    assert context[:, :2].all() and context[:, 2:].equal(free[:, 2:]) and rate.equal(same_rate)


def test_the_context_of_a_process_comes_from_its_own_strata():
    _, rate = sample_context(torch.zeros(40, 2, dtype=torch.bool), draws(rank=1, world=4))
    assert ((rate * 160).long() % 4 == 1).all()


def test_an_mlfm_corrupts_more_with_the_law_of_a_cosine_above_its_floor(monkeypatch):
    """rate = 0.05 + 0.95 cos(pi U / 2), U stratified: the rate is above 0.05 + 0.95 x where U is
    below 2/pi arccos x. Seen by uniforms that are the same for all tokens: a token is corrupted
    where its uniform is below the rate, and the first one always."""
    prompt = torch.zeros(1000, 2, dtype=torch.bool)
    for x in (0.05, 0.3, 0.5, 0.8, 0.99):
        threshold = 0.05 + 0.95 * x
        fixed = torch.tensor([0.0, threshold]).expand(1000, 2)
        monkeypatch.setattr(Draws, "uniform", lambda self, *shape: (
            fixed if shape == (1000, 2) else torch.rand(shape, **self.on)))
        corrupted = ~sample_bridge_context(prompt, draws())
        assert corrupted[:, 0].all()
        expected = 1000 * 2 / math.pi * math.acos(x)
        assert abs(int(corrupted[:, 1].sum()) - expected) < 1 + 1e-3
    lowest = torch.tensor([0.0, 0.0499]).expand(1000, 2)
    monkeypatch.setattr(Draws, "uniform", lambda self, *shape: (
        lowest if shape == (1000, 2) else torch.rand(shape, **self.on)))
    assert not sample_bridge_context(prompt, draws()).any()


def test_the_context_of_an_mlfm_in_a_process_comes_from_its_own_strata(monkeypatch):
    """Of 4 processes with 40 sequences each: the 160 rates, together, are one in each stratum."""
    half = torch.tensor([0.0, 0.5]).expand(40, 2)
    monkeypatch.setattr(Draws, "uniform", lambda self, *shape: (
        half if shape == (40, 2) else torch.rand(shape, **self.on)))
    prompt = torch.zeros(40, 2, dtype=torch.bool)
    corrupted = sum(int((~sample_bridge_context(prompt, draws(rank=rank, world=4)))[:, 1].sum())
                    for rank in range(4))
    assert abs(corrupted - 160 * 2 / math.pi * math.acos(0.45 / 0.95)) < 1 + 1e-3


# ---- s and t

# ---- s and t

def test_the_first_rows_lie_on_the_diagonal_and_are_never_pinned():
    s, t = sample_times(64, 40, draws(), boundary=1.0)
    assert s[:40].equal(t[:40]) and (s[:40] > 0).all() and (t[:40] < 1).all()
    assert (s[40:] == 0).all() and (t[40:] == 1).all()
    s, t = sample_times(64, 64, draws())
    assert s.equal(t) and (strata(s, 64) == 1).all()  # d ~ U(0, 1), one in each stratum


def test_off_the_diagonal_the_gap_is_uniform_and_then_its_place():
    n = 2000
    s, t = sample_times(n, 0, draws(), boundary=0.0)
    # d ~ U(0,1) and s / (1-d) ~ U(0,1), each stratified and independent
    gap, place = t - s, s / (1 - (t - s))
    assert (s >= 0).all() and (t <= 1).all() and (t > s).all()
    # A value within 1e-6 of an edge may be rounded over it: then two neighbours hold 2 and 0.
    for values in (gap, place):
        assert ((values.double().sort().values * n - torch.arange(n) - 0.5).abs() < 0.5
                + n * 1e-5).all()
    assert torch.corrcoef(torch.stack([gap, place]))[0, 1].abs() < 4.5 / math.sqrt(n)
    # E s = E (1-d)/2 = 1/4, E t = 3/4; var s = E (1-d)^2/3 - 1/16 = 1/9 - 1/16 = 7/144.
    margin = 4.5 * math.sqrt(7 / 144 / n)
    assert abs(s.mean() - 1 / 4) < margin and abs(t.mean() - 3 / 4) < margin


def test_one_in_32_of_the_off_diagonal_rows_is_pinned_at_0_1_exactly():
    """Stratified uniforms: of 32 m rows exactly m lie below 1/32."""
    s, t = sample_times(1024, 512, draws())
    pinned = (s == 0) & (t == 1)
    assert pinned[512:].sum() == 512 // 32 and not pinned[:512].any()
    s, t = sample_times(1024, 512, draws(), boundary=1 / 8)
    assert ((s == 0) & (t == 1)).sum() == 512 // 8
    assert 0 < pinned[512:].nonzero().float().mean() / 512 < 1 and pinned[512:768].any()
    assert pinned[768:].any()


def test_the_times_of_a_process_come_from_its_own_strata():
    s, t = sample_times(40, 40, draws(rank=2, world=4))
    assert ((s * 160).long() % 4 == 2).all()


@pytest.mark.parametrize("distilled", [0, 5, 16, 40, 64])
def test_the_distilled_rows_are_at_0_0_exactly_and_the_others_notice_nothing(distilled):
    """64 rows, 40 of them on the diagonal: the same draws with and without, and in the others no
    time that is 0 by accident."""
    s, t = sample_times(64, max(40, distilled), draws(), 0.25, distilled)
    old_s, old_t = sample_times(64, max(40, distilled), draws(), 0.25)
    assert (s[:distilled] == 0).all() and (t[:distilled] == 0).all()
    assert s[distilled:].equal(old_s[distilled:]) and t[distilled:].equal(old_t[distilled:])
    assert (old_s[:40] > 0).all() and (s[distilled:40] > 0).all()
    assert s[distilled:40].equal(t[distilled:40])
    if distilled <= 40:  # 24 rows off the diagonal, a quarter of them pinned
        assert ((s[40:] == 0) & (t[40:] == 1)).sum() == 6


@pytest.mark.parametrize("settings", [
    dict(diagonal=9), dict(diagonal=-1), dict(diagonal=4, distilled=5),
    dict(diagonal=4, distilled=-1),
    dict(diagonal=4, boundary=-0.01), dict(diagonal=4, boundary=1.01),
    dict(diagonal=4, boundary=math.nan), dict(diagonal=4, boundary=math.inf)])
def test_rows_and_shares_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="of 8 rows"):
        sample_times(8, draws=draws(), **settings)
    for fine in (dict(diagonal=0), dict(diagonal=8, distilled=8), dict(diagonal=4, boundary=1)):
        assert sample_times(8, draws=draws(), **fine)[0].shape == (8,)


# ---- tau

def test_uniform_tau_has_the_law_p_t_less_than_x_is_tau_of_x():
    """Stratified in tau: of n times exactly floor or ceil n tau(x) lie below x (a Kolmogorov
    distance of 1/n), but for the table's error, 400 / 4096^2 / 8 = 3e-6, which moves one across an
    edge at most."""
    n = 2000
    for vocab_size in (4, 300):
        t = inverse_decoding_time(draws().stratified(n), vocab_size)
        for x in (0.1, 0.3, 0.5, 0.7, 0.9):
            below = n * float(decoding_time(torch.tensor(x, dtype=torch.float64), vocab_size))
            assert abs(int((t < x).sum()) - below) <= 2
        assert abs(int((t < 0.5).sum()) - n / 2) > n / 50, "which is not the uniform law"


def test_tau_of_two_words_is_an_error_function():
    """E Phi(z + r) = Phi(r / sqrt 2), so tau = 2 Phi(r / sqrt 2) - 1 = erf(r / 2) with r = t /
    (1-t)."""
    t = torch.linspace(0, 0.99, 34, dtype=torch.float64)
    assert (decoding_time(t, 2) - torch.erf(t / (1 - t) / 2)).abs().max() < 1e-12


@pytest.mark.parametrize("vocab_size", [3, 9, 50])
def test_tau_is_how_often_the_argmax_of_x_t_is_right(vocab_size):
    n = 40000
    noise = torch.randn(n, vocab_size, generator=seeded())
    for t in (0.2, 0.5, 0.7):
        x = (1 - t) * noise
        x[:, 0] += t
        right = (x.argmax(1) == 0).double().mean()
        tau = (right - 1 / vocab_size) * vocab_size / (vocab_size - 1)
        margin = 4.5 * math.sqrt(right * (1 - right) / n) * vocab_size / (vocab_size - 1)
        assert abs(decoding_time(torch.tensor(t), vocab_size) - tau) < margin


@pytest.mark.parametrize("vocab_size", [2, 9, 1000, 50000])
def test_tau_goes_from_0_to_1_and_its_inverse_undoes_it(vocab_size):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    tau = decoding_time(t, vocab_size)
    assert tau[0].abs() < 1e-12 and tau[-1] > 1 - 1e-12 and (tau >= 0).all() and (tau <= 1).all()
    assert (tau.diff()[tau[1:] < 1 - 1e-9] > 0).all() and (tau.diff() >= -1e-12).all()
    u = torch.linspace(0, 1, 501, dtype=torch.float64)
    back = inverse_decoding_time(u, vocab_size)
    # Linear interpolation between knots 1/4096 apart: the error is at most h^2 |tau''| / 8, and
    # |tau''| < 400 here.
    assert (decoding_time(back, vocab_size) - u).abs().max() < 400 / 4096**2 / 8
    assert back[0] == 0 and back[-1] == 1 and (back.diff() > 0).all()


def test_the_inverse_is_not_exact_only_by_its_table_of_4097_times():
    """At a knot of the table the inverse is exact; with V = 2 the knot t = 1/2 has tau =
    erf(1/2)."""
    tau = torch.tensor([math.erf(0.5)], dtype=torch.float64)
    assert abs(inverse_decoding_time(tau, 2).item() - 0.5) < 1e-9
    quarter = torch.tensor([[math.erf(1 / 6)]], dtype=torch.float64)  # t = 1/4: r = 1/3
    assert abs(inverse_decoding_time(quarter, 2).item() - 0.25) < 1e-9 and quarter.shape == (1, 1)
    assert fmlm._decoding_table(7).shape == (4097,)


def test_a_large_vocabulary_is_decided_later():
    half = torch.tensor(0.5)
    times = [inverse_decoding_time(half, v).item() for v in (2, 9, 1000, 50000)]
    assert times == sorted(times) and times[0] < 0.5 < 0.7 < times[-1]


@pytest.mark.parametrize("vocab_size", [2, 9, 4096])
def test_the_table_that_a_network_is_told_by_is_tau_and_exact_at_0_and_1(vocab_size):
    """In single precision, as on a GPU; the error of a linear table as above."""
    table = fmlm._decoding_table(vocab_size).float()
    t = torch.rand(2, 300, generator=seeded())
    tau = fmlm.look_up(table, t)
    assert tau.dtype == torch.float32 and tau.shape == (2, 300)
    assert (tau - decoding_time(t.double(), vocab_size)).abs().max() < 400 / 4096**2 / 8 + 1e-6
    assert fmlm.look_up(table, torch.tensor([0.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize("vocab_size", [2, 9, 4096])
def test_a_midpoint_in_tau_is_the_middle_of_two_taus(vocab_size):
    """And between s and t, which at s = t it is, bit for bit: context stays at 1. s, t uniform in
    tau, so that no tau is rounded to 1."""
    s, t = inverse_decoding_time(torch.rand(2, 500, generator=seeded()).double(),
                                 vocab_size).sort(0).values
    u = fmlm.midpoint_in_tau(s, t, vocab_size)
    middle = (decoding_time(s, vocab_size) + decoding_time(t, vocab_size)) / 2
    assert (decoding_time(u, vocab_size) - middle).abs().max() < 400 / 4096**2 / 4
    assert (s <= u).all() and (u <= t).all()
    for dtype in (torch.float32, torch.float64):
        time = torch.rand(500, generator=seeded()).to(dtype)
        time[:3] = torch.tensor([0.0, 1.0, 1 - 2**-24])
        u = fmlm.midpoint_in_tau(time, time, vocab_size)
        assert u.dtype == dtype and u.equal(time)


def test_the_first_half_of_a_whole_jump_carries_half_of_tau_not_what_the_middle_of_t_carries():
    """(0, 1): with two words tau = erf(t / (1-t) / 2) is 1/2 at t = 0.488196. With 4,096 a jump to
    t = 1/2 would carry 0.6% of tau; and u is symmetric in neither."""
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    assert float(fmlm.midpoint_in_tau(zero, one, 2)) == pytest.approx(0.488196, abs=1e-6)
    u = fmlm.midpoint_in_tau(zero, one, 4096)
    assert float(decoding_time(u, 4096)) == pytest.approx(0.5, abs=1e-5) and 0.7 < float(u) < 0.85
    assert float(decoding_time(one / 2, 4096)) < 0.01
    assert float(fmlm.midpoint(zero, one)) == 0.5


def test_tau_keeps_the_dtype_and_the_shape():
    t = torch.rand(2, 3, generator=seeded())
    for function in (decoding_time, inverse_decoding_time):
        for dtype in (torch.float32, torch.float64):
            value = function(t.to(dtype), 9)
            assert value.dtype == dtype and value.shape == (2, 3)


def test_tau_refuses_what_is_no_time_and_no_vocabulary():
    for wrong in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match="times"):
            decoding_time(torch.tensor(wrong), 9)
        with pytest.raises(ValueError, match="tau"):
            inverse_decoding_time(torch.tensor(wrong), 9)
    for vocab_size in (0, 1):
        with pytest.raises(ValueError, match="at least 2"):
            decoding_time(torch.tensor(0.5), vocab_size)


@pytest.mark.parametrize("r, slack", [(2, -0.12), (6, 0.12)])
def test_few_steps_uniform_in_tau_decode_a_large_vocabulary_better_than_steps_uniform_in_t(
        r, slack):
    """Two Euler steps of the exact denoiser, 1,000 samples: the standard error of a difference is
    at most 0.022. With 36 words the second step falls at t = 0.5 or at tau = 0.5, t = 0.68; with 4
    words the two are at 0.5 and 0.55, alike."""
    model = vocabulary.euler(Exact(vocabulary.sequences(r)))
    draws = (vocabulary.draw(model, 3, 2, tau, 1000, 0) for tau in (False, True))
    in_t, in_tau = (vocabulary.valid(words, r).float().mean().item() for words in draws)
    assert (in_tau - in_t > slack) if slack > 0 else abs(in_tau - in_t) < -slack


def test_every_sequence_of_the_vocabulary_toy_is_there_once_and_valid():
    data = vocabulary.sequences(2).tolist()
    assert len(set(map(tuple, data))) == 16 and [1, 2, 0] in data and [2, 1, 3] in data
    assert [3, 0, 2] in data
    assert vocabulary.main(["-n", "0"]) == 2 and vocabulary.main(["--train", "-1"]) == 2


def test_a_cell_of_the_vocabulary_toy_says_where_all_samples_are_one():
    one, two = torch.tensor([[1, 1], [2, 2], [0, 0]]), torch.tensor([[1, 1], [2, 2], [0, 3]])
    assert vocabulary.valid(one, 2).tolist() == [True, True]  # [1, 2, 0], as above
    assert vocabulary.cell(one, vocabulary.valid(one, 2)) == "100.0 same"
    assert vocabulary.cell(two, vocabulary.valid(two, 2)) == "50.0"


@pytest.mark.parametrize("tau", [False, True])
def test_an_flm_learns_which_word_is_whose_partner(tau):
    """Four words, 150 steps: of 200 pairs, 1/4 agree by chance, with a standard error of 0.031."""
    partner = torch.tensor([2, 0, 3, 1])
    first, second = vocabulary.draw(vocabulary.learn_pairs(partner, tau, 150, 0), 2, 4, tau, 200, 0)
    assert (partner[first] == second).float().mean() > 0.25 + 5 * 0.031


@pytest.mark.parametrize("rank, world", [(1, 1), (-1, 2), (0, 0), (2, 2)])
def test_a_rank_that_no_process_has_is_refused(rank, world):
    with pytest.raises(ValueError, match=f"of {world} processes none has the rank {rank}"):
        fmlm.Draws(rank=rank, world=world)
