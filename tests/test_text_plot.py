"""A text that is refined before one's eyes: what each frame shows, and the file."""

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
    trace = [Pass(draft, torch.full((40,), 0.25), sure, place < 0),
             Pass(story, torch.ones(40), place >= 17, place < 0)]
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
