"""The network: every part beside the formula it stands for, written out here a second time, on
random weights.

The weights that begin at zero (adaLN, the head, the second time) make a fresh network blind to most
mistakes, so most tests fill all of them with seeded normals first.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fmlm import (Block, Denoiser, TimeEmbedding, attention, decoding_time, normalize,
                  relations)

# L = 5, and K = 3 tables of 3, 2, 3 rows
COORDS = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [2, 0, 2]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def filled(module, seed=1, std=0.2):
    """The module with all its weights drawn anew, those that begin at zero too."""
    generator = seeded(seed)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=std, generator=generator)
    return module


def network(**sizes):
    return filled(Denoiser(3, COORDS, **{"width": 8, "depth": 2, "heads": 2} | sizes))


def inputs(batch=4, seed=2):
    """x (B, 5, 3) and times s <= t (B, 5), different for every token."""
    times = torch.rand(2, batch, 5, generator=seeded(seed)).sort(0).values
    return randn(batch, 5, 3, seed=seed), times[0], times[1]


def linear(layer, h):
    return h @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def layer_norm(h):
    return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


# ---- time embedding

def test_time_is_seen_through_16_sinusoids_of_a_quarter_to_8_radians_in_equal_ratios():
    frequencies = TimeEmbedding(8).frequencies
    assert frequencies.tolist() == pytest.approx([0.25 * 2 ** (i / 3) for i in range(16)], rel=1e-6)
    assert frequencies[0] == 0.25 and frequencies[-1] == 8


def test_the_time_embedding_is_an_mlp_of_the_cosines_and_then_the_sines():
    embedding, time = filled(TimeEmbedding(8)), torch.tensor([[0.0, 0.3, 1.0]])
    waves = [[math.cos(f * t) for f in embedding.frequencies.tolist()]
             + [math.sin(f * t) for f in embedding.frequencies.tolist()]
             for t in time[0].tolist()]
    first, _, second = embedding.mlp
    hidden = linear(first, torch.tensor([waves]))
    assert (embedding(time) - linear(second, hidden / (1 + (-hidden).exp()))).abs().max() < 1e-5
    assert first.weight.shape == (8, 32) and second.weight.shape == (8, 8)


# ---- attention

def test_attention_over_two_tokens_is_the_number_worked_out_by_hand():
    """d = 4, q = (2 log 3, 0, 0, 0): scores with k = e_1 and 0 are 2 log 3 / sqrt(4) = log 3 and 0,
    weights 3/4 and 1/4.

    A bias is added after the division: log 3 for what the first query does not like makes it
    indifferent, and -log 3 tilts the second, whose scores are equal, the other way: 1/4 and 3/4.
    """
    q, k, v = torch.zeros(3, 1, 1, 2, 4)
    q[..., 0, 0] = 2 * math.log(3)
    k[..., 0, 0] = 1
    v[..., 0, :], v[..., 1, :] = torch.tensor([4.0, 0, 0, 8]), torch.tensor([0, 4.0, 0, 0])
    # the second query is zero: equal weights
    expected = torch.tensor([[3.0, 1, 0, 6], [2, 2, 0, 4]])
    assert (attention(q, k, v, torch.zeros(1, 2, 2))[0, 0] - expected).abs().max() < 1e-6
    bias = torch.tensor([[[0, math.log(3)], [-math.log(3), 0]]])
    expected = torch.tensor([[2.0, 2, 0, 4], [1, 3, 0, 2]])
    assert (attention(q, k, v, bias)[0, 0] - expected).abs().max() < 1e-6


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU, so that the branch for one runs here."""

    is_cuda = True


def test_attention_is_the_function_of_torch_with_a_bias_for_every_head_and_so_is_that_for_a_gpu():
    q, k, v = randn(3, 4, 2, 7, 6)
    bias = 2 * randn(2, 7, 7, seed=1)
    expected = F.scaled_dot_product_attention(q, k, v, torch.stack([bias] * 4))
    assert (attention(q, k, v, bias) - expected).abs().max() < 1e-5
    assert (attention(*(part.as_subclass(OnGPU) for part in (q, k, v)),
                      bias) - expected).abs().max() < 1e-5
    without = F.scaled_dot_product_attention(q, k, v)
    assert (expected - without).abs().max() > 0.1, "the bias matters"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_attention_on_a_gpu_is_that_on_a_cpu():
    inputs = *randn(3, 4, 2, 7, 6), randn(2, 7, 7, seed=1)
    assert (attention(*(part.cuda()
                        for part in inputs)).cpu() - attention(*inputs)).abs().max() < 1e-4


