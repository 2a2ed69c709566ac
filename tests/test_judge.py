"""The judge of finished drafts, attempts around a sampler, and sample.py's verdicts.

The bounds come from one line of theory (see `judge`): an exact model scores no wrong draft above
-1; the two modes 00 and 11 give log(1/4) at most for 01, for p (1 - p) <= 1/4.
"""

import argparse
import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import sample
from harness import study, terminal
from harness.attempts import (JUDGES, Judge, View, attempts, judge, judge_by_halves,
                              judge_by_rules, judge_for)
from harness.samplers import Drawn, Sampler
from harness.tasks import load_task
from sample import SAMPLERS, Pass, choose_sampler
from sudoku import boards as sudoku
from sudoku.judge import main as study_sudoku, misprinted, puzzles as study_sets
from sudoku.evaluate import main as evaluate
from toy.exact import Exact

FOUR = sudoku.SHAPES["sudoku4"]
BOARDS = sudoku.all_boards(FOUR)
BOARDS_MODEL, TWO = Exact(BOARDS), Exact([[0, 0], [1, 1]])
POSTERIOR = SAMPLERS["posterior"]
JUDGE = JUDGES["fmlm+"]
SOLUTION, PUZZLE, SEVERAL = "1234341221434321", "12.4341.2.4343.1", "1234341...4...2."
NONE = "123....4........"  # neither 4 nor another digit fits into the last cell of its first row
TIMES = (0.05, 0.3, 0.6, 0.8, 0.95)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nothing(tokens):
    return torch.zeros_like(tokens, dtype=torch.bool)


def asked_of(answer):
    """A model of probabilities answer(x, s, t), that keeps what it was asked."""
    def model(x, s, t):
        model.calls.append((x.clone(), s.clone(), t.clone()))
        return answer(x, s, t).log()

    model.calls, model.vocab_size = [], 2
    return model


# ---- the score

def test_it_is_the_sum_over_all_tokens_of_log_D_s_on_the_diagonal_in_one_pass():
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    model = asked_of(lambda x, s, t: table.expand(x.shape))
    tokens, known = torch.tensor([[0, 1, 1]]), torch.tensor([[False, False, True]])
    score = judge(model, tokens, known, 0.6, seeded(1))
    assert score.item() == pytest.approx(math.log(0.7) + math.log(0.8) + math.log(0.4))  # a clue's
    (x, s, t), = model.calls
    assert s.tolist() == t.tolist() == [[pytest.approx(0.6)] * 3]
    noise = torch.randn((1, 3, 2), generator=seeded(1))
    assert torch.allclose(x, 0.4 * noise + 0.6 * F.one_hot(tokens, 2))


@pytest.mark.parametrize("s", TIMES)
def test_a_misprinted_clue_is_believed_no_more_than_a_wrong_draft(s):
    """A right board of which one token is another digit, given like half of the others."""
    given = torch.arange(16) % 2 == 0
    wrong = torch.where(torch.arange(16) == 6, (BOARDS + 1) % 4, BOARDS)
    assert (judge(BOARDS_MODEL, wrong, given.expand(wrong.shape), s, seeded(9)) <= -1).all()


def test_halves_ask_every_generated_token_once_given_the_other_half_on_masks():
    model = asked_of(lambda x, s, t: torch.full_like(x, 0.5))
    tokens, known = torch.tensor([[0, 1, 1, 0, 1]]), torch.tensor([[True] + 4 * [False]])
    assert judge_by_halves(model, tokens, known).item() == pytest.approx(4 * math.log(0.5))
    asked = [s == 0 for _, s, _ in model.calls]
    assert len(asked) == 2 and (asked[0] ^ asked[1]).tolist() == [[False] + 4 * [True]]
    assert [int(each.sum()) for each in asked] == [2, 2]
    for x, s, t in model.calls:
        assert s.equal(t) and (x[s == 0] == 0).all()
        assert x[s == 1].equal(F.one_hot(tokens, 2).float()[s == 1])


