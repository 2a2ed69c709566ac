"""The flow map: its definition and identities on the exact model, in float64, and the losses by
hand arithmetic.

EXACT has unequal weights and shared tokens, so no symmetry hides a mistake. `known` gives a third
of the cases a context token, which must drop out of every identity.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fmlm import (EMA, Batch, Denoiser, Target, _decoding_table, cross_entropy, data_and_self,
                  denoised, flm_loss, flow_map, flow_map_loss, interpolate, inverse_decoding_time,
                  lagrangian, look_up, masked, midpoint_in_tau, one_hot, semigroup,
                  semigroup_target, token_mean, token_times, velocity)
from toy.exact import Exact

EXACT = Exact([[0, 0, 1], [1, 2, 1], [2, 2, 0]], [0.2, 0.5, 0.3])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def sequences(n=30):
    """n points x_s (any point is one), each third with the middle token = 2 as context, and the
    times that go with it."""
    x, context = randn(n, 3, 3), torch.zeros(n, 3, dtype=torch.bool)
    context[::3, 1] = True
    x[context] = tensor(0, 0, 1)
    return x, lambda time: token_times(torch.full((n,), time, dtype=torch.float64), context)


def delta(x, s, t):
    return EXACT(x, s, t).exp()


def jump(x, s, t):
    return flow_map(x, delta(x, s, t), s, t)


# ---- definitions, by hand

def test_a_token_as_a_vector_is_1_at_its_word_and_0_elsewhere():
    assert one_hot(torch.tensor([[2, 0]]), 3).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    assert one_hot(tokens, 7).equal(F.one_hot(tokens, 7).float())


def test_the_interpolant_goes_from_noise_to_data():
    x1, noise = tensor([[1, 0]] * 4), tensor([[2, -4]] * 4)
    x = interpolate(x1, noise, tensor([0, 0.25, 0.5, 1]))
    assert x.tolist() == [[[2, -4], [1.75, -3], [1.5, -2], [1, 0]]]


def test_the_velocity_is_the_slope_of_the_interpolant_and_data_rests():
    x1, noise = tensor([[1, 0], [1, 0]]), tensor([[2, -4], [2, -4]])
    t = tensor([0.75, 1])
    v = velocity(interpolate(x1, noise, t), x1, t)
    # x1 - x0 where t < 1; there d/dt ((1-t) x0 + t x1) = (x1 - x_t) / (1-t)
    assert v.tolist() == [[[-1, 4], [0, 0]]]
    assert not velocity(x1, noise, torch.ones_like(t)).any(), "whatever the network says of data"


def test_the_flow_map_is_the_definition_of_delta():
    """s = 0.2, t = 0.6: keep (1-t)/(1-s) = 1/2. s = 0, t = 0.25: keep 3/4."""
    x, d = tensor([[2, -4], [2, -4]]), tensor([[1, 0], [1, 0]])
    moved = flow_map(x, d, tensor([0.2, 0]), tensor([0.6, 0.25]))
    assert (moved - tensor([[1.5, -2], [1.75, -3]])).abs().max() < 1e-15


def test_the_flow_map_ends_in_delta_stays_at_s_and_leaves_context_bit_for_bit():
    x, d = randn(1, 3, 4), randn(1, 3, 4, seed=1).softmax(-1)
    s, t = tensor([0.3, 0.3, 1]), tensor([1, 0.3, 1])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        moved = flow_map(x.to(dtype), d.to(dtype), s.to(dtype), t.to(dtype))
        assert moved[0, 0].equal(d[0, 0].to(dtype)) and moved[0, 1:].equal(x[0, 1:].to(dtype))
    infinite = d.clone()
    infinite[0, 2] = 1e300  # whatever the network says of a context token
    assert flow_map(x, infinite, s, t)[0, 2].equal(x[0, 2])


def test_one_step_with_the_denoiser_is_an_euler_step_of_the_velocity():
    x, d = randn(2, 3, 4), randn(2, 3, 4, seed=1).softmax(-1)
    s, t = tensor([0.4] * 3, [0.4] * 3), 0.55
    euler = x + (t - 0.4) * velocity(x, d, s)
    assert (flow_map(x, d, s, torch.full_like(s, t)) - euler).abs().max() < 1e-14


def test_the_weight_of_the_semigroup_target_is_the_fraction_worked_out_by_hand():
    """(s,u,t) = (.1,.3,.7): lam = .3*.2 / (.7*.6) = 1/7; (0,.5,1): 0; (.2,.6,.6): 1; (.5,.5,.5): 1;
    (.3,.3,.6): 0; (0,1,1): 1; (1,1,1): 1."""
    s, u = tensor([.1, 0, .2, .5, .3, 0, 1]), tensor([.3, .5, .6, .5, .3, 1, 1])
    t = tensor([.7, 1, .6, .5, .6, 1, 1])
    first, second = tensor([[1, 0]]).expand(1, 7, 2), tensor([[0, 1]]).expand(1, 7, 2)
    lam = semigroup_target(first, second, s, u, t)
    assert (lam[0, :, 0] - tensor(1 / 7, 0, 1, 1, 0, 1, 1)).abs().max() < 1e-14
    assert (lam.sum(-1) - 1).abs().max() < 1e-14


# ---- identities, on the exact model

TRIPLES = [(0.0, 0.3, 0.7), (0.1, 0.5, 1.0), (0.0, 0.5, 1.0), (0.4, 0.4, 0.8), (0.2, 0.9, 0.95),
           (0.3, 0.6, 0.6)]


@pytest.mark.parametrize("s, u, t", TRIPLES)
def test_semigroup_two_jumps_are_one(s, u, t):
    x, time = sequences()
    s, u, t = time(s), time(u), time(t)
    half_way = jump(x, s, u)
    assert (jump(half_way, u, t) - jump(x, s, t)).abs().max() < 1e-6
    target = semigroup_target(delta(x, s, u), delta(half_way, u, t), s, u, t)
    assert (target - delta(x, s, t)).abs().max() < 1e-6
    assert (target >= 0).all() and (target.sum(-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("s, t", [(0.0, 0.3), (0.1, 0.8), (0.5, 0.9)])
def test_lagrangian_the_end_of_the_jump_moves_with_the_flow(s, t):
    x, time = sequences()
    # central difference of order 4: its error is about h^4, that of the integration 1e-10 / h
    h = 1e-4
    at = lambda end: delta(x, time(s), time(end))
    slope = (8 * (at(t + h) - at(t - h)) - (at(t + 2 * h) - at(t - 2 * h))) / (12 * h)
    end = jump(x, time(s), time(t))
    right = delta(end, time(t), time(t)) - (t - s) * (1 - t) / (1 - s) * slope
    assert (delta(x, time(s), time(t)) - right).abs().max() < 1e-6


@pytest.mark.parametrize("s, t", [(0.05, 0.3), (0.1, 0.8), (0.5, 0.9)])
def test_eulerian_the_end_stays_when_the_start_moves_with_the_flow(s, t):
    x, time = sequences()
    v, h = velocity(x, delta(x, time(s), time(s)), time(s)), 1e-4
    at = lambda e: delta(x + e * v, time(s + e), time(t))  # along the flow: d_s + v . grad
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    right = delta(x, time(s), time(s)) + (t - s) * (1 - s) / (1 - t) * slope
    assert (delta(x, time(s), time(t)) - right).abs().max() < 1e-6


def test_velocity_is_where_the_flow_map_sets_out():
    x, time = sequences()
    s, h = 0.3, 1e-6
    v = velocity(x, delta(x, time(s), time(s)), time(s))
    # O(h) times a second derivative
    assert ((jump(x, time(s), time(s + h)) - x) / h - v).abs().max() < 1e-4


# ---- losses

def loss_of(model, x1, context, s, t, noise, data, parts=None):
    """`flow_map_loss` where the first `data` rows learn x1 and the others by `semigroup`."""
    targets = data_and_self(model, len(x1), data)
    return flow_map_loss(model, Batch(x1, None, context, s, t, targets), noise, parts)


class Recorder:
    """A model that answers from a list and remembers what it was asked; log-probabilities are (B,
    L, V)."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, x, s, t):
        self.asked.append((x.clone(), s.clone(), t.clone(), torch.is_grad_enabled()))
        return self.answers.pop(0)