# ---- adaptive layer norm, block

def test_normalize_is_the_number_worked_out_by_hand():
    """h = (1, 3): mean 2, variance 1, so (-1, 1) but for the 1e-5; times 1 + scale = (3, 0.5), plus
    shift (10, 20)."""
    out = normalize(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[10.0, 20.0]]]),
                    torch.tensor([[[2.0, -0.5]]]))
    assert out.flatten().tolist() == pytest.approx([7, 20.5], abs=1e-4)


def test_every_block_of_a_fresh_network_is_the_identity_whatever_the_input_and_the_times():
    model, seen = Denoiser(3, COORDS, 8, 2, 2), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda block, arguments, h: seen.append(h.equal(arguments[0]) and bool(h.any())))
    model(*inputs())
    assert seen == [True, True]


# rows
RELATED = torch.tensor([[[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0],
                         [0, 0, 0, 0, 1]],
                        # columns
                        [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0],
                         [1, 0, 1, 0, 1]],
                        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0],
                         [0, 0, 0, 0, 1]]]).float()


def test_a_block_is_attention_then_a_squared_relu_mlp_both_modulated_token_by_token():
    """Every head by hand: head i reads the i-th half of q, k and v, and prefers what shares
    coordinate k by relation[i, k]. Six modulations a token: shift, scale, gate, twice; those that
    all blocks share, plus six vectors of the block's own."""
    block, h, times = filled(Block(8, 2, 3)), randn(3, 5, 8), randn(6, 3, 5, 8, seed=1)
    torch.nn.init.normal_(block.relation, std=2, generator=seeded(3))
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        shared + own for shared, own in zip(times, block.modulation))
    q, k, v = linear(block.qkv, (1 + scale1) * layer_norm(h) + shift1).split(8, -1)
    heads = []
    for i, part in enumerate((slice(0, 4), slice(4, 8))):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2  # sqrt(4)
        for relation, shared in zip(block.relation[i], RELATED):
            scores = scores + relation * shared
        heads.append(scores.softmax(-1) @ v[..., part])
    after = h + gate1 * linear(block.out, torch.cat(heads, -1))
    up = linear(block.up, (1 + scale2) * layer_norm(after) + shift2)
    expected = after + gate2 * linear(block.down, up.clamp(min=0) ** 2)
    assert (block(h, times, RELATED) - expected).abs().max() < 1e-5
    assert block.qkv.bias is None and block.up.weight.shape == (32, 8)
    assert block.down.weight.shape == (8, 32)
    assert block.relation.shape == (2, 3) and block.modulation.shape == (6, 8)


# ---- relation: who shares a coordinate with whom

def test_the_network_knows_which_tokens_share_which_coordinate():
    # the third coordinate happens to be the first
    assert Denoiser(3, COORDS).related.equal(RELATED)


def test_head_h_begins_with_a_preference_of_3_for_coordinate_h_modulo_4_and_every_fourth_for_none():
    for block in Denoiser(3, COORDS, width=10, depth=2, heads=5).blocks:
        assert block.relation.tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 0], [3, 0, 0]]
    line = Denoiser(3, COORDS[:, :1], width=12, depth=1, heads=6).blocks[0].relation
    assert line.tolist() == (3 * torch.eye(6, 5)).tolist()  # -1, +1, further left, right, itself


def test_with_several_coordinates_a_relation_is_to_share_one():
    assert relations(COORDS).equal(RELATED)
    assert relations(COORDS[:, :2]).equal(RELATED[:2])


