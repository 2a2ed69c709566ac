"""AR, Duo, CANDI and S-FLM as specifications: their mathematics by enumeration, simulation and hand
arithmetic, their networks by what they cannot see. Their samplers: test_baseline_samplers.py."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from baselines import (EPS, ar, candi, duo, sampling_times, sflm, signal, training_context,
                       training_times)
from fmlm import Denoiser, Draws
from sudoku.boards import SHAPES

COORDS = SHAPES["sudoku4"].coords()
LINE = torch.arange(5)[:, None]
SEQUENCES, WEIGHTS = torch.tensor([[0, 0, 1], [1, 2, 1], [2, 2, 0]]), torch.tensor([0.2, 0.5, 0.3])


def seeded(seed=0):
    return Generator().manual_seed(seed)


def draws(seed=0):
    return Draws(seeded(seed))


def one_hot(tokens, words):
    return F.one_hot(torch.as_tensor(tokens), words).float()


def nothing(x1):
    return torch.zeros(x1.shape[:2], dtype=torch.bool)


def stirred(network, seed=0):
    """A network whose weights are all random: none of the zeros that it begins with."""
    generator = seeded(seed)
    for weight in network.parameters():
        weight.data.normal_(generator=generator).mul_(0.3)
    return network.requires_grad_(False)


class Written:
    """A model that answers with what `law` (x, t) says, or uniformly, and writes down (x, s, t)."""

    def __init__(self, law=None):
        self.law, self.calls = law, []

    def __call__(self, x, s, t):
        self.calls.append((x.clone(), s.clone(), t.clone()))
        return self.law(x, t)


def loss_of(module, x1, prompt=None, law=None, network=None, objective=None):
    """The loss of a written model: value, context, and what the model was asked, (x, s, t)."""
    uniform = lambda x, t: torch.full(x1.shape, -math.log(x1.shape[-1]))
    model = Written(law or uniform)
    run = SimpleNamespace(draws=draws(1), model=network or SimpleNamespace(completes=True))
    losses = module.LOSSES
    value, context = losses[objective or next(iter(losses))](run, model, x1, prompt)
    [asked] = model.calls
    return float(value), context, asked


# ---- what they share

def test_the_signal_is_log_linear_and_times_end_where_the_sources_end_them():
    assert (signal(0), signal(1)) == (EPS, 1) and signal(0.5) == pytest.approx(0.5005)
    assert sampling_times(4) == pytest.approx([0, 0.2499975, 0.499995, 0.7499925, 0.99999])
    times = training_times(1000, draws())
    assert times.min() > 0 and 0.998 < times.max() < 0.999
    assert ((times / 0.999 * 1000).long().sort().values == torch.arange(1000)).all()


def test_every_second_sequence_is_from_nothing_and_prompts_are_always_context():
    x1 = one_hot(torch.zeros(4000, 10, dtype=torch.int64), 3)
    context = training_context(x1, None, draws())
    assert not context[::2].any() and context[1::2].float().mean() == pytest.approx(0.5, abs=0.02)
    prompt = torch.arange(10).expand(4000, 10) < 3
    context = training_context(x1, prompt, draws())
    assert context[:, :3].all() and not context[::2, 3:].any() and context[1::2, 3:].any()


@pytest.mark.parametrize("module", [duo, candi, sflm, ar])
def test_context_is_clean_at_time_1_and_carries_no_loss(module):
    """The model says uniform where nothing is given, and at context that another token is there."""
    x1 = one_hot(torch.randint(3, (64, 6), generator=seeded()), 3)
    prompt = torch.rand(64, 6, generator=seeded(1)) < 0.4
    network = sflm.Sphere(3, LINE, 16) if module is sflm else None

    def law(x, t):
        wrong = one_hot((x1.argmax(-1) + 1) % 3, 3)
        p = torch.where(t[..., None] == 1, 0.999 * wrong + 1e-3 / 3, torch.tensor(1 / 3))
        return p.log()

    value, context, (x, s, t) = loss_of(module, x1, prompt, law, network)
    assert (context & prompt == prompt).all() and s.equal(t)
    assert (t[context] == 1).all()
    clean = network.words()[x1.argmax(-1)] if module is sflm else x1
    assert x[context].to(clean.dtype).equal(clean[context])
    if module is not candi:  # there, revealed tokens are at time 1 too
        assert (t[~context] < 0.999).all()
        each = t.masked_fill(context, -1).amax(1, keepdim=True)  # one time a sequence
        assert t.equal(torch.where(context, 1.0, each))
    assert value < 4


# ---- Duo

def test_duos_dense_and_expanded_bound_agree_to_1e_6():
    generator = seeded()
    for words in (2, 4, 9, 50):
        log_p = torch.randn(200, 7, words, generator=generator).mul(3).log_softmax(-1)
        x1 = one_hot(torch.randint(words, (200, 7), generator=generator), words)
        z = torch.randint(words, (200, 7), generator=generator)
        z[:, :3] = x1.argmax(-1)[:, :3]
        a = torch.rand(200, generator=generator) * 0.9985 + 1e-3
        dense, expanded = (duo.bound(log_p, x1, z, a, dense=dense) for dense in (True, False))
        assert (dense - expanded).abs().max() < 1e-6 * (1 + dense.max()) and dense.min() >= 0
        default = expanded if words > 32 else dense
        assert duo.bound(log_p, x1, z, a).equal(default)


def test_duos_bound_is_zero_for_who_knows_the_token():
    x1 = one_hot(torch.randint(4, (50, 3), generator=seeded()), 4)
    z, a = torch.randint(4, (50, 3), generator=seeded(1)), torch.linspace(0.01, 0.99, 50)
    for dense in (True, False):
        assert duo.bound(x1.log(), x1, z, a, dense).abs().max() < 1e-9


@pytest.mark.parametrize("words", [2, 4, 9])
@pytest.mark.parametrize("dense", [True, False])
def test_the_integral_of_duos_bound_is_log_v_on_a_uniform_token(words, dense):
    """Over z by enumeration, over the level by the midpoint rule in u, a = 1 - (1-u)^2, which tames
    the logarithm at a = 1. The coefficient is that of time, da = (1 - EPS) dt."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    a, width = 1 - (1 - u) ** 2, 2 * (1 - u) / 20_000 / (1 - EPS)
    z = torch.arange(words).expand(len(a), words)
    x1 = one_hot([[0] * words], words).expand(len(a), words, words)
    log_p = torch.full((len(a), words, words), -math.log(words), dtype=torch.float64)
    q = a[:, None] * (z == 0) + (1 - a[:, None]) / words
    value = (q * duo.bound(log_p, x1, z, a, dense) * width[:, None]).sum()
    assert float(value) == pytest.approx(math.log(words), abs=2e-6)