def test_cross_entropy_and_its_mean_by_hand():
    log_delta = tensor([[0.5, 0.5], [0.25, 0.75], [1, 0]]).log()
    target = tensor([[1, 0], [0.5, 0.5], [1, 0]])  # 0 log 0 = 0: no NaN from log delta = -inf
    values = cross_entropy(log_delta, target)
    halves = (math.log(4) + math.log(4 / 3)) / 2
    assert values[0].tolist() == pytest.approx([math.log(2), halves, 0])
    chosen = torch.tensor([[True, True, False]])
    assert token_mean(tensor([3, 5, 70]), chosen) == 4
    assert token_mean(tensor([3, 5, 70]), ~chosen) == 70
    assert token_mean(values, torch.zeros(1, 3, dtype=torch.bool)) == 0
    assert token_times(tensor(0.3)[0:1], chosen).tolist() == [[1, 1, 0.3]]


def test_cross_entropy_has_no_nan_in_its_gradient_at_log_0():
    logits = torch.tensor([[[0.0, -torch.inf]]], requires_grad=True)
    cross_entropy(logits, torch.tensor([[[1.0, 0.0]]])).sum().backward()
    assert logits.grad.tolist() == [[[-1, 0]]]


def test_flow_map_loss_asks_and_answers_as_the_paper_says():
    """A diagonal and an off-diagonal sequence of two tokens; the latter has (s, t) = (0.2, 0.6), u
    = 0.4, one context token.

    x_s = 0.8 noise + 0.2 x1 = (1.8, -0.8). Step to u: keep = 0.6/0.8 = 3/4, so X = 3/4 x_s + 1/4
    (0.5, 0.5). lam = (0.4*0.2) / (0.6*0.4) = 1/3: target = 1/3 (0.5, 0.5) + 2/3 (0.8, 0.2) = (0.7,
    0.3).
    """
    x1 = tensor([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    noise = tensor([[1, 2], [3, 4]], [[2, -1], [9, 9]])
    context = torch.tensor([[False, False], [False, True]])
    s, t = tensor(0.5, 0.2), tensor(0.5, 0.6)
    final = tensor([[0.25, 0.75], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]).log().requires_grad_()
    su = tensor([[0.5, 0.5], [0.3, 0.7]]).log().requires_grad_()
    ut = tensor([[0.8, 0.2], [0.6, 0.4]]).log().requires_grad_()
    model, parts = Recorder(su, ut, final), {}
    loss = loss_of(model, x1, context, s, t, noise, data=1, parts=parts)

    first, second, last = model.asked
    x_s = tensor([[1.8, -0.8], [0, 1]])
    assert (first[0] - x_s).abs().max() < 1e-14 and not first[3] and not second[3] and last[3]
    assert (first[1] - tensor([0.2, 1])).abs().max() < 1e-15
    assert (first[2] - tensor([0.4, 1])).abs().max() < 1e-15
    assert (second[0] - tensor([[1.475, -0.475], [0, 1]])).abs().max() < 1e-14
    assert (second[1] - tensor([0.4, 1])).abs().max() < 1e-15
    assert (second[2] - tensor([0.6, 1])).abs().max() < 1e-15
    assert (last[0] - torch.cat([tensor([[1, 1], [1.5, 2.5]]), x_s])).abs().max() < 1e-14
    assert (last[1] - tensor([0.5, 0.5], [0.2, 1])).abs().max() == 0
    assert (last[2] - tensor([0.5, 0.5], [0.6, 1])).abs().max() == 0

    diagonal = [math.log(4), math.log(2)]
    off = -0.7 * math.log(0.4) - 0.3 * math.log(0.6)
    # three generated tokens
    assert loss.item() == pytest.approx((sum(diagonal) + off) / 3, abs=1e-14)
    assert parts["data"].item() == pytest.approx(sum(diagonal) / 2, abs=1e-14)
    assert parts["semigroup"].item() == pytest.approx(off, abs=1e-14)
    assert not parts["data"].requires_grad and not parts["semigroup"].requires_grad

    # d/dlog delta of the mean is -target / 3, and 0 at context; the target takes no gradient
    loss.backward()
    assert (final.grad + tensor([[1, 0], [0, 1]], [[0.7, 0.3], [0, 0]]) / 3).abs().max() < 1e-14
    assert su.grad is None and ut.grad is None


def test_a_batch_on_the_diagonal_costs_one_pass_and_an_flm_is_that_without_context():
    x1, noise, t = F.one_hot(EXACT.sequences, 3).double(), randn(3, 3, 3), tensor(0.1, 0.5, 0.9)
    answer = randn(3, 3, 3, seed=1).log_softmax(-1)
    model, parts = Recorder(answer, answer), {}
    loss = flm_loss(model, x1, t, noise)
    assert loss == loss_of(model, x1, torch.zeros(3, 3, dtype=torch.bool), t, t, noise, 3, parts)
    assert len(model.asked) == 2 and loss == parts["data"] and parts["semigroup"] == 0
    # mean of 9 tokens
    assert loss.item() == pytest.approx(-(x1 * answer).sum().item() / 9, abs=1e-14)
    x, s, end, _ = model.asked[0]
    assert x.equal((1 - t)[:, None, None] * noise + t[:, None, None] * x1) and s.equal(end)
    assert s.equal(t[:, None].expand(3, 3))


def test_the_exact_model_told_tau_has_the_same_flow_as_told_t():
    """As a network is told: `told` maps t to tau, what stands behind it speaks of tau alone. Where
    tau is not yet 1; there and back the table errs by 1e-7."""
    behind = lambda x, *taus: EXACT(x, *(inverse_decoding_time(tau, 3) for tau in taus))
    told = lambda x, *times: behind(x, *(look_up(_decoding_table(3), time) for time in times))
    x, s = randn(50, 3, 3), 0.6 * torch.rand(50, 1, generator=seeded(1)).double().expand(50, 3)
    t = s + 0.2
    for end in (s, t, torch.ones_like(s)):
        ends = [flow_map(x, model(x, s, end).exp(), s, end) for model in (told, EXACT)]
        assert (ends[0] - ends[1]).abs().max() < 1e-4
    assert (flow_map(x, behind(x, s, t).exp(), s, t) - flow_map(x, delta(x, s, t), s, t)
            ).abs().max() > 1e-2, "a tau is no t"


def test_the_exact_flow_map_is_a_fixed_point_of_the_semigroup_target():
    """Zero excess loss: off the diagonal the exact model's cross-entropy is the entropy of its own
    delta_{s,t}."""
    n = 60
    x1 = F.one_hot(EXACT.sequences[torch.arange(n) % 3], 3).double()
    noise, context = randn(n, 3, 3), torch.rand(n, 3, generator=seeded(3)) < 0.3
    s = 0.9 * torch.rand(n, generator=seeded(1)).double()
    t = (s + 0.02 + (0.98 - s) * torch.rand(n, generator=seeded(2)).double()).clamp(max=1)
    loss = loss_of(EXACT, x1, context, s, t, noise, data=0)
    s, t = token_times(s, context), token_times(t, context)
    x = interpolate(x1, noise, s)
    own = delta(x, s, t)
    in_tau = partial(midpoint_in_tau, vocab_size=3)  # whatever the stop on the way
    assert (semigroup(EXACT, x, s, t) - semigroup(EXACT, x, s, t, in_tau)).abs().max() < 1e-6
    assert (semigroup(EXACT, x, s, t) - own).abs().max() < 1e-6
    entropy = torch.special.entr(own).sum(-1)
    assert entropy[~context].mean() > 0.05  # the test sees something
    assert abs(loss - entropy[~context].mean()) < 1e-6


def test_where_the_context_leaves_one_sequence_all_noise_flows_to_it_so_the_data_is_exact():
    """The first token of EXACT tells its three sequences apart: given it, delta_{s,t} = x1 at every
    s <= t."""
    n = 30
    x1, context = F.one_hot(EXACT.sequences[torch.arange(n) % 3],
                            3).double(), torch.tensor([True, False, False]).expand(n, 3)
    s = torch.rand(n, generator=seeded(1)).double()
    t = s + (1 - s) * torch.rand(n, generator=seeded(2)).double()
    x = interpolate(x1, randn(n, 3, 3), token_times(s, context))
    assert (delta(x, token_times(s, context), token_times(t, context)) - x1).abs().max() < 1e-9
    for data in (n, 0):  # by the data or by the semigroup: one target
        assert loss_of(EXACT, x1, context, s, t, randn(n, 3, 3), data).abs() < 1e-9


def test_no_model_has_a_smaller_loss_on_the_diagonal_than_the_exact_one():
    n = 3000
    x1 = F.one_hot(EXACT.sequences[torch.multinomial(EXACT.weights, n, True, generator=seeded())],
                   3).double()
    context, noise = torch.rand(n, 3, generator=seeded(1)) < 0.3, randn(n, 3, 3)
    t = torch.rand(n, generator=seeded(2)).double()
    loss = lambda model: loss_of(model, x1, context, t, t, noise, data=n)
    best = loss(EXACT)
    earlier = lambda time: torch.where(time < 1, 0.9 * time, time)
    for other in (lambda x, s, t: EXACT(x, earlier(s), earlier(t)),
                  lambda x, s, t: (0.9 * EXACT(x, s, t).exp() + 0.1 / 3).log()):
        assert loss(other) > best + 0.005


def rows_of(n, *targets):
    """A batch of n rows of EXACT's data at (0.2, 0.6), nothing known, with these targets."""
    x1, half = F.one_hot(EXACT.sequences[torch.arange(n) % 3], 3).double(), torch.full((n,), 0.5)
    context = torch.zeros(n, 3, dtype=torch.bool)
    return Batch(x1, None, context, 0.4 * half.double(), 1.2 * half.double(), targets)


def never(x, s, t):
    raise AssertionError(f"a target was asked for {len(x)} rows")


def test_a_target_of_no_rows_is_never_asked_and_counts_0():
    """Neither first, between nor last; the network is asked once, for all rows."""
    model, parts = Recorder(randn(3, 3, 3).log_softmax(-1)), {}
    batch = rows_of(3, Target("first", 0, never), Target("data", 3), Target("last", 0, never))
    loss = flow_map_loss(model, batch, randn(3, 3, 3), parts)
    assert parts == {"first": 0, "data": loss, "last": 0}
    assert [len(x) for x, *_ in model.asked] == [3]


@pytest.mark.parametrize("counts", [(), (2,), (4,), (1, 1), (3, 1), (4, -1), (-1, 4), (0, 0)])
def test_targets_that_do_not_share_out_the_rows_are_refused_before_anything_is_asked(counts):
    batch = rows_of(3, *(Target(f"part {i}", rows, never) for i, rows in enumerate(counts)))
    with pytest.raises(ValueError, match="share out 3 rows"):
        flow_map_loss(never, batch, randn(3, 3, 3))
    with pytest.raises(ValueError, match="share out 3 rows"):
        flow_map_loss(never, rows_of(3, *data_and_self(never, 3, 4)), randn(3, 3, 3))


def test_every_target_is_asked_for_its_own_rows_at_their_points_and_times_and_without_gradient():
    """Rows 0 | 1, 2 | 3: one-hot 0, the data, one-hot 2; the network says 1/2, 1/4, 1/4."""
    asked = []

    def one_hot(word):
        def of(x, s, t):
            asked.append((x, s, t, torch.is_grad_enabled()))
            return F.one_hot(torch.full(x.shape[:2], word), 3).double()
        return of

    batch, noise, parts = rows_of(4, Target("a", 1, one_hot(0)), Target("data", 2),
                                  Target("b", 1, one_hot(2))), randn(4, 3, 3), {}
    batch = batch._replace(s=tensor(0.1, 0.2, 0.3, 0.4), t=tensor(0.5, 0.6, 0.7, 0.8))
    law = tensor(0.5, 0.25, 0.25).log()
    loss = flow_map_loss(lambda x, s, t: law.expand(x.shape), batch, noise, parts)
    for (x, s, t, gradient), row in zip(asked, (0, 3), strict=True):
        assert s.tolist() == [[batch.s[row]] * 3] and t.tolist() == [[batch.t[row]] * 3]
        assert x.equal(interpolate(batch.x1, noise, token_times(batch.s, batch.context))[[row]])
        assert not gradient
    # The data of rows 1 and 2 are the sequences 121 and 220: one 0 of six words.
    expected = {"a": 1, "data": (1 + 5 * 2) / 6, "b": 2}
    bits = {name: float(part) / math.log(2) for name, part in parts.items()}
    assert bits == pytest.approx(expected)
    assert float(loss) == pytest.approx(math.log(2) * (3 + 11 + 6) / 12)


def test_a_teacher_on_the_diagonal_is_asked_at_s_s_and_an_mdm_is_shown_masks():
    """`denoised`: probabilities of D_s(x_s). `masked`: what has time 0 is the zero vector, context
    stays."""
    x, s, t = randn(1, 3, 3), tensor([0, 0.3, 1]), tensor([0, 0.6, 1])
    teacher = Recorder(randn(1, 3, 3, seed=1).log_softmax(-1))
    assert denoised(teacher)(x, s, t).equal(randn(1, 3, 3, seed=1).log_softmax(-1).exp())
    asked_x, asked_s, asked_t, _ = teacher.asked[0]
    assert asked_x.equal(x) and asked_s.equal(s) and asked_t.equal(s)
    mdm, s, t = Recorder(x), tensor([0, 0, 1]), tensor([0, 0.5, 1])
    assert masked(mdm)(x, s, t).equal(x)
    asked_x, asked_s, asked_t, _ = mdm.asked[0]
    assert not asked_x[0, :2].any() and asked_x[0, 2].equal(x[0, 2])
    assert asked_s.equal(s) and asked_t.equal(t)


def test_the_lagrangian_target_is_the_number_worked_out_by_hand():
    """delta_{s,t} = (p, 1-p), p = a + 0.3 s + b t. (s, t) = (0.2, 0.6): the weight of the slope is
    (t-s)(1-t)/(1-s) = 0.2. a = 0.2, b = 0.4: delta 0.5, D_t 0.62, target 0.62 - 0.2 * 0.4 = 0.54.
    a = -0.55, b = 1: D_t 0.23 - 0.2 = 0.03; a = -0.65: D_t 0.13 - 0.2 < 0, put to 0, and 1.07 to 1.
    A context token, s = t = 1, has a clean D_1, and its time, which the other reads, does not move
    in the slope; X keeps (1-t)/(1-s) = 1/2 of x."""
    for a, b, expected in ((0.2, 0.4, 0.54), (-0.55, 1, 0.03), (-0.65, 1, 0)):
        asked = []

        def model(x, s, t):
            asked.append((x, s))
            p = torch.where(s == 1, 0.7, a + 0.3 * s + b * t + t[:, 1:] - 1)
            return torch.stack([p, 1 - p], -1).log()

        x, s, t = tensor([[2, -4], [0, 1]]), tensor([0.2, 1]), tensor([0.6, 1])
        target = lagrangian(model, x, s, t)
        assert target[0, 0].tolist() == pytest.approx([expected, 1 - expected], abs=1e-12)
        assert target[0, 1].tolist() == pytest.approx([0.7, 0.3], abs=1e-12)
        p = a + 0.06 + 0.6 * b
        assert (asked[1][0] - tensor([[1 + p / 2, -2 + (1 - p) / 2], [0, 1]])).abs().max() < 1e-12
        assert asked[1][1].equal(t)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (2, 1, 3), (2, 3, 1), (2, 3, 4), ()])