def test_in_a_line_of_six_every_pair_stands_in_the_relation_worked_out_by_hand():
    """0, 1: the token before and after; 2, 3: two or three away; 4, 5: further; 6: itself."""
    related = relations(torch.arange(6)[:, None])
    assert related.shape == (7, 6, 6) and related.dtype == torch.float32
    assert related.sum(0).eq(1).all() and set(related.unique().tolist()) == {0, 1}
    assert related.argmax(0).tolist() == [[6, 1, 3, 3, 5, 5],
                                          [0, 6, 1, 3, 3, 5],
                                          [2, 0, 6, 1, 3, 3],
                                          [2, 2, 0, 6, 1, 3],
                                          [4, 2, 2, 0, 6, 1],
                                          [4, 4, 2, 2, 0, 6]]


@pytest.mark.parametrize("length, count", [(1, 3), (2, 3), (3, 5), (4, 5), (5, 7), (8, 7), (9, 9),
                                           (16, 9), (17, 11), (200, 17)])
def test_the_ranges_of_a_line_double_and_every_pair_is_in_exactly_one(length, count):
    """Of length - 1 = 2^k a range more: 1 + k + 1 on either side, and itself."""
    related = relations(torch.arange(length)[:, None])
    assert related.shape == (count, length, length) and related.sum(0).eq(1).all()
    assert related[-1].equal(torch.eye(length))
    assert related[:-1:2].equal(related[1::2].transpose(1, 2)), "before and after mirror each other"
    reach = [int(part[0].nonzero().max()) for part in related[1:-1:2] if part[0].any()]
    starts = [int(part[0].nonzero().min()) for part in related[1:-1:2] if part[0].any()]
    assert starts == [2**k for k in range(len(starts))]
    assert reach == [start - 1 for start in starts[1:]] + [length - 1] * (length > 1)


def test_distances_are_of_the_coordinate_not_of_the_place_in_the_tensor():
    """Places 7, 5, 9: 5 is two to the left of 7, 9 is two to the right; 9 and 5 are four apart."""
    related = relations(torch.tensor([[7], [5], [9]]))
    assert related.argmax(0).tolist() == [[6, 2, 3], [3, 6, 5], [2, 4, 6]]


def test_head_0_of_a_text_begins_with_a_preference_for_the_token_before_and_head_1_for_the_next():
    model = Denoiser(3, torch.arange(6)[:, None], width=8, depth=2, heads=2)
    for block in model.blocks:
        bias = torch.tensordot(block.relation, model.related, 1)
        assert bias[0].equal(3 * torch.diag(torch.ones(5), -1))
        assert bias[1].equal(3 * torch.diag(torch.ones(5), 1))


@pytest.mark.parametrize("relation, readers", [(0, {2: 3}), (1, {2: 1}), (6, {2: 2})])
def test_a_text_can_tell_the_token_before_from_the_one_after_even_without_positions(
        relation, readers):
    """One block without position tables, all heads averse to all but one relation: a change of
    token 2 is seen by itself, and by the one token that reads it (3 reads what is before it)."""
    model = filled(Denoiser(3, torch.arange(6)[:, None], 8, 1, 2))
    x, half = randn(1, 6, 3), torch.full((1, 6), 0.5)
    with torch.no_grad():
        model.positions[0].weight.zero_()
        model.blocks[0].relation.fill_(-1e4)[:, relation] = 0
        answer, changed = model(x, half, half), x.clone()
        changed[:, 2] += 1
        sees = (model(changed, half, half) - answer).abs().amax((0, 2)) > 1e-5
    edge = 0 if relation == 0 else 5  # it has none to read, so it reads all alike
    expected = {2, *readers.values()} | ({edge} if relation < 2 else set())
    assert set(sees.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("bias", [-1e4, 1e4], ids=["an aversion", "a preference"])
def test_a_bias_acts_on_exactly_the_pairs_that_share_that_coordinate(column, bias):
    """One block, all heads: with an aversion a token reads only those that share nothing, else only
    those that do. It sees itself either way, without attention."""
    model, (x, s, t) = network(depth=1), inputs()
    with torch.no_grad():
        model.blocks[0].relation.zero_()[:, column] = bias
        answer = model(x, s, t)
        for source in range(5):
            changed = x.clone()
            changed[:, source] += 1
            sees = (model(changed, s, t) - answer).abs().amax((0, 2)) > 1e-5
            read = RELATED[column, source] == (bias > 0)
            read[source] = True
            assert sees.equal(read)


def test_every_head_of_every_block_has_a_preference_of_its_own():
    model, (x, s, t) = network(), inputs()
    answer = model(x, s, t)
    for block in model.blocks:
        for place in [(head, column) for head in range(2) for column in range(3)]:
            with torch.no_grad():
                block.relation[place] += 1
                assert (model(x, s, t) - answer).abs().max() > 1e-4
                block.relation[place] -= 1


def test_tokens_that_share_all_coordinates_have_no_order_and_one_coordinate_gives_them_one():
    """Tokens 1 and 3 exchanged, x and times: the answers are exchanged, if the two are at the same
    place. If only one coordinate differs, they are not, even with the same position in all tables:
    the others are related to but one."""
    x, s, t = inputs()
    order = torch.tensor([0, 3, 2, 1, 4])
    for column, exchanged in [(None, True), (0, False), (1, False), (2, False)]:
        coords = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1], [1, 0, 1]])
        if column is not None:
            coords[1, column] = 0
        model = filled(Denoiser(3, coords, 8, 2, 2))
        for table in model.positions:
            torch.nn.init.zeros_(table.weight)
        gap = (model(x[:, order], s[:, order], t[:, order]) - model(x, s, t)[:, order]).abs().max()
        assert gap < 1e-6 if exchanged else gap > 1e-4