def test_duos_bound_on_two_words_is_the_formula_worked_out_by_hand():
    """p = (1/2, 1/2): the mean over z of V a l / a' is a log((1+a) / (1-a))."""
    a = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x1, z = one_hot([[0, 0]] * 3, 2), torch.tensor([[0, 1]] * 3)
    values = duo.bound(torch.full((3, 2, 2), 0.5).log(), x1, z, a)
    mean = ((1 + a) * values[:, 0] + (1 - a) * values[:, 1]) / 2
    expected = 0.999 / (2 * a) * a * ((1 + a) / (1 - a)).log()
    assert mean.tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_duos_noise_keeps_a_share_a_and_the_rest_is_uniform_over_all_words():
    x1 = one_hot(torch.zeros(2, 40_000, dtype=torch.int64), 4)
    context = torch.zeros(2, 40_000, dtype=torch.bool)
    context[:, :100] = True
    z = duo.corrupt(x1, context, torch.tensor([0.2, 0.8]), draws())
    assert (z[:, :100] == 0).all()
    for row, a in zip(z[:, 100:], (0.2, 0.8)):
        shares = row.bincount(minlength=4) / row.numel()
        assert shares.tolist() == pytest.approx([a + (1 - a) / 4] + [(1 - a) / 4] * 3, abs=0.012)


def leave_one_out(z, a):
    """p(x1^l | z of the other tokens) of the three sequences, (L, V), by enumeration."""
    rows = torch.zeros(3, 3, dtype=torch.float64)
    for sequence, weight in zip(SEQUENCES.tolist(), WEIGHTS.tolist()):
        for l in range(3):
            others = math.prod(a * (z[m] == sequence[m]) + (1 - a) / 3 for m in range(3) if m != l)
            rows[l, sequence[l]] += weight * others
    return rows / rows.sum(-1, keepdim=True)