def test_noise_of_another_shape_than_the_data_is_refused(shape):
    batch = rows_of(2, Target("data", 2))
    time = token_times(batch.s, batch.context)
    for call in (lambda: interpolate(batch.x1, torch.zeros(shape), time),
                 lambda: flow_map_loss(EXACT, batch, torch.zeros(shape)),
                 lambda: flm_loss(EXACT, batch.x1, batch.t, torch.zeros(shape))):
        with pytest.raises(ValueError, match="noise must be"):
            call()


# ---- no NaN, EMA, and what is refused

@pytest.mark.parametrize("bf16", [False, True])
def test_no_nan_in_values_or_gradients_at_the_corners_of_time(bf16):
    torch.manual_seed(0)
    model = Denoiser(3, torch.arange(4)[:, None], width=16, depth=2, heads=2)
    for weight in model.parameters():  # away from the zeros of the start
        torch.nn.init.normal_(weight, std=0.3)
    x1 = F.one_hot(torch.randint(3, (5, 4)), 3).float()
    context = torch.rand(5, 4) < 0.5
    context[0] = True  # nothing to generate at all
    s, t = torch.tensor([0, 0, 0.3, 1, 0.5]), torch.tensor([0, 1, 1, 1, 0.5])
    # s = t = 0; the whole way; t = 1; s = t = 1; s = t
    noise = torch.randn(5, 4, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = loss_of(model, x1, context, s, t, noise, data=0)
        x = interpolate(x1, noise, token_times(s, context))
        moved = flow_map(x, model(x, token_times(s, context), token_times(t, context)).exp(),
                         token_times(s, context), token_times(t, context))
        v = velocity(x, model(x, token_times(t, context), token_times(t, context)).exp(),
                     token_times(t, context))
        (loss + moved.square().sum() + v.square().sum()).backward()
    assert loss.isfinite() and moved.isfinite().all() and v.isfinite().all()
    assert noise.grad.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
    assert moved[context].equal(x1[context])  # known tokens bit for bit, in bf16 too


def test_there_is_no_nan_in_the_gradient_with_respect_to_time():
    s, t = tensor([0.5, 1, 0.5, 0]).requires_grad_(), tensor([0.5, 1, 1, 1]).requires_grad_()
    x, d = randn(1, 4, 2), randn(1, 4, 2, seed=1).softmax(-1)
    total = flow_map(x, d, s, t).sum() + velocity(x, d, t).sum()
    (total + semigroup_target(d, x, s, (s + t) / 2, t).sum()).backward()
    assert s.grad.isfinite().all() and t.grad.isfinite().all()


def test_the_ema_warms_up_as_1_n_over_10_n():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema, fixed = EMA(model), EMA(model, decay=0.05)
    assert ema.decay == 0.9999 and not ema.model.weight.requires_grad and not ema.model.training
    assert model.weight.requires_grad and model.training  # a copy
    torch.nn.init.constant_(model.weight, 1.0)
    expected = 0.0
    for n in range(3):  # decays 1/10, 2/11, 3/12: 0.9, then 0.9 * 2/11 + 9/11, ...
        ema.update(model)
        fixed.update(model)
        expected = expected * [1 / 10, 2 / 11, 3 / 12][n] + 1 - [1 / 10, 2 / 11, 3 / 12][n]
        assert ema.model.weight.item() == pytest.approx(expected, abs=1e-6)
        # capped from the start
        assert fixed.model.weight.item() == pytest.approx(1 - 0.05 ** (n + 1), abs=1e-6)
    assert ema.updates == 3
    ema.updates, before = 10**6, ema.model.weight.item()  # (1+n)/(10+n) = 0.999991 > 0.9999: capped
    torch.nn.init.constant_(model.weight, 100.0)
    ema.update(model)
    assert ema.model.weight.item() - before == pytest.approx(1e-4 * (100 - before), rel=1e-3)


@pytest.mark.parametrize("decay", [2, 1, -0.1, math.nan])
def test_an_average_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(torch.nn.Linear(1, 1), decay)


def test_times_that_are_none_are_refused():
    x = randn(1, 2, 3)
    ok, calls = tensor([0.5, 0.5]), [
        lambda time: interpolate(x, x, time), lambda time: velocity(x, x, time),
        lambda time: flow_map(x, x, time, time),
        lambda time: semigroup_target(x, x, time, time, time)]
    for call in calls:
        call(ok), call(tensor([0, 1]))
        for wrong in ([-1e-6, 0.5], [0.5, 1 + 1e-6], [math.nan, 0.5]):
            with pytest.raises(ValueError, match=r"in \[0, 1\]"):
                call(tensor(wrong))
        for shape in ((2,), (1, 2, 1), (1, 3), (2, 2)):
            with pytest.raises(ValueError, match="its own time"):
                call(torch.full(shape, 0.5))
    early = tensor([0.5, 0.4])
    for call in (lambda: flow_map(x, x, ok, early), lambda: semigroup_target(x, x, ok, early, ok),
                 lambda: semigroup_target(x, x, early, ok, early)):
        with pytest.raises(ValueError, match="order"):
            call()
    with pytest.raises(ValueError, match="its own time"):
        interpolate(randn(2, 3), randn(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="order"):
        loss_of(EXACT, randn(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), tensor(0.6),
                tensor(0.5),
                randn(1, 3, 3), data=0)