# ---- the denoiser as a whole

def test_the_denoiser_is_the_formula():
    """x scaled by what the times say of it, + positions; blocks under silu(embed(s) + embed(t)); a
    modulated norm, the head, the cap, log-softmax."""
    model, (x, s, t) = network(), inputs()
    times = model.time_s(s) + model.time_t(t)
    times = times / (1 + (-times).exp())
    h = linear(model.embed, x) * (1 + linear(model.evidence, times))
    for column, table in enumerate(model.positions):
        h = h + table.weight[COORDS[:, column]]
    for block in model.blocks:  # the six vectors of all blocks come from one layer
        h = block(h, linear(model.shared, times).split(8, -1), RELATED)
    shift, scale = linear(model.modulation, times).split(8, -1)
    logits = linear(model.head, (1 + scale) * layer_norm(h) + shift)
    capped = (30 * torch.tanh(logits / 30)).exp()
    assert (model(x, s, t).exp() - capped / capped.sum(-1, keepdim=True)).abs().max() < 1e-5
    assert len(model.blocks) == 2 and all(block.heads == 2 for block in model.blocks)


def test_the_answers_are_log_probabilities():
    log_delta = network()(*inputs())
    assert log_delta.shape == (4, 5, 3) and log_delta.dtype == torch.float32
    assert (log_delta.exp().sum(-1) - 1).abs().max() < 1e-6 and (log_delta <= 0).all()
    assert log_delta.std() > 0.1, "random weights answer differently at different tokens"


def test_a_fresh_network_knows_nothing():
    """Its head is zero, so every token is uniform: log 1/3, for noise, data and all times."""
    x, s, t = inputs()
    assert (Denoiser(3, COORDS, 8, 2, 2)(x, s, t) + math.log(3)).abs().max() < 1e-6


def test_the_default_is_width_64_with_3_blocks_of_2_heads():
    model = Denoiser(3, COORDS)
    assert (model.head.in_features, len(model.blocks), model.blocks[0].heads) == (64, 3, 2)
    assert model.vocab_size == 3


def test_what_begins_at_zero_and_what_does_not():
    """4,000 position entries of standard deviation 1/2: the estimate is within 5 * 0.5 / sqrt(2 *
    4000) = 0.028."""
    model = Denoiser(3, torch.arange(1000)[:, None], width=4, depth=1, heads=1)
    table = model.positions[0].weight
    assert abs(table.std() - 0.5) < 0.028 and abs(table.mean()) < 5 * 0.5 / math.sqrt(4000)
    zero = {name for name, weight in model.named_parameters() if not weight.any()}
    assert zero == {"blocks.0.modulation"} | {f"{module}.{kind}" for kind in ("weight", "bias")
                                              for module in ("time_t.mlp.2", "evidence", "shared",
                                                             "modulation", "head")}


def test_there_is_one_position_table_a_column_as_long_as_its_largest_coordinate():
    assert [tuple(table.weight.shape) for table in network().positions] == [(3, 8), (2, 8), (3, 8)]