@pytest.mark.parametrize("a, b", [(0.3, 0.31), (0.2, 0.7), (0.5, 1.0), (EPS, 0.5)])
def test_duos_step_is_bayes_by_enumeration_on_three_sequences(a, b):
    """q(z_b = j | z_a): over sequences x1 and all paths x1 -> z_b (level b) -> z_a (level a/b)."""
    for z in itertools.product(range(3), repeat=3):
        p = leave_one_out(z, a)
        law = duo.reverse(p[None], torch.tensor([z]), a, b)[0]
        assert (law.sum(-1) - 1).abs().max() < 1e-12 and law.min() >= -1e-15
        joint = torch.zeros(3, 3, dtype=torch.float64)
        for sequence, weight in zip(SEQUENCES.tolist(), WEIGHTS.tolist()):
            for l, j in itertools.product(range(3), repeat=2):
                others = math.prod(a * (z[m] == sequence[m]) + (1 - a) / 3
                                   for m in range(3) if m != l)
                to_b = b * (sequence[l] == j) + (1 - b) / 3
                to_a = a / b * (j == z[l]) + (1 - a / b) / 3
                joint[l, j] += weight * others * to_b * to_a
        assert (law - joint / joint.sum(-1, keepdim=True)).abs().max() < 1e-12


def test_duos_likelihood_of_uniform_tokens_is_log_v_each():
    x1 = one_hot(torch.randint(4, (40_000, 2), generator=seeded()), 4)
    values = duo.likelihood(lambda x, s, t: torch.full(x.shape, 0.25).log(), x1, draws())
    assert values.shape == (40_000,)
    assert float(values.mean()) == pytest.approx(2 * math.log(4), abs=0.06)


def test_duos_loss_is_the_mean_of_the_bound_at_the_level_that_it_asks_at():
    x1 = one_hot(torch.randint(4, (500, 40), generator=seeded()), 4)
    value, context, (x, s, t) = loss_of(duo, x1)
    a, z = signal(t.min(1).values), x.argmax(-1)
    each = duo.bound(torch.full(x1.shape, 0.25).log(), x1, z, a)
    assert value == pytest.approx(float(each[~context].mean()), rel=1e-4)
    kept = (z == x1.argmax(-1)).float()[::2].mean(1)  # a + (1 - a) / 4
    assert float((kept - a[::2] - (1 - a[::2]) / 4).abs().mean()) < 0.06


def test_duos_likelihood_of_the_exact_posterior_is_the_entropy_of_the_data():
    """The bound is tight for the leave-one-out posterior: a sharper p, as E[x1 | z], pays more."""
    rows = torch.multinomial(WEIGHTS, 100_000, replacement=True, generator=seeded())
    x1 = one_hot(SEQUENCES[rows], 3)

    def model(x, s, t, own=False):
        a, same = signal(t.double())[:, None], x.argmax(-1)[:, None] == SEQUENCES
        says = a * same + (1 - a) / 3  # (B, K, L)
        laws = []
        for l in range(3):
            p = WEIGHTS * says[..., [m for m in range(3) if own or m != l]].prod(-1)
            laws.append(p / p.sum(-1, keepdim=True) @ one_hot(SEQUENCES[:, l], 3).double())
        return torch.stack(laws, 1).log()

    entropy = float(-(WEIGHTS * WEIGHTS.log()).sum())
    values = duo.likelihood(model, x1, draws())
    error = 4 * float(values.std()) / 100_000**0.5
    assert error < 0.05 and float(values.mean()) == pytest.approx(entropy, abs=error)
    greedy = duo.likelihood(lambda *a: model(*a, own=True), x1, draws())
    assert float(greedy.mean()) > entropy + 2 * error


# ---- CANDI

@pytest.mark.parametrize("words", [3, 4, 9, 12])
def test_candis_noise_gives_the_rank_error_that_is_asked_for(words):
    """By the formula solved, and by a count: how many of V words look better than the right one."""
    rho = torch.tensor([0.01, 0.1, 0.25], dtype=torch.float64)
    sigma = candi.rank_noise(rho, words)
    error = (words - 1) / words * torch.special.ndtr(-1 / (sigma * 2**0.5))
    assert error.tolist() == pytest.approx(rho.tolist(), rel=1e-9)
    noise = torch.randn(100_000, words, generator=seeded(), dtype=torch.float64)
    x = F.one_hot(torch.tensor(0), words) + sigma[:, None, None] * noise
    counted = (x > x[..., :1]).double().mean((1, 2))
    assert counted.tolist() == pytest.approx(rho.tolist(), abs=5e-3)


