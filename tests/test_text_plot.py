"""A text that is refined before one's eyes: what each frame shows, and the file."""

import json
import sys

import pytest
import torch

from harness import files
from harness.checkpoints import build, save_checkpoint
from harness.tasks import ROOT, load_task
from sample import Pass
from text import plot

STORY = "tom has 7 apples . he buys 3 . how many apples ? 7 + 3 = 10 , so he has 10 ."


@pytest.fixture(scope="module")
def task():
    return load_task("stories")


@pytest.fixture
def fresh(task, tmp_path):
    """A function that writes an untrained network."""
    def write(objective="fmlm+"):
        info = dict(format=3, task="stories", state={}, objective=objective,
                    network=dict(vocab_size=task.vocab_size, width=8, depth=1, heads=1))
        path = tmp_path / f"{objective}.pt"
        save_checkpoint(path, info | dict(model=build(info, task).state_dict()))
        return str(path)
    return write


def test_a_text_is_shown_as_noise_as_every_draft_and_as_what_is_left_of_it(task):
    pytest.importorskip("matplotlib")
    end, pad = len(STORY.split()), task.language.ids["<pad>"]
    story = torch.tensor(task.parse(STORY))
    story[end], story[end + 1:] = task.language.ids["<end>"], pad
    place = torch.arange(40)
    given = torch.where(place < 12, story, -1)
    draft = torch.where(place == 17, task.language.ids["9"], story)
    sure = (place >= 12) & (place < 17)
    trace = [Pass(draft, torch.full((40,), 0.25), sure),
             Pass(story, torch.ones(40), place >= 17)]
    seen = []
    for figure, time in plot.draw_frames(task, task.language.words, given, trace):
        axis = figure.axes[0]
        borders = [patch.get_linewidth() for patch in axis.patches]
        seen.append((axis.get_title(), axis.get_xlabel(), time,
                     [text.get_text() for text in axis.texts], borders))
    titles = ["Noise", "Round 1 of 2: 5 committed, 23 back to noise",
              "Round 1 of 2: 5 committed, 23 back to noise",
              "Round 2 of 2: 23 committed, 0 back to noise"]
    assert [frame[0] for frame in seen] == titles
    assert [frame[1] for frame in seen] == ["28 words to draft", *[plot.VERDICTS["copy"]] * 2,
                                            "the draft is a valid story"]
    assert [frame[2] for frame in seen] == [plot.BACK, plot.DRAFT, plot.BACK, plot.END]
    words = [*STORY.split(), "end", *["pad"] * (39 - end)]
    assert seen[3][3] == words and seen[0][3] == words[:12] + ["·"] * 28
    assert seen[2][3] == words[:17] + ["·"] * 23
    assert seen[1][4] == [0.6] * 12 + [1.6] * 5 + [0] * 23  # set apart without color