def test_positions_matter_column_by_column():
    """The same x and time at two places that share two of three coordinates: the third tells them
    apart."""
    for column in range(3):
        coords = torch.zeros(2, 3, dtype=torch.int64)
        coords[1, column] = 1
        model = filled(Denoiser(3, coords, 8, 1, 2))
        x, half = randn(1, 1, 3).expand(1, 2, 3), torch.full((1, 2), 0.5)
        first, second = model(x, half, half)[0]
        assert (first - second).abs().max() > 1e-3


def test_tokens_have_no_order_but_their_coords():
    """Permuting the tokens together with their coords permutes the answer."""
    model, (x, s, t), order = network(), inputs(), torch.tensor([3, 0, 4, 1, 2])
    log_delta, moved = model(x, s, t), Denoiser(3, COORDS[order], 8, 2, 2)
    moved.load_state_dict(model.state_dict() | {"coords": COORDS[order]})
    assert (moved(x[:, order], s[:, order], t[:, order]) - log_delta[:, order]).abs().max() < 1e-5
    assert (moved(x, s, t) - log_delta).abs().max() > 1e-2


def test_every_token_sees_every_other():
    model, (x, s, t) = network(), inputs()
    for source in range(5):
        changed = x.clone()
        changed[:, source] += 1
        difference = (model(changed, s, t) - model(x, s, t)).abs().amax((0, 2))
        assert (difference > 1e-5).all()


def test_sequences_of_a_batch_do_not_see_each_other():
    model, (x, s, t) = network(), inputs()
    assert (model(x, s, t)[1:2] - model(x[1:2], s[1:2], t[1:2])).abs().max() < 1e-5


# ---- time

def test_the_second_time_is_not_seen_as_long_as_its_last_layer_is_zero():
    """delta_{s,t} starts out as delta_{s,s}; an MDM never touches that layer."""
    model, (x, s, t) = network(), inputs()
    for weight in model.time_t.mlp[-1].parameters():
        torch.nn.init.zeros_(weight)
    assert model(x, s, t).equal(model(x, s, s))
    assert model(x, s, t).equal(model(x, s, torch.ones_like(s)))
    assert (model(x, s, t) - model(x, s / 2, t)).abs().max() > 1e-3


def test_context_is_marked_by_its_times_alone():
    """The same x: moving one token from (0, 1) to (1, 1), or from (0, 0) to (0, 1), is seen at that
    token and the others."""
    model, (x, _, _) = network(), inputs()
    zero, one = torch.zeros(4, 5), torch.ones(4, 5)
    last = torch.tensor([0.0, 0, 0, 0, 1]).expand(4, 5)
    for before, after in ((zero, one), (last, one)), ((zero, zero), (zero, last)):
        difference = (model(x, *before) - model(x, *after)).abs().amax((0, 2))
        assert (difference > 1e-4).all()


def test_s_and_t_are_not_interchangeable():
    model, (x, s, t) = network(), inputs()
    answer = model(x, s, t)
    model.time_s, model.time_t = model.time_t, model.time_s
    assert (model(x, s, t) - answer).abs().max() > 1e-2


def test_two_tokens_that_differ_by_their_times_alone_swap_with_them():
    model, x = filled(Denoiser(3, torch.zeros(2, 1, dtype=torch.int64), 8, 2,
                               2)), randn(1, 1, 3).expand(1, 2, 3)
    s, t = torch.tensor([[0.1, 1.0]]), torch.tensor([[0.6, 1.0]])
    answer, swapped = model(x, s, t)[0], model(x, s.flip(1), t.flip(1))[0]
    assert (answer - swapped.flip(0)).abs().max() < 1e-6
    assert (answer[0] - answer[1]).abs().max() > 1e-3


# ---- numbers

