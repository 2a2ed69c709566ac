"""What is said of Posterior Refinement, against shares counted by hand and the exact model, that
solves every puzzle."""

import json
import math

import pytest
import torch

from sample import Pass
from sudoku import boards as sudoku, refinement
from sudoku.refinement import (calibration, low_confidence, main, one_pass, passes_used, percent,
                               refined, sweep)
from toy.exact import Exact

pytestmark = pytest.mark.usefixtures("cache")

FOUR = sudoku.SHAPES["sudoku4"]
EXACT = Exact(sudoku.all_boards(FOUR))


class Constant:
    """A 4x4 model that drafts the digit 1 everywhere, with the p_max given; `later`: of all passes
    but the first."""

    vocab_size = 4

    def __init__(self, p_max, later=None):
        self.p_max, self.later = p_max, later or p_max

    def __call__(self, x, s, t):
        p, self.p_max = torch.tensor([self.p_max] + 3 * [(1 - self.p_max) / 3]), self.later
        return p.log().expand(x.shape)


# ---- counting

def test_a_share_of_no_cells_is_no_number():
    yes, no = torch.tensor([True, True, False, True]), torch.zeros(4, dtype=torch.bool)
    assert percent(torch.tensor([True, False, True, False]), yes) == 33.33
    assert percent(yes, no) is None


