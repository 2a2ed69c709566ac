"""The evaluation judged on models whose score is known: the exact model of the 288 boards, the uniform one, scripted ones."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from sample import SAMPLERS
from sudoku import boards as sudoku, evaluate
from sudoku.evaluate import against_exact, interval, likelihood_bound, main, posterior, puzzles, report, share, unconditional
from toy.exact import Exact

pytestmark = pytest.mark.usefixtures("cache")

FOUR = sudoku.SHAPES["sudoku4"]
BOARDS = sudoku.all_boards(FOUR)
EXACT = Exact(BOARDS)


class Scripted:
    """A 4x4 model that answers with a function of (x, s, t), or draws rows of tokens, batch after batch, and again."""

    vocab_size = 4

    def __init__(self, answer):
        rows = None if callable(answer) else F.one_hot(answer, 4).float().log()
        self.answer = answer if rows is None else lambda x, s, t: rows[self.drawn % len(rows):][:len(x)]
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
def test_the_ends_of_the_interval_are_the_shares_from_which_the_count_is_1_96_deviations_away(successes, n):
    """Wilson's definition: |p - pi| = z sqrt(pi (1-pi) / n) has the two ends for solutions."""
    p, ends = successes / n, [end / 100 for end in interval(successes, n)]
    assert ends[0] < p < ends[1]
    for end in ends:
        assert abs(p - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_a_share_is_in_percent_with_two_digits():
    """8 of 10; Wilson's 95% interval is 0.4902 - 0.9433 (R: prop.test(8, 10, correct = FALSE))."""
    assert share(torch.tensor([True] * 8 + [False] * 2)) == {"percent": 80.0, "low": 49.02, "high": 94.33}
    assert share(torch.tensor([True, False, False]))["percent"] == 33.33


# ---- drawing boards

def test_one_board_again_and_again_is_all_valid_and_as_far_from_uniform_as_can_be():
    row = unconditional(FOUR, Scripted(BOARDS[:1]), "flow-map", 1, 20, seeded())
    assert row == {"sampler": "flow-map", "nfe": 1, "n": 20, "percent": 100.0, "low": pytest.approx(83.89, abs=0.005),
                   "high": 100.0, "distinct": 1, "tv": round(287 / 288, 4)}


def test_what_is_not_valid_counts_in_full_in_the_distance():
    """Draws A A B and no board: TV = the sum of 1/288 - share where that is positive = 286 boards never drawn, 286/288."""
    wrong = BOARDS[0].clone()
    wrong[0] = (wrong[0] + 1) % 4
    row = unconditional(FOUR, Scripted(torch.stack([BOARDS[3], BOARDS[5], BOARDS[3], wrong])), "flow-map", 1, 4, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (75.0, 2, round(286 / 288, 4))
    row = unconditional(FOUR, Scripted(wrong[None]), "flow-map", 1, 3, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (0.0, 0, 1.0)
    row = unconditional(FOUR, Scripted(torch.cat([BOARDS, wrong.expand(212, 16)])), "flow-map", 1, 500, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (57.6, 288, 0.424)  # every board once in 500: 288 (1/288 - 1/500)


def test_every_board_once_is_at_distance_0():
    row = unconditional(FOUR, Scripted(BOARDS), "flow-map", 1, 288, seeded())
    assert (row["percent"], row["distinct"], row["tv"]) == (100.0, 288, 0.0)


def test_larger_boards_have_no_distance():
    nine = sudoku.SHAPES["sudoku9"]
    board = torch.tensor(sudoku.parse(nine, "534678912672195348198342567859761423426853791713924856961537284287419635345286179"))
    model = Scripted(lambda x, s, t: F.one_hot(board, 9).float().log())
    model.vocab_size = 9
    row = unconditional(nine, model, "posterior", 3, 2, seeded())
    assert row["percent"] == 100.0 and row["distinct"] == 1 and row["nfe"] == 3 and "tv" not in row


def test_one_jump_of_the_exact_model_draws_only_valid_boards():
    row = unconditional(FOUR, EXACT, "posterior", 1, 100, seeded())
    assert row["percent"] == 100.0 and 50 < row["distinct"] <= 100


def test_boards_are_drawn_in_batches_of_100_and_clues_stay():
    given = torch.full((201, 16), -1)
    given[:, 5] = torch.arange(201) % 4
    model, traces = uniform(), []
    boards = SAMPLERS["posterior"].complete(model, given, 2, seeded(), traces)
    assert boards.shape == (201, 16) and boards[:, 5].equal(given[:, 5])
    assert [len(x) for x, _, _ in model.calls] == [100, 100, 100, 100, 1, 1]
    assert [[len(record.draft) for record in trace] for trace in traces] == [[100, 100], [100, 100], [1, 1]]
    assert all((s[:, 5] == 1).all() for _, s, _ in model.calls) and not model.calls[0][1][:, :5].any()


# ---- puzzles

def test_the_exact_model_solves_every_puzzle_in_one_pass():
    """A puzzle has one solution, so the posterior given the clues is that board: for delta_{0,1} as for delta_{0,0}."""
    for name in "posterior", "a-priori", "confidence", "block":
        row = puzzles(FOUR, EXACT, name, 1, 30, 6, seeded())
        assert row == {"sampler": name, "nfe": 1, "n": 30, "clues": 6, "percent": 100.0, "low": pytest.approx(88.65, abs=0.005),
                       "high": 100.0}


def test_a_valid_board_that_is_not_the_solution_solves_nothing():
    """Puzzles of 15 clues: what is drawn matters in one cell, and the scripted model is wrong there in 10 of 40."""
    given, solutions = sudoku.load_puzzles(FOUR, 15, 40)
    drawn = solutions.clone()
    drawn[:10] = (drawn[:10] + 1) % 4  # a renaming of the digits: still a board, and wrong in every cell
    assert sudoku.valid(FOUR, drawn).all() and (given >= 0).sum(1).unique().tolist() == [15]
    row = puzzles(FOUR, Scripted(drawn), "posterior", 1, 40, 15, seeded())
    assert row["percent"] == 75.0 and row["clues"] == 15
    assert puzzles(FOUR, Scripted(drawn), "posterior", 1, 40, "minimal", seeded())["clues"] == "minimal"


# ---- against the exact posterior

@pytest.mark.parametrize("objective, noisy", [("fmlm+", True), ("mdm", False), ("mlfm", False)])
def test_the_posterior_is_asked_at_0_0_around_the_context(objective, noisy):
    """100 + 100 + 3 boards: noise of variance 1 +- 5 sqrt(2/n), n = 203 * 10 * 4, for a flow map; masks for an MDM or MLFM."""
    boards, context = BOARDS[torch.arange(203) % 288], (torch.arange(16) % 3 == 0).expand(203, 16)
    model = uniform()
    posterior(model, objective, boards, context, seeded())
    x, s, t = (torch.cat(part) for part in zip(*model.calls))
    assert [len(call[0]) for call in model.calls] == [100, 100, 3]
    assert s.equal(context.float()) and t.equal(context.float())
    assert x[context].equal(F.one_hot(boards, 4).float()[context])
    unknown = x[~context]
    assert abs(unknown.var() - 1) < 5 * math.sqrt(2 / unknown.numel()) if noisy else not unknown.any()


@pytest.mark.parametrize("objective", ["fmlm+", "mdm"])
def test_the_exact_model_is_at_distance_0_from_itself_at_every_number_of_clues(objective):
    kl = against_exact(FOUR, EXACT, objective, seeded())
    assert kl == {clues: pytest.approx(0, abs=1e-5) for clues in range(16)}


def test_the_distance_of_the_uniform_model_is_what_the_exact_marginals_know():
    """log 4 - H(exact), mean over the unknown cells.

    0 clues: the digits are interchangeable, all cells uniform: 0. 15 clues: the last cell is certain: log 4. Two digits
    exchanged in the fewest rows change 4 cells, so 13 and 14 clues leave one board too.
    1 clue, a digit d: its 7 peers are not d, and the 3 other digits are interchangeable: log 4/3 each. In the other
    line of the band d is in one of 2 cells, likewise in the stack: 4 cells with d at 1/2 and 1/6 for the others, whose
    entropy is 1/2 log 2 + 1/2 log 6. In the box diagonally opposite, 4 cells, d is anywhere: 0.
    """
    kl = against_exact(FOUR, uniform(), "mdm", seeded(), n=20)
    one = (7 * math.log(4 / 3) + 4 * (math.log(4) - math.log(2) / 2 - math.log(6) / 2)) / 15
    assert kl[0] == 0 and kl[1] == pytest.approx(one, abs=1e-4)
    assert [kl[clues] for clues in (13, 14, 15)] == pytest.approx([math.log(4)] * 3, abs=1e-4)
    assert (BOARDS[:, None] != BOARDS).sum(-1).unique()[:2].tolist() == [0, 4]


@pytest.mark.parametrize("objective", ["fmlm+", "mdm"])
def test_the_likelihood_bound_of_the_exact_model_is_log_288(objective):
    """Any order of the cells: the sum of -log p(cell given those before) is -log p(board). So the bound is tight."""
    bound, half_width = likelihood_bound(FOUR, EXACT, objective, seeded())
    assert abs(bound - math.log(288)) < 4 * half_width / 1.96 and 0 < half_width < 0.5


def test_the_likelihood_bound_of_the_uniform_model_is_16_log_4_without_error():
    """m masked cells of log 4 each, times 16/m: the same for every board."""
    bound, half_width = likelihood_bound(FOUR, uniform(), "mdm", seeded(), n=320)
    assert bound == pytest.approx(16 * math.log(4), rel=1e-6) and half_width < 1e-5


def test_the_half_width_is_1_96_standard_errors_of_the_spread_at_equal_m():
    """Boards that cost 0 or 32 nats, by a coin: standard deviation 16. The half of the mean squared difference of 4,000
    pairs, each 0 or 32^2, estimates 16^2 to a share of 1/sqrt(4000) = 1.6%, its root to 0.8%: five of these are 4%."""
    coin = lambda x: torch.rand(len(x), 1, 1, generator=coins).round()
    coins = seeded(5)
    model = Scripted(lambda x, s, t: -2 * coin(x).expand(len(x), 16, 4))
    _, half_width = likelihood_bound(FOUR, model, "mdm", seeded(), n=8000)
    assert half_width == pytest.approx(1.96 * 16 / math.sqrt(8000), rel=0.04)


def test_the_number_of_masked_cells_is_uniform_and_its_spread_is_no_error():
    """A model that charges m nats a cell when m are masked: a board costs (16/m) m m = 16 m, m = 1 ... 16 equally often
    among n = 320 boards: mean 16 * 8.5, and no spread at equal m, of which the stratified mean is free."""
    model = Scripted(lambda x, s, t: -(s == 0).sum(1)[:, None, None].float())
    bound, half_width = likelihood_bound(FOUR, model, "mdm", seeded(), n=320)
    assert bound == pytest.approx(136) and half_width == 0
    masked = torch.cat([s == 0 for _, s, _ in model.calls])
    assert (masked.sum(1).bincount(minlength=17)[1:] == 20).all()
    # A cell is masked with probability 8.5/16; five deviations of a share of 320 bound it from both sides.
    assert ((masked.float().mean(0) - 8.5 / 16).abs() < 5 * math.sqrt(0.25 / 320)).all()


def test_an_mlfm_is_judged_on_masks_as_an_mdm_is_and_a_flow_map_on_noise():
    """A model that charges as many nats for a cell as it sees in unknown ones: on masks everything is free."""
    seen = lambda x, s, t: -(x * (s == 0)[..., None]).abs().sum((1, 2), keepdim=True)
    assert [likelihood_bound(FOUR, Scripted(seen), objective, seeded(), n=320)[0] for objective in ("mdm", "mlfm")] == [0, 0]
    assert likelihood_bound(FOUR, Scripted(seen), "fmlm+", seeded(), n=320)[0] > 100
    mdm, mlfm, flow = (against_exact(FOUR, Scripted(seen), objective, seeded(), n=20) for objective in ("mdm", "mlfm", "fmlm+"))
    assert mlfm == mdm != flow


# ---- the report

DOCUMENT = {"checkpoint": "x.pt", "task": "sudoku4", "objective": "fmlm+", "steps": 7, "parameters": 1234, "seed": 0,
            "unconditional": [
                {"sampler": "posterior", "nfe": 1, "n": 1000, "percent": 12.34, "low": 10.5, "high": 14.56, "distinct": 99, "tv": 0.8765},
                {"sampler": "posterior", "nfe": 4, "n": 1000, "percent": 100.0, "low": 99.62, "high": 100.0, "distinct": 280, "tv": 0.25},
                {"sampler": "a-priori", "nfe": 1, "n": 1000, "percent": 0.0, "low": 0.0, "high": 0.38, "distinct": 0, "tv": 1.0},
                {"sampler": "a-priori", "nfe": 4, "n": 1000, "percent": 3.0, "low": 2.11, "high": 4.25, "distinct": 28, "tv": 0.97}],
            "puzzles": [
                {"sampler": "posterior", "nfe": 2, "n": 500, "clues": 6, "percent": 71.2, "low": 67.1, "high": 75.0},
                {"sampler": "posterior", "nfe": 2, "n": 500, "clues": "minimal", "percent": 55.0, "low": 50.6, "high": 59.3}],
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
distinct 99 280
TV to uniform 0.876 0.250
a-priori 0.0 (0.0 - 0.4) 3.0 (2.1 - 4.2)
distinct 0 28
TV to uniform 1.000 0.970
puzzles with 6 clues solved, % of 500 (95% interval)
NFE 2
posterior 71.2 (67.1 - 75.0)
puzzles with minimal clues solved, % of 500 (95% interval)
NFE 2
posterior 55.0 (50.6 - 59.3)
likelihood bound 5.7 +- 0.012 nats a board; no honest one is below log 288 = 5.663
KL(exact marginals || delta_00), nats per unknown cell, by the number of clues: mean 0.0750
clues 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
KL 0.000 0.010 0.020 0.030 0.040 0.050 0.060 0.070 0.080 0.090 0.100 0.110 0.120 0.130 0.140 0.150""".splitlines()]


def test_the_columns_of_a_table_end_under_one_another():
    lines = report(DOCUMENT).splitlines()
    table = lines[lines.index("valid boards, % of 1,000 (95% interval)") + 1:][:7]
    assert len({len(line) for line in table}) == 1


def test_a_document_without_puzzles_likelihood_and_kl_is_a_report_of_one_table():
    rest = {key: value for key, value in DOCUMENT.items() if key not in ("puzzles", "likelihood", "kl")}
    assert len([line for line in report(rest).splitlines() if line]) == 9


# ---- the command line

def test_a_fresh_network_is_evaluated_to_the_numbers_of_the_uniform_model(checkpoint, capsys):
    """Its answers are log 1/4 everywhere; and a token of p_max 1/4 is never sure."""
    path = checkpoint("fmlm+")
    assert main([path, "-n", "3", "--nfe", "1", "2", "--clues", "8", "--json", "--device", "cpu"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    names = ["posterior", "a-priori", "a-priori-sampled", "flow-map"]
    assert [(row["sampler"], row["nfe"]) for row in document["unconditional"]] == [(name, n) for name in names for n in (1, 2)]
    assert [(row["sampler"], row["nfe"], row["clues"]) for row in document["puzzles"]] == [(name, n, 8) for name in names for n in (1, 2)]
    assert all(row["n"] == 3 for row in document["unconditional"] + document["puzzles"])
    assert document["likelihood"] == {"bound": round(16 * math.log(4), 3), "plus_minus": 0, "limit": round(math.log(288), 3)}
    assert document["kl"]["0"] == 0 and document["kl"]["15"] == round(math.log(4), 4)
    assert (document["checkpoint"], document["task"], document["objective"], document["steps"]) == (path, "sudoku4", "fmlm+", 7)
    weights = torch.load(path, weights_only=True)["model"]
    assert document["parameters"] == sum(weight.numel() for name, weight in weights.items() if name != "coords")


@pytest.mark.parametrize("objective, samplers, whole", [
    ("mdm", ["confidence", "confidence-sampled", "ancestral"], True), ("mlfm", ["promotion"], True),
    ("flm", ["flow-map-tau", "flow-map"], False), ("fmlm", ["flow-map-tau", "flow-map"], False)])
def test_an_objective_has_its_own_samplers_and_a_flow_without_context_boards_only(checkpoint, capsys, objective, samplers, whole):
    assert main([checkpoint(objective), "-n", "2", "--nfe", "2", "--clues", "8", "--json", "--device", "cpu"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert [row["sampler"] for row in document["unconditional"]] == samplers
    assert {"puzzles", "likelihood", "kl"} & set(document) == ({"puzzles", "likelihood", "kl"} if whole else set())


def test_the_defaults_are_a_table_by_size_and_a_report(checkpoint, capsys):
    assert main([checkpoint("fmlm+"), "-n", "2", "--sampler", "posterior", "flow-map", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NFE 1 2 4 8 16".split() in [line.split() for line in lines]
    assert sum(line.startswith(("posterior", "flow-map")) for line in lines) == 2
    assert not any("puzzles" in line for line in lines)


def test_the_same_seed_gives_the_same_document(checkpoint, capsys):
    outputs = []
    for seed in "1", "1", "2":
        path = checkpoint("mdm")
        assert main([path, "-n", "40", "--nfe", "1", "--sampler", "ancestral", "--clues", "12", "--seed", seed, "--json"]) == 0
        (document,) = json.loads(capsys.readouterr().out)
        assert document.pop("seed") == int(seed)
        outputs.append(document)
    assert outputs[0] == outputs[1] != outputs[2]


def test_each_figure_draws_from_the_seed_alone_whatever_else_is_asked(checkpoint, monkeypatch):
    asked = []
    for name in "unconditional", "puzzles", "likelihood_bound", "against_exact":
        measure = getattr(evaluate, name)
        monkeypatch.setattr(evaluate, name, lambda *a, m=measure: asked.append((m.__name__, a[-1].get_state())) or m(*a))
    assert main([checkpoint("mdm"), "-n", "2", "--nfe", "1", "2", "--clues", "12", "--sampler", "ancestral", "--seed", "3"]) == 0
    assert [name for name, _ in asked] == ["unconditional"] * 2 + ["puzzles"] * 2 + ["likelihood_bound", "against_exact"]
    assert all(state.equal(seeded(3).get_state()) for _, state in asked)


@pytest.mark.parametrize("objective, arguments, message", [
    (None, ["nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ("fmlm+", ["-n", "0"], "-n must be 1 or more"),
    ("fmlm+", ["-n", "-3"], "-n must be 1 or more"),
    ("mdm", ["--sampler", "posterior"], "does not suit"),
    ("flm", ["--sampler", "ancestral"], "does not suit"),
    ("fmlm", ["--sampler", "posterior"], "does not suit"),
    ("mlfm", ["--sampler", "confidence"], "does not suit"),
    ("mdm", ["--sampler", "promotion"], "does not suit"),
    ("fmlm+", ["--sampler", "beam"], "unknown sampler 'beam'"),
    ("fmlm+", ["--nfe", "0"], "at least one network pass"),
    ("fmlm+", ["--sampler", "block", "--nfe", "0"], ""),
    ("fmlm+", ["--sampler", "block", "--nfe", "-1"], ""),
    ("fmlm+", ["--nfe", "17"], "17 rounds"),
    ("fmlm+", ["--nfe", "1", "--clues", "17"], "1 to 16 clues"),
    ("fmlm+", ["--nfe", "1", "--clues", "-1"], "1 to 16 clues"),
    ("fmlm+", ["--device", "nowhere"], "nowhere"),
    ("fmlm+", ["--seed", "-" + "9" * 30], ""),
])
def test_bad_input_is_one_sentence_and_status_2(checkpoint, capsys, objective, arguments, message):
    path = [checkpoint(objective)] if objective else []
    assert main([*path, "-n", "2", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.evaluate: ") and message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--clues", "few"], ["--nfe", "many"], ["-n", "1.5"], ["--bogus"]])
def test_an_argument_of_the_wrong_kind_is_one_sentence_and_status_2(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.evaluate: ") and captured.err.count("\n") == 1


def test_a_damaged_checkpoint_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "damaged.pt"
    path.write_bytes(b"PK\x03\x04 no checkpoint")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