def test_logits_are_softly_capped_at_30():
    """Logits 1e6, -1e6 and 15 become 30, -30 and 30 tanh(1/2) = 13.8635; log-probabilities are
    these less log sum exp, which is 30 to 1e-7."""
    model = Denoiser(3, COORDS, 8, 2, 2)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1e6, -1e6, 15]))
    expected = [0, -60, 30 * math.tanh(0.5) - 30]
    assert model(*inputs())[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    wild = filled(Denoiser(3, COORDS, 8, 2, 2), std=5)(*inputs(64)).detach()
    assert 55 < float((wild.amax(-1) - wild.amin(-1)).max()) <= 60.001


MIXES = {"context": [(1, 1)] * 5, "masked or noise": [(0, 0)] * 5, "one jump": [(0, 1)] * 5,
         "diagonal": [(0.4, 0.4)] * 5,
         "to the data": [(0.9, 1)] * 5,
         "context and noise": [(1, 1), (0, 0), (1, 1), (0, 0), (0, 0)],
         "context and jump": [(0, 1), (1, 1), (0, 1), (1, 1), (0, 1)],
         "all": [(0, 0), (0, 1), (1, 1), (0.5, 0.5), (0.2, 1)]}


@pytest.mark.parametrize("times", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_values_and_gradients_are_finite_at_all_corners_of_time(times, half):
    model, x = network(), randn(2, 5, 3).requires_grad_()
    s, t = torch.tensor(times).float().T[:, None].expand(2, 2, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        log_delta = model(x, s, t)
    assert log_delta.dtype == torch.float32 and log_delta.isfinite().all()
    # Normalized in float32 under autocast too.
    assert (log_delta.exp().sum(-1) - 1).abs().max() < 1e-5
    F.nll_loss(log_delta.flatten(0, 1), torch.arange(10) % 3).backward()
    for weight in [x, *model.parameters()]:
        assert weight.grad is not None and weight.grad.isfinite().all()
    assert x.grad.any() and all(weight.grad.any() for weight in model.head.parameters())


def test_half_precision_answers_like_float32():
    """bfloat16 has 8 bits, 2^-9 a rounding; some ten of them in a row stay well under 0.1 nats
    here."""
    model, (x, s, t) = network(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, s, t)
    assert (half - model(x, s, t)).abs().max() < 0.1


def test_a_capped_token_still_learns():
    """At a logit of 60, d/dz 30 tanh(z/30) = 1 - tanh(2)^2 = 0.0707 of the gradient 1 - 0 of a
    token that is surely wrong."""
    model = Denoiser(2, COORDS, 8, 1, 2)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([60.0, 0]))
    time = torch.zeros(1, 5)
    (-model(torch.zeros(1, 5, 2), time, time)[..., 1].mean()).backward()
    assert float(model.head.bias.grad[0]) == pytest.approx(1 - math.tanh(2) ** 2, rel=1e-4)


# ---- what is refused, and what loads

@pytest.mark.parametrize("message, arguments", [
    ("multiple of heads", (3, COORDS, 8, 1, 3)),
    ("at least 1", (3, COORDS, 8, -1, 2)),
    ("at least 1", (3, COORDS, 8, 0, 2)),
    ("at least 1", (0, COORDS, 8, 1, 2)),
    ("at least 1", (3, COORDS, 0, 1, 2)),
    ("at least 1", (3, COORDS, 8, 1, 0)),
    ("at least 1", (3, COORDS, 8, 1, -2)),
    ("coords", (3, COORDS[:, 0], 8, 1, 2)),
    ("coords", (3, COORDS[None], 8, 1, 2)),
    ("coords", (3, COORDS.float(), 8, 1, 2)),
    ("coords", (3, COORDS - 1, 8, 1, 2)),
])
def test_a_network_that_makes_no_sense_is_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        Denoiser(*arguments)


@pytest.mark.parametrize("message, x, s, t", [
    ("this network reads", torch.zeros(2, 5, 4), torch.zeros(2, 5), torch.zeros(2, 5)),
    ("this network reads", torch.zeros(2, 4, 3), torch.zeros(2, 4), torch.zeros(2, 4)),
    ("times must be", torch.zeros(2, 5, 3), torch.zeros(2), torch.zeros(2)),
    ("times must be", torch.zeros(2, 5, 3), torch.zeros(2, 5), torch.zeros(2, 1)),
    ("times must be", torch.zeros(2, 5, 3), torch.zeros(1, 5), torch.zeros(2, 5)),
    ("times must be", torch.zeros(5, 3), torch.zeros(5), torch.zeros(5)),
    (r"\[0, 1\]", torch.zeros(2, 5, 3), torch.zeros(2, 5), torch.full((2, 5), 1.5)),
    (r"\[0, 1\]", torch.zeros(2, 5, 3), torch.full((2, 5), -0.1), torch.zeros(2, 5)),
    (r"\[0, 1\]", torch.zeros(2, 5, 3), torch.full((2, 5), math.nan), torch.zeros(2, 5)),
    ("in order", torch.zeros(2, 5, 3), torch.full((2, 5), 0.5), torch.full((2, 5), 0.4)),
])
def test_inputs_of_a_wrong_shape_or_time_are_refused(message, x, s, t):
    with pytest.raises(ValueError, match=message):
        network()(x, s, t)


@pytest.mark.parametrize("vocab_size", [4, 4096])
def test_a_network_told_tau_is_that_told_t_at_the_taus_of_its_times(vocab_size):
    """It is called with s and t all the same, and its weights are no others."""
    make = lambda tau: filled(Denoiser(vocab_size, COORDS, 8, 1, 1, tau=tau), std=0.1)
    told_tau, told_t = make(True), make(False)
    assert told_tau.state_dict().keys() == told_t.state_dict().keys()
    s, t = inputs()[1:]
    t[0, 0] = s[0, 1] = t[0, 1] = 1
    s[0, 0] = s[1] = t[1] = 0
    x = randn(4, 5, vocab_size)
    taus = [decoding_time(time.double(), vocab_size).float() for time in (s, t)]
    assert (told_tau(x, s, t) - told_t(x, *taus)).abs().max() < 2e-5
    assert (told_tau(x, s, t) - told_t(x, s, t)).abs().max() > 1e-3
    assert told_tau(x, s * 0, t * 0).equal(told_t(x, s * 0, t * 0)), "so an MDM is told the same"
    ones = torch.ones_like(s)
    assert told_tau(x, ones, ones).equal(told_t(x, ones, ones))


def test_the_slope_of_a_network_told_tau_in_t_is_that_of_finite_differences():
    """In forward mode, as the Lagrangian target asks for it; times amid two entries of the table,
    4,096 a unit."""
    model, (x, _, _) = network(tau=True), inputs()
    s = torch.full((4, 5), 0.25)
    t = torch.full((4, 5), (2048 + 0.5) / 4096)
    by = torch.full((4, 5), 0.25 / 4096)
    _, slope = torch.func.jvp(lambda time: model(x, s, time), (t,), (torch.ones_like(t),))
    difference = (model(x, s, t + by) - model(x, s, t - by)) / (2 * by[..., None])
    assert (slope - difference).abs().max() < 0.05 * slope.abs().max() and slope.abs().max() > 0.05


def test_a_network_on_no_device_does_not_spoil_the_table_of_another():
    with torch.device("meta"):
        Denoiser(11, COORDS, 8, 1, 1, tau=True)
    assert Denoiser(11, COORDS, 8, 1, 1, tau=True).decided.device.type == "cpu"


def test_a_masked_diffusion_model_is_this_network_and_loads_as_it_is():
    """Same names, same shapes, same answers; only weights and places are saved, no table that can
    be computed."""
    trained, fresh, (x, s, t) = network(), Denoiser(3, COORDS, 8, 2, 2), inputs()
    state = trained.state_dict()
    assert set(state) - {name for name, _ in trained.named_parameters()} == {"coords"}
    assert not fresh.load_state_dict(state, strict=True).missing_keys
    assert fresh(x, s, t).equal(trained(x, s, t))


def test_the_names_of_the_weights_stay_what_they_are():
    """Renaming one would make every checkpoint unreadable."""
    assert {name.removesuffix(".weight").removesuffix(".bias")
            for name in network(depth=1).state_dict()} == {
        "coords", "embed", "positions.0", "positions.1", "positions.2", "time_s.mlp.0",
        "time_s.mlp.2", "time_t.mlp.0",
        "time_t.mlp.2", "evidence", "shared", "blocks.0.relation", "blocks.0.modulation",
        "blocks.0.qkv", "blocks.0.out",
        "blocks.0.up", "blocks.0.down", "modulation", "head"}