def test_candis_noise_falls_from_its_size_at_noise_to_that_at_data():
    sigma = candi.noise_at(torch.tensor([0.0, 0.5, 1.0]), 4)
    assert sigma.tolist() == pytest.approx([1.638, 0.751, 0.319], abs=2e-3)
    assert candi.noise_at(torch.tensor(0.0), 9) == pytest.approx(1.22, abs=5e-3)
    with pytest.raises(ValueError, match="at least 3 words"):
        candi.rank_noise(torch.tensor(0.25), 2)
    with pytest.raises(ValueError, match="at least 3 words"):
        candi.network(SimpleNamespace(vocab_size=2, coords=LINE), dict(width=8))


def test_candi_shows_what_is_clean_and_scales_the_rest_to_size_one():
    x1 = one_hot([[0, 1]], 3)
    x = torch.full((1, 2, 3), 2.0)
    seen = candi.shown(x, x1, torch.tensor([[True, False]]), torch.tensor([3.0**0.5]))
    assert seen[0].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_candis_loss_reveals_with_probability_a_and_weighs_what_is_hidden():
    """Of a uniform model: log V a hidden token, over 1 - t, of which 1 - a = 0.999 (1 - t) are."""
    x1 = one_hot(torch.randint(4, (2000, 50), generator=seeded()), 4)
    value, context, (x, s, t) = loss_of(candi, x1)
    assert value == pytest.approx(0.999 * math.log(4), rel=0.05)
    free = (~context[::2]).all(1)
    assert free.all() and not context[::2].any()
    time = t[::2].min(1).values  # of the sequence; a token at 1 is revealed
    revealed = (t[::2] == 1).float().mean(1)
    for low in (0.0, 0.3, 0.6):
        mine = (time >= low) & (time < low + 0.3)
        expected = float(signal(time[mine]).mean())
        assert float(revealed[mine].mean()) == pytest.approx(expected, abs=0.02)
    assert x[t == 1].equal(x1[t == 1])
    hidden = t < 1
    sigma = candi.noise_at(t[hidden], 4)
    noise = (x[hidden] * (1 + sigma**2).sqrt()[:, None] - x1[hidden]) / sigma[:, None]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


# ---- S-FLM

def points(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=seeded(seed), dtype=torch.float64), dim=-1)


def between(x, y):
    return (x * y).sum(-1).clamp(-1, 1).arccos()


@pytest.mark.parametrize("words, width, end", [(12, 512, 0.093), (49_152, 768, 0.121),
                                               (4, 64, 0.233), (6, 96, 0.200), (9, 128, 0.182)])
def test_the_truncated_schedule_ends_at_the_published_level(words, width, end):
    table = torch.zeros(words, width)
    assert sflm.level(1.0, table, truncated=True) == pytest.approx(end, abs=1e-3)
    assert sflm.level(1.0, table, truncated=False) == 1
    assert sflm.level(0.0, table, truncated=True) == sflm.level(0.0, table, truncated=False) == EPS


def test_where_few_dimensions_tell_no_words_apart_nothing_is_truncated():
    assert sflm.level(1.0, torch.zeros(4, 8), truncated=True) == pytest.approx(1)


def test_at_the_truncated_end_the_nearest_word_is_right_nine_times_in_ten():
    """Of random words and noise, d = 128, V = 9: at least 1 - 0.1, by a union bound."""
    words, x0 = points(2000, 9, 128), points(2000, 1, 128, seed=1)
    a = torch.full((2000, 1), sflm.level(1.0, words[0], truncated=True), dtype=torch.float64)
    x = sflm.slerp(x0, words[:, :1], a)
    assert ((x @ words.mT).argmax(-1) == 0).double().mean() > 0.9


def test_the_geodesic_stays_on_the_sphere_and_is_walked_in_proportion():
    x0, e = points(100, 4, 7), points(100, 4, 7, seed=1)
    a = torch.rand(100, 4, generator=seeded(), dtype=torch.float64)
    x = sflm.slerp(x0, e, a)
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-12
    assert (between(x, e) - (1 - a) * between(x0, e)).abs().max() < 1e-6
    assert sflm.slerp(x0, e, torch.ones_like(a)).equal(e)
    assert (sflm.slerp(x0, e, torch.zeros_like(a)) - x0).abs().max() < 1e-12