@pytest.mark.parametrize("s", TIMES)
def test_an_exact_model_scores_no_wrong_draft_above_minus_one_at_any_time(s):
    boards = BOARDS.repeat(2, 1)
    wrong = study.swapped(boards, nothing(boards), seeded(2))
    assert not sudoku.valid(FOUR, wrong).any()
    assert (judge(BOARDS_MODEL, wrong, nothing(wrong), s, seeded(3)) <= -1).all()


@pytest.mark.parametrize("s", TIMES)
def test_no_wrong_pair_of_the_two_modes_is_above_a_quarter(s):
    wrong = torch.tensor([[0, 1], [1, 0]]).repeat(500, 1)
    scores = judge(TWO, wrong, nothing(wrong), s, seeded(4))
    assert scores.max() <= math.log(1 / 4) + 1e-6
    if s < 0.1:  # nothing is known of the mode yet: p is nearly 1/2
        assert scores.min() > math.log(1 / 4) - 0.1


def test_the_score_of_a_right_draft_rises_to_0_with_time():
    right = BOARDS[:100]
    means = [float(judge(BOARDS_MODEL, right, nothing(right), s, seeded(5)).mean()) for s in TIMES]
    assert means == sorted(means) and means[0] < -10 and means[-1] > -1e-3


def test_with_a_score_that_is_sure_of_nothing_a_board_from_nothing_is_right_yet_not_believed():
    """At s = 0.3 no exact model knows which of 288 boards it sees: right, and a low score."""
    scores = judge(BOARDS_MODEL, BOARDS, nothing(BOARDS), 0.3, seeded(6))
    assert (scores < math.log(0.9)).float().mean() > 0.99


def test_the_halves_of_an_exact_model_know_a_board_of_few_symbols_from_one_with_two_cells_swapped():
    wrong = study.swapped(BOARDS[:60], nothing(BOARDS[:60]), seeded(7))
    puzzle = nothing(wrong)
    puzzle[:, ::2] = True
    given = torch.where(puzzle, BOARDS[:60], wrong)
    spoiled = (given != BOARDS[:60]).any(1)
    right = judge(BOARDS_MODEL, BOARDS[:60], puzzle, 0.6, seeded(8))
    bad = judge(BOARDS_MODEL, given[spoiled], puzzle[spoiled], 0.6, seeded(8))
    assert bad.max() < right.median()


def test_it_asks_at_0_72_whatever_is_given():
    model = asked_of(lambda x, s, t: torch.full_like(x, 0.5))
    judge(model, torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[True, False], [False] * 2]))
    (_, s, _), = model.calls
    assert torch.allclose(s, torch.tensor(0.72).expand(2, 2))


def test_the_study_also_asks_generated_tokens_alone_with_what_is_given_clean():
    table = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    model = asked_of(lambda x, s, t: table.expand(x.shape))
    passes, score = study.SCORES["D_s, s = 0.6, given clean"]
    tokens, known = torch.tensor([[0, 1]]), torch.tensor([[False, True]])
    assert score(model, tokens, known, generator=seeded()).item() == pytest.approx(math.log(0.7))
    (_, s, t), = model.calls
    assert s.tolist() == t.tolist() == [[pytest.approx(0.6), 1.0]] and passes == 1


@pytest.mark.parametrize("s", [0, 1, -0.1, math.nan])
def test_a_time_outside_0_and_1_is_refused(s):
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge(TWO, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool), s)