@pytest.mark.parametrize("name, given", [("a.gif", ""), ("a.png", "tom has 7 apples . ?")])
def test_a_text_in_motion_is_one_small_file_that_is_replaced_whole(name, given, fresh, tmp_path,
                                                                   capsys, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    out = tmp_path / name
    arguments = [fresh(), "--given", given, "--nfe", "3", "-n", "4", "--animate", str(out)]
    assert plot.main(arguments) == 0
    assert capsys.readouterr().out == f"animation: {out}\n"
    with image.open(out) as picture:
        assert picture.is_animated and picture.n_frames >= 3
    assert out.stat().st_size <= 1_000_000
    before = out.read_bytes()

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    assert plot.main(arguments) == 2
    assert "still there" in capsys.readouterr().err and out.read_bytes() == before


@pytest.mark.parametrize("objective, arguments, words", [
    ("mdm", [], "does not suit a model trained as mdm"),
    ("fmlm+", ["--animate", "a.svg"], "must be a .gif or .png"),
    ("fmlm+", ["--animate", "nowhere/a.gif"], "must be a .gif or .png"),
    ("fmlm+", ["--animate", ""], "must name a file"),
    ("fmlm+", ["--nfe", "41"], "41 rounds"),
    ("fmlm+", ["--given", "tam has"], "near it are"),
    ("fmlm+", ["--given", "tom " * 40], "nothing to refine"),
])
def test_what_cannot_be_drawn_is_one_sentence_and_status_2(objective, arguments, words, fresh,
                                                           tmp_path, capsys):
    assert plot.main([fresh(objective), "--animate", str(tmp_path / "a.gif"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("text.plot: ") and words in said and said.count("\n") == 1


def test_a_folder_or_a_checkpoint_of_boards_is_one_sentence(checkpoint, tmp_path, capsys):
    for path, words in ((checkpoint("fmlm+"), "of the task sudoku4, which writes no text"),
                        (str(tmp_path), "there is no checkpoint")):
        assert plot.main([path, "--animate", str(tmp_path / "a.gif")]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("missing, words", [("matplotlib.figure", "pip install matplotlib"),
                                            ("PIL", "pip install matplotlib pillow")])
def test_without_matplotlib_or_pillow_there_is_one_sentence(missing, words, fresh, tmp_path,
                                                            monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert plot.main([fresh(), "-n", "1", "--animate", str(tmp_path / "a.gif")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_text_in_motion_of_the_repository_is_at_most_1_mb():
    image = pytest.importorskip("PIL.Image")
    file = ROOT / "text" / "story.gif"
    assert file.stat().st_size <= 1_000_000
    with image.open(file) as picture:
        assert picture.n_frames >= 6


# ---- the curve


def document(objective, *rows, **more):
    keys = ("sampler", "nfe", "passes", "perplexity", "entropy")
    return {"objective": objective, "judge": {"checkpoint": "ar.pt"},
            "data": {"perplexity": 20.0, "entropy": 2.5},
            "unconditional": [dict(zip(keys, row)) for row in rows], **more}


DOCUMENTS = [document("fmlm+", ("posterior", 8, 6.5, 15, 2.0), ("posterior", 4, 4, 30, 2.45)),
             document("mdm", ("ancestral", 8, 8, 40, 2.55))]


@pytest.fixture
def saved(tmp_path):
    def write(documents, name="table"):
        path = tmp_path / f"{name}.json"
        path.write_text(documents if isinstance(documents, str) else json.dumps(documents))
        return str(path)
    return write


def test_a_curve_is_a_line_a_sampler_over_the_passes_that_were_made(saved):
    curves = plot.read_curves(saved(DOCUMENTS))
    assert curves == ({"FMLM+, posterior": [(4, 30, 2.45), (6.5, 15, 2.0)],
                       "MDM, ancestral": [(8, 40, 2.55)]}, 20, 2.5)
    one, other = saved(DOCUMENTS[:1], "one"), saved(DOCUMENTS[1:], "other")
    assert plot.read_curves(one, other) == curves


def test_a_marker_is_full_where_the_entropy_is_within_a_tenth_of_the_texts(saved):
    pytest.importorskip("matplotlib")
    perplexity, entropy = plot.draw_curves(plot.read_curves(saved(DOCUMENTS))).axes
    for axis, values in ((perplexity, (30, 15, 40)), (entropy, (2.45, 2.0, 2.55))):
        empty = [line.get_xydata().tolist() for line in axis.lines
                 if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
        assert empty == [[[6.5, values[1]]]]
        assert [line.get_xydata().tolist() for line in axis.lines[::2]][:2] == [
            [[4, values[0]], [6.5, values[1]]], [[8, values[2]]]]
        assert {20, 2.5} & {float(line.get_ydata()[0]) for line in axis.lines[-1:]}
    assert perplexity.get_yscale() == "log" and plot.MATCHED == 0.1


def test_the_curve_is_a_file(saved, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert plot.main(["--curve", saved(DOCUMENTS), "--out", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 10_000


NO_CURVE = {
    "no JSON": ("hello", "is not what text.evaluate prints"),
    "without a judge": ([document("mdm", judge=None)], "is not what text.evaluate prints"),
    "no row": ([document("mdm")], "no row to draw"),
    "a perplexity below 1": ([document("mdm", ("a", 1, 1, 0.5, 2))], "cannot be"),
    "no finite one": ([document("mdm", ("a", 1, 1, float("nan"), 2))], "cannot be"),
    "two of a name": ([DOCUMENTS[1]] * 2, '"label"'),
    "two judges": ([DOCUMENTS[0], DOCUMENTS[1] | {"judge": {"checkpoint": "b.pt"}}], "same ones"),
}


@pytest.mark.parametrize("documents, words", NO_CURVE.values(), ids=NO_CURVE)
def test_what_is_no_curve_is_one_sentence(documents, words, saved, tmp_path, capsys):
    assert plot.main(["--curve", saved(documents), "--out", str(tmp_path / "a.png")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_picture_is_of_a_curve_or_of_a_text(fresh, saved, tmp_path, capsys):
    for arguments in ([fresh(), "--out", str(tmp_path / "a.png")],
                      ["--curve", saved(DOCUMENTS), "--animate", str(tmp_path / "a.gif")]):
        assert plot.main(arguments) == 2
        assert "--out is the picture of a --curve" in capsys.readouterr().err