def test_errors_inside_the_low_confidence_set_are_counted_below_each_threshold():
    """p_max 0.4 0.5 0.95 0.995 0.9995, the first and the third wrong; what is at a threshold is not
    below it."""
    rows = low_confidence(torch.tensor([0.4, 0.5, 0.95, 0.995, 0.9995]),
                          torch.tensor([True, False, True, False, False]))
    assert [tuple(row.values()) for row in rows] == [(0.5, 20, 50), (0.9, 40, 50), (0.99, 60, 100),
                                                     (0.999, 80, 100)]
    none_wrong = low_confidence(torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert [row["wrong"] for row in none_wrong] == 4 * [None]


def test_the_calibration_error_is_the_gap_of_each_bin_weighed_by_its_cells():
    """Bins 0.4 (none right), 0.6 and 0.6 (both right, too modest), 1 (right): a gap of
    (1 * 0.4 + 2 * 0.4 + 1 * 0) / 4 = 0.3."""
    result = calibration(torch.tensor([1.0, 0.6, 0.4, 0.6]),
                         torch.tensor([True, True, False, True]))
    full = [tuple(row.values()) for row in result["bins"] if row["cells"]]
    assert full == [(0, 0.5, 1, 0.4, 0), (0.5, 0.7, 2, 0.6, 1), (0.999, 1, 1, 1, 1)]
    assert result["error"] == 0.3
    assert [row["p_max"] for row in result["bins"] if not row["cells"]] == [None] * 3


def test_a_cell_on_an_edge_belongs_to_the_bin_above_it():
    result = calibration(torch.tensor([0.5, 0.7, 0.9, 0.99, 0.999, 1.0]),
                         torch.ones(6, dtype=torch.bool))
    assert [row["cells"] for row in result["bins"]] == [0, 1, 1, 1, 1, 2]


def test_a_board_uses_passes_until_nothing_is_left_to_commit():
    """Three boards of two cells; one is known from the start, one is done in the first pass, one in
    the third."""
    known = torch.tensor([[True, True], [True, False], [False, False]])
    commits = [[[False, False], [False, True], [False, True]], [[False, False]] * 3,
               [[False, False]] * 2 + [[True, False]]]
    trace = [Pass(None, None, torch.tensor(commit)) for commit in commits]
    assert passes_used(known, trace).tolist() == [0, 1, 3]


# ---- models whose score is known

def test_the_exact_model_is_right_and_sure_in_one_pass():
    """A puzzle has one solution, so the posterior given the clues is one board."""
    given, solutions = sudoku.load_puzzles(FOUR, 5, 30)
    result = one_pass(EXACT, given, solutions, 0)
    assert (result["cells"], result["wrong"], result["calibration"]["error"]) == (30 * 11, 0, 0)
    assert [(row["cells"], row["wrong"]) for row in result["low_confidence"]] == 4 * [(0, None)]
    passes = {"2 flow steps a round": 2, "4 flow steps a round": 4,  # inf: however sure, the budget
              "threshold inf: uniform budget": 4}
    for row in sweep(EXACT, given, solutions, 4, 0):
        assert row["percent"] == 100 and row["passes"] == passes.get(row["variant"], 1)


def test_a_model_that_writes_1_everywhere_is_right_where_the_solution_has_a_1():
    given, solutions = sudoku.load_puzzles(FOUR, 6, 20)
    hidden = [digit for row, board in zip(given.tolist(), solutions.tolist())
              for clue, digit in zip(row, board) if clue < 0]
    result, right = one_pass(Constant(0.95), given, solutions, 0), hidden.count(0) / 200
    assert (result["cells"], result["wrong"]) == (200, 200 - hidden.count(0))
    assert ([(row["cells"], row["wrong"]) for row in result["low_confidence"]]
            == [(0, 0), (0, 0), (100, 100), (100, 100)])
    assert result["calibration"]["bins"][3] == {"from": 0.9, "to": 0.99, "cells": 200,
                                                "p_max": 0.95, "right": round(right, 4)}
    assert result["calibration"]["error"] == round(0.95 - right, 4)
    assert all(row["percent"] == 0 for row in sweep(Constant(0.95), given, solutions, 4, 0))


def test_puzzles_are_refined_in_batches_and_come_back_in_order():
    given = torch.full((101, 16), -1)
    given[:, 3] = torch.arange(101) % 4
    boards, passes, p_max = refined(Constant(0.95), given, 2, 0)
    assert boards[:, 3].equal(given[:, 3]) and boards.sum() == given[:, 3].sum()
    assert passes.tolist() == [2] * 101 and p_max.shape == (101, 16)
    assert p_max[given < 0].allclose(torch.tensor(0.95))
    assert refined(Constant(0.95), given, 2, 0, threshold=0.94)[1].tolist() == [1] * 101


def test_p_max_is_that_of_the_first_pass_and_one_pass_is_one():
    given, solutions = sudoku.load_puzzles(FOUR, 6, 2)
    _, passes, p_max = refined(Constant(0.6, later=0.8), given, 2, 0)
    assert passes.tolist() == [2, 2] and p_max[given < 0].allclose(torch.tensor(0.6))
    model = Constant(0.6, later="no number: a second pass would fail")
    bins = one_pass(model, given, solutions, 0)["calibration"]["bins"]
    assert bins[1]["cells"] == 20


@pytest.mark.parametrize("nfe, steps", [
    (4, [1] * 7 + [2, 4, 1]), (6, [1] * 7 + [2, 1]), (1, [1] * 8)])
def test_every_variant_gets_the_same_passes_the_same_puzzles_and_the_same_first_noise(
        monkeypatch, nfe, steps):
    calls, inner = [], refinement.posterior_refinement

    def spy(model, tokens, known, rounds, generator, trace, **variant):
        calls.append((rounds, variant, tokens, generator.get_state()))
        return inner(model, tokens, known, rounds, generator=generator, trace=trace, **variant)

    monkeypatch.setattr(refinement, "posterior_refinement", spy)
    given, solutions = sudoku.load_puzzles(FOUR, 6, 3)
    rows = sweep(Constant(0.5), given, solutions, nfe, 5)
    assert [variant.get("flow_steps", 1) for _, variant, _, _ in calls] == steps
    assert [rounds * step for (rounds, *_), step in zip(calls, steps)] == [nfe] * len(steps)
    assert ([variant.get("threshold", "default") for _, variant, _, _ in calls][:7]
            == [0, 0.9, 0.99, "default", 0.999, 0.9999, math.inf])
    assert ([variant.get("fresh", True) for _, variant, _, _ in calls]
            == [True] * (len(steps) - 1) + [False])
    assert all(tokens.equal(given.clamp(min=0)) for _, _, tokens, _ in calls)
    assert all(state.equal(torch.Generator().manual_seed(5).get_state()) for *_, state in calls)
    assert [row["nfe"] for row in rows] == [nfe] * len(steps)


# ---- the command

def test_the_document_holds_every_row(checkpoint, capsys):
    path = checkpoint("fmlm+")
    arguments = [path, "-n", "3", "--clues", "6", "--nfe", "4", "6", "--seed", "2",
                 "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {key: document[key] for key in ("checkpoint", "task", "clues", "n", "nfe", "seed")} == {
        "checkpoint": path, "task": "sudoku4", "clues": 6, "n": 3, "nfe": [4, 6], "seed": 2}
    first = document["one_pass"]
    assert first["cells"] == 30 == sum(row["cells"] for row in first["calibration"]["bins"])
    assert [row["nfe"] for row in document["sweep"]] == 10 * [4] + 9 * [6]


def test_the_report_is_three_tables_with_a_dash_where_there_is_no_number(checkpoint, capsys):
    assert main([checkpoint("fmlm+"), "-n", "3", "--clues", "minimal", "--nfe", "4", "6",
                 "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {name: line[len(name):].split() for line in lines for name in refinement.VARIANTS
             if line.startswith(name)}
    assert table.keys() == refinement.VARIANTS.keys()
    assert table["4 flow steps a round"][-2:] == ["4.00", "-"]
    assert table["threshold 0: all at once"][-1] == "1.00"
    assert "NFE 4 6".split() in [line.split() for line in lines]
    assert [line.split()[:3] for line in lines if " to " in line][0] == ["0.0", "to", "0.5"]
    never_sure = "  0.999 to 1.0                     0        -        -"  # a fresh network
    assert never_sure in lines


@pytest.mark.parametrize("objective, arguments, message", [
    (None, ["nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ("mdm", [], "does not suit a model trained as mdm"),
    ("flm", [], "does not suit a model trained as flm"),
    ("fmlm+", ["-n", "0"], "argument -n: must be a whole number from 1 to 10,000,000, not '0'"),
    ("fmlm+", ["--nfe", "4", "0"],
     "argument --nfe: must be a whole number from 1 to 100,000, not '0'"),
    ("fmlm+", ["--seed", "-1"],
     "argument --seed: must be a whole number from 0 to 4,294,967,295, not '-1'"),
    ("fmlm+", ["--nfe", "17"], "17 rounds"),
    ("fmlm+", ["--clues", "16"], "leaves nothing to draft"),
    ("fmlm+", ["--clues", "17"], "1 to 16 clues"),
    ("fmlm+", ["--clues", "lots"], "--clues"),
    ("fmlm+", ["--device", "nowhere"], "--device"),
    ("fmlm+", ["--bogus"], "--bogus"),
    ("fmlm+", ["-n", "9" * 20], "argument -n: must be a whole number from 1 to"),
    ("fmlm+", ["--nfe", "4", str(10**9)], "argument --nfe: must be a whole number from 1 to"),
    ("fmlm+", ["--seed", "9" * 20], "argument --seed: must be a whole number from 0 to"),
    ("fmlm+", ["--clues", "9" * 20], "argument --clues: must be a whole number from 0 to"),
])
def test_bad_input_is_one_sentence_and_status_2(checkpoint, capsys, objective, arguments, message):
    path = [checkpoint(objective)] if objective else []
    assert main([*path, "-n", "2", "--clues", "6", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.refinement: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
