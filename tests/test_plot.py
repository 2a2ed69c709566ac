"""The figures, read back: which cell is of which kind, what is written in the panels, where the
points of a line are."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from harness import checkpoints, plot as harness_plot
from harness.plot import draw_curves, main as plot_curves, read_table, refine_one
from harness.tasks import load_task
from sample import SAMPLERS, Pass
from sudoku import boards as sudoku, evaluate, plot as board_plot
from sudoku.plot import KINDS, clashes, draw_board, kinds, main, solution_of
from toy import two_mode

pytestmark = pytest.mark.usefixtures("cache")

FOUR, TASK = sudoku.SHAPES["sudoku4"], load_task("sudoku4")
BOARD = torch.tensor([0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0])
CLUES = (0, 1, 4, 6, 10, 15)  # of BOARD: a puzzle with one solution
SURE, UNSURE = 0.9999, 0.6


def change(board, **cells):
    """The board with other digits: c5=0 writes a 0 into cell 5."""
    board = board.clone()
    for cell, digit in cells.items():
        board[int(cell[1:])] = digit
    return board


def cells(*places):
    return torch.isin(torch.arange(16), torch.tensor(places, dtype=torch.int64))


class Scripted:
    """Pass after pass, a draft (B, L) and its p_max (B, L). Who finishes first stands first, so the
    last rows are asked about."""

    vocab_size = 4

    def __init__(self, *script):
        self.script = list(script)

    def __call__(self, x, s, t):
        draft, p_max = (part[-len(x):] for part in self.script.pop(0))
        hot, p_max = F.one_hot(draft, 4), p_max[..., None]
        return (hot * p_max + (1 - hot) * (1 - p_max) / 3).log().expand(x.shape)


# ---- kinds of cells

def kinds_of(given, draft, committed):
    return kinds(FOUR, given, draft, committed, solution_of(FOUR, given))


def test_a_changed_digit_clashes_with_its_equals_in_row_column_and_box():
    """A 1 for the 0 in the corner: the 1 beside it, of the row and the box, and the 1 below it, in
    the column."""
    everywhere = torch.ones(16, dtype=torch.bool)
    assert not clashes(FOUR, BOARD, everywhere).any()
    assert clashes(FOUR, change(BOARD, c0=1), everywhere).equal(cells(0, 1, 8))
    assert clashes(FOUR, change(BOARD, c0=1), cells(0)).equal(cells(1, 8))
    assert clashes(FOUR, change(BOARD, c0=1), cells(8)).equal(cells(0))


def test_wrong_is_what_differs_from_the_one_solution():
    given = torch.where(cells(*CLUES), BOARD, -1)
    assert sudoku.count_solutions(FOUR, given.tolist()) == 1
    names = kinds_of(given, change(BOARD, c2=3, c13=1), cells(2, 5))
    assert [names[i] for i in CLUES] == 6 * ["clue"]
    assert (names[2], names[5], names[13]) == ("lost", "committed", "wrong")
    assert [names[i] for i in (3, 7, 8, 9, 11, 12, 14)] == 7 * ["unsure"]


def test_without_one_solution_wrong_breaks_a_rule_and_of_the_committed_what_does_so_among_them():
    empty, draft = torch.full((16,), -1), change(BOARD, c0=1)
    unsure = ["unsure"] * 16
    assert kinds_of(empty, BOARD, cells()) == unsure
    assert (kinds_of(empty, draft, cells())
            == ["wrong", "wrong"] + unsure[:6] + ["wrong"] + unsure[:7])
    assert (kinds_of(empty, draft, cells(8))
            == ["wrong", "wrong"] + unsure[:6] + ["committed"] + unsure[:7])
    assert (kinds_of(empty, draft, cells(0, 8))
            == ["lost", "wrong"] + unsure[:6] + ["lost"] + unsure[:7])
    clue = change(empty, c8=1)
    assert (kinds_of(clue, draft, cells(0))
            == ["lost", "wrong"] + unsure[:6] + ["clue"] + unsure[:7])


def test_a_search_that_takes_too_long_finds_no_solution_and_the_rules_say_what_is_wrong(
        monkeypatch):
    """Of a puzzle without one: the search is given up after one try."""
    nine = sudoku.SHAPES["sudoku9"]
    monkeypatch.setattr(board_plot, "TRIES", 1)
    hard = torch.tensor(sudoku.parse(nine, "8..........36......7..9.2...5...7.......457.....1...3"
                                           "...1....68..85...1..9....4.."))
    assert solution_of(nine, hard) is None
    assert solution_of(FOUR, torch.where(cells(*CLUES), BOARD, -1)).equal(BOARD)


# ---- the board that is shown

def script():
    """Row 0 is right at once; row 1 drafts one wrong cell, then corrects it; row 2 has two wrong
    cells for good, and takes all three rounds, for the budget of a round is one of them."""
    wrong = torch.stack([BOARD, change(BOARD, c2=3), change(BOARD, c2=3, c13=1)])
    low = torch.stack([cells(), cells(2), cells(2, 13)])
    right = torch.stack([BOARD, BOARD, wrong[2]])
    doubt = torch.stack([cells(), cells(), cells(2, 13)])
    p_max = lambda unsure: torch.where(unsure, UNSURE, SURE)
    return (wrong, p_max(low)), (right, p_max(doubt)), (right, p_max(doubt))


def test_the_board_shown_is_one_that_went_from_wrong_to_right():
    given = torch.where(cells(*CLUES), BOARD, -1).repeat(3, 1)
    given[1, 15] = -1  # to tell the rows apart
    shown, trace = refine_one(TASK, Scripted(*script()), given, 3, 0)
    assert shown.equal(given[1]) and len(trace) == 2
    assert trace[0].draft.equal(change(BOARD, c2=3)) and trace[1].draft.equal(BOARD)
    assert trace[0].committed.equal((given[1] < 0) & ~cells(2))
    assert trace[1].committed.equal(cells(2))


def test_where_none_is_corrected_it_is_the_one_that_took_most_rounds():
    given, rows = torch.where(cells(*CLUES), BOARD, -1).repeat(2, 1), torch.tensor([0, 2])
    _, trace = refine_one(TASK,
                          Scripted(*((draft[rows], p_max[rows]) for draft, p_max in script())),
                          given, 3, 0)
    assert len(trace) == 3 and trace[2].draft.equal(change(BOARD, c2=3, c13=1))


def test_a_full_puzzle_is_refused():
    with pytest.raises(ValueError, match="nothing to refine"):
        refine_one(TASK, Scripted(), BOARD[None], 3, 0)


# ---- the figures

def test_a_panel_shows_each_digit_in_the_color_of_its_kind_and_the_doubt_behind_it():
    pytest.importorskip("matplotlib")
    given = torch.where(cells(*CLUES), BOARD, -1)
    first = Pass(change(BOARD, c2=3, c13=1), torch.full((16,), 0.75), (given < 0) & ~cells(3, 13))
    second = Pass(change(BOARD, c2=3), torch.ones(16), cells(3, 13))
    figure = draw_board(FOUR, given, [first, second])
    one, two = figure.axes
    assert (one.get_title(), one.get_xlabel()) == ("Round 1: 2 wrong",
                                                   "8 committed, 2 back to noise")
    assert (two.get_title(), two.get_xlabel()) == ("Round 2: 1 wrong",
                                                   "2 committed, 0 back to noise")
    digits = [(text.get_text(), text.get_color()) for text in one.texts]
    assert [int(digit) - 1 for digit, _ in digits] == change(BOARD, c2=3, c13=1).tolist()
    for cell, kind in (0, "clue"), (2, "lost"), (3, "unsure"), (5, "committed"), (13, "wrong"):
        assert digits[cell][1] == KINDS[kind][0]
    assert [text.get_position() for text in one.texts[5:7]] == [(1.5, 1.54), (2.5, 1.54)]
    behind = one.images[0].get_array().reshape(16, 4)
    assert behind[3, 3] == behind[13, 3] == pytest.approx(0.12 + 0.88 * 0.25)
    assert list(behind[5]) == [1, 1, 1, 1] and one.images[0].get_extent() == [0, 4, 4, 0]
    heavy = {line.get_xdata()[0] for line in one.lines if line.get_linewidth() > 1
             and list(line.get_ydata()) == [0, 1]}
    assert heavy == {0, 2, 4}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:-1] == [words for _, _, words in KINDS.values()] and "darker" in legend[-1]


def test_a_legend_names_only_what_is_there():
    pytest.importorskip("matplotlib")
    figure = draw_board(FOUR, torch.where(cells(0), BOARD, -1),
                        [Pass(BOARD, torch.ones(16), ~cells(0))])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clue", "committed"]


def row(sampler, nfe, percent, **more):
    return {"sampler": sampler, "nfe": nfe, "percent": percent, "low": percent - 1,
            "high": percent + 2, **more}


DOCUMENTS = [
    {"objective": "fmlm+",
     "unconditional": [row("posterior", 9, 80), row("posterior", 1, 20), row("new", 3, 7)],
     "puzzles": [row("posterior", 4, 60, clues=30), row("posterior", 4, 70, clues="minimal")]},
    {"objective": "mdm", "unconditional": [row("ancestral", 27, 8)]},
    {"label": "started from the MDM", "unconditional": [row("posterior", 1, 50)],
     "puzzles": [row("posterior", 1, 90, clues=12)]},
]


@pytest.fixture
def table(tmp_path):
    def write(documents):
        path = tmp_path / "table.json"
        path.write_text(documents if isinstance(documents, str) else json.dumps(documents))
        return str(path)
    return write


def test_a_table_is_read_as_panels_of_named_lines(table):
    assert read_table(table(DOCUMENTS)) == {
        "valid from nothing, %": {
            "FMLM+, posterior": [(1, 20, 19, 22), (9, 80, 79, 82)], "FMLM+, new": [(3, 7, 6, 9)],
            "MDM, ancestral": [(27, 8, 7, 10)], "started from the MDM": [(1, 50, 49, 52)]},
        "puzzles with 30 clues solved, %": {"FMLM+, posterior": [(4, 60, 59, 62)]},
        "puzzles with minimal clues solved, %": {"FMLM+, posterior": [(4, 70, 69, 72)]},
        "puzzles with 12 clues solved, %": {"started from the MDM": [(1, 90, 89, 92)]}}


def test_valid_boards_come_first_even_where_only_a_later_document_has_them(table):
    documents = [{"label": "a", "unconditional": [], "puzzles": [row("x", 1, 5, clues=3)]},
                 DOCUMENTS[1]]
    assert list(read_table(table(documents))) == ["valid from nothing, %",
                                                  "puzzles with 3 clues solved, %"]


def test_a_set_of_another_kind_than_puzzles_names_its_panel_itself(table):
    documents = [{"label": "a", "puzzles": [row("x", 1, 5) | {"set": "questions"}]}]
    assert list(read_table(table(documents))) == ["questions right, %"]
    documents = [{"label": "a", "task": "stories", "puzzles": [row("x", 1, 5)]}]
    assert list(read_table(table(documents))) == ["questions solved, %"]


def test_of_judged_attempts_there_is_a_mark_at_their_mean_passes_and_tables_are_drawn_together(
        table, tmp_path):
    tried = {"objective": "fmlm+", "unconditional": [row("posterior", 5, 98) | {
        "attempts": 64, "passes": 6.6}]}
    climbed = {"label": "own", "unconditional": [  # of python -m sudoku.judge: a line of its own
        {"attempts": tries, "nfe": nfe, "percent": 50, "low": 49, "high": 51}
        for tries, nfe in ((1, 3.5), (2, 4.5))]}
    other = tmp_path / "other.json"
    other.write_text(json.dumps([tried, climbed]))
    assert read_table(table(DOCUMENTS), str(other))["valid from nothing, %"] == {
        **read_table(table(DOCUMENTS))["valid from nothing, %"],
        "FMLM+, posterior, 64 attempts": [(6.6, 98, 97, 100)],
        "own": [(3.5, 50, 49, 51), (4.5, 50, 49, 51)]}
    pytest.importorskip("matplotlib")
    figure = draw_curves(read_table(table(DOCUMENTS), str(other)), None)
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle(), list(line.get_xdata()))
             for line in figure.axes[0].lines]
    assert looks[0][:2] == looks[4][:2] and [each[2:] for each in (looks[0], looks[4])] == [
        ("-", [1, 9]), ("None", [6.6])]
    assert {axis.get_xlabel() for axis in figure.axes} == {"network passes (attempts: mean)"}
    assert len({look[:2] for look in looks}) == len(looks) - 1
    assert figure.axes[0].lines[4].get_markeredgecolor() == "black"


def test_of_a_table_of_roads_the_first_line_of_each_road_that_is_asked_for_is_drawn(
        table, tmp_path, capsys):
    of = lambda road, sampler, nfe: {"road": road, "label": f"{road}, {sampler}",
                                     "unconditional": [row(sampler, nfe, 50)]}
    path = table([of("mdm", "sampled", 1), of("mdm", "ancestral", 1), of("ar", "ar", 16),
                  of("ar", "ar-greedy", 16)])
    assert read_table(path, roads=["ar", "mdm"]) == {"valid from nothing, %": {
        "ar, ar": [(16, 50, 49, 52)], "mdm, sampled": [(1, 50, 49, 52)]}}
    assert list(read_table(path, roads=["ar", "mdm"])["valid from nothing, %"]) == ["ar, ar",
                                                                             "mdm, sampled"]
    assert len(read_table(path)["valid from nothing, %"]) == 4
    for write, there in ((lambda: path, "mdm, ar"), (lambda: table(DOCUMENTS), "none")):
        assert plot_curves([write(), "--roads", "x", "--out", str(tmp_path / "a.png")]) == 2
        said = capsys.readouterr().err
        assert f"has no road 'x': choose from {there}\n" in said and said.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_a_line_of_one_point_is_a_mark_with_a_bar_and_panels_stand_three_in_a_row(table):
    pytest.importorskip("matplotlib")
    rows = [row("ar", 81, 40, clues=clues) for clues in (40, 35, 30, "minimal", "few")]
    draw = lambda rows: draw_curves(read_table(table([{"label": "AR", "puzzles": rows}])), None)
    figure = draw(rows)
    assert len(figure.axes) == 5
    bar, = figure.axes[0].collections
    assert [list(point) for point in bar.get_segments()[0]] == [[81, 39], [81, 42]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["AR"]
    places = [axis.get_subplotspec() for axis in figure.axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    four = [axis.get_subplotspec() for axis in draw(rows[:4]).axes]
    assert [(place.rowspan.start, place.colspan.start) for place in four] == [
        (0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("documents, message", [
    ("not JSON", "is not what"), ("3", "is not what"), ("{}", "holds no row"),
    ("[]", "holds no row"), ("[3]", "is not what"),
    ([{"objective": "mdm", "unconditional": [{"sampler": "ancestral", "nfe": 3}]}], "is not what"),
    ([{"unconditional": [row("ancestral", 3, 3)]}], "is not what"),
    ([{"label": "a", "unconditional": [row("ancestral", 3, 3) | {"percent": "many"}]}],
     "is not what"),
    ([DOCUMENTS[1], DOCUMENTS[1]], 'two points at one NFE for "MDM, ancestral"'),
    *[([{"label": "a", "unconditional": [row("posterior", nfe, 50)]}], "a row that cannot be")
      for nfe in (0, -3, float("nan"), float("inf"))],
    *[([{"label": "a", "puzzles": [row("posterior", 1, 50) | wrong]}], "a row that cannot be")
      for wrong in ({"percent": 150, "high": 160}, {"low": -5}, {"high": 101}, {"low": 60},
                    {"percent": float("nan")})],
])
def test_a_file_that_is_no_table_is_one_sentence(table, capsys, documents, message):
    assert plot_curves([table(documents), "--out", "nowhere.png"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_line_goes_through_its_points_and_looks_the_same_in_every_panel(table):
    pytest.importorskip("matplotlib")
    figure = draw_curves(read_table(table(DOCUMENTS)), "a title")
    boards, thirty = figure.axes[:2]
    titles = [axis.get_title(loc="left") for axis in figure.axes][:2]
    assert titles == ["valid from nothing, %", "puzzles with 30 clues solved, %"]
    assert list(boards.lines[0].get_xdata()) == [1, 9]
    assert list(boards.lines[0].get_ydata()) == [20, 80]
    corners = {tuple(point) for point in boards.collections[0].get_paths()[0].vertices}
    assert corners >= {(1, 19), (1, 22), (9, 79), (9, 82)}
    assert [tick.get_text() for tick in boards.get_xticklabels()] == ["1", "3", "9", "27"]
    assert boards.get_xscale() == "log" and boards.get_xlabel() == "network passes (NFE)"
    assert boards.get_ylim() == (0, 100)
    assert thirty.lines[0].get_color() == boards.lines[0].get_color() != boards.lines[1].get_color()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["FMLM+, posterior", "FMLM+, new", "MDM, ancestral", "started from the MDM"]
    assert figure.get_suptitle() == "a title"


def test_a_line_is_named_by_its_sampler_as_on_the_command_line(table):
    documents = [{"objective": objective, "unconditional": [row(name, 1, 50)]}
                 for name, sampler in SAMPLERS.items() for objective in sampler.objectives]
    lines = read_table(table(documents))["valid from nothing, %"]
    assert list(lines) == [f"{objective.upper()}, {name}" for name, sampler in SAMPLERS.items()
                           for objective in sampler.objectives]


@pytest.mark.parametrize("objective, line", [("duo", "Duo, x"), ("sflm", "S-FLM, x"),
                                             ("candi", "CANDI, x"), ("ar", "AR, x")])
def test_a_system_is_named_as_its_paper_names_it(table, objective, line):
    documents = [{"objective": objective, "unconditional": [row("x", 1, 50)]}]
    assert list(read_table(table(documents))["valid from nothing, %"]) == [line]


def test_what_an_evaluation_prints_is_drawn(checkpoint, table, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert evaluate.main([checkpoint("fmlm+"), "-n", "5", "--nfe", "1", "4", "--clues", "8",
                          "--sampler", "posterior", "flow-map", "--json", "--device", "cpu"]) == 0
    path = table(capsys.readouterr().out)
    assert {panel: {line: [nfe for nfe, *_ in points] for line, points in lines.items()}
            for panel, lines in read_table(path).items()} == {
        panel: {"FMLM+, posterior": [1, 4], "FMLM+, flow-map": [1, 4]}
        for panel in ("valid from nothing, %", "puzzles with 8 clues solved, %")}
    assert plot_curves([path, "--out", str(tmp_path / "curves.svg")]) == 0


def test_a_title_with_a_broken_formula_is_one_line_and_no_file(table, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.pdf"
    assert plot_curves([table(DOCUMENTS), "--title", r"$\frac{1}{$", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 400
    assert captured.err.startswith(f"harness.plot: cannot draw {out}: ") and not out.exists()


@pytest.mark.parametrize("out", ["", " ", "{folder}", "{folder}/d.png", "d", "{folder}/d.jpg",
                                 "{folder}/nowhere/d.png", "{folder}/.png"])
@pytest.mark.parametrize("command", ["sudoku.plot", "harness.plot", "toy.two_mode"])
def test_a_picture_that_cannot_be_is_refused_before_any_work(
        command, out, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    (folder / "d.png").mkdir(parents=True)
    out = out.format(folder=folder)
    monkeypatch.setattr(board_plot, "load_checkpoint", None)
    monkeypatch.setattr(harness_plot, "read_table", None)
    monkeypatch.setattr(two_mode, "train", None)
    run, option = {"sudoku.plot": (main, ["--out"]), "harness.plot": (plot_curves, ["x", "--out"]),
                   "toy.two_mode": (two_mode.main, ["--plot"])}[command]
    assert run([*option, out]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"{command}: argument {option[-1]}: must ")
    assert out in captured.err
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "d.png"]


@pytest.mark.parametrize("arguments, message", [
    ([], "required: TABLE.json, --out"),
    (["nowhere.json", "--out", "a.png"], "nowhere.json is not what"),
    (["x", "y", "--out", "a.png"], "harness.plot: x is not what"),
    (["", "--out", "a.png"], "argument TABLE.json: must name a file, not ''")])
def test_curves_of_no_table_are_one_sentence_and_status_2(arguments, message, capsys):
    assert plot_curves(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("harness.plot: ")
    assert message in captured.err and captured.err.count("\n") == 1


# ---- the command

@pytest.mark.parametrize("arguments",
                         [["--clues", "6"], ["--clues", "minimal"], ["--clues", "0", "--nfe", "5"],
                                       ["--puzzle", "12.." + 12 * "."]])
def test_a_board_is_drawn_into_a_file(checkpoint, tmp_path, capsys, arguments):
    pytest.importorskip("matplotlib")
    out = tmp_path / "board.png"
    assert main([checkpoint("fmlm+"), "--out", str(out), *arguments]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == f"figure: {out}\n"


def test_curves_are_drawn_into_a_file(table, tmp_path):
    pytest.importorskip("matplotlib")
    assert plot_curves([table(DOCUMENTS), "--out", str(tmp_path / "curves.pdf")]) == 0
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_without_matplotlib_there_is_one_sentence(table, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot_curves([table(DOCUMENTS), "--out", "curves.png"]) == 2
    assert (capsys.readouterr().err
            == "harness.plot: a figure needs matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize("objective, arguments, message", [
    (None, [], "--out"),
    (None, ["table", "--out", "a.png"], "there is no checkpoint table"),
    (None, ["nowhere.pt", "--out", "a.png"], "there is no checkpoint nowhere.pt"),
    ("fmlm+", [], "--out"),
    ("mdm", ["--out", "a.png"], "does not suit a model trained as mdm"),
    ("fmlm+", ["--out", "a.png", "--nfe", "0"], "argument --nfe: must be a whole number from 1 to"),
    ("fmlm+", ["--out", "a.png", "--clues", "6", "--nfe", "17"], "17 rounds"),
    ("fmlm+", ["--out", "a.png", "--seed", "-1"],
     "argument --seed: must be a whole number from 0 to"),
    ("fmlm+", ["--out", "a.png", "--clues", "17"], "1 to 16 clues"),
    ("fmlm+", ["--out", "a.png", "--clues", "6", "--puzzle", 16 * "."], "not allowed with"),
    ("fmlm+", ["--out", "a.png", "--puzzle", "123"], "has 3 cells"),
    ("fmlm+", ["--out", "a.png", "--puzzle", "1234341221434321"], "nothing to refine"),
    ("fmlm+", ["--out", "a.png", "--puzzle", "11" + 14 * "."], "appears twice"),
])
def test_bad_input_is_one_sentence_and_status_2(checkpoint, capsys, objective, arguments, message):
    path = [checkpoint(objective)] if objective else []
    assert main([*path, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sudoku.plot: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_9x9_puzzle_is_read_with_the_weights_that_ship_though_4x4_was_trained_last(
        checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    Path(checkpoint("fmlm+")).rename(tmp_path / "sudoku4-fmlm+.pt")
    solved = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    assert main(["--puzzle", solved, "--out", "a.png"]) == 2
    assert "nothing to refine" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["nowhere/board.png", "board.words"])
def test_a_picture_that_cannot_be_written_is_one_sentence(checkpoint, tmp_path, capsys, out):
    pytest.importorskip("matplotlib")
    assert main([checkpoint("fmlm+"), "--clues", "6", "--out", str(tmp_path / out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mean_passes_that_are_no_whole_numbers_have_powers_of_two_as_ticks():
    pytest.importorskip("matplotlib")
    panels = {"solved": {"a line": [(2.75, 50.0, 40.0, 60.0), (9.5, 90.0, 80.0, 95.0)]}}
    axis, = draw_curves(panels, None).axes
    assert axis.get_xticks().tolist() == [2, 4, 8, 16]


def test_over_more_than_64_times_as_many_passes_every_other_power_of_two_is_a_tick():
    pytest.importorskip("matplotlib")
    panels = {"solved": {"a line": [(1.0, 50.0, 40.0, 60.0), (137.3, 90.0, 80.0, 95.0)]}}
    axis, = draw_curves(panels, None).axes
    assert axis.get_xticks().tolist() == [1, 4, 16, 64, 256]