def test_a_draft_with_a_token_that_is_no_word_is_refused():
    for score in judge, judge_by_halves:
        with pytest.raises(ValueError, match="0 ... 1"):
            score(TWO, torch.tensor([[0, 2]]), torch.zeros(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("objective", ["flm", "fmlm", "ar", "duo"])
def test_an_objective_that_cannot_judge_is_named(objective):
    with pytest.raises(ValueError, match=f"trained as {objective} cannot judge"):
        judge_for(objective, load_task("sudoku4"))


# ---- attempts

class Dice:
    """A sampler whose k-th call draws the k-th of these tokens for all that is unknown, in 2 passes
    that commit half and half; and its judge: the probability that `belief` gives to a token."""

    def __init__(self, *tokens, belief):
        self.tokens, self.belief, self.calls, self.judged = list(tokens), belief, [], []
        self.sampler, self.judge = Sampler(self.run, ("x",)), Judge(self.score, passes=1)

    def run(self, model, tokens, known, nfe, generator=None, trace=None):
        drawn = tokens.where(known, torch.tensor(self.tokens[len(self.calls)]).expand_as(tokens))
        self.calls.append(len(tokens))
        first = ~known & (torch.arange(tokens.shape[1]) % 2 == 0)
        for part in (first, ~known & ~first):
            trace.append(Pass(drawn, torch.ones(tokens.shape), part))
        return drawn

    def score(self, model, tokens, known, generator=None):
        self.judged.append(len(tokens))
        return torch.tensor([self.belief[int(row[-1])] for row in tokens]).log()

    def tried(self, given, most, believe=0.9):
        return attempts(self.sampler, None, given, 2, most, self.judge._replace(believe=believe))


UNKNOWN = torch.full((3, 4), -1)


def test_it_stops_as_soon_as_it_believes_and_counts_the_judges_passes():
    dice = Dice(0, 1, 2, belief=[0.1, 0.95, 0.99])
    answer = dice.tried(UNKNOWN, 10)
    assert answer.tokens.tolist() == [[1] * 4] * 3 and answer.believed.all()
    assert answer.passes.tolist() == [6] * 3 and answer.tried.tolist() == [2] * 3
    assert [scores.exp().tolist() for _, scores, _ in answer.trace] == [
        [pytest.approx(0.1)] * 3, [pytest.approx(0.95)] * 3]


def test_what_is_believed_costs_nothing_more_while_others_go_on():
    given = torch.tensor([[-1, -1, -1, 1], [-1, -1, -1, -1], [0, 1, 0, 1]])  # the last is complete
    dice = Dice(0, 0, 0, belief=[0.2, 0.95])
    answer = dice.tried(given, 3)
    assert dice.calls == dice.judged == [3, 1, 1]
    assert answer.tried.tolist() == [1, 3, 1] and answer.passes.tolist() == [3, 9, 1]
    assert answer.believed.tolist() == [True, False, True]
    assert answer.tokens.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_every_attempt_but_the_first_sees_a_board_under_a_symmetry_and_answers_without():
    """A board of which half is given, and a sampler that puts the digits of a valid board that it
    is told beside what it sees: whatever the view, the answer has the clues in their cells."""
    task, seen, judged = load_task("sudoku4"), [], []
    solution = torch.tensor(task.parse(SOLUTION))
    given = torch.where(torch.arange(16) % 3 == 0, -1, solution).expand(120, 16)

    def run(model, tokens, known, nfe, generator=None, trace=None):
        seen.append(torch.where(known, tokens, -1))
        boards = sudoku.all_boards(FOUR)
        fits = ((boards == tokens[:, None]) | ~known[:, None]).all(-1)
        assert fits.any(1).all()  # a view of a board is one
        drawn = boards[fits.int().argmax(1)]
        trace.append(Pass(drawn, torch.arange(16.0).expand_as(drawn), ~known))
        return drawn

    def score(model, tokens, known, generator=None):
        judged.append(tokens.where(known, -1))
        return torch.full((len(tokens),), -9.0)

    answer = attempts(Sampler(run, ("x",)), None, given, 1, 2, Judge(score, views=task.views),
                      seeded(11))
    assert torch.cat(seen[:2]).equal(given) and torch.cat(judged).equal(torch.cat(seen))
    turned = torch.cat(seen[2:])
    assert len(turned.unique(dim=0)) > 60 and ((turned < 0).sum(1) == 6).all()
    assert answer.tokens.where(given >= 0, -1).equal(given)
    assert sudoku.valid(FOUR, answer.tokens).all()
    _, (_, _, trace) = answer.trace
    assert trace[0].draft.equal(answer.tokens[:100]) and trace[0].committed.equal(given[:100] < 0)
    assert trace[0].confidence.sort(1).values.equal(torch.arange(16.0).expand(100, 16))


def test_what_is_seen_in_a_view_comes_back_token_for_token():
    """Two sequences of three places and three words, by hand: the view's first token stands third,
    and the word 0 is called 2."""
    view = View(torch.tensor([[2, 0, 1], [0, 1, 2]]), torch.tensor([[2, 0, 1], [0, 1, 2]]))
    given = torch.tensor([[0, -1, 1], [2, -1, 0]])
    assert view.of(given).tolist() == [[0, 2, -1], [2, -1, 0]]
    full = torch.tensor([[0, 2, 1], [2, 1, 0]])
    assert view.of(full).tolist() == [[0, 2, 1], [2, 1, 0]]
    sure = torch.tensor([[0.1, 0.2, 0.3]] * 2)
    back = view.back(Drawn(view.of(full), sure, torch.ones(2), []))
    assert back.tokens.equal(full)
    assert back.sure.equal(torch.tensor([[0.2, 0.3, 0.1], [0.1, 0.2, 0.3]]))


def test_only_a_task_that_says_so_has_views():
    stories = load_task("stories")
    assert stories.views is None and judge_for("fmlm+", stories).views is None
    for judged in judge_for("mdm", load_task("sudoku4")), judge_by_rules(load_task("sudoku4")):
        assert judged.views is not None


def test_unsure_to_the_end_the_surest_attempt_is_kept_not_the_last():
    answer = Dice(0, 1, 2, belief=[0.1, 0.3, 0.2]).tried(UNKNOWN, 3)
    assert answer.tokens.tolist() == [[1] * 4] * 3 and not answer.believed.any()
    assert answer.tried.tolist() == [3] * 3 and len(answer.trace) == 3


def test_a_score_that_is_no_number_is_not_believed():
    answer = Dice(0, 1, belief=[math.nan, math.nan]).tried(UNKNOWN, 2)
    assert not answer.believed.any() and (answer.tokens >= 0).all()


@pytest.mark.parametrize("believe, believed", [(0.5, True), (0.51, False)])
def test_a_draft_is_believed_from_the_bound_on(believe, believed):
    assert Dice(0, belief=[0.5]).tried(UNKNOWN, 1, believe).believed.tolist() == [believed] * 3


def test_the_first_attempt_is_what_the_sampler_draws_bit_for_bit_over_several_batches():
    given = torch.full((150, 16), -1)
    once = attempts(POSTERIOR, BOARDS_MODEL, given, 3, 1, JUDGE, seeded(9))
    assert once.tokens.equal(POSTERIOR.complete(BOARDS_MODEL, given, 3, seeded(9)).tokens)


def unsure_boards(clues):
    """Two puzzles of so many clues; a model that is never sure, so that all rounds are needed; and
    a judge that keeps what it was asked, and believes nothing."""
    solution = torch.tensor(load_task("sudoku4").parse(SOLUTION))
    given = torch.where(torch.arange(16) < clues, solution, -1).expand(2, 16)
    model = asked_of(lambda x, s, t: torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(x.shape))
    model.vocab_size, judged = 4, []

    def score(model, tokens, known, generator):
        judged.append(len(tokens))
        return torch.full((len(tokens),), -9.0)

    return given, model, judged, Judge(score, unique=load_task("sudoku4").unique)


def test_an_attempt_is_given_up_before_a_last_round_that_must_guess_and_is_not_judged():
    """3 rounds, of which but for the last attempt 2 are made; the judge's pass is the last's."""
    given, model, judged, judge = unsure_boards(4)
    answer = attempts(POSTERIOR, model, given, 3, 3, judge, seeded())
    assert len(model.calls) == 2 + 2 + 3 and judged == [2]
    assert answer.passes.tolist() == [8, 8] and answer.tried.tolist() == [3, 3]
    assert [scores.tolist() for _, scores, _ in answer.trace] == [
        [-math.inf] * 2, [-math.inf] * 2, [-9.0] * 2]
    rows = study.climb(unsure_boards(4)[1], POSTERIOR, given, partial(sudoku.valid, FOUR), 3, 3,
                       judge, 0)
    assert [row["nfe"] for row in rows] == [2, 4, 8]


def test_beside_one_that_is_given_up_a_finished_one_is_judged():
    """The one empty cell is committed in the first of 3 rounds."""
    given, model, judged, judge = unsure_boards(torch.tensor([[15], [4]]))
    answer = attempts(POSTERIOR, model, given, 3, 2, judge, seeded())
    assert judged == [1, 2] and answer.passes.tolist() == [4, 6]
    assert answer.trace[0][1].tolist() == [-9.0, -math.inf]


def test_the_trace_says_of_an_attempt_that_was_given_up_that_it_was_unsure():
    given, model, _, judge = unsure_boards(4)
    answer = attempts(POSTERIOR, model, given, 3, 2, judge, seeded())
    lines = terminal.trace_of_attempts(load_task("sudoku4"), given, answer).splitlines()
    assert lines[0] == "attempt 1: unsure before its last round, given up: " + "1234" + "1" * 12
    assert lines[1] == "attempt 2: probability 0.000123, not sure, kept"


def test_what_was_given_up_is_not_sure_as_committed_either():
    given, model, _, judge = unsure_boards(4)
    answer = attempts(POSTERIOR, model, given, 3, 2, judge._replace(score=None, passes=0), seeded())
    (_, first, _), (_, last, _) = answer.trace
    assert first.tolist() == [-math.inf] * 2 and answer.passes.tolist() == [5, 5]
    assert last.tolist() == pytest.approx([12 * math.log(0.4)] * 2)


@pytest.mark.parametrize("sampler, clues, says", [
    (POSTERIOR, [3, 3], True),     # three clues leave several boards: to guess is fair
    (POSTERIOR, [3, 4], True),     # one of a batch is enough
    (POSTERIOR, [4, 4], False),    # a task that does not say
    (SAMPLERS["a-priori-sampled"], [4, 4], True)])  # it needs all of its rounds, sure or not
def test_every_attempt_is_made_to_its_end_where_to_guess_is_no_sign_of_a_mistake(
        sampler, clues, says):
    given, model, judged, judge = unsure_boards(torch.tensor(clues)[:, None])
    judge = judge if says else judge._replace(unique=None)
    answer = attempts(sampler, model, given, 3, 2, judge, seeded())
    assert len(model.calls) == 6 and judged == [2, 2] and answer.passes.tolist() == [8, 8]


def test_what_is_all_sure_before_the_last_round_is_judged_in_the_first_attempt():
    given = torch.tensor([load_task("sudoku4").parse(PUZZLE)] * 3)
    judge = judge_for("fmlm+", load_task("sudoku4"))
    answer = attempts(POSTERIOR, BOARDS_MODEL, given, 4, 2, judge, seeded())
    assert answer.believed.all() and answer.passes.tolist() == [2, 2, 2]


def test_the_judges_of_a_task_know_what_may_be_given_up():
    four, stories = load_task("sudoku4"), load_task("stories")
    for each in judge_for("fmlm+", four), judge_for("mdm", four), judge_by_rules(four):
        assert each.unique == four.unique
    assert judge_for("fmlm+", stories).unique is None


def test_another_attempt_has_fresh_noise():
    given = torch.full((30, 16), -1)
    never = Judge(lambda model, tokens, known, generator: torch.full((len(tokens),), -9.0))
    answer = attempts(POSTERIOR, BOARDS_MODEL, given, 1, 2, never, seeded(10))
    first, second = (trace[-1].draft for _, _, trace in answer.trace)
    assert (first != second).any(1).float().mean() > 0.9
    assert answer.tokens.equal(second)  # of equal scores the later one


@pytest.mark.parametrize("most, believe", [(0, 0.9), (-1, 0.9), (1, 0.0), (1, 1.1), (1, math.nan)])
def test_no_attempt_and_a_bound_that_is_no_probability_are_refused(most, believe):
    with pytest.raises(ValueError, match="1 attempt at least"):
        attempts(POSTERIOR, TWO, UNKNOWN, 1, most, JUDGE._replace(believe=believe))


def test_a_second_attempt_of_a_sampler_that_leaves_nothing_to_chance_is_refused():
    for greedy in SAMPLERS["confidence"], choose_sampler("ar", "ar-greedy")[1]:
        with pytest.raises(ValueError, match="the same in every attempt"):
            attempts(greedy, TWO, UNKNOWN, 1, 2, JUDGES["mdm"])
    assert not SAMPLERS["confidence"].chance and SAMPLERS["confidence-sampled"].chance


def test_the_rules_judge_in_no_pass_and_tell_right_from_wrong():
    rules, task = judge_by_rules(load_task("sudoku4")), load_task("sudoku4")
    tokens = torch.tensor([task.parse(SOLUTION), [0] * 16])
    known = nothing(tokens)
    assert rules.passes == 0
    assert rules.score(None, tokens, known, generator=None).tolist() == [0.0, -math.inf]
    known[0, 0], wrong = True, tokens.clone()
    assert rules.score(None, wrong, known, generator=None)[0] == 0


# ---- sample.py

class Boards:
    """An exact FMLM+ of the 4x4 boards that agree with what it is given; where none does, it draws
    what it likes, as a network would."""

    vocab_size = 4

    def __call__(self, x, s, t):
        try:
            return BOARDS_MODEL(x, s, t)
        except ValueError:
            return torch.full(x.shape, 0.25).log()


@pytest.fixture
def exact(monkeypatch):
    info = {"task": "sudoku4", "state": {}, "objective": "fmlm+"}
    monkeypatch.setattr(sample, "load_checkpoint", lambda *_: (Boards(), info))


def solve(*arguments):
    return sample.main(["any", "--device", "cpu", *arguments])


def test_a_puzzle_is_judged_by_default_and_the_verdict_is_in_text_and_json(exact, capsys):
    assert solve("--puzzle", PUZZLE) == 0
    said = capsys.readouterr().out
    assert "solved; believed after 1 attempt\n" in said and "1 of 1 solved, posterior, " in said
    assert solve("--puzzle", PUZZLE, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["puzzles", "solved", "nfe", "boards", "believed", "attempts",
                              "decided by"]
    assert document["believed"] == [True] and document["attempts"] == [1]
    assert document["decided by"] == "the model" and document["boards"] == [SOLUTION]


def test_a_puzzle_without_solution_ends_unsure_never_believed(exact, capsys):
    assert solve("--puzzle", NONE, "--attempts", "5") == 0
    said = capsys.readouterr().out
    assert "not valid; not sure after 5 attempts; this puzzle has no solution\n" in said
    for judged in ([], ["--check-rules"]):
        assert solve("--puzzle", NONE, "--attempts", "5", "--json", *judged) == 0
        assert json.loads(capsys.readouterr().out)["believed"] == [False]


def test_of_a_puzzle_with_several_solutions_it_is_said_that_attempts_may_find_others(
        exact, capsys):
    assert solve("--puzzle", SEVERAL) == 0
    said = capsys.readouterr().out
    assert "2 or more solutions; the board found is one of them, another attempt" in said


def test_the_trace_has_a_line_for_each_attempt_given_up_and_the_passes_of_the_one_kept(capsys):
    task = load_task("sudoku4")
    dice = Dice([3] * 16, task.parse(SOLUTION), belief=[0.95, 0, 0, 0.25])
    given = torch.full((1, 16), -1)
    answer = dice.tried(given, 4)
    lines = terminal.trace_of_attempts(task, given, answer).splitlines()
    assert lines[0] == "attempt 1: probability 0.25, given up: " + "4" * 16
    assert lines[1] == "attempt 2: probability 0.95, believed" and "pass 1" in lines[3]
    assert sum(line.startswith("pass ") for line in lines) == 2


def test_the_attempt_that_is_kept_is_the_one_of_the_highest_score_however_improbable():
    """exp(-150) and exp(-140) are both 0 in single precision."""
    task, given = load_task("sudoku4"), torch.full((1, 16), -1)
    dice = Dice([3] * 16, [2] * 16, belief=[])
    scores = iter([-140.0, -150.0])
    judged = Judge(lambda model, tokens, known, generator: torch.tensor([next(scores)]))
    answer = attempts(dice.sampler, None, given, 2, 2, judged)
    lines = terminal.trace_of_attempts(task, given, answer)
    assert answer.tokens.tolist() == [[3] * 16]
    assert "attempt 1: probability 1.58e-61, not sure, kept" in lines
    assert "attempt 2: probability 7.18e-66, given up" in lines


def test_from_nothing_nothing_is_judged_unless_attempts_are_asked_for(exact, capsys):
    assert solve("-n", "2") == 0
    assert "believed" not in capsys.readouterr().out
    assert solve("-n", "2", "--attempts", "40", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["believed"]) == 2


def test_with_check_rules_it_is_said_that_they_decided(exact, capsys):
    assert solve("--puzzle", PUZZLE, "--check-rules") == 0
    assert "solved; believed by the rules after 1 attempt\n" in capsys.readouterr().out
    assert solve("--puzzle", PUZZLE, "--check-rules", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decided by"] == "the rules"


BAD = {
    "no attempts": (["--attempts", "0"], "--attempts: must be a whole number from 1"),
    "no number": (["--attempts", "many"], "--attempts"),
    "belief 0": (["--believe", "0"], "--believe: must be a number above 0 and at most 1"),
    "belief 2": (["--believe", "2"], "--believe"),
    "belief nan": (["--believe", "nan"], "--believe"),
    "rules without attempts": (["--check-rules"], "say how many by --attempts"),
    "belief without attempts": (["--believe", "0.5"], "say how many by --attempts"),
}


@pytest.mark.parametrize("arguments, words", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_status_2(arguments, words, exact, capsys):
    assert solve(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and words in said.err


def test_attempts_of_a_model_that_cannot_judge_are_refused_in_one_sentence(
        monkeypatch, capsys):
    info = {"task": "sudoku4", "state": {}, "objective": "flm"}
    monkeypatch.setattr(sample, "load_checkpoint", lambda *_: (Boards(), info))
    assert solve("--attempts", "2") == 2
    assert "a model trained as flm cannot judge what it drew" in capsys.readouterr().err
    assert solve("--attempts", "2", "--check-rules", "--sampler", "flow-map") == 0


# ---- sudoku.evaluate and sudoku.judge

@pytest.mark.usefixtures("cache")
def test_an_evaluation_with_attempts_has_mean_and_most_passes_and_who_was_believed(
        checkpoint, capsys):
    words = [checkpoint("fmlm+"), "-n", "6", "--nfe", "2", "--clues", "8", "--sampler", "posterior",
             "--json"]
    assert evaluate(words) == 0
    plain = json.loads(capsys.readouterr().out)[0]
    assert evaluate([*words, "--attempts", "3"]) == 0
    tried = json.loads(capsys.readouterr().out)[0]
    for kind in "unconditional", "puzzles":
        (one,), (row,) = plain[kind], tried[kind]
        # a fresh network is never sure: of a puzzle all but the last attempt are given up
        passes = 9 if kind == "unconditional" else 1 + 1 + 3
        assert row["attempts"] == 3 and row["most_passes"] == passes
        assert (row["believed"], row["believed_and_wrong"], row["passes"]) == (0, 0, passes)
        assert "attempts" not in one and one["passes"] == 2
    assert evaluate([*words, "--attempts", "3", "--check-rules"]) == 0
    ruled = json.loads(capsys.readouterr().out)[0]
    assert ruled["check_rules"] and ruled["puzzles"][0]["most_passes"] <= 6
    assert evaluate([*words, "--check-rules"]) == 2
    assert "say how many by --attempts" in capsys.readouterr().err


def test_the_area_under_the_curve_counts_pairs_and_ties_half():
    right, wrong = torch.tensor([0.0, -1.0]), torch.tensor([-1.0, -2.0, -math.inf])
    assert study.area(right, wrong) == pytest.approx((3 + 2.5) / 6, abs=1e-4)
    assert study.area(right, wrong[:0]) is None
    assert study.area(wrong[2:], wrong[2:]) == 0.5


def test_a_swapped_draft_differs_in_two_generated_cells_and_in_nothing_else():
    known = torch.rand(BOARDS.shape, generator=seeded(1)) < 0.4
    spoiled = study.swapped(BOARDS, known, seeded(2))
    assert ((spoiled != BOARDS).sum(1) == 2).all() and not ((spoiled != BOARDS) & known).any()
    assert spoiled.sort(1).values.equal(BOARDS.sort(1).values)


def test_where_one_token_alone_was_generated_there_is_nothing_to_swap_it_with():
    tokens, known = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, True, True, False]])
    assert study.swapped(tokens, known, seeded(2)).equal(tokens)


def test_of_no_right_draft_there_is_no_share_that_is_believed():
    scores, none = torch.tensor([-1.0, -2.0]), torch.zeros(2, dtype=torch.bool)
    assert study.separation(scores, none, scores[:0], 0.9)["right_believed"] is None


def test_the_climb_that_keeps_nothing_is_attempts():
    given = torch.full((40, 16), -1)
    at = JUDGE._replace(score=partial(judge, s=0.55), believe=0.9)
    answer = attempts(POSTERIOR, BOARDS_MODEL, given, 1, 4, at, seeded(3))
    rows = study.climb(BOARDS_MODEL, POSTERIOR, given, partial(sudoku.valid, FOUR), 1, 4, at, 3)
    assert 0 < answer.believed.sum() < 40
    assert rows[-1]["unsure"] == int((~answer.believed).sum())
    assert rows[-1]["nfe"] == pytest.approx(float(answer.passes.float().mean()), abs=1e-3)
    assert rows[-1]["most"] == int(answer.passes.max())
    assert [row["attempts"] for row in rows] == [1, 2, 4]


def test_the_exact_table_believes_no_wrong_draft_and_all_right_ones_late(capsys):
    assert study_sudoku(["--exact", "-n", "60", "--json"]) == 0
    for rows in json.loads(capsys.readouterr().out).values():
        assert all(row["high_wrong"] <= -1 and row["wrong_believed"] == 0 for row in rows)
        assert rows[-1]["area"] == 1 and rows[-1]["right_believed"] == 100
        assert rows[0]["right_believed"] < 50


@pytest.mark.usefixtures("cache")
def test_the_study_misprints_one_clue_of_each_puzzle_so_that_it_has_no_solution(
        checkpoint, capsys):
    puzzles, _ = sudoku.load_puzzles(FOUR, 6, 30, 3)
    wrong = misprinted(FOUR, puzzles, 3)
    assert ((wrong != puzzles).sum(1) == 1).all() and ((wrong < 0) == (puzzles < 0)).all()
    assert all(sudoku.count_solutions(FOUR, row) == 0 for row in wrong.tolist())
    assert misprinted(FOUR, puzzles, 3).equal(wrong)
    assert len((wrong != puzzles).nonzero()[:, 1].unique()) > 5
    with pytest.raises(ValueError, match="whichever clue is misprinted"):
        misprinted(FOUR, torch.tensor([[1, *[-1] * 15]]), 0)
    asked = argparse.Namespace(clues=[6, 0], n=30, puzzles=3, misprint=True)
    sets = study_sets("any", {"task": "sudoku4"}, load_task("sudoku4"), asked)
    assert sets[6][0].equal(wrong) and (sets[0][0] < 0).all()
    words = [checkpoint("fmlm+"), "-n", "30", "--nfe", "2", "--attempts", "2", "--clues", "6"]
    assert study_sudoku([*words, "--puzzles", "3", "--misprint", "--json"]) == 0
    *systems, study_of_it = json.loads(capsys.readouterr().out)
    assert all(row["right"] == 0 and row["area"] is None for row in study_of_it["scores"])
    assert all(row["percent"] == 0 for system in systems for row in system["puzzles"])


@pytest.mark.usefixtures("cache")
def test_the_study_prints_its_tables_and_a_document_that_harness_plot_draws(
        checkpoint, tmp_path, capsys):
    from harness.plot import read_table

    words = [checkpoint("fmlm+"), "-n", "5", "--nfe", "2", "--attempts", "2", "--clues", "8", "0"]
    assert study_sudoku([*words, "--json"]) == 0
    (tmp_path / "table.json").write_text(capsys.readouterr().out)
    panels = read_table(str(tmp_path / "table.json"))
    assert list(panels) == ["puzzles with 8 clues solved, %", "puzzles with 0 clues solved, %"]
    assert list(panels["puzzles with 8 clues solved, %"]) == [
        "posterior, judge", "posterior, as committed", "a-priori-sampled, judge",
        "a-priori-sampled, as committed"]
    assert study_sudoku(words) == 0
    assert "D_s, s = 0.6" in capsys.readouterr().out
