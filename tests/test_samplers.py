"""Every sampler as a specification: on exact models, and on scripted ones that write down what they
are asked.

Expected values are hand arithmetic or laws derived in the docstring. A statistical test has a fixed
seed and a margin of five standard deviations of the law that it claims.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import sample
from baselines import mlfm
from baselines.mlfm import token_promotion
from fmlm import decoding_time
from harness import evaluation
from harness.checkpoints import OBJECTIVES
from sample import (A_PRIORI, MASKED, Draft, Pass, a_priori_confidence, block_diffusion,
                    choose_sampler, few_first, flow_map_sampler, left_to_right, many_first,
                    mdm_ancestral, mdm_confidence, mdm_gumbel, posterior_refinement, refine,
                    sample_words, scheduled, surest, uniform_budget)
from toy.exact import Exact, ExactBridge

SAMPLERS = sample.SAMPLERS | mlfm.SAMPLERS
TWO = Exact([[0, 0], [1, 1]])
CROSS = Exact([[0, 1], [1, 0]])
THREE = Exact([[0, 0, 1], [1, 2, 1], [2, 2, 0]], [0.2, 0.5, 0.3])
# L = 5, V = 3
FIXED = [[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]
# The order of confidence is 1, 3, 0, 4, 2.
BEST, P_MAX = [0, 2, 1, 1, 0], [0.7, 0.9, 0.4, 0.8, 0.6]


class Scripted:
    """A model that answers with a fixed (L, V) table of probabilities, or with a function of the
    pass, and records (x, s, t)."""

    sigma, curve = 1.0, None  # an MLFM's

    def __init__(self, answer=FIXED, vocab_size=None):
        self.answer = answer if callable(answer) else lambda number, x: torch.tensor(answer)
        self.vocab_size = vocab_size or len(answer[0])
        self.calls, self.gradients = [], []

    def __call__(self, x, s, t):
        self.calls.append((x.clone(), s.clone(), t.clone()))
        self.gradients.append(torch.is_grad_enabled())
        return self.answer(len(self.calls) - 1, x).log().expand(x.shape)


class Recorded(Scripted):
    """An exact model, recorded."""

    def __init__(self, model):
        super().__init__([[0.0] * model.vocab_size])
        self.model = model

    def __call__(self, x, s, t):
        super().__call__(x, s, t)
        return self.model(x, s, t)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(model, sigma):
    model.sigma = sigma
    return model


def nothing(batch, length):
    """No token known; what stands at an unknown token is never read, so here it is no token at
    all."""
    return torch.full((batch, length), -1), torch.zeros(batch, length, dtype=torch.bool)


def puzzle(*rows):
    """Rows of tokens, None for unknown."""
    return (torch.tensor([[99 if token is None else token for token in row] for row in rows]),
            torch.tensor([[token is not None for token in row] for row in rows]))


def close(share, expected, n):
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def follows(samples, model):
    """Whether the sequences have the law of an exact model: every share within five standard
    deviations, nothing else."""
    shares = [float((samples == sequence).all(1).double().mean()) for sequence in model.sequences]
    return sum(shares) == pytest.approx(1) and all(
        close(share, float(weight), len(samples)) for share, weight in zip(shares, model.weights))


# tau = 1/2 for three words: E[Phi(z + r)^2] = 2/3 at r = 1.115898, t = r/(1+r), by bisection
HALF = 0.527387
# MLFM with sigma = 1, 2 steps: t = 1 / (1 + e^gamma), gamma from 6 to log(0.06/0.94) = -2.751535,
# halfway 1.624232
NEARLY_MASK, MIDDLE = 0.0024726232, 0.1646220
# name: (call on 5 tokens, NFE, the times (s, t) of its passes, whether unknown tokens hold noise)
EVERY = {
    "flow map": (lambda *a, **k: flow_map_sampler(*a, steps=4, **k), 4,
                 [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)], True),
    "flow map, decoding time": (lambda *a, **k: flow_map_sampler(*a, steps=2, tau=True, **k), 2,
                                [(0, HALF), (HALF, 1)], True),
    "block": (lambda *a, **k: block_diffusion(*a, block_length=2, steps=2, **k), 6,
              [(0, 0.5), (0.5, 1)] * 3, True),
    "posterior": (lambda *a, **k: posterior_refinement(*a, rounds=3, **k), 3, [(0, 1)] * 3, True),
    "posterior, 2 flow steps": (lambda *a, **k: posterior_refinement(*a, rounds=2, flow_steps=2,
                                                                     **k), 4,
                                [(0, 0.5), (0.5, 1)] * 2, True),
    "posterior, early": (lambda *a, **k: posterior_refinement(*a, rounds=3, early=True, **k), 2,
                         [(0, 1)] * 2, True),
    "posterior, gumbel": (lambda *a, **k: posterior_refinement(*a, rounds=3, gumbel=3, **k), 3,
                          [(0, 1)] * 3, True),
    "left to right": (lambda *a, **k: left_to_right(*a, rounds=3, **k), 3, [(0, 1)] * 3, True),
    "left to right, a priori": (lambda *a, **k: left_to_right(*a, rounds=3, how=A_PRIORI, **k), 3,
                                [(0, 0)] * 3, True),
    "left to right, masked": (lambda *a, **k: left_to_right(*a, rounds=3, how=MASKED, **k), 3,
                              [(0, 0)] * 3, False),
    "a priori": (lambda *a, **k: a_priori_confidence(*a, rounds=3, **k), 3, [(0, 0)] * 3, True),
    "a priori, sampled": (lambda *a, **k: a_priori_confidence(*a, rounds=3, draw="sample", **k), 3,
                          [(0, 0)] * 3, True),
    "confidence": (lambda *a, **k: mdm_confidence(*a, steps=3, **k), 3, [(0, 0)] * 3, False),
    "confidence, sampled": (lambda *a, **k: mdm_confidence(*a, steps=3, draw="sample", **k), 3,
                            [(0, 0)] * 3, False),
    "confidence, gumbel": (lambda *a, **k: mdm_gumbel(*a, steps=3, **k), 3, [(0, 0)] * 3, False),
    "ancestral": (lambda *a, **k: mdm_ancestral(*a, steps=3, **k), 3, [(0, 0)] * 3, False),
    "promotion": (lambda *a, **k: token_promotion(*a, rounds=2, steps=2, temperature=1, **k), 6,
                  [(NEARLY_MASK, MIDDLE), (MIDDLE, 0.94), (0.94, 0.94)] * 2, False),
}
every_sampler = pytest.mark.parametrize("run, nfe, times, noisy", EVERY.values(), ids=EVERY)


# ---- what all samplers have in common

@every_sampler
def test_the_network_is_asked_at_the_times_claimed_and_as_often(run, nfe, times, noisy):
    model = Scripted()
    run(model, *nothing(50, 5), generator=seeded())
    assert len(model.calls) == nfe
    for (_, s, t), (expected_s, expected_t) in zip(model.calls, times, strict=True):
        for row_s, row_t in set(zip(map(tuple, s.tolist()), map(tuple, t.tolist()))):
            for pair in zip(row_s, row_t):  # a committed token is at (1, 1)
                assert pair == (1, 1) or pair == pytest.approx((expected_s, expected_t))
    assert model.calls[0][1].unique().tolist() == [pytest.approx(times[0][0], abs=1e-8)]


@every_sampler
def test_known_tokens_are_one_hot_at_times_1_1_in_every_pass_and_come_back(run, nfe, times, noisy):
    tokens, known = puzzle([None, 1, None, None, 2], [2, None, None, None, None])
    before, model, trace = tokens.clone(), Scripted(), []
    result = run(model, tokens, known, generator=seeded(), trace=trace)
    assert result[known].tolist() == [1, 2, 2] and result.dtype == torch.int64
    assert ((result >= 0) & (result < 3)).all()
    now = known
    for (x, s, t), record in zip(model.calls, trace, strict=True):
        asked = ~now.all(1)
        given, now = known[asked], now | record.committed
        assert x[given].equal(F.one_hot(before[asked][given], 3).float()) and given.any()
        assert (s[given] == 1).all() and (t[given] == 1).all()
    assert all(record.draft[known].tolist() == [1, 2, 2] for record in trace)
    assert tokens.equal(before) and known.sum() == 3, "the caller's tensors are left alone"


@every_sampler
def test_a_committed_token_is_clean_context_from_then_on(run, nfe, times, noisy):
    model, trace = Scripted(), []
    result = run(model, *nothing(20, 5), generator=seeded(), trace=trace)
    known = torch.zeros(20, 5, dtype=torch.bool)
    for (x, s, t), record in zip(model.calls, trace, strict=True):
        asked = ~known.all(1)
        assert (s == 1).equal(known[asked]) and ((t == 1) | ~known[asked]).all()
        assert x[known[asked]].equal(F.one_hot(result, 3).float()[asked][known[asked]])
        assert not (record.committed & known).any() and record.draft[known].equal(result[known])
        assert record.draft[record.committed].equal(result[record.committed])
        known = known | record.committed
    assert known.all()


@every_sampler
def test_unknown_tokens_begin_every_round_as_fresh_standard_noise_or_as_masks(run, nfe, times,
                                                                              noisy):
    """Fresh: uncorrelated from round to round. n normals have mean 0 +- 5/sqrt(n) and variance 1 +-
    5 sqrt(2/n)."""
    model = Scripted()
    run(model, *nothing(1000, 5), generator=seeded())
    starts = [(x, s < 1) for (x, s, _), (time, _) in zip(model.calls, times)
              if time == times[0][0]]
    nearly = run is EVERY["promotion"][0]  # its masks are noise of variance t (1-t)
    for x, unknown in starts:
        if not noisy and not nearly:
            assert not x[unknown].any()
            continue
        values = x[unknown] / math.sqrt(NEARLY_MASK * (1 - NEARLY_MASK) if nearly else 1)
        assert abs(values.mean()) < 5 / math.sqrt(values.numel())
        assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.numel())
    for (before, _), (x, unknown) in zip(starts, starts[1:]) if noisy or nearly else []:
        product = (before * x)[unknown] / before.var()
        assert abs(product.mean()) < 5 / math.sqrt(product.numel())


@every_sampler
def test_the_trace_holds_one_pass_each_with_draft_and_confidence(run, nfe, times, noisy):
    model, trace = Scripted(), []
    run(model, *nothing(4, 5), generator=seeded(), trace=trace)
    assert len(trace) == len(model.calls) and all(type(record) is Pass for record in trace)
    drafts = torch.stack([record.draft for record in trace])
    for record, (_, s, _) in zip(trace, model.calls):
        judged = torch.tensor(P_MAX)
        if run in [EVERY[name][0] for name in ("promotion", "confidence, gumbel")]:  # of the drawn
            judged = torch.tensor(FIXED).expand(4, 5, 3).gather(2, record.draft[..., None])[..., 0]
        assert ((record.confidence - judged).abs() < 1e-6)[s < 1].all()
        assert record.committed.dtype == torch.bool
        assert record.draft.shape == record.committed.shape == (4, 5)
    if run not in [EVERY[name][0] for name in (
            "a priori, sampled", "confidence, sampled", "ancestral", "promotion",
            "left to right, a priori", "left to right, masked", "confidence, gumbel")]:
        assert (drafts == torch.tensor(BEST)).all()
    ends = [i for i in range(len(times)) if (times * 2)[i + 1][0] == times[0][0]]
    between = [record for i, record in enumerate(trace) if i not in ends]
    assert not any(record.committed.any() for record in between), "only a finished draft counts"


@every_sampler
def test_the_generator_is_the_only_source_of_randomness(run, nfe, times, noisy):
    state = torch.get_rng_state()
    draws = []
    for seed in 7, 7, 8:
        model = Scripted()
        result = run(model, *nothing(30, 5), generator=seeded(seed))
        draws.append((result, model.calls[-1][0]))
    assert torch.get_rng_state().equal(state)
    assert draws[0][0].equal(draws[1][0]) and draws[0][1].equal(draws[1][1])
    same = draws[0][0].equal(draws[2][0]) and draws[0][1].equal(draws[2][1])
    # Argmax on masks is deterministic; nothing else is.
    assert same == (run is EVERY["confidence"][0])


@every_sampler
def test_nothing_is_asked_where_nothing_is_unknown_and_garbage_there_is_not_read(run, nfe, times,
                                                                                 noisy):
    tokens, known = puzzle([0, 1, 2, 1, 0])
    model = Scripted()
    assert run(model, tokens, known, generator=seeded()).equal(tokens) and not model.calls
    some = torch.tensor([[True, False, True, False, False]])
    results = [run(Scripted(), tokens.masked_fill(~some, garbage), some, generator=seeded())
               for garbage in (-5, 0, 2, 10**9)]
    assert all(result.equal(results[0]) for result in results)


@every_sampler
def test_a_finished_sequence_costs_no_pass_and_the_others_notice_nothing(run, nfe, times, noisy):
    model, alone = Scripted(), Scripted()
    tokens, known = puzzle([None] * 5, [0, 1, 2, 1, 0], [None, 1, None, None, 2])
    result = run(model, tokens, known, generator=seeded())
    assert result[1].tolist() == [0, 1, 2, 1, 0] and len(model.calls[0][0]) == 2
    free = run(alone, tokens, known & torch.tensor([[True], [False], [True]]), generator=seeded())
    assert result[::2].equal(free[::2])
    assert all(a[0][0].equal(b[0][0]) for a, b in zip(model.calls, alone.calls))


@every_sampler
def test_a_sampler_takes_no_gradients(run, nfe, times, noisy):
    model = Scripted()
    run(model, *nothing(1, 5), generator=seeded())
    assert not any(model.gradients) and torch.is_grad_enabled()


@every_sampler
@pytest.mark.parametrize("bad, tokens, known", [
    ("tokens must be", torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.bool)),
    ("tokens must be", torch.zeros(1, 1, 5, dtype=torch.int64),
     torch.zeros(1, 1, 5, dtype=torch.bool)),
    ("tokens must be", torch.zeros(1, 5, dtype=torch.int32), torch.zeros(1, 5, dtype=torch.bool)),
    ("tokens must be", torch.zeros(1, 5), torch.zeros(1, 5, dtype=torch.bool)),
    ("known must be", torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64)),
    ("known must be", torch.zeros(2, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.bool)),
    ("known must be", torch.zeros(1, 5, dtype=torch.int64), torch.zeros(5, dtype=torch.bool)),
    ("known tokens", torch.tensor([[0, 3, 0, 0, 0]]),
     torch.tensor([[False, True, False, False, False]])),
    ("known tokens", torch.tensor([[0, -1, 0, 0, 0]]),
     torch.tensor([[False, True, False, False, False]])),
])
def test_tokens_of_a_wrong_shape_type_or_value_are_refused(run, nfe, times, noisy, bad, tokens,
                                                           known):
    with pytest.raises(ValueError, match=bad):
        run(Scripted(), tokens, known)


@pytest.mark.parametrize("call, message", [
    (lambda *a: flow_map_sampler(*a, steps=0), "at least one"),
    (lambda *a: flow_map_sampler(*a, steps=-1), "at least one"),
    (lambda *a: block_diffusion(*a, block_length=2, steps=0), "at least one"),
    (lambda *a: block_diffusion(*a, block_length=0, steps=1), "block_length"),
    (lambda *a: block_diffusion(*a, block_length=6, steps=1), "block_length"),
    (lambda *a: posterior_refinement(*a, rounds=0), "at least one"),
    (lambda *a: posterior_refinement(*a, rounds=6), "6 rounds"),
    (lambda *a: posterior_refinement(*a, rounds=1, flow_steps=0), "at least one"),
    (lambda *a: posterior_refinement(*a, rounds=1, threshold=-0.01), "threshold"),
    (lambda *a: posterior_refinement(*a, rounds=1, threshold=-math.inf), "threshold"),
    (lambda *a: posterior_refinement(*a, rounds=1, threshold=math.nan), "threshold"),
    (lambda *a: posterior_refinement(*a, rounds=1, gumbel=-1), "at least 0, not -1"),
    (lambda *a: posterior_refinement(*a, rounds=1, gumbel=math.inf), "not inf"),
    (lambda *a: posterior_refinement(*a, rounds=1, gumbel=math.nan), "not nan"),
    (lambda *a: left_to_right(*a, rounds=0), "at least one"),
    (lambda *a: left_to_right(*a, rounds=6), "6 rounds"),
    (lambda *a: left_to_right(*a, rounds=1, threshold=-0.01), "threshold"),
    (lambda *a: left_to_right(*a, rounds=1, threshold=math.nan), "threshold"),
    (lambda *a: a_priori_confidence(*a, rounds=0), "at least one"),
    (lambda *a: a_priori_confidence(*a, rounds=6), "6 rounds"),
    (lambda *a: a_priori_confidence(*a, rounds=1, draw="beam"), "draw"),
    (lambda *a: mdm_confidence(*a, steps=0), "at least one"),
    (lambda *a: mdm_confidence(*a, steps=6), "6 rounds"),
    (lambda *a: mdm_confidence(*a, steps=1, draw="Argmax"), "draw"),
    (lambda *a: mdm_gumbel(*a, steps=0), "at least one"),
    (lambda *a: mdm_gumbel(*a, steps=6), "6 rounds"),
    (lambda *a: mdm_ancestral(*a, steps=0), "at least one"),
    (lambda *a: flow_map_sampler(*a, steps=0, tau=True), "at least one"),
    (lambda *a: token_promotion(*a, rounds=0), "at least one"),
    (lambda *a: token_promotion(*a, rounds=6), "6 rounds"),
    (lambda *a: token_promotion(*a, rounds=1, steps=-1), "a loop of -1 steps"),
    (lambda *a: token_promotion(*a, rounds=1, threshold=-0.01), "threshold"),
    (lambda *a: token_promotion(*a, rounds=1, threshold=1.01), "threshold"),
    (lambda *a: token_promotion(*a, rounds=1, threshold=math.nan), "threshold"),
    (lambda *a: token_promotion(*a, rounds=1, temperature=0), "temperature must be positive"),
    (lambda *a: token_promotion(*a, rounds=1, temperature=-0.1), "temperature must be positive"),
    (lambda *a: token_promotion(*a, rounds=1, temperature=math.inf), "temperature must be"),
    (lambda *a: token_promotion(*a, rounds=1, temperature=math.nan), "temperature must be"),
    (lambda model, *a: token_promotion(noise_of(model, 0), *a, rounds=1), "sigma"),
    (lambda model, *a: token_promotion(noise_of(model, -1), *a, rounds=1), "sigma"),
    (lambda model, *a: token_promotion(noise_of(model, math.inf), *a, rounds=1), "sigma"),
    (lambda model, *a: token_promotion(noise_of(model, math.nan), *a, rounds=1), "sigma"),
    (lambda *a: refine(*a, 1, Draft([0, 1], sure="Drawn"), uniform_budget), "sure"),
    (lambda *a: refine(*a, 1, Draft([0]), uniform_budget), "at least one"),
])
def test_settings_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Scripted(), *nothing(1, 5))


def test_as_many_rounds_as_tokens_are_allowed_and_for_ancestral_more():
    for run in posterior_refinement, left_to_right, a_priori_confidence, mdm_confidence:
        model = Scripted()
        run(model, *nothing(1, 5), 5)
        assert len(model.calls) == 5
    assert mdm_ancestral(Scripted(), *nothing(1, 5), 20, generator=seeded()).shape == (1, 5)


def test_the_last_round_commits_everything_whatever_the_rule_says():
    trace = []
    never = lambda confidence, unknown, rounds_left: torch.zeros_like(unknown)
    assert refine(Scripted(), *nothing(2, 5), 3, Draft([0, 1]), never, generator=seeded(),
                  trace=trace).tolist() == [BEST] * 2
    assert [int(record.committed.sum()) for record in trace] == [0, 0, 10]


# ---- drawing and ranking

def test_the_uniform_budget_is_the_ceiling_of_left_over_rounds_left():
    """7 unknown of 8: over 1 ... 8 rounds ceil(7 / r) = 7, 4, 3, 2, 2, 2, 1, 1; the most confident
    of the unknown."""
    scores = torch.tensor([[0.3, 0.99, 0.5, 0.1, 0.9, 0.2, 0.8, 0.4]])
    unknown = torch.tensor([[True, False, True, True, True, True, True, True]])
    best = [4, 6, 2, 7, 0, 5, 3]
    for rounds, budget in zip(range(1, 9), (7, 4, 3, 2, 2, 2, 1, 1)):
        chosen = uniform_budget(scores, unknown, rounds)
        assert chosen.dtype == torch.bool
        assert set(chosen[0].nonzero()[:, 0].tolist()) == set(best[:budget])


def test_each_sequence_has_its_own_budget_and_ties_do_not_change_it():
    unknown = torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6])
    chosen = uniform_budget(torch.full((3, 6), 0.5), unknown, 2)
    assert chosen.sum(1).tolist() == [3, 2, 0] and not (chosen & ~unknown).any()


def test_a_known_token_is_never_ranked_above_an_unknown_one():
    scores, unknown = torch.tensor([[1.0] * 40 + [0.0]]), torch.tensor([[False] * 40 + [True]])
    assert uniform_budget(scores, unknown, 1).equal(unknown)
    assert uniform_budget(torch.zeros(1, 41), unknown, 1).equal(unknown)


def test_drawn_tokens_have_the_law_of_the_draft():
    """20,000 draws of each of 5 tokens from FIXED; argmax draws the most likely always."""
    n = 20000
    drawn = mdm_confidence(Scripted(), *nothing(n, 5), 1, draw="sample", generator=seeded())
    for place, law in enumerate(FIXED):
        for token, probability in enumerate(law):
            assert close(float((drawn[:, place] == token).double().mean()), probability, n)
    together = ((drawn[:, 0] == 0) & (drawn[:, 2] == 1)).double().mean()
    assert close(float(together), 0.7 * 0.4, n), "tokens of one pass are independent"
    again = mdm_confidence(Scripted(), *nothing(2, 5), 1, generator=seeded())
    assert again.tolist() == [BEST, BEST]


def test_certain_tokens_are_drawn_and_impossible_ones_are_not():
    table = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    drawn = mdm_confidence(Scripted(table), *nothing(5000, 5), 1, draw="sample", generator=seeded())
    assert drawn[:, :3].unique(dim=0).tolist() == [[0, 1, 2]]
    assert drawn[:, 3].unique().tolist() == [0, 2] and drawn[:, 4].unique().tolist() == [1, 2]


def test_probabilities_that_sum_to_a_little_less_than_1_never_draw_outside_the_vocabulary():
    drawn = mdm_confidence(Scripted([[0.3, 0.2, 0.1]] * 5), *nothing(500, 5), 1, draw="sample",
                           generator=seeded())
    assert drawn.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("p, u, word", [
    ([0.25, 0.5, 0.25], 0, 0), ([0.25, 0.5, 0.25], 0.2499, 0), ([0.25, 0.5, 0.25], 0.25, 1),
    ([0.25, 0.5, 0.25], 0.7499, 1), ([0.25, 0.5, 0.25], 0.75, 2), ([0, 0.5, 0.5], 0, 1),
    ([0.5, 0, 0.5], 0.5, 2), ([0.5, 0.25, 0, 0], 0.9, 1), ([0, 0.75, 0, 0], 0.99, 1),
    ([0.5, 0.25, 0, 0], 0.75, 1), ([0.5, 0.25, 0.125], 0.99, 2)])
def test_a_word_is_where_its_uniform_falls_and_never_one_of_probability_0(p, u, word):
    """The inverse of the cumulative sum; a u above all of it takes the last word that can be."""
    assert sample_words(torch.tensor([[p, p[::-1]]]), torch.tensor([[u, 0]])).tolist() == [
        [word, next(i for i, share in enumerate(p[::-1]) if share)]]


def test_a_draft_that_sums_to_less_than_1_never_draws_a_word_of_probability_0():
    drawn = mdm_confidence(Scripted([[0.0, 0.4, 0.1, 0]] * 5), *nothing(500, 5), 1, draw="sample",
                           generator=seeded())
    assert drawn.unique().tolist() == [1, 2]


def test_the_surest_are_the_given_number_of_each_row_among_those_that_may_be():
    scores = torch.tensor([[0.3, 0.9, 0.5, 0.1], [0.3, 0.9, 0.5, 0.1]])
    among = torch.tensor([[True, False, True, True], [True, True, True, True]])
    picked = lambda count: [row.nonzero()[:, 0].tolist() for row in surest(scores, among, count)]
    assert picked(1) == [[2], [1]] and picked(torch.tensor([[2], [0]])) == [[0, 2], []]


# ---- flow map

def test_one_step_of_the_exact_flow_map_draws_whole_sequences_each_as_often_as_the_other():
    """Two equal modes are mirror images of one another, and so are their shares of the noise."""
    for exact in TWO, CROSS:
        assert follows(flow_map_sampler(exact, *nothing(4000, 2), 1, generator=seeded()), exact)


def test_more_steps_of_the_exact_flow_map_end_at_the_same_sequence():
    """The semigroup: X_{u,1}(X_{0,u}(x)) = X_{0,1}(x), whatever the stops on the way; the same seed
    is the same noise."""
    one, three = (flow_map_sampler(THREE, *nothing(300, 3), steps, generator=seeded())
                  for steps in (1, 3))
    assert one.equal(three) and len(one.unique(dim=0)) == 3


def test_the_jumps_are_those_of_the_definition():
    """steps = 4: the second jump, 1/4 -> 1/2, keeps (1 - 1/2) / (1 - 1/4) = 2/3 of x; the third
    keeps 1/2, the first 3/4."""
    model = Scripted()
    flow_map_sampler(model, *puzzle([None, None, None, 0, None]), 4, generator=seeded())
    delta = torch.tensor(FIXED)
    for (x, _, _), (after, _, _), keep in zip(model.calls, model.calls[1:], (3 / 4, 2 / 3, 1 / 2)):
        moved = keep * x + (1 - keep) * delta
        assert (after - moved)[:, [0, 1, 2, 4]].abs().max() < 1e-6


def test_the_flow_map_decodes_the_argmax_of_its_last_pass():
    first = [[0.9, 0.1], [0.9, 0.1]]
    model = Scripted(lambda number, x: torch.tensor([first, [[0.2, 0.8], [0.6, 0.4]]][number]),
                     vocab_size=2)
    assert flow_map_sampler(model, *nothing(1, 2), 2, generator=seeded()).tolist() == [[1, 0]]


def test_decoding_times_are_uniform_in_tau():
    """tau(t_i) = i/N at every stop, 0 first and 1 last: the table is close to tau's inverse to
    1e-6."""
    for steps in 1, 2, 5:
        model = Scripted()
        flow_map_sampler(model, *puzzle([None, 1, None, None, None]), steps, tau=True,
                         generator=seeded())
        stops = [float(s[0, 0]) for _, s, _ in model.calls] + [float(model.calls[-1][2][0, 0])]
        assert decoding_time(torch.tensor(stops, dtype=torch.float64), 3).tolist() == pytest.approx(
            [i / steps for i in range(steps + 1)], abs=1e-6)
        assert stops[0] == 0 and stops[-1] == 1
        assert all(s[0, [0, 2, 3, 4]].unique().numel() == 1 and s[0, 1] == t[0, 1] == 1
                   for _, s, t in model.calls)
        for (_, _, t), (_, s, _) in zip(model.calls, model.calls[1:]):
            assert s.equal(t)


# ---- block diffusion

@pytest.mark.parametrize("block_length, blocks", [(1, [[0], [1], [2], [3], [4]]),
                                                  (2, [[0, 1], [2, 3], [4]]),
                                                  (3, [[0, 1, 2], [3, 4]]), (5, [[0, 1, 2, 3, 4]])])
@pytest.mark.parametrize("steps", [1, 3])
def test_blocks_are_kept_from_left_to_right_also_where_the_last_one_is_shorter(block_length, blocks,
                                                                               steps):
    model, trace = Scripted(), []
    block_diffusion(model, *nothing(2, 5), block_length, steps, generator=seeded(), trace=trace)
    assert len(model.calls) == len(blocks) * steps
    for number, record in enumerate(trace):
        kept = blocks[number // steps] if number % steps == steps - 1 else []
        assert all(row.nonzero()[:, 0].tolist() == kept for row in record.committed)


def test_a_block_is_drafted_given_the_blocks_before_it():
    """The exact model then draws whole sequences; block 1 alone decides which, and its token has
    the exact marginal."""
    assert follows(block_diffusion(CROSS, *nothing(2000, 2), 1, 1, generator=seeded()), CROSS)


def test_block_diffusion_stops_once_nothing_is_unknown():
    model = Scripted()
    block_diffusion(model, *puzzle([None, None, None, 1, 1]), 2, 2, generator=seeded())
    assert len(model.calls) == 4  # blocks {0, 1} and {2, 3}; in the third nothing is left


def test_after_every_block_the_rest_begins_with_fresh_noise():
    """Two passes a block; the first pass of each sees noise that no earlier one has seen."""
    model = Scripted()
    block_diffusion(model, *nothing(20, 5), 1, 2, generator=seeded())
    starts = [(x, s) for x, s, _ in model.calls[::2]]
    assert len(starts) == 5 and all((s == 1).sum(1).eq(i).all() for i, (_, s) in enumerate(starts))
    for i, (x, s) in enumerate(starts):
        assert all(not (x == before)[s == 0].any() for before, _ in starts[:i])


# ---- Posterior Refinement

def committed_by(run, table, tokens, known, **settings):
    trace = []
    result = run(Scripted(table), tokens, known, generator=seeded(), trace=trace, **settings)
    return [[row.nonzero()[:, 0].tolist() for row in record.committed] for record in trace], result


def test_the_budget_commits_the_most_confident_where_none_is_sure():
    """5 unknown in 3 rounds: ceil(5/3) = 2, ceil(3/2) = 2, then the last one; in the order 1, 3 |
    0, 4 | 2."""
    rounds, result = committed_by(posterior_refinement, FIXED, *nothing(1, 5), rounds=3)
    assert rounds == [[[1, 3]], [[0, 4]], [[2]]] and result.tolist() == [BEST]


def test_what_is_sure_is_committed_beyond_the_budget():
    """Threshold 0.65 of p_max 0.7 0.9 0.4 0.8 0.6: tokens 0, 1, 3; then ceil(2/2) = 1 of the two
    left; then the last."""
    rounds, _ = committed_by(posterior_refinement, FIXED, *nothing(1, 5), rounds=3, threshold=0.65)
    assert rounds == [[[0, 1, 3]], [[4]], [[2]]]


def test_without_its_last_round_what_is_not_committed_is_as_the_last_draft_has_it():
    """As above, but 1, 3 | 0, 4 and no third pass: token 2 is of the second draft. In one round
    there is none to leave out, nor where the threshold leaves something to the last round always.
    """
    rounds, result = committed_by(posterior_refinement, FIXED, *nothing(1, 5), rounds=3,
                                  finish=False)
    assert rounds == [[[1, 3]], [[0, 4]]] and result.tolist() == [BEST]
    model = Scripted(lambda number, x: torch.tensor(FIXED).roll(number, 1), vocab_size=3)
    result = posterior_refinement(model, *nothing(1, 5), 3, finish=False, generator=seeded())
    assert len(model.calls) == 2 and result.tolist() == [[1, 2, 2, 1, 1]]  # word + 1 of the second
    for settings in dict(rounds=1), dict(rounds=3, threshold=math.inf), dict(rounds=3, gumbel=1):
        every = [committed_by(posterior_refinement, FIXED, *nothing(1, 5), finish=finish,
                              **settings) for finish in (True, False)]
        assert every[0][0] == every[1][0] and len(every[0][0]) == settings["rounds"]


def test_of_what_it_did_not_commit_a_sampler_says_minus_1():
    sampler = SAMPLERS["posterior"]._replace(run=partial(posterior_refinement, finish=False))
    drawn = sampler.complete(Scripted(FIXED), torch.full((2, 5), -1), 3, seeded())
    assert drawn.tokens.tolist() == [BEST] * 2 and drawn.passes.tolist() == [2, 2]
    assert drawn.sure.numpy() == pytest.approx(torch.tensor([[0.7, 0.9, -1, 0.8, 0.6]] * 2).numpy())
    assert [name for name, each in SAMPLERS.items() if each.gives_up] == ["posterior",
                                                                        "posterior-early"]


@pytest.mark.parametrize("rounds, committed", [
    (1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (4, [2, 1, 1, 1]), (5, [1] * 5)])
def test_an_infinite_threshold_commits_the_uniform_budget_alone_however_sure_the_draft(
        rounds, committed):
    """p_max is 1 exactly, so a threshold of 1 would take all in one pass; NFE is the rounds."""
    model, trace = Scripted([[1.0, 0.0]] * 5), []
    posterior_refinement(model, *nothing(3, 5), rounds, threshold=math.inf, generator=seeded(),
                         trace=trace)
    assert len(model.calls) == rounds and len(set(map(len, (x for x, *_ in model.calls)))) == 1
    assert [record.committed.sum(1).tolist() for record in trace] == [[n] * 3 for n in committed]
    _, uniform = choose_sampler("fmlm+", None, math.inf)
    given = torch.full((3, 5), -1)
    drawn = uniform.complete(Scripted([[1.0, 0.0]] * 5), given, rounds, seeded())
    assert drawn.passes.tolist() == [rounds] * 3
    _, sure = choose_sampler("fmlm+", None, 1)
    drawn = sure.complete(Scripted([[1.0, 0.0]] * 5), given, rounds, seeded())
    assert drawn.passes.tolist() == [1] * 3


@pytest.mark.parametrize("rounds, flow_steps, sure, unsure",
                         [(4, 1, 0.9877, 0.9873), (2, 1, 0.9752, 0.9748), (2, 2, 0.9752, 0.9748)])
def test_where_no_threshold_is_given_the_rounds_share_a_doubt_of_0_05(rounds, flow_steps, sure,
                                                                      unsure):
    """1 - 0.05/4 = 0.9875, 1 - 0.05/2 = 0.975, whatever the flow steps of a round. Of 4 tokens the
    budget is 1 and 2, so the last sure one of 3 shows the rule."""
    table = [[sure, 1 - sure], [sure + 1e-4, 1 - sure - 1e-4], [unsure, 1 - unsure],
             [sure, 1 - sure]]
    committed, _ = committed_by(posterior_refinement, table, *nothing(1, 4), rounds=rounds,
                                flow_steps=flow_steps)
    assert [these for these in committed if these[0]][0] == [[0, 1, 3]]


# p_max pass by pass; the draft: below
LATER_SURER = [[0.9, 0.8, 0.7, 0.5], [0.5, 0.95, 0.97, 0.5], [0.6, 0.6, 0.5, 0.5]]


def later_surer(number, x):
    """Token 0 in the first pass, token 1 afterwards, with the p_max above."""
    p = torch.tensor(LATER_SURER[number])
    return torch.stack([1 - p, p] if number else [p, 1 - p], -1)


def test_a_committed_token_stays_whatever_a_later_draft_is_surer_of():
    """3 unknown, 3 rounds: one each. Round 2 drafts another word for token 0 and is surer of both
    others than round 1 was of it: token 0 is context all the same."""
    model, trace = Scripted(later_surer, vocab_size=2), []
    result = posterior_refinement(model, *puzzle([None, None, None, 0]), 3, generator=seeded(),
                                  trace=trace)
    assert result.tolist() == [[0, 1, 1, 0]]
    assert [record.committed[0].nonzero()[:, 0].tolist() for record in trace] == [[0], [2], [1]]
    assert model.calls[2][1].tolist() == [[1, 0, 1, 1]]
    assert model.calls[2][0][0, 0].equal(torch.tensor([1.0, 0]))


def test_a_committed_token_is_as_sure_as_its_draft_was_and_a_given_one_certain():
    trace = []
    posterior_refinement(Scripted(later_surer, vocab_size=2), *puzzle([None, None, None, 0]), 3,
                         generator=seeded(), trace=trace)
    assert [record.confidence[0].tolist() for record in trace] == [
        pytest.approx([0.9, 0.8, 0.7, 1]), pytest.approx([0.9, 0.95, 0.97, 1]),
        pytest.approx([0.9, 0.6, 0.97, 1])]


def test_the_early_budget_is_large_first():
    """n (1 - (r/R)^0.7) are left after round r of R. 40 tokens in 4 rounds: 40 x 0.379 = 15.2, so
    16; 24 (1 - 0.384 / 0.621) = 9.1, so 10; 14 (1 - 0.182 / 0.384) = 7.4, so 8; and the last 6."""
    unknown, taken = torch.ones(1, 40, dtype=torch.bool), []
    for rounds_left in (4, 3, 2, 1):
        taken.append(int(scheduled(many_first, unknown, rounds_left, 4)))
        unknown[0, :sum(taken)] = False
    assert taken == [16, 10, 8, 6]


def test_early_the_surest_are_committed_each_sequence_by_its_own_budget():
    """5 tokens in 4 rounds: 1.9, so 2; 3 (1 - 0.384 / 0.621) = 1.1, so 2; the last. 3 of 5: 1.1, so
    2; 1. What is sure is committed beside."""
    tokens, known = puzzle([None] * 5, [None, 0, None, 0, None])
    early = partial(posterior_refinement, early=True)
    rounds, result = committed_by(early, FIXED, tokens, known, rounds=4)
    assert rounds == [[[1, 3], [0, 4]], [[0, 4], [2]], [[2], []]] and result[0].tolist() == BEST
    rounds, _ = committed_by(early, FIXED, tokens[:1], known[:1], rounds=4, threshold=0.65)
    assert rounds == [[[0, 1, 3]], [[4]], [[2]]]  # 3 for a budget of 2; then 2 x 0.38, so 1


@pytest.mark.parametrize("gumbel, run", [
    (0.5, partial(posterior_refinement, gumbel=0.5)), (1, partial(posterior_refinement, gumbel=1)),
    (8, SAMPLERS["posterior-gumbel"].run), (1e6, partial(posterior_refinement, gumbel=1e6))])
def test_a_choice_temperature_draws_what_is_kept_by_a_power_of_its_confidence(gumbel, run):
    """Gumbel's trick: of 5 tokens in 5 rounds the first is i with probability p_i^(1/T) over the
    sum of all. T falls by rounds left: the second is drawn of the others at 4/5 T."""
    trace, p = [], torch.tensor(P_MAX, dtype=torch.float64)
    run(Scripted(FIXED), *nothing(40_000, 5), 5, generator=seeded(), trace=trace)
    assert all((record.committed.sum(1) == 1).all() for record in trace) and len(trace) == 5
    first, second = (record.committed.float().argmax(1) for record in trace[:2])
    law = p ** (1 / gumbel)
    for i, share in enumerate((law / law.sum()).tolist()):
        assert close(float((first == i).double().mean()), share, 40_000)
    law, second = p ** (1 / (0.8 * gumbel)), second[first == 1]  # where 0.9, the surest, is kept
    for i in 0, 2, 3, 4:
        share = float(law[i] / (law.sum() - law[1]))
        assert close(float((second == i).double().mean()), share, len(second))


def test_at_a_choice_temperature_the_budget_is_kept_however_sure_the_draft_unless_told_otherwise():
    sure = partial(committed_by, posterior_refinement, [[1.0, 0.0]] * 5)
    counts = lambda found: [sum(map(len, rows)) for rows in found[0]]
    assert counts(sure(*nothing(1, 5), rounds=3, gumbel=2)) == [2, 2, 1]
    assert counts(sure(*nothing(1, 5), rounds=3, gumbel=2, threshold=0.99)) == [5]
    assert counts(sure(*nothing(1, 5), rounds=3)) == [5]
    tokens, known = puzzle([0, None, 1, None, None])
    assert counts(sure(tokens, known, rounds=2, gumbel=1e6)) == [2, 1]


def test_a_token_exactly_at_the_threshold_is_sure():
    table = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.3, 0.7]]
    assert committed_by(posterior_refinement, table, *nothing(1, 4), rounds=4,
                        threshold=1)[0][:2] == [[[0, 1]], [[3]]]
    assert committed_by(posterior_refinement, FIXED, *nothing(1, 5), rounds=4,
                        threshold=0)[0] == [[[0, 1, 2, 3, 4]]]
    table = [[0.6, 0.4], *table[:3]]
    assert committed_by(left_to_right, table, *nothing(1, 4), rounds=4,
                        threshold=1)[0][0] == [[1, 2]]


def test_sequences_of_a_batch_commit_each_for_itself():
    """Row 2 knows three tokens, so its budgets are ceil(2/3) = 1, ceil(1/2) = 1 and nothing."""
    tokens, known = puzzle([None] * 5, [None, 1, None, 1, 1])
    rounds, _ = committed_by(posterior_refinement, FIXED, tokens, known, rounds=3)
    assert rounds == [[[1, 3], [0]], [[0, 4], [2]], [[2], []]]


def test_the_exact_draft_is_always_sure_so_one_pass_of_many_rounds_is_enough():
    """delta_{0,1} of a finite set is a one-hot sequence but on a set of noises of measure zero."""
    for exact, length in (TWO, 2), (CROSS, 2), (THREE, 3):
        model = Recorded(exact)
        result = posterior_refinement(model, *nothing(1000, length), length, generator=seeded())
        assert len(model.calls) == 1
        assert set(map(tuple, result.tolist())) == set(map(tuple, exact.sequences.tolist()))


def test_refinement_repairs_what_the_draft_got_wrong():
    """The first draft is 0 1 with p 0.9 and 0.6; given the committed 0 the second draft says 0 0,
    and the 1 is forgotten."""
    answers = [[[0.9, 0.1], [0.4, 0.6]], [[0.1, 0.9], [0.8, 0.2]]]
    model = Scripted(lambda number, x: torch.tensor(answers[number]), vocab_size=2)
    assert posterior_refinement(model, *nothing(1, 2), 2, generator=seeded()).tolist() == [[0, 0]]


def test_flow_steps_are_passes_of_one_draft_from_one_noise():
    model = Scripted()
    posterior_refinement(model, *nothing(3, 5), 2, flow_steps=2, generator=seeded())
    (x, _, _), (after, s, _), (fresh, _, _), _ = model.calls
    assert s.unique().tolist() == [0.5]
    assert (after - (x + torch.tensor(FIXED)) / 2).abs().max() < 1e-6 and not (fresh == x).any()


def test_jumps_are_uniform_in_what_the_network_is_told():
    """tau = 1/2 for three words is t = HALF."""
    for told in (True, False):
        model = Scripted()
        model.decided = torch.ones(1) if told else None
        posterior_refinement(model, *nothing(3, 5), 1, flow_steps=2, generator=seeded())
        block_diffusion(model, *nothing(3, 5), 5, 2, generator=seeded())
        middle = HALF if told else 0.5
        assert [s.unique().item() for _, s, _ in model.calls] == pytest.approx(
            [0, middle, 0, middle], abs=1e-6)


def test_noise_that_is_kept_is_the_same_in_every_round_and_fresh_noise_is_not():
    """Two passes a draft: it is the beginning of each that holds the noise, and only where the
    token is still unknown."""
    for fresh in False, True:
        model = Scripted()
        posterior_refinement(model, *nothing(20, 5), 3, flow_steps=2, fresh=fresh,
                             generator=seeded())
        first, *rest = model.calls[::2]
        for x, s, _ in rest:
            assert (x == first[0])[s == 0].all() if not fresh else not (x == first[0])[s == 0].any()
        assert not (model.calls[1][0] == first[0]).any() and len(rest) == 2


# ---- token promotion

def promote(model, *given, seed=0, **settings):
    """One step a loop, at temperature 1 where no other is given: the trace of the read-outs."""
    trace = []
    settings = dict(steps=1, temperature=1) | settings
    token_promotion(model, *given, generator=seeded(seed), trace=trace, **settings)
    return trace[settings["steps"]::settings["steps"] + 1]


def test_what_is_kept_is_the_sure_and_at_least_the_surest_by_the_probability_of_the_drawn_token():
    """Every row judged by hand from its own draft: FIXED at the token drawn, not p_max, which would
    keep 0 and 1 always."""
    first, _ = promote(Scripted(), *nothing(500, 5), rounds=2, threshold=0.65)
    sizes = []
    for draft, committed in zip(first.draft.tolist(), first.committed.tolist()):
        drawn = [law[token] for law, token in zip(FIXED, draft)]
        kept = [place for place, keep in enumerate(committed) if keep]
        if max(drawn) >= 0.65:
            assert kept == [place for place in range(5) if drawn[place] >= 0.65]
        else:
            assert len(kept) == 1 and drawn[kept[0]] == max(drawn)
        sizes.append((len(kept), max(drawn) >= 0.65))
    # none is sure: 0.3 * 0.1 * 0.2 = 0.6% of 500 rows
    assert set(sizes) == {(1, False), (1, True), (2, True), (3, True)}


def test_a_likely_token_that_was_not_drawn_does_not_count():
    """p_max 0.9 and 0.6. Drawn is 0 at the first place: it is kept. Drawn is 1, of 0.1: the second
    place is surer."""
    first, _ = promote(Scripted([[0.9, 0.1], [0.6, 0.4]]), *nothing(4000, 2), rounds=2)
    kept, likely = first.committed, first.draft[:, 0] == 0
    assert kept[:, 0].equal(likely) and kept[:, 1].equal(~likely)
    assert close(float(likely.double().mean()), 0.9, 4000)


def test_a_temperature_sharpens_what_is_drawn_and_how_sure_it_is():
    """T = 1/2: (0.6, 0.3, 0.1) squared is (36, 9, 1) of 46. T = 0.1: two candidates of 0.535 and
    0.465 are 0.8 and 0.2, for (0.535/0.465)^10 = 4.07; of 0.53 and 0.47 0.769."""
    first, = promote(Scripted([[0.6, 0.3, 0.1]]), *nothing(20000, 1), rounds=1, temperature=0.5)
    law = torch.tensor([36, 9, 1]) / 46
    for token in range(3):
        drawn = first.draft == token
        assert close(float(drawn.double().mean()), float(law[token]), 20000)
        assert (first.confidence[drawn] - law[token]).abs().max() < 1e-6
    first, _ = promote(Scripted([[1.0, 0], [0.535, 0.465], [0.53, 0.47]]), *nothing(500, 3),
                       rounds=2, temperature=0.1)
    likely = first.draft == 0
    assert first.committed[:, 0].all() and first.committed[:, 1].equal(likely[:, 1])
    assert 0 < first.committed[:, 1].sum() < 500 and not first.committed[:, 2].any()
    assert (first.confidence[likely[:, 2], 2] - 1 / (1 + (47 / 53) ** 10)).abs().max() < 1e-6


def test_a_word_of_no_probability_is_never_drawn_however_hot_or_cold():
    for temperature in 0.001, 1, 1000:
        first, = promote(Scripted([[0.0, 0.7, 0.3]]), *nothing(2000, 1), rounds=1,
                         temperature=temperature)
        assert (first.draft > 0).all() and not first.confidence.isnan().any()
        assert (len(first.draft.unique()) == 1) == (temperature == 0.001)


def test_threshold_0_keeps_all_in_one_loop_and_threshold_1_the_surest_one_a_loop():
    model = Scripted()
    first, = promote(model, *nothing(50, 5), rounds=5, threshold=0, steps=2)
    assert len(model.calls) == 3 and first.committed.all()
    model = Scripted()
    kept = promote(model, *nothing(50, 5), rounds=5, threshold=1, steps=2)
    assert len(model.calls) == 15
    assert [record.committed.sum(1).unique().tolist() for record in kept] == [[1]] * 5
    for record, (_, s, _) in zip(kept, model.calls[2::3]):
        surest = torch.where(s < 1, record.confidence, -1.0).amax(1)
        assert record.confidence[record.committed].equal(surest)
    certain = [[1.0, 0], [0, 1.0], [0.5, 0.5], [0.5, 0.5]]  # p = 1 is at the threshold 1
    assert promote(Scripted(certain), *nothing(1, 4), rounds=4,
                   threshold=1)[0].committed.tolist() == [[True, True, False, False]]


def test_as_published_a_loop_is_256_steps_and_a_read_out_at_temperature_0_1_and_sure_is_0_8():
    """Certain, 0.81 and 0.79 once sharpened, which is p = 1 / (1 + (0.19/0.81)^0.1) = 0.5362 and,
    with 0.21/0.79, 0.5330: kept are the first, and the second where it drew the 0.81."""
    trace, sure = [], torch.zeros(300, 3, dtype=torch.bool)
    a, b = (1 / (1 + ((1 - p) / p) ** 0.1) for p in (0.81, 0.79))
    token_promotion(Scripted([[0.0, 1.0], [1 - a, a], [1 - b, b]]), *nothing(300, 3), 2,
                    generator=seeded(), trace=trace)
    assert len(trace) == 2 * 257 and not any(record.committed.any() for record in trace[:256])
    sure[:, :2] = trace[256].draft[:, :2] == 1
    assert trace[256].committed.equal(sure) and 0 < sure[:, 1].sum() < 300


def test_the_last_loop_keeps_all_and_a_finished_batch_asks_no_more():
    """Threshold 1, three loops: 1 + 1 + 3 tokens. Two tokens unknown: two loops of three. Nothing
    is asked after that."""
    trace = []
    token_promotion(Scripted(), *nothing(1, 5), 3, threshold=1, steps=2, temperature=1,
                    generator=seeded(), trace=trace)
    assert [int(record.committed.sum()) for record in trace] == [0, 0, 1, 0, 0, 1, 0, 0, 3]
    trace = []
    token_promotion(Scripted(), *puzzle([1, None, 2, None, 0]), 3, threshold=1, steps=2,
                    temperature=1, generator=seeded(), trace=trace)
    assert [int(record.committed.sum()) for record in trace] == [0, 0, 1, 0, 0, 1]
    model = Scripted([[1.0, 0]] * 5)
    assert token_promotion(model, *nothing(3, 5), 5, steps=3,
                           generator=seeded()).tolist() == [[0] * 5] * 3
    assert len(model.calls) == 4


@pytest.mark.parametrize("sigma", [0.2, 1, 2])
def test_the_times_are_equal_steps_in_log_noise_to_signal_and_the_last_is_asked_without_a_step(
        sigma):
    """gamma = log(sigma^2 (1-t)/t) from 6 to log(sigma^2 0.06/0.94), 4 steps and the read-out."""
    model = noise_of(Scripted(), sigma)
    token_promotion(model, *nothing(1, 5), 1, steps=4, generator=seeded())
    times = torch.stack([s[0, 0] for _, s, _ in model.calls]).double()
    gamma = (sigma**2 * (1 - times) / times).log()
    expected = torch.linspace(6, math.log(sigma**2 * 0.06 / 0.94), 5)
    assert len(times) == 5 and (gamma - expected).abs().max() < 1e-4
    assert [t[0, 0] for _, _, t in model.calls[:-1]] == [s[0, 0] for _, s, _ in model.calls[1:]]
    assert model.calls[-1][1].equal(model.calls[-1][2])
    token_promotion(model := noise_of(Scripted(), sigma), *nothing(1, 5), 1, steps=0,
                    generator=seeded())
    assert len(model.calls) == 1 and model.calls[0][1][0, 0] == times[0]


@pytest.mark.parametrize("sigma", [0.5, 1, 2])
def test_what_is_not_kept_is_nearly_a_mask_again_and_between_it_walks_the_bridge(sigma):
    """From s to t x keeps (1-t)/(1-s) and gains sigma^2 (t-s)(1-t)/(1-s) of variance; n standard
    normals have mean 0 +- 5/sqrt(n) and variance 1 +- 5 sqrt(2/n)."""
    model, normal = noise_of(Scripted(), sigma), lambda noise: (
        abs(noise.mean()) < 5 / math.sqrt(noise.numel())
        and abs(noise.var() - 1) < 5 * math.sqrt(2 / noise.numel()))
    tokens, known = puzzle(*[[None, 1, None, None, None]] * 2000)
    token_promotion(model, tokens, known, 2, threshold=1, steps=2, generator=seeded())
    assert len(model.calls) == 6
    for (x, s, t), unknown in zip(model.calls[::3], (4, 3)):
        start = s[s < 1].unique()
        assert len(start) == 1 and ((s < 1).sum(1) == unknown).all()
        assert normal(x[s < 1] / (sigma * (start * (1 - start)).sqrt()))
    for (x, s, t), (after, _, _) in zip(model.calls[:2], model.calls[1:3]):
        s, t = float(s[0, 0]), float(t[0, 0])
        keep, spread = (1 - t) / (1 - s), sigma * math.sqrt((t - s) * (1 - t) / (1 - s))
        noise = (after - keep * x - (1 - keep) * torch.tensor(FIXED))[~known] / spread
        assert normal(noise)


def test_to_keep_the_surest_drawn_token_prefers_likely_sequences():
    """No steps, so all passes are at nearly [MASK], where the posterior is an MDM's; one token a
    loop, at temperature 1. Unlike p_max, the probability of what was drawn depends on the draw, so
    this is no chain rule. THREE has 001, 121, 220 at 0.2, 0.5, 0.3:
    0.8          the 2 of place 2 is drawn, and surest. 121 : 220 = 5 : 3, and 121 wins unless both
                 places draw the 3/8
    0.2 * 0.7    else the 1 of place 3. 001 : 121 = 2 : 5, and 121 wins unless both draw the 2/7
    0.2 * 0.3    else place 1 if it drew 1, of 0.5, which is 121; else 220, by place 3, or place 1
                 in a tie.
    """
    law = [0.14 * (2 / 7) ** 2, 0.8 * (1 - (3 / 8) ** 2) + 0.14 * (1 - (2 / 7) ** 2) + 0.03,
           0.8 * (3 / 8) ** 2 + 0.03]
    bridge = ExactBridge(THREE.sequences, THREE.weights)
    mask = lambda x, s, t: bridge(x * (s == 1)[..., None], torch.where(s == 1, s, 0.0), t)
    mask.vocab_size, mask.sigma, mask.curve = 3, 1.0, None
    drawn = token_promotion(mask, *nothing(4000, 3), 3, threshold=1, steps=0, temperature=1,
                            generator=seeded())
    assert sum(law) == pytest.approx(1) and law[1] > 0.84
    assert follows(drawn, Exact(THREE.sequences, law))


# ---- left to right

def test_the_cosine_budget_leaves_n_cos_of_a_quarter_turn_by_rounds():
    """40 tokens in 4 rounds: 40 (1 - cos 22.5) = 3.05, so 4; 36 (1 - cos 45 / cos 22.5) = 8.45, so
    9; 27 (1 - cos 67.5 / cos 45) = 12.39, so 13; and the 14 that are left."""
    unknown, taken = torch.ones(1, 40, dtype=torch.bool), []
    for rounds_left in (4, 3, 2, 1):
        count = scheduled(few_first, unknown, rounds_left, 4)
        assert count.shape == (1, 1) and count.dtype == torch.int64
        taken.append(int(count))
        unknown[0, :sum(taken)] = False
    assert taken == [4, 9, 13, 14]
    assert scheduled(few_first, torch.tensor([[True] * 5, [True] + [False] * 4, [False] * 5]), 3,
                     3).tolist() == [[1], [1], [0]]  # 5 (1 - cos 30) = 0.67


def test_left_to_right_commits_the_leftmost_where_none_is_sure():
    """5 tokens in 3 rounds: 1, then 4 (1 - cos 60 / cos 30) = 1.69, so 2, then the other 2."""
    rounds, result = committed_by(left_to_right, FIXED, *nothing(1, 5), rounds=3)
    assert rounds == [[[0]], [[1, 2]], [[3, 4]]] and result.tolist() == [BEST]


@pytest.mark.parametrize("threshold, first", [
    (0.5, [0, 1, 3, 4]), (0.75, [1, 3]), (0.85, [0, 1]), (0.9, [0, 1]), (0.95, [0, 1]),
    (0, [0, 1, 2, 3, 4]), (math.inf, [0, 1])])
def test_what_is_sure_counts_to_the_budget_and_the_leftmost_fill_it(threshold, first):
    """p_max 0.7 0.9 0.4 0.8 0.6, 2 rounds, 5 (1 - cos 45) = 1.46, so a budget of 2: two sure tokens
    fill it, one leaves room for the first of the others, four are all committed."""
    rounds, _ = committed_by(left_to_right, FIXED, *nothing(1, 5), rounds=2, threshold=threshold)
    assert rounds[0] == [first]


def test_left_to_right_does_not_commit_the_leftmost_beside_enough_sure_tokens_further_right():
    table = [[0.6, 0.4], [0.6, 0.4], [0.0005, 0.9995], [0.0005, 0.9995], [0.998, 0.002]]
    rounds, _ = committed_by(left_to_right, table, *nothing(1, 5), rounds=2)
    assert rounds == [[[2, 3]], [[0, 1, 4]]]


def test_left_to_right_each_sequence_has_its_own_left_end_and_budget():
    """4 rounds. Row 2 knows 3 tokens of 5; its budgets are 1, 1. Row 1: 5 (1 - cos 22.5) = 0.38;
    4 (1 - cos 45 / cos 22.5) = 0.94; 3 (1 - cos 67.5 / cos 45) = 1.38, so 1, 1, 2, 1."""
    tokens, known = puzzle([None] * 5, [0, None, 0, None, 0])
    rounds, _ = committed_by(left_to_right, FIXED, tokens, known, rounds=4)
    assert rounds == [[[0], [1]], [[1], [3]], [[2, 3], []], [[4], []]]


def test_left_to_right_the_exact_draft_is_always_sure_and_its_foils_read_the_marginals():
    """One pass of the exact delta_{0,1} is a whole sequence; drawn from equal marginals, in one
    round, half of the pairs are none. One token a round draws from the exact law."""
    model = Recorded(TWO)
    assert follows(left_to_right(model, *nothing(4000, 2), 2, generator=seeded()), TWO)
    assert len(model.calls) == 1
    for how in A_PRIORI, MASKED:
        samples = left_to_right(TWO, *nothing(4000, 2), 1, how=how, generator=seeded())
        assert close(float((samples[:, 0] == samples[:, 1]).double().mean()), 0.5, 4000)
        drawn = left_to_right(THREE, *nothing(4000, 3), 3, how=how, generator=seeded())
        assert follows(drawn, THREE)


# ---- a-priori confidence, and masked diffusion

@pytest.mark.parametrize("run", [a_priori_confidence, mdm_confidence])
def test_exactly_the_uniform_budget_is_committed_however_sure_the_rest_is(run):
    table = [[1.0, 0.0]] * 5
    rounds, _ = committed_by(run, table, *nothing(1, 5),
                             **{"rounds" if run is a_priori_confidence else "steps": 3})
    assert [len(places) for (places,) in rounds] == [2, 2, 1]
    rounds, _ = committed_by(run, FIXED, *nothing(1, 5),
                             **{"rounds" if run is a_priori_confidence else "steps": 4})
    assert rounds == [[[1, 3]], [[0]], [[4]], [[2]]]  # ceil(5/4) = 2, ceil(3/3), ceil(2/2), 1


@pytest.mark.parametrize("run", [a_priori_confidence, mdm_confidence])
@pytest.mark.parametrize("exact", [TWO, CROSS], ids=["00 11", "01 10"])
def test_independent_tokens_of_two_equal_modes_disagree_half_of_the_time_and_never_one_by_one(
        run, exact):
    """delta_{0,0} = 1/2 each: two independent coins make one of 4 pairs, 2 of which are modes. The
    second of two rounds knows the first token, so its marginal is one-hot; and the first was fair,
    so both modes come equally often."""
    samples = run(exact, *nothing(4000, 2), 1, draw="sample", generator=seeded())
    right = (samples[:, None] == exact.sequences).all(-1).any(-1)
    assert close(float(right.double().mean()), 0.5, 4000)
    assert follows(run(exact, *nothing(4000, 2), 2, draw="sample", generator=seeded()), exact)


@pytest.mark.parametrize("run", [a_priori_confidence, mdm_confidence])
def test_the_argmax_of_equal_marginals_fails_always_in_one_round_and_never_in_two(run):
    """Modes 01 and 10: both tokens see (1/2, 1/2) and resolve the tie alike, so all drafts are 00
    (or 11)."""
    once, twice = (run(CROSS, *nothing(100, 2), rounds, generator=seeded()) for rounds in (1, 2))
    assert (once[:, 0] == once[:, 1]).all() and (twice[:, 0] != twice[:, 1]).all()


@pytest.mark.parametrize("run", [a_priori_confidence, mdm_confidence])
def test_sampling_one_token_a_round_draws_from_the_exact_law(run):
    """The chain rule: p(first) p(second given first) ..., in whatever order the confidence
    chooses."""
    assert follows(run(THREE, *nothing(4000, 3), 3, draw="sample", generator=seeded()), THREE)


def test_by_maskgits_rule_a_drawn_token_is_kept_by_a_power_of_its_own_probability():
    """Of 5 tokens in 5 steps the first is i with probability q_i^(1/12) over the sum of all, q_i
    that of the word drawn, 0.8 or 0.2: of equal laws those that drew 0.8 come 1.1225 times as often
    first. At temperature 1e-6 it is one of the surest drawn."""
    table = [[0.8, 0.2]] * 5
    for run, power in ((mdm_gumbel, 1 / 12), (partial(mdm_gumbel, temperature=0.5), 2)):
        trace = []
        run(Scripted(table), *nothing(40_000, 5), 5, generator=seeded(), trace=trace)
        assert all((record.committed.sum(1) == 1).all() for record in trace)
        likely = trace[0].draft == 0
        kept = likely[trace[0].committed].double()  # whether the one that is kept is likely
        for k in 2, 3, 4:  # likely ones among the 5
            rows = likely.sum(1) == k
            share = k * 0.8**power / (k * 0.8**power + (5 - k) * 0.2**power)
            assert close(float(kept[rows].mean()), share, int(rows.sum()))
    trace = []
    mdm_gumbel(Scripted(table), *nothing(500, 5), 5, 1e-6, generator=seeded(), trace=trace)
    likely = trace[0].draft == 0
    assert (likely | ~trace[0].committed | ~likely.any(1, keepdim=True)).all()


def test_ancestral_reveals_a_mask_with_probability_1_over_steps_left_whatever_its_confidence():
    """Linear schedule, t_i = i/N: (a_s - a_t) / (1 - a_t) = (1/N) / (1 - i/N) = 1 / (N - i)."""
    trace = []
    mdm_ancestral(Scripted(), *nothing(4000, 5), 4, generator=seeded(), trace=trace)
    unknown = torch.ones(4000, 5, dtype=torch.bool)
    for left, record in zip((4, 3, 2), trace):
        for place in range(5):
            masked = unknown[:, place]
            assert close(float(record.committed[masked, place].double().mean()), 1 / left,
                         int(masked.sum()))
        unknown &= ~record.committed
    assert len(trace) == 4 and trace[3].committed.equal(unknown)


def test_ancestral_draws_every_token_from_its_marginal_and_reveals_it_whatever_was_drawn():
    n, trace = 20000, []
    drawn = mdm_ancestral(Scripted(), *nothing(n, 5), 3, generator=seeded(), trace=trace)
    for place, law in enumerate(FIXED):
        first = trace[0].committed[:, place]
        for token, probability in enumerate(law):
            assert close(float((drawn[:, place] == token).double().mean()), probability, n)
            assert close(float((drawn[first, place] == token).double().mean()), probability,
                         int(first.sum()))


def test_two_ancestral_steps_fail_a_quarter_of_the_time_on_two_modes():
    """Both tokens are revealed in the same step with probability 1/2 (both in the first 1/4, both
    in the last 1/4), and then disagree with probability 1/2; revealed one after the other they
    never do. (The pairs 01 and 10 have a weight of 1e-9, as a context for the steps after the
    mistake.)"""
    nearly_two = Exact([[0, 0], [1, 1], [0, 1], [1, 0]], [1, 1, 1e-9, 1e-9])
    samples = mdm_ancestral(nearly_two, *nothing(8000, 2), 2, generator=seeded())
    assert close(float((samples[:, 0] != samples[:, 1]).double().mean()), 1 / 4, 8000)


# ---- the table of samplers

# 9 passes for 16 tokens: blocks of ceil(16/9) = 2, so 8 of them; 5 passes: blocks of 4, so 4 of
# them; posterior-4 takes four passes a round, so 9 are two rounds, 5 are one, and fewer than 4 are
# one round of so many; posterior-8 the same with eight. Promotion makes one loop of all passes,
# where they are fewer than 257. The early budget rounds up to 4 3 2 2 2 1 1 1 tokens of 16 in 9
# passes, and to 3 2 2 and nine times 1 in 16.
WHOLE = {"posterior-4": {5: 4, 9: 8}, "posterior-8": {9: 8}, "block": {5: 4, 9: 8},
         "posterior-early": {9: 8, 16: 12}}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 9, 16])
def test_a_sampler_of_the_table_makes_the_passes_it_is_allowed(name, nfe):
    model = Scripted([[0.6, 0.4]] * 16)
    SAMPLERS[name].run(model, *nothing(20, 16), nfe, generator=seeded())
    assert len(model.calls) == WHOLE.get(name, {}).get(nfe, nfe)


@pytest.mark.parametrize("flow_steps", [4, 8])
def test_a_round_of_several_flow_steps_is_one_draft_and_below_one_round_the_flow_map(flow_steps):
    """Of 16 passes 16 / k are rounds, each from noise to data in k equal jumps, which commit
    16 / rounds tokens; 3 passes are the flow map in three jumps, bit for bit."""
    model, trace = Scripted([[0.6, 0.4]] * 16), []
    run = SAMPLERS[f"posterior-{flow_steps}"].run
    run(model, *nothing(20, 16), 16, generator=seeded(), trace=trace)
    unknown = [torch.unique(t[s < 1]).tolist() for _, s, t in model.calls]
    assert unknown == [[(i + 1) / flow_steps] for i in range(flow_steps)] * (16 // flow_steps)
    committed = [record.committed.sum(1).unique().tolist() for record in trace]
    assert committed == ([[0]] * (flow_steps - 1) + [[flow_steps]]) * (16 // flow_steps)
    few, flow = (sampler(Scripted(), *nothing(20, 5), 3, generator=seeded())
                 for sampler in (run, SAMPLERS["flow-map"].run))
    assert few.equal(flow)


def test_a_round_of_several_flow_steps_commits_a_token_at_least_however_many_are_allowed():
    """3 tokens, none ever sure: three rounds of four passes, though 100 are allowed."""
    model = Scripted([[0.6, 0.4]] * 3)
    SAMPLERS["posterior-4"].run(model, *nothing(20, 3), 100, generator=seeded())
    assert len(model.calls) == 12


@pytest.mark.parametrize("nfe, passes", [(256, 256), (257, 257), (513, 257), (514, 514),
                                         (99999, 771)])
def test_promotion_makes_whole_loops_of_257_passes_and_no_more_than_one_a_token(nfe, passes):
    """3 tokens of which none is ever sure: p = 1/2. At most three loops, whatever is allowed."""
    model = Scripted([[0.5, 0.5]] * 3)
    SAMPLERS["promotion"].run(model, *nothing(2, 3), nfe, generator=seeded())
    assert len(model.calls) == passes


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [0, -1])
def test_a_sampler_of_the_table_refuses_fewer_passes_than_one(name, nfe):
    with pytest.raises(ValueError):
        SAMPLERS[name].run(Scripted(), *nothing(1, 5), nfe)


@pytest.mark.parametrize("name", ["posterior", "posterior-left", "a-priori", "a-priori-sampled",
                                  "a-priori-left", "block", "confidence", "confidence-sampled",
                                  "confidence-left"])
def test_a_sampler_of_the_table_that_commits_in_every_pass_refuses_more_passes_than_tokens(name):
    with pytest.raises(ValueError, match="6 rounds"):
        SAMPLERS[name].run(Scripted(), *nothing(1, 5), 6)


def test_the_names_of_the_table_stand_for_what_they_say():
    """By their times, their noise and their law: on a table with p_max 0.6 sampled tokens differ,
    those of argmax do not.

    Two words: tau(t) = 2 Phi(r / sqrt(2)) - 1, r = t/(1-t), is 1/2 at r = sqrt(2) Phi^-1(3/4), t =
    0.488196.
    """
    seen = {}
    for name, sampler in SAMPLERS.items():
        model = Scripted([[0.6, 0.4]] * 4)
        result = sampler.run(model, *nothing(50, 4), 2, generator=seeded())
        (x, s, t), noisy = model.calls[0], bool(model.calls[0][0].any())
        seen[name] = (t.unique().tolist(), noisy, len(result.unique(dim=0)) > 1)
    assert seen == {"posterior": ([1], True, False), "posterior-early": ([1], True, False),
                    "posterior-gumbel": ([1], True, False),
                    "posterior-4": ([0.5], True, False), "posterior-8": ([0.5], True, False),
                    "posterior-left": ([1], True, False), "a-priori-left": ([0], True, True),
                    "a-priori": ([0], True, False), "a-priori-sampled": ([0], True, True),
                    "flow-map-tau": ([pytest.approx(0.488196, abs=1e-6)], True, False),
                    "promotion": ([pytest.approx(0.94)], True, True),
                    "flow-map": ([0.5], True, False), "block": ([1], True, False),
                    "confidence": ([0], False, False), "confidence-left": ([0], False, True),
                    "confidence-sampled": ([0], False, True),
                    "confidence-gumbel": ([0], False, True), "ancestral": ([0], False, True)}


def test_an_objective_has_a_default_sampler_and_refuses_those_it_was_not_trained_for():
    default = {"fmlm+": "posterior", "fmlm": "flow-map-tau", "flm": "flow-map-tau",
               "mdm": "confidence", "mlfm": "promotion", "flm+": "a-priori"}
    assert {objective: choose_sampler(objective)[0] for objective in default} == default
    assert {*OBJECTIVES, "mlfm"} == {*default}
    suits = {"fmlm+": {"posterior", "posterior-4", "posterior-8", "posterior-early",
                       "posterior-gumbel", "posterior-left", "a-priori", "a-priori-sampled",
                       "a-priori-left", "flow-map", "flow-map-tau", "block"},
             "mlfm": {"promotion"},
             "flm": {"flow-map", "flow-map-tau"}, "fmlm": {"flow-map", "flow-map-tau"},
             "flm+": {"flow-map", "a-priori", "a-priori-sampled", "a-priori-left"},
             "mdm": {"confidence", "confidence-sampled", "confidence-left", "confidence-gumbel",
                     "ancestral"}}
    for objective, names in suits.items():
        for name in SAMPLERS:
            if name in names:
                assert choose_sampler(objective, name) == (name, SAMPLERS[name])
            else:
                with pytest.raises(ValueError, match="does not suit"):
                    choose_sampler(objective, name)
        with pytest.raises(ValueError, match="unknown sampler 'beam'"):
            choose_sampler(objective, "beam")


def test_a_threshold_belongs_to_posterior_refinement_alone():
    for name in [name for name in SAMPLERS if not name.startswith("posterior")]:
        with pytest.raises(ValueError, match="is of Posterior Refinement"):
            choose_sampler(SAMPLERS[name].objectives[0], name, 0.9)
    name, sampler = choose_sampler("fmlm+", "posterior-early", 0.65)
    assert name == "posterior-early" and sampler.objectives == ("fmlm+",)
    trace = []
    sampler.run(Scripted(), *nothing(1, 5), 3, generator=seeded(), trace=trace)
    assert trace[0].committed.nonzero()[:, 1].tolist() == [0, 1, 3]


@pytest.mark.parametrize("objective", ["flow", ""])
def test_an_unknown_objective_has_no_sampler_and_that_is_said(objective):
    for name in (None, "posterior"):
        with pytest.raises(ValueError, match="sampler"):
            choose_sampler(objective, name)


def test_many_sequences_are_completed_100_at_a_time_in_order_with_the_trace_of_the_first_100():
    """250 rows, a digit of each given: batches of 100, 100 and 50 from one generator."""
    given = torch.full((250, 5), -1)
    given[:, 0] = torch.arange(250) % 3
    model = Scripted()
    done, sure, passes, trace = SAMPLERS["posterior"].complete(model, given, 2, seeded())
    assert done[:, 0].equal(given[:, 0]) and done[:, 1:].tolist() == [BEST[1:]] * 250
    assert [len(x) for x, *_ in model.calls] == [100, 100, 100, 100, 50, 50]
    assert passes.tolist() == [2] * 250 and len(trace) == 2 and len(trace[0].draft) == 100
    assert sure.shape == given.shape and sure[:100].equal(trace[1].confidence)
    assert (sure[:, 0] == 1).all() and (sure[:, 1:] < 1).all()


def test_the_passes_of_a_sequence_are_counted_until_nothing_is_left_of_it():
    """Rows with 5, 1 and 0 unknown tokens over 3 rounds take 3, 1 and 0 passes: 4/3, rounded."""
    given = torch.tensor([[-1] * 5, [0, 2, -1, 1, 0], [0, 2, 1, 1, 0]])
    tokens, _, passes, _ = SAMPLERS["posterior"].complete(Scripted(), given, 3, seeded())
    assert tokens.tolist() == [BEST, BEST, [0, 2, 1, 1, 0]] and passes.tolist() == [3, 1, 0]
    assert evaluation.complete(Scripted(), SAMPLERS["posterior"], given, 3, seeded(), None)[2] == {
        "passes": 1.33}