def test_exp_and_log_invert_each_other():
    x, words = points(50, 3, 6), points(5, 6, seed=1)
    for v in range(5):
        p = torch.zeros(50, 3, 5, dtype=torch.float64)
        p[..., v] = 1
        log = sflm.velocity(x, p, words)
        assert (log * x).sum(-1).abs().max() < 1e-9  # a tangent
        assert (log.norm(dim=-1) - between(x, words[v].expand_as(x))).abs().max() < 1e-6
        assert (sflm.exponential(x, log) - words[v]).abs().max() < 1e-6
    v = torch.randn(50, 3, 6, generator=seeded(2), dtype=torch.float64)
    v = v - (v * x).sum(-1, keepdim=True) * x
    v = v / v.norm(dim=-1, keepdim=True)
    y = sflm.exponential(x, 0.7 * v)
    assert (y.norm(dim=-1) - 1).abs().max() < 1e-12
    back = torch.stack([sflm.velocity(x[i], torch.eye(3, dtype=torch.float64), y[i])
                        for i in range(50)])
    assert (back - 0.7 * v).abs().max() < 1e-6
    assert sflm.exponential(x, torch.zeros_like(x)).equal(x)


def test_the_velocity_is_the_mean_over_all_words():
    x, words = points(20, 3, 6), points(5, 6, seed=1)
    p = torch.rand(20, 3, 5, generator=seeded(), dtype=torch.float64)
    p = p / p.sum(-1, keepdim=True)
    each = torch.stack([sflm.velocity(x, torch.eye(5)[v].double().expand_as(p), words)
                        for v in range(5)])
    mean = torch.einsum("blv,vbld->bld", p, each)
    assert (sflm.velocity(x, p, words) - mean).abs().max() < 1e-12


@pytest.mark.parametrize("objective, truncated", [("sflm", True), ("sflm-naive", False)])
def test_sflm_trains_on_the_geodesic_at_its_schedules_level(objective, truncated):
    """In 512 dimensions noise is a right angle from any word: the angle left is 1 - a of it."""
    network = sflm.Sphere(4, LINE, 512)
    x1 = one_hot(torch.randint(4, (400, 5), generator=seeded()), 4)
    value, context, (x, s, t) = loss_of(sflm, x1, network=network, objective=objective)
    assert value == pytest.approx(math.log(4))  # no weight
    words = network.words()
    a = sflm.level(t.double(), words, truncated)
    left = between(x, words[x1.argmax(-1)]) / (math.pi / 2)
    error = (left - (1 - a))[~context].detach()
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-9
    assert float(error.mean()) == pytest.approx(0, abs=5e-3) and float(error.std()) < 0.04


def test_sflm_reads_points_of_unit_variance_with_no_input_layer_and_learns_its_words():
    network = sflm.Sphere(4, COORDS, 16, depth=1, heads=2)
    assert "body.embed.weight" not in network.state_dict()
    assert network.words().norm(dim=-1).tolist() == pytest.approx([1] * 4)
    seen = []
    network.body.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = points(2, 16, 16)
    for table in network.body.positions:
        torch.nn.init.zeros_(table.weight)
    log_p = network(x, torch.zeros(2, 16), torch.zeros(2, 16))
    assert (seen[0] - 4 * x).abs().max() < 1e-6 and seen[0].dtype == torch.float32
    assert log_p.exp().sum(-1).tolist() == [pytest.approx([1] * 16)] * 2
    run = SimpleNamespace(draws=draws(), model=stirred(network).requires_grad_(True))
    x1 = one_hot(torch.randint(4, (8, 16), generator=seeded()), 4)
    sflm.loss(run, network, x1, None)[0].backward()
    assert network.table.grad.abs().max() > 0


# ---- AR

@pytest.fixture(params=["board", "line"])
def causal(request):
    coords = COORDS if request.param == "board" else LINE
    return stirred(ar.Causal(4, coords, width=16, depth=2, heads=4))


def test_the_law_of_a_token_sees_no_later_token_and_all_earlier_ones(causal):
    length = len(causal.coords)
    tokens = torch.randint(4, (1, length), generator=seeded())
    zeros = torch.zeros(1, length)
    before = causal(one_hot(tokens, 4), zeros, zeros)
    for i in range(length):
        changed = tokens.clone()
        changed[0, i] = (tokens[0, i] + 1) % 4
        after = causal(one_hot(changed, 4), zeros, zeros)
        apart = (after - before).abs().amax(-1)[0]
        assert (apart[:i + 1] == 0).all() and (apart[i + 1:] > 1e-7).all()


