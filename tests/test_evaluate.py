"""The evaluation judged on models whose score is known: the exact model of the 288 boards, the
uniform one, scripted ones."""

import json
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

from fmlm import Draws
from harness import evaluation
from harness.measure import interval, likelihood_bound, posterior, share, usual
from harness.tasks import load_task
from sample import SAMPLERS
from sudoku import boards as sudoku, evaluate, plot, refinement
from sudoku.evaluate import against_exact, main, puzzles, report, unconditional
from toy.exact import Exact

pytestmark = pytest.mark.usefixtures("cache")

FOUR = sudoku.SHAPES["sudoku4"]
BOARDS = sudoku.all_boards(FOUR)
EXACT = Exact(BOARDS)
TASK = load_task("sudoku4")
FLOW, POSTERIOR = SAMPLERS["flow-map"], SAMPLERS["posterior"]


class Scripted:
    """A 4x4 model that answers with a function of (x, s, t), or draws rows of tokens, batch after
    batch, and again."""

    vocab_size = 4

    def __init__(self, answer):
        if not callable(answer):
            rows = F.one_hot(answer, 4).float().log()
            answer = lambda x, s, t: rows[self.drawn % len(rows):][:len(x)]
        self.answer = answer
        self.calls, self.drawn = [], 0

    def __call__(self, x, s, t):
        self.calls.append((x, s, t))
        answer, self.drawn = self.answer(x, s, t), self.drawn + len(x)
        return answer.expand(x.shape)


def uniform():
    return Scripted(lambda x, s, t: torch.tensor(-math.log(4)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- shares and their intervals

def test_no_success_in_n_leaves_0_to_z2_over_n_plus_z2():
    """p = 0: middle and spread are both z^2 / 2n, so 0 and (z^2/n) / (1 + z^2/n)."""
    for n in 1, 10, 1000:
        assert interval(0, n) == pytest.approx((0, 100 * 1.96**2 / (n + 1.96**2)), abs=1e-9)
        assert interval(n, n) == pytest.approx((100 * n / (n + 1.96**2), 100), abs=1e-9)


@pytest.mark.parametrize("successes, n", [(8, 10), (1, 3), (500, 1000), (3, 2000)])
def test_the_ends_of_the_interval_are_the_shares_from_which_the_count_is_1_96_deviations_away(
        successes, n):
    """Wilson's definition: |p - pi| = z sqrt(pi (1-pi) / n) has the two ends for solutions."""
    p, ends = successes / n, [end / 100 for end in interval(successes, n)]
    assert ends[0] < p < ends[1]
    for end in ends:
        assert abs(p - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_a_share_is_in_percent_with_two_digits():
    """8 of 10; Wilson's 95% interval is 0.4902 - 0.9433 (R: prop.test(8, 10, correct = FALSE))."""
    eight = share(torch.tensor([True] * 8 + [False] * 2))
    assert eight == {"percent": 80.0, "low": 49.02, "high": 94.33}
    assert share(torch.tensor([True, False, False]))["percent"] == 33.33


def test_no_interval_leaves_0_to_100_percent_by_a_rounding():
    for n in range(1, 500):
        none, all_ = share(torch.zeros(n, dtype=torch.bool)), share(torch.ones(n, dtype=torch.bool))
        assert (str(none["low"]), str(all_["high"])) == ("0.0", "100.0")
        assert interval(0, n)[0] >= 0 and interval(n, n)[1] <= 100


# ---- drawing boards

def test_one_board_again_and_again_is_all_valid_and_as_far_from_uniform_as_can_be():
    row = unconditional(FOUR, Scripted(BOARDS[:1]), FLOW, 1, 20, seeded())
    assert row == {"nfe": 1, "n": 20, "percent": 100.0, "low": pytest.approx(83.89, abs=0.005),
                   "high": 100.0, "passes": 1.0, "distinct": 1, "tv": round(287 / 288, 4)}


def test_what_is_not_valid_counts_in_full_in_the_distance():
    """Draws A A B and no board: TV = the sum of 1/288 - share where that is positive = 286 boards
    never drawn, 286/288."""
    wrong = BOARDS[0].clone()
    wrong[0] = (wrong[0] + 1) % 4
    row = unconditional(FOUR, Scripted(torch.stack([BOARDS[3], BOARDS[5], BOARDS[3], wrong])), FLOW,
                        1, 4, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (75.0, 2, round(286 / 288, 4))
    row = unconditional(FOUR, Scripted(wrong[None]), FLOW, 1, 3, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (0.0, 0, 1.0)
    row = unconditional(FOUR, Scripted(torch.cat([BOARDS, wrong.expand(212, 16)])), FLOW, 1, 500,
                        seeded())
    # every board once in 500: 288 (1/288 - 1/500)
    assert (row["percent"], row["distinct"], row["tv"]) == (57.6, 288, 0.424)


def test_every_board_once_is_at_distance_0():
    row = unconditional(FOUR, Scripted(BOARDS), FLOW, 1, 288, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (100.0, 288, 0.0)


def test_larger_boards_have_no_distance():
    nine = sudoku.SHAPES["sudoku9"]
    text = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    board = torch.tensor(sudoku.parse(nine, text))
    model = Scripted(lambda x, s, t: F.one_hot(board, 9).float().log())
    model.vocab_size = 9
    row = unconditional(nine, model, POSTERIOR, 3, 2, seeded())
    assert row["percent"] == 100.0 and row["distinct"] == 1 and row["nfe"] == 3 and "tv" not in row


def test_one_jump_of_the_exact_model_draws_only_valid_boards():
    row = unconditional(FOUR, EXACT, POSTERIOR, 1, 100, seeded())
    assert row["percent"] == 100.0 and 50 < row["distinct"] <= 100


def test_boards_are_drawn_in_batches_of_100_and_clues_stay():
    given = torch.full((201, 16), -1)
    given[:, 5] = torch.arange(201) % 4
    model = uniform()
    boards, _, passes, trace = SAMPLERS["posterior"].complete(model, given, 2, seeded())
    assert boards.shape == (201, 16) and boards[:, 5].equal(given[:, 5])
    assert [len(x) for x, _, _ in model.calls] == [100, 100, 100, 100, 1, 1]
    assert passes.tolist() == [2] * 201 and [len(record.draft) for record in trace] == [100, 100]
    assert all((s[:, 5] == 1).all() for _, s, _ in model.calls)
    assert not model.calls[0][1][:, :5].any()


class Sure:
    """A 4x4 model that drafts 0 everywhere, and is sure of as many cells of a board as SURE says
    for the digit in the board's first cell."""

    SURE, vocab_size = torch.tensor([16, 0, 14, 14]), 4

    def __call__(self, x, s, t):
        sure = torch.arange(16) < self.SURE[x[:, 0].argmax(-1)][:, None]
        p = torch.where(sure, 0.9999, 0.6)[..., None]
        return torch.cat([p, (1 - p).expand(len(x), 16, 3) / 3], -1).log()


def test_the_mean_passes_are_those_that_each_board_took():
    """The first cell is given, 15 are to draw in 4 rounds. Sure of all: 1 pass. Of none: a budget
    of 4 a round, 4 passes. Of all but two: these are left for the passes 2 and 3. And a full board:
    no pass. (1 + 4 + 3 + 0) / 4 = 2, over the batches of 100 and of 4."""
    given = torch.full((104, 16), -1)
    given[:, 0] = torch.arange(104) % 4
    given[given[:, 0] == 3] = 3
    mean = lambda given: evaluation.complete(Sure(), POSTERIOR, given, 4, seeded(), None)
    boards, _, passes = mean(given)
    assert passes == {"passes": 2.0} and boards.equal(given.clamp(min=0))
    assert mean(given[:3])[2] == {"passes": 2.67}  # (1 + 4 + 3) / 3


def test_a_board_that_is_sure_at_once_takes_one_pass_of_many():
    assert unconditional(FOUR, EXACT, POSTERIOR, 16, 30, seeded())["passes"] == 1.0
    assert puzzles(FOUR, EXACT, POSTERIOR, 16, 30, 6, seeded())["passes"] == 1.0
    assert unconditional(FOUR, uniform(), POSTERIOR, 16, 30, seeded())["passes"] == 16.0


# ---- puzzles

def test_the_exact_model_solves_every_puzzle_in_one_pass():
    """A puzzle has one solution, so the posterior given the clues is that board: for delta_{0,1} as
    for delta_{0,0}."""
    for name in "posterior", "a-priori", "confidence", "block":
        row = puzzles(FOUR, EXACT, SAMPLERS[name], 1, 30, 6, seeded())
        assert row == {"nfe": 1, "n": 30, "clues": 6, "percent": 100.0, "passes": 1.0,
                       "low": pytest.approx(88.65, abs=0.005), "high": 100.0,
                       "by_guesses": ["30 of 30", "0 of 0", "0 of 0"]}


def test_a_valid_board_that_is_not_the_solution_solves_nothing():
    """Puzzles of 15 clues: what is drawn matters in one cell, and the scripted model is wrong there
    in 10 of 40."""
    given, solutions = sudoku.load_puzzles(FOUR, 15, 40)
    drawn = solutions.clone()
    # a renaming of the digits: still a board, and wrong in every cell
    drawn[:10] = (drawn[:10] + 1) % 4
    assert sudoku.valid(FOUR, drawn).all() and (given >= 0).sum(1).unique().tolist() == [15]
    row = puzzles(FOUR, Scripted(drawn), POSTERIOR, 1, 40, 15, seeded())
    assert row["percent"] == 75.0 and row["clues"] == 15
    assert (puzzles(FOUR, Scripted(drawn), POSTERIOR, 1, 40, "minimal", seeded())["clues"]
            == "minimal")


# ---- against the exact posterior

@pytest.mark.parametrize("objective, noisy", [("fmlm+", True), ("mdm", False), ("mlfm", False)])
def test_the_posterior_is_asked_at_0_0_around_the_context(objective, noisy):
    """100 + 100 + 3 boards: noise of variance 1 +- 5 sqrt(2/n), n = 203 * 10 * 4, for a flow map;
    masks for an MDM or MLFM."""
    boards, context = BOARDS[torch.arange(203) % 288], (torch.arange(16) % 3 == 0).expand(203, 16)
    model = uniform()
    posterior(model, objective, boards, context, seeded())
    x, s, t = (torch.cat(part) for part in zip(*model.calls))
    assert [len(call[0]) for call in model.calls] == [100, 100, 3]
    assert s.equal(context.float()) and t.equal(context.float())
    assert x[context].equal(F.one_hot(boards, 4).float()[context])
    unknown = x[~context]
    assert (abs(unknown.var() - 1)
            < 5 * math.sqrt(2 / unknown.numel()) if noisy else not unknown.any())


@pytest.mark.parametrize("objective", ["fmlm+", "mdm"])
def test_the_exact_model_is_at_distance_0_from_itself_at_every_number_of_clues(objective):
    kl = against_exact(FOUR, EXACT, objective, seeded())
    assert kl == {clues: pytest.approx(0, abs=1e-5) for clues in range(16)}


def test_the_distance_of_the_uniform_model_is_what_the_exact_marginals_know():
    """log 4 - H(exact), mean over the unknown cells.

    0 clues: the digits are interchangeable, all cells uniform: 0. 15 clues: the last cell is
    certain: log 4. Two digits exchanged in the fewest rows change 4 cells, so 13 and 14 clues leave
    one board too. 1 clue, a digit d: its 7 peers are not d, and the 3 other digits are
    interchangeable: log 4/3 each. In the other line of the band d is in one of 2 cells, likewise in
    the stack: 4 cells with d at 1/2 and 1/6 for the others, whose entropy is 1/2 log 2 + 1/2 log 6.
    In the box diagonally opposite, 4 cells, d is anywhere: 0.
    """
    kl = against_exact(FOUR, uniform(), "mdm", seeded(), n=20)
    one = (7 * math.log(4 / 3) + 4 * (math.log(4) - math.log(2) / 2 - math.log(6) / 2)) / 15
    assert kl[0] == 0 and kl[1] == pytest.approx(one, abs=1e-4)
    assert [kl[clues] for clues in (13, 14, 15)] == pytest.approx([math.log(4)] * 3, abs=1e-4)
    assert (BOARDS[:, None] != BOARDS).sum(-1).unique()[:2].tolist() == [0, 4]


@pytest.mark.parametrize("objective", ["fmlm+", "mdm"])
def test_the_likelihood_bound_of_the_exact_model_is_log_288(objective):
    """Any order of the cells: the sum of -log p(cell given those before) is -log p(board). So the
    bound is tight."""
    bound, half_width = likelihood_bound(TASK, EXACT, objective, seeded())
    assert abs(bound - math.log(288)) < 4 * half_width / 1.96 and 0 < half_width < 0.5


def test_the_likelihood_bound_of_the_uniform_model_is_16_log_4_without_error():
    """m masked cells of log 4 each, times 16/m: the same for every board."""
    bound, half_width = likelihood_bound(TASK, uniform(), "mdm", seeded(), n=320)
    assert bound == pytest.approx(16 * math.log(4), rel=1e-6) and half_width < 1e-5


def test_the_bound_asks_for_96_sequences_at_a_time_and_meets_the_noise_of_one_draw_for_all():
    """A billion numbers need not be there at once: V = 50,000 words, 5,000 sequences. 96 x 16 x 4
    normals are whole sixteens, as which PyTorch draws them on a CPU."""
    model = uniform()
    likelihood_bound(TASK, model, "fmlm+", seeded(), n=320)
    assert [len(x) for x, *_ in model.calls] == [96, 96, 96, 32]
    generator = seeded()
    Draws(generator).stratified(320)  # the masking rates
    torch.rand(320, 16, generator=generator)  # the order in which cells are masked
    noise = torch.randn(320, 16, 4, generator=generator)
    x, s, _ = (torch.cat(part) for part in zip(*model.calls))
    assert x[s == 0].equal(noise[s == 0])


def test_where_no_nfe_is_asked_for_none_is_above_a_pass_a_token():
    assert usual("fmlm+", 8, [1, 4, 8, 16, 36]) == [1, 4, 8] == usual("mdm", 8, (1, 4, 16))
    assert usual("mdm", 40, (1, 16, 40)) == [1, 16, 40] and usual("ar", 8, [1, 4]) == [8]


def test_the_half_width_is_1_96_standard_errors_of_the_spread_at_equal_m():
    """Boards that cost 0 or 32 nats, by a coin: standard deviation 16. The half of the mean squared
    difference of 4,000 pairs, each 0 or 32^2, estimates 16^2 to a share of 1/sqrt(4000) = 1.6%, its
    root to 0.8%: five of these are 4%."""
    coin = lambda x: torch.rand(len(x), 1, 1, generator=coins).round()
    coins = seeded(5)
    model = Scripted(lambda x, s, t: -2 * coin(x).expand(len(x), 16, 4))
    _, half_width = likelihood_bound(TASK, model, "mdm", seeded(), n=8000)
    assert half_width == pytest.approx(1.96 * 16 / math.sqrt(8000), rel=0.04)


def test_the_number_of_masked_cells_is_uniform_and_its_spread_is_no_error():
    """A model that charges m nats a cell when m are masked: a board costs (16/m) m m = 16 m, m = 1
    ... 16 equally often among n = 320 boards: mean 16 * 8.5, and no spread at equal m, of which the
    stratified mean is free."""
    model = Scripted(lambda x, s, t: -(s == 0).sum(1)[:, None, None].float())
    bound, half_width = likelihood_bound(TASK, model, "mdm", seeded(), n=320)
    assert bound == pytest.approx(136) and half_width == 0
    masked = torch.cat([s == 0 for _, s, _ in model.calls])
    assert (masked.sum(1).bincount(minlength=17)[1:] == 20).all()
    # A cell is masked with probability 8.5/16, give or take five deviations of a share of 320.
    assert ((masked.float().mean(0) - 8.5 / 16).abs() < 5 * math.sqrt(0.25 / 320)).all()


def test_an_mlfm_is_judged_on_masks_as_an_mdm_is_and_a_flow_map_on_noise():
    """A model that charges as many nats for a cell as it sees in unknown ones: on masks everything
    is free."""
    seen = lambda x, s, t: -(x * (s == 0)[..., None]).abs().sum((1, 2), keepdim=True)
    assert [likelihood_bound(TASK, Scripted(seen), objective, seeded(), n=320)[0]
            for objective in ("mdm", "mlfm")] == [0, 0]
    assert likelihood_bound(TASK, Scripted(seen), "fmlm+", seeded(), n=320)[0] > 100
    mdm, mlfm, flow = (against_exact(FOUR, Scripted(seen), objective, seeded(), n=20)
                       for objective in ("mdm", "mlfm", "fmlm+"))
    assert mlfm == mdm != flow


# ---- the report

def drawn(sampler, nfe, percent, low, high, passes, distinct, tv):
    return {"sampler": sampler, "nfe": nfe, "n": 1000, "percent": percent, "low": low, "high": high,
            "passes": passes, "distinct": distinct, "tv": tv}


def solved(clues, percent, low, high, passes):
    return {"sampler": "posterior", "nfe": 2, "n": 500, "clues": clues, "percent": percent,
            "low": low, "high": high, "passes": passes}


DOCUMENT = {"checkpoint": "x.pt", "task": "sudoku4", "objective": "fmlm+", "steps": 7,
            "parameters": 1234, "seed": 0,
            "unconditional": [drawn("posterior", 1, 12.34, 10.5, 14.56, 1.0, 99, 0.8765),
                              drawn("posterior", 4, 100.0, 99.62, 100.0, 3.25, 280, 0.25),
                              drawn("a-priori", 1, 0.0, 0.0, 0.38, 1.0, 0, 1.0),
                              drawn("a-priori", 4, 3.0, 2.11, 4.25, 4.0, 28, 0.97)],
            "puzzles": [solved(6, 71.2, 67.1, 75.0, 1.38),
                        solved("minimal", 55.0, 50.6, 59.3, 2.0)],
            "likelihood": {"bound": 5.7, "plus_minus": 0.012, "limit": 5.663},
            "kl": {clues: clues / 100 for clues in range(16)}}


def test_the_report_prints_every_row_under_its_number_of_passes():
    """Compared word by word: how wide the columns are is a matter of taste."""
    lines = [line.split() for line in report(DOCUMENT).splitlines() if line]
    assert lines == [line.split() for line in """\
x.pt: sudoku4, fmlm+, 1,234 parameters, 7 steps
valid boards, % of 1,000 (95% interval)
NFE 1 4
posterior 12.3 (10.5 - 14.6) 100.0 (99.6 - 100.0)
mean passes 1.00 3.25
distinct 99 280
TV to uniform 0.876 0.250
a-priori 0.0 (0.0 - 0.4) 3.0 (2.1 - 4.2)
mean passes 1.00 4.00
distinct 0 28
TV to uniform 1.000 0.970
puzzles with 6 clues solved, % of 500 (95% interval)
NFE 2
posterior 71.2 (67.1 - 75.0)
mean passes 1.38
puzzles with minimal clues solved, % of 500 (95% interval)
NFE 2
posterior 55.0 (50.6 - 59.3)
mean passes 2.00
likelihood bound 5.7 +- 0.012 nats a board; no honest one is below log 288 = 5.663
KL(exact marginals || delta_00), nats per unknown cell, by the number of clues: mean 0.0750
clues 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
KL 0.000 0.010 0.020 0.030 0.040 0.050 0.060 0.070 0.080 0.090 0.100 0.110 0.120 0.130 0.140 \
0.150""".splitlines()]


def test_the_columns_of_a_table_end_under_one_another():
    lines = report(DOCUMENT).splitlines()
    table = lines[lines.index("valid boards, % of 1,000 (95% interval)") + 1:][:9]
    assert len({len(line) for line in table}) == 1


def test_a_document_without_puzzles_likelihood_and_kl_is_a_report_of_one_table():
    rest = {key: value for key, value in DOCUMENT.items()
            if key not in ("puzzles", "likelihood", "kl")}
    assert len([line for line in report(rest).splitlines() if line]) == 11


def test_steps_that_nobody_knows_are_said_to_be_unknown():
    first = report(DOCUMENT | {"steps": None}).splitlines()[0]
    assert first == "x.pt: sudoku4, fmlm+, 1,234 parameters, an unknown number of steps"


# ---- the command line

def test_a_fresh_network_is_evaluated_to_the_numbers_of_the_uniform_model(checkpoint, capsys):
    """Its answers are log 1/4 everywhere; and a token of p_max 1/4 is never sure."""
    path = checkpoint("fmlm+")
    assert main([path, "-n", "3", "--nfe", "1", "2", "--clues", "8", "--json", "--device",
                 "cpu"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    names = ["posterior", "a-priori", "a-priori-sampled", "flow-map"]
    assert ([(row["sampler"], row["nfe"]) for row in document["unconditional"]]
            == [(name, n) for name in names for n in (1, 2)])
    assert ([(row["sampler"], row["nfe"], row["clues"]) for row in document["puzzles"]]
            == [(name, n, 8) for name in names for n in (1, 2)])
    assert all(row["n"] == 3 for row in document["unconditional"] + document["puzzles"])
    assert document["likelihood"] == {"bound": round(16 * math.log(4), 3), "plus_minus": 0,
                                      "limit": round(math.log(288), 3)}
    assert document["kl"]["0"] == 0 and document["kl"]["15"] == round(math.log(4), 4)
    assert ((document["checkpoint"], document["task"], document["objective"], document["steps"])
            == (path, "sudoku4", "fmlm+", 7))
    weights = torch.load(path, weights_only=True)["model"]
    assert document["parameters"] == sum(weight.numel() for name, weight in weights.items()
                                         if name != "coords")


@pytest.mark.parametrize("objective, samplers, whole", [
    ("mdm", ["confidence", "confidence-sampled", "ancestral"], True), ("mlfm", ["promotion"], True),
    ("flm", ["flow-map-tau", "flow-map"], False), ("fmlm", ["flow-map-tau", "flow-map"], False)])
def test_an_objective_has_its_own_samplers_and_a_flow_without_context_boards_only(
        checkpoint, capsys, objective, samplers, whole):
    clues = ["--clues", "8"] if whole else []
    assert main([checkpoint(objective), "-n", "2", "--nfe", "2", *clues, "--json", "--device",
                 "cpu"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert [row["sampler"] for row in document["unconditional"]] == samplers
    known_context = {"puzzles", "likelihood", "kl"}
    assert known_context & set(document) == (known_context if whole else set())


def test_the_defaults_are_a_table_by_size_and_a_report(checkpoint, capsys):
    assert main([checkpoint("fmlm+"), "-n", "2", "--sampler", "posterior", "flow-map", "--device",
                 "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NFE 1 2 4 8 16".split() in [line.split() for line in lines]
    assert sum(line.startswith(("posterior", "flow-map")) for line in lines) == 2
    assert not any("puzzles" in line for line in lines)


def test_the_same_seed_gives_the_same_document(checkpoint, capsys):
    outputs = []
    for seed in "1", "1", "2":
        path = checkpoint("mdm")
        assert main([path, "-n", "40", "--nfe", "1", "--sampler", "ancestral", "--clues", "12",
                     "--seed", seed, "--json"]) == 0
        (document,) = json.loads(capsys.readouterr().out)
        assert document.pop("seed") == int(seed)
        outputs.append(document)
    assert outputs[0] == outputs[1] != outputs[2]


def test_each_figure_draws_from_the_seed_alone_whatever_else_is_asked(checkpoint, monkeypatch):
    asked = []
    for name in "unconditional", "puzzles", "likelihood_bound", "against_exact":
        module = evaluate.evaluation if name == "likelihood_bound" else evaluate
        measure = getattr(module, name)
        monkeypatch.setattr(module, name,
                            lambda *a, m=measure, **k: asked.append((m.__name__, a[-1].get_state()))
                            or m(*a, **k))
    assert main([checkpoint("mdm"), "-n", "2", "--nfe", "1", "2", "--clues", "12", "--sampler",
                 "ancestral", "--seed", "3"]) == 0
    assert ([name for name, _ in asked]
            == ["unconditional"] * 2 + ["puzzles"] * 2 + ["likelihood_bound", "against_exact"])
    assert all(state.equal(seeded(3).get_state()) for _, state in asked)


@pytest.mark.parametrize("objective, arguments, message", [
    (None, ["nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ("fmlm+", ["-n", "0"], "argument -n: must be a whole number from 1 to 10,000,000, not '0'"),
    ("fmlm+", ["-n", "-3"], "argument -n: must be a whole number from 1 to 10,000,000, not '-3'"),
    ("mdm", ["--sampler", "posterior"], "does not suit"),
    ("flm", ["--sampler", "ancestral"], "does not suit"),
    ("fmlm", ["--sampler", "posterior"], "does not suit"),
    ("mlfm", ["--sampler", "confidence"], "does not suit"),
    ("mdm", ["--sampler", "promotion"], "does not suit"),
    ("fmlm+", ["--sampler", "beam"], "unknown sampler 'beam'"),
    ("fmlm+", ["--nfe", "0"], "argument --nfe: must be a whole number from 1 to 100,000, not '0'"),
    ("fmlm+", ["--sampler", "block", "--nfe", "0"], "--nfe"),
    ("fmlm+", ["--sampler", "block", "--nfe", "-1"], "--nfe"),
    ("fmlm+", ["--nfe", "17"], "17 rounds"),
    ("fmlm+", ["--nfe", "1", "--clues", "17"], "1 to 16 clues"),
    ("fmlm+", ["--nfe", "1", "--clues", "-1"], "argument --clues: must be a whole number from 0"),
    ("fmlm+", ["--device", "nowhere"], "nowhere"),
    ("fmlm+", ["--seed", "-" + "9" * 30], "argument --seed: must be a whole number from 0 to"),
])
def test_bad_input_is_one_sentence_and_status_2(checkpoint, capsys, objective, arguments, message):
    path = [checkpoint(objective)] if objective else []
    assert main([*path, "-n", "2", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.evaluate: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments",
                         [["--clues", "lots"], ["--nfe", "many"], ["-n", "1.5"], ["--bogus"]])
def test_an_argument_of_the_wrong_kind_is_one_sentence_and_status_2(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.evaluate: ")
    assert captured.err.count("\n") == 1


def test_a_damaged_checkpoint_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "damaged.pt"
    path.write_bytes(b"PK\x03\x04 no checkpoint")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- what is asked, what is taken

def evaluated(capsys, *arguments):
    assert main([*arguments, "--json", "--device", "cpu"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("nfe, taken", [(1, 1), (9, 9), (300, 257), (514, 514)])
def test_an_mlfm_takes_whole_loops_of_257_passes_and_its_row_says_how_many(
        nfe, taken, checkpoint, capsys):
    """A fresh network is never sure: it takes all the passes that it may, 257 of 300."""
    path = checkpoint("mlfm")
    row, = evaluated(capsys, path, "-n", "3", "--nfe", str(nfe))["unconditional"]
    assert (row["nfe"], row["passes"]) == (nfe, taken)
    assert main([path, "-n", "3", "--nfe", str(nfe)]) == 0
    assert f"mean passes {taken:.2f}" in " ".join(capsys.readouterr().out.split())


def test_a_threshold_that_is_asked_for_is_that_of_posterior_refinement(checkpoint, monkeypatch):
    """A model that is sure to 0.995 commits all at the default of 4 rounds, 0.9875, and not at
    0.999; at inf the uniform budget holds even for p_max = 1."""
    def passes(p_max, *threshold):
        p = torch.tensor([p_max] + 3 * [(1 - p_max) / 3])
        model = Scripted(lambda x, s, t: p.log())
        model.parameters = lambda: []
        info = {"task": "sudoku4", "state": {}, "objective": "fmlm+", "step": 1}
        monkeypatch.setattr(evaluate, "load_checkpoint", lambda *_: (model, info))
        options = Namespace(device=torch.device("cpu"), compile=False, bf16=False, clues=None,
                            nfe=[4], n=3, seed=0, sampler=["posterior", "posterior-early"],
                            attempts=None, check_rules=False,
                            threshold=threshold[0] if threshold else None)
        document = evaluate.evaluate("x.pt", options)
        return [row["passes"] for row in document["unconditional"]], document["threshold"]

    assert passes(0.995) == ([1, 1], None)
    assert passes(0.995, 0.999) == ([4, 4], 0.999)
    assert passes(1.0, 0.999) == ([1, 1], 0.999)
    assert passes(1.0, math.inf) == ([4, 4], "inf")


def test_a_table_of_sudoku_has_the_samplers_of_the_papers_and_always_the_default():
    options = Namespace(sampler=None, threshold=None, attempts=None, check_rules=False, nfe=[4],
                        clues=None)
    for objective, names in {
            "fmlm+": ["posterior", "a-priori", "a-priori-sampled", "flow-map"],
            "fmlm": ["flow-map-tau", "flow-map"],
            "flm+": ["a-priori", "a-priori-sampled", "flow-map"],
            "mdm": ["confidence", "confidence-sampled", "ancestral"]}.items():
        info = {"task": "sudoku4", "state": {}, "objective": objective}
        assert [name for name, _ in evaluate.asked("x.pt", info, options)[0]] == names


def test_a_threshold_of_inf_is_a_document_that_any_json_reader_reads(checkpoint, capsys):
    assert main([checkpoint("fmlm+"), "-n", "2", "--nfe", "2", "--sampler", "posterior",
                 "--threshold", "inf", "--json"]) == 0

    def no_number(name):
        raise ValueError(f"{name} is no JSON")

    (document,) = json.loads(capsys.readouterr().out, parse_constant=no_number)
    assert document["threshold"] == "inf" and document["unconditional"][0]["passes"] == 2


@pytest.mark.parametrize("step", ["many", None, 1.5, [7], True, torch.tensor(7)])
def test_steps_that_are_no_whole_number_are_evaluated_as_unknown(step, checkpoint, capsys):
    path = checkpoint("fmlm+")
    torch.save(torch.load(path, weights_only=True) | {"step": step}, path)
    asked = [path, "-n", "2", "--nfe", "1", "--sampler", "posterior"]
    assert evaluated(capsys, *asked)["steps"] is None
    assert main(asked) == 0
    assert "an unknown number of steps" in capsys.readouterr().out


REFUSED = {
    "a puzzle for an flm": ("flm", ["--clues", "8"],
                            "is an flm trained without prompts, so it cannot solve puzzles"),
    "a puzzle for an fmlm": ("fmlm", ["--clues", "minimal"], "is an fmlm trained without prompts"),
    "a threshold of all": ("fmlm+", ["--threshold", "0.999"],
                           "--threshold is of Posterior Refinement, not of the sampler 'a-priori'"),
    "a threshold of a flow map": ("fmlm+", ["--sampler", "flow-map", "--threshold", "0.9"],
                                  "not of the sampler 'flow-map'"),
    "a threshold of an MDM": ("mdm", ["--threshold", "0.9"], "not of the sampler 'confidence'"),
    "a threshold of an MLFM": ("mlfm", ["--threshold", "0.9"], "not of the sampler 'promotion'"),
    "a threshold below 0": ("fmlm+", ["--sampler", "posterior", "--threshold", "-0.1"],
                            "argument --threshold: must be a number from 0 to inf, not '-0.1'"),
    "a threshold that is none": ("fmlm+", ["--sampler", "posterior", "--threshold", "nan"],
                                 "argument --threshold: must be a number from 0 to inf, not 'nan'"),
    "boards without end": ("fmlm+", ["-n", "9" * 20], "argument -n: must be a whole number from 1"),
    "a seed without end": ("fmlm+", ["--seed", "9" * 20], "argument --seed: must be a whole"),
    "passes without end": ("flm", ["--nfe", str(10**9)], "argument --nfe: must be a whole number"),
    "clues without end": ("fmlm+", ["--clues", "9" * 20], "argument --clues: must be a whole"),
    "no sampler": ("fmlm+", ["--sampler", ""], "unknown sampler ''"),
}


@pytest.mark.parametrize("objective, arguments, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_before_any_board_is_drawn(
        objective, arguments, message, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "unconditional", None)
    assert main([checkpoint(objective), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("sudoku.evaluate: ") and message in captured.err


def test_one_bad_checkpoint_of_several_is_named_before_the_first_is_evaluated(
        checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "unconditional", None)
    assert main([checkpoint("fmlm+"), "nowhere.pt", "--device", "cpu"]) == 2
    assert "there is no checkpoint nowhere.pt" in capsys.readouterr().err
    assert main([checkpoint("fmlm+"), checkpoint("flm"), "--clues", "8", "--device", "cpu"]) == 2
    assert "flm.pt is an flm trained without prompts" in capsys.readouterr().err


@pytest.mark.parametrize("module, arguments", [(evaluate, []), (plot, ["--out", "a.png"]),
                                               (refinement, [])])
def test_a_checkpoint_of_another_task_is_named_with_its_task(
        module, arguments, monkeypatch, capsys):
    info = {"task": "stories", "objective": "fmlm+", "state": {}}
    monkeypatch.setattr(evaluate, "read_checkpoint", lambda path: info)
    monkeypatch.setattr(module, "load_checkpoint", lambda *_: (None, info))
    assert module.main(["x.pt", *arguments]) == 2
    captured = capsys.readouterr()
    assert "x.pt is of the task stories, which is no Sudoku: name a checkpoint of" in captured.err
    assert captured.out == "" and captured.err.count("\n") == 1