def test_a_clue_anywhere_is_seen_by_every_token_of_a_board_and_by_none_of_a_line(causal):
    length = len(causal.coords)
    tokens, zeros = torch.randint(4, (1, length), generator=seeded()), torch.zeros(1, length)
    before = causal(one_hot(tokens, 4), zeros, zeros)
    for i in (0, length // 2, length - 1):
        given = zeros.clone()
        given[0, i] = 1
        apart = (causal(one_hot(tokens, 4), given, given) - before).abs().amax(-1)[0]
        assert (apart > 1e-7).all() if causal.completes else (apart == 0).all()


def test_a_symbol_is_read_once_as_puzzle_or_as_solution_and_begins_with_bos():
    causal = ar.Causal(4, COORDS[:3], 8, 1, 2)
    x, time = one_hot([[2, 0, 3]], 4), torch.tensor([[0.0, 1, 0]])
    assert causal.symbols(x.argmax(-1), time).tolist() == [[9, 5, 9, 4, 2, 0]]  # 5 ... 8 words, 9 empty, 4 BOS
    assert ar.Causal(4, LINE[:3], 8, 1, 2).symbols(x.argmax(-1), time).tolist() == [[4, 2, 0]]
    assert causal.embed.num_embeddings == 10


def test_attention_is_biased_by_the_relation_of_the_cell_asked_for_to_the_one_that_is_held():
    causal = ar.Causal(4, COORDS, 8, 1, 2)
    same = (COORDS[:, None] == COORDS).permute(2, 0, 1).float()
    assert causal.related[:, :16, :16].equal(same) and causal.related[:, 16:, :16].equal(same)
    assert causal.related[:, 16:, 17:].equal(same[:, :, :-1])
    assert not causal.related[:, :, 16].any() and not causal.related[:, :16, 16:].any()
    assert not causal.unseen.tril().any() and causal.unseen[0, 1:].isneginf().all()


def test_the_cached_law_is_the_uncached_one(causal):
    length = len(causal.coords)
    tokens = torch.randint(4, (3, length), generator=seeded())
    time = (torch.arange(length) < 2).float().expand(3, length)
    x, cache = one_hot(tokens, 4), []
    whole = causal(x, time, time)
    for i in (2, 3, length - 1):  # the tokens between are read together
        assert (causal.following(x.argmax(-1), time, i, cache) - whole[:, i]).abs().max() < 1e-5
        assert cache[0][0].shape[2] == i + 1 + length * causal.completes


def test_the_exact_likelihood_sums_to_one_by_enumeration():
    for coords in (COORDS[:4], LINE[:4]):
        causal = stirred(ar.Causal(3, coords, 8, 2, 2))
        everything = torch.tensor(list(itertools.product(range(3), repeat=4)))
        nats = ar.likelihood(causal, one_hot(everything, 3), draws())
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_ars_loss_is_the_mean_over_generated_tokens_of_what_the_likelihood_sums():
    causal = stirred(ar.Causal(4, LINE, 8, 2, 2))
    x1 = one_hot(torch.randint(4, (6, 5), generator=seeded()), 4)
    run = SimpleNamespace(draws=draws(), model=causal)
    value, context = ar.loss(run, causal, x1, None)
    assert not context.any()  # a text has no clue: every token is learned from those before it
    assert float(value) == pytest.approx(float(ar.likelihood(causal, x1, draws()).mean()) / 5)
    prompt = torch.arange(5).expand(6, 5) < 2
    value, context = ar.loss(run, causal, x1, prompt)
    log_p = causal(x1, prompt.float(), prompt.float())
    assert context.equal(prompt)
    assert float(value) == pytest.approx(float(-(x1 * log_p).sum(-1)[:, 2:].mean()))
    gap = prompt | torch.tensor([False, False, False, True, True])  # behind a gap nothing is given
    other, context = ar.loss(run, causal, x1, gap)
    assert other == value and context.equal(prompt)


def test_networks_begin_by_saying_all_words_alike_and_have_fmlms_size():
    task = SimpleNamespace(vocab_size=4, coords=COORDS)
    sizes = dict(width=16, depth=2, heads=4)
    zeros, counts = torch.zeros(1, 16), {}
    for module in (ar, duo, candi, sflm):
        network = module.network(task, sizes)
        x = points(1, 16, 16) if module is sflm else one_hot(torch.zeros(1, 16).long(), 4)
        assert (network(x, zeros, zeros) + math.log(4)).abs().max() < 1e-6
        assert network.vocab_size == 4
        counts[module] = sum(weight.numel() for weight in network.parameters())
    whole = sum(weight.numel() for weight in Denoiser(4, COORDS, **sizes).parameters())
    assert counts[duo] == counts[candi] == whole and 0.5 * whole < counts[ar] < whole
