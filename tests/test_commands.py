"""The command lines as a user meets them: what they print, what they write, and what they say to a
mistake.

What is right or wrong about a solution is tested with an oracle in the network's place: it knows
all 288 boards.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sample
import train
from harness import checkpoints, speed
from harness.checkpoints import read_checkpoint, save_checkpoint
from sudoku import boards as sudoku
from toy import two_mode, vocabulary
from train import Run, parse

ROOT = Path(train.__file__).parent
TINY = "--width 16 --depth 1 --heads 1 --batch 8 --no-compile --device cpu".split()
FOUR = sudoku.SHAPES["sudoku4"]
# One solution: follow the rows and columns by hand.
PUZZLE, SOLUTION = "1...2.4........2", "1423234132144132"
SEVERAL, NONE = "1...............", "123....4........"
TRAIN_ONE = ("train one with `python train.py TASK`, TASK one of sudoku4, sudoku6, sudoku9, stories, "
             "stories-large, text")
BAD = {"too short": "1234", "of another size": "." * 81, "digit out of range": "5" + "." * 15,
       "a letter": "x" + "." * 15,
       "clashing clues": "11" + "." * 14}


def train_tiny(path, *arguments):
    options, task, _ = parse([*TINY, "--steps", "10", *arguments])
    run = Run(options, task)
    for _ in range(2):
        run.loss(run.network, run.draw()).backward()
        run.update()
    save_checkpoint(path, run.state())
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A real checkpoint of 2 of 10 steps for every objective, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    made = {objective: train_tiny(folder / f"{objective}.pt", "--objective", objective)
            for objective in (*checkpoints.OBJECTIVES, "mlfm")}
    made["deep"] = train_tiny(folder / "deep.pt", "--objective", "mdm", "--depth", "2")
    for name, data in {"truncated": Path(made["mdm"]).read_bytes()[:-999], "text": b"not ours\n",
                       "empty": b"",
                       "binary": bytes(range(128, 256)),
                       "bad puzzles": b"1234\n11..............\n"}.items():
        (folder / name).write_bytes(data)
        made[name] = str(folder / name)
    return made | {"missing": str(folder / "missing"), "folder": str(folder)}


class Oracle:
    """The exact conditional marginals of the 288 boards, in the place of an MDM. Uniform where no
    board fits."""

    vocab_size, boards = 4, F.one_hot(sudoku.all_boards(FOUR), 4).float()

    def __call__(self, x, s, t):
        fits = ((self.boards * x[:, None]).sum(-1) + (s < 1)[:, None] >= 1).all(-1).float() + 1e-9
        shares = fits / fits.sum(1, keepdim=True)
        return torch.einsum("bk,klv->blv", shares, self.boards).clamp(1e-9).log()


@pytest.fixture
def oracle(monkeypatch):
    info = {"task": "sudoku4", "state": {}, "objective": "mdm"}
    monkeypatch.setattr(sample, "load_checkpoint", lambda path, device, compile: (Oracle(), info))


def solve(*arguments):
    return sample.main(["any", "--nfe", "16", *arguments])


def lines_file(tmp_path, *lines):
    path = tmp_path / "puzzles.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


# ---- train.py

def test_training_prints_what_it_does_writes_a_checkpoint_and_then_its_table(tmp_path, capsys):
    path = tmp_path / "run.pt"
    assert train.main([*TINY, "--steps", "3", "--out", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"sudoku4, fmlm+, batch 8, cpu; checkpoint {path}\n3 steps in ")
    for words in ("valid boards, % of 1,000", "posterior", "a-priori", "flow-map",
                  "likelihood bound", "KL(exact marginals"):
        assert words in said.out
    assert "data=" in said.err and "semigroup=" in said.err and "step/s" in said.err
    assert read_checkpoint(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("objective", ["fmlm+", "mdm"])
def test_bench_prints_plausible_numbers_whose_parts_add_up_and_writes_nothing(
        objective, tmp_path, capsys):
    path = tmp_path / "run.pt"
    assert train.main([*TINY, "--objective", objective, "--bench", "20", "--out", str(path)]) == 0
    said = capsys.readouterr().out
    how = "bf16" if speed.bf16_pays(torch.device("cpu")) else "float32"
    step, low, high, tokens, memory = (float(number.replace(",", "")) for number in re.search(
        how + r": ([\d.]+) ms per step \(10% to 90%: ([\d.]+) to ([\d.]+)\), "
        r"([\d,]+) tokens/s, peak memory ([\d,]+) MiB",
        said).groups())
    assert 0.1 < low <= step <= high < 10_000 and 50 < memory < 100_000
    assert tokens == pytest.approx(8 * 16 / (step / 1000), rel=0.06)  # the milliseconds are rounded
    parts = {name: float(time) for name, time in re.findall(r"(\w+) ([\d.]+)(?=   )", said)}
    assert list(parts) == ["data", "targets", "forward", "loss", "backward", "optimizer"]
    assert low - 0.4 <= sum(parts.values()) <= high + 0.4  # seven roundings to 0.1 ms
    assert (parts["targets"] > 0) == (objective == "fmlm+")
    assert re.search(r"[\d,]+ GFLOP/s in matrix products, \d+% of the [\d,]+ GFLOP/s of one "
                     "128 x 16 x 64 product", said)
    assert not path.exists()


def test_bfloat16_is_the_default_where_it_is_faster_and_asked_for_elsewhere_it_is_said_to_be_slow(
        monkeypatch, capsys):
    cpu = torch.device("cpu")
    for pays in (True, False):
        monkeypatch.setattr(speed, "bf16_pays", lambda device: pays)
        assert parse(TINY)[0].bf16 is pays and not parse([*TINY, "--no-bf16"])[0].bf16
        for asked, enabled in ((None, pays), (False, False)):
            with speed.in_bf16(asked, cpu):
                assert torch.is_autocast_enabled("cpu") is enabled
        assert not capsys.readouterr().err
        assert parse([*TINY, "--bf16"])[0].bf16
        with speed.in_bf16(True, cpu):
            assert torch.is_autocast_enabled("cpu")
        slow = "bfloat16 is slower than single precision on this cpu: leave --bf16 out\n"
        assert capsys.readouterr().err == slow * (0 if pays else 2)


def test_whether_bfloat16_pays_is_measured(monkeypatch):
    """By a clock that only products move: 4 of single precision, then 4 of bfloat16."""
    for laps, pays in (((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, 1.0), False)):
        ticks = iter(float(n) for lap in laps for n in (0, lap) * 4)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks))
        assert speed.bf16_pays.__wrapped__(torch.device("cpu")) is pays
    assert speed.bf16_pays.__wrapped__(torch.device("cuda"))  # not measured, nor is a GPU needed


@pytest.mark.parametrize("objective, start", [("fmlm+", "mdm"), ("mdm", "fmlm+")])
def test_a_flow_map_and_an_mdm_start_from_each_others_weights(objective, start, files, tmp_path):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--objective", objective, "--init", files[start], "--lr", "1e-12",
                       "--steps", "1", "--out", path]) == 0
    weights, state = read_checkpoint(files[start])["model"], read_checkpoint(path)
    assert state["objective"] == objective
    for name, weight in weights.items():
        torch.testing.assert_close(state["model"][name], weight, rtol=0, atol=1e-6)


def test_a_resumed_run_goes_on_in_its_own_file_with_its_own_settings(tmp_path, capsys):
    path = train_tiny(tmp_path / "run.pt", "--objective", "mdm", "--lr", "0.002")
    assert train.main(["--resume", path, "--no-compile"]) == 0
    state = read_checkpoint(path)
    assert ((state["step"], state["objective"], state["options"]["lr"], state["options"]["width"])
            == (10, "mdm", 0.002, 16))


def test_a_weight_that_half_precision_cannot_hold_is_not_shipped(tmp_path):
    weights = {"head.weight": torch.tensor([1e5]), "coords": torch.tensor([3])}
    with pytest.raises(ValueError, match="head.weight has entries beyond half precision"):
        checkpoints.ship(tmp_path / "ship.pt", {"model": weights})
    assert not (tmp_path / "ship.pt").exists()


def test_a_run_is_shipped_without_a_word_and_drawn_from(files, tmp_path, capsys):
    path = tmp_path / "shipped.pt"
    assert train.main(["--resume", files["fmlm+"], "--ship", str(path)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert path.stat().st_size < Path(files["fmlm+"]).stat().st_size / 2
    assert sample.main([str(path), "-n", "2", "--nfe", "2", "--json"]) == 0
    boards = json.loads(capsys.readouterr().out)["boards"]
    assert len(boards) == 2 and all(re.fullmatch("[1-4]{16}", board) for board in boards)
    assert "but no training run to resume" in refused(train.main, "train.py",
                                                      ["--resume", str(path)], capsys)


def test_ctrl_c_while_the_boards_are_made_is_no_traceback(monkeypatch, tmp_path, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sudoku, "load_boards", interrupted)
    assert train.main([*TINY, "--out", str(tmp_path / "run.pt")]) == 130
    assert capsys.readouterr().err == ""


# ---- sample.py

def test_it_draws_as_many_boards_as_asked_for_the_same_for_the_same_seed(files, capsys):
    texts = []
    for seed in "001":
        assert sample.main([files["fmlm+"], "-n", "3", "--nfe", "2", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    boards = [re.sub(r"passes, .*", "", text) for text in texts]
    assert boards[0] == boards[1] != boards[2]
    assert len(re.findall(r"^(valid|not valid)$", texts[0], re.M)) == 3
    assert re.search(r"^[0-3] of 3 valid, posterior, 2 network passes, [\d.]+ s$", texts[0], re.M)


def test_drawn_boards_as_json(files, capsys):
    assert sample.main([files["mdm"], "-n", "2", "--nfe", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"valid", "nfe", "boards"} and document["nfe"] == 3
    boards = torch.tensor([[int(c) - 1 for c in text] for text in document["boards"]])
    assert boards.shape == (2, 16) and document["valid"] == int(sudoku.valid(FOUR, boards).sum())


def test_it_solves_a_puzzle(oracle, capsys):
    assert solve("--puzzle", PUZZLE) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{sudoku.pretty(FOUR, sudoku.parse(FOUR, SOLUTION))}\nsolved\n")
    assert "1 of 1 solved, confidence, " in said


def test_a_puzzle_with_several_solutions_or_none_is_said_to_be_one(oracle, capsys):
    assert solve("--puzzle", SEVERAL) == 0
    assert ("solved; this puzzle has 2 or more solutions; the board found is one of them, another "
            "attempt may find another\n" in capsys.readouterr().out)
    assert solve("--puzzle", NONE) == 0
    said = capsys.readouterr().out
    assert "not valid; this puzzle has no solution\n" in said and "0 of 1 solved" in said


def test_a_file_of_puzzles_is_solved_line_by_line(oracle, tmp_path, capsys):
    assert solve("--puzzles", lines_file(tmp_path, PUZZLE, "", SOLUTION, SEVERAL)) == 0
    said = capsys.readouterr()
    assert "3 of 3 solved" in said.out and said.err == ""


def test_many_puzzles_are_solved_in_batches_and_the_most_passes_of_one_are_said(
        oracle, tmp_path, capsys):
    many = lines_file(tmp_path, *[SOLUTION] * 100, PUZZLE)  # one needs 12 passes, 100 none
    assert solve("--puzzles", many, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["puzzles"], document["solved"], document["nfe"]) == (101, 101, 12)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_line_is_named_with_its_reason_and_the_others_are_solved(
        bad, oracle, tmp_path, capsys):
    path = lines_file(tmp_path, PUZZLE, bad, SOLUTION)
    assert solve("--puzzles", path) == 2
    said = capsys.readouterr()
    assert "2 of 2 solved" in said.out
    assert re.fullmatch(rf"sample.py: {re.escape(path)}, line 2: .*(cells|digit).*\n", said.err)


def test_puzzles_as_json_have_exactly_these_keys(oracle, tmp_path, capsys):
    assert solve("--puzzles", lines_file(tmp_path, PUZZLE, NONE), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["puzzles", "solved", "nfe", "boards"]
    assert (document["puzzles"], document["solved"], document["boards"][0]) == (2, 1, SOLUTION)
    assert 1 <= document["nfe"] <= 16
    bad_line = lines_file(tmp_path, PUZZLE, "1234")  # changes no key
    assert solve("--puzzles", bad_line, "--json") == 2
    said = capsys.readouterr()
    assert json.loads(said.out).keys() == document.keys() and "line 2" in said.err


def test_solved_means_that_the_clues_are_kept_too(oracle, monkeypatch, capsys):
    def cheat(model, tokens, known, nfe, generator, trace):
        return sudoku.all_boards(FOUR)[-1:]  # valid, and begins with a 4

    monkeypatch.setitem(sample.SAMPLERS, "confidence", sample.Sampler(cheat, ("mdm",)))
    assert solve("--puzzle", PUZZLE, "--json") == 0
    assert json.loads(capsys.readouterr().out)["solved"] == 0


def test_a_puzzle_without_empty_cells_needs_no_network_pass(oracle, capsys):
    assert solve("--puzzle", SOLUTION, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"puzzles": 1, "solved": 1, "nfe": 0,
                                                   "boards": [SOLUTION]}


def traced(files, capsys):
    assert sample.main([files["fmlm+"], "-n", "2", "--nfe", "4", "--trace"]) == 0
    return re.sub(r"[\d.]+ s$", "", capsys.readouterr().out, flags=re.M)


def test_a_trace_shows_every_pass_readable_without_color(files, capsys):
    said = traced(files, capsys)
    assert [tuple(map(int, found))
            for found in re.findall(r"pass (\d): (\d+) committed, (\d+) back to noise", said)] == [
        (1, 4, 12), (2, 4, 8), (3, 4, 4), (4, 4, 0)]
    passes = said.split("pass ")[1:]
    for number, text in enumerate(passes):
        board = text.split("\n\n")[0]
        assert len(re.findall(r"\[\d\]", board)) == 4  # committed now
        assert len(re.findall(r"\d['~?]", board)) == 12 - 4 * number  # back to noise
        assert len(re.findall(r" \d (?=[ |\[]|$)", board, re.M)) == 4 * number  # known
    assert "\033" not in said and "back to noise: 5' p >= 0.9" in said


def test_a_trace_ends_with_the_first_board_while_others_of_its_batch_go_on(files, capsys, tmp_path):
    (tmp_path / "puzzles").write_text("12343412214343.." + "\n" + "." * 16 + "\n")
    assert sample.main([files["fmlm+"], "--puzzles", str(tmp_path / "puzzles"), "--nfe", "4",
                        "--trace", "--attempts", "1"]) == 0
    said = capsys.readouterr().out
    passes = re.findall(r"pass (\d): (\d+) committed, (\d+) back to noise", said)
    assert passes == [("1", "1", "1"), ("2", "1", "0")]
    assert "5 network passes" in said  # the judge's is one


def test_color_is_for_terminals_without_no_color_and_changes_no_character(
        files, capsys, monkeypatch):
    plain = traced(files, capsys)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = traced(files, capsys)
    assert "\033[32m[" in colored and re.sub(r"\033\[\d+m", "", colored) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert traced(files, capsys) == plain


def test_without_a_name_the_newest_checkpoint_trained_here_is_taken(files, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    for age, name in enumerate(["new.pt", "old.pt"]):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "newer.pt.part").write_bytes(b"")  # what a killed run leaves is none
    assert checkpoints.newest_checkpoint() == tmp_path / "new.pt"
    (tmp_path / "text-mdm.pt").write_bytes(b"")  # newer still, of a task that was not asked for
    assert checkpoints.newest_checkpoint().name == "text-mdm.pt"
    (tmp_path / "sudoku4-mdm.pt").write_bytes(b"")
    os.utime(tmp_path / "sudoku4-mdm.pt", (1e9, 1e9))
    assert checkpoints.newest_checkpoint("sudoku4", "sudoku6").name == "sudoku4-mdm.pt"
    with pytest.raises(ValueError, match="no checkpoint of stories or stories-large: train one"):
        checkpoints.newest_checkpoint("stories", "stories-large")


@pytest.mark.parametrize("asked", ["puzzle", "puzzles"])
def test_a_puzzle_is_solved_by_the_newest_checkpoint_of_its_size_or_by_the_weights_that_ship(
        asked, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path)
    (tmp_path / "sudoku4-mdm.pt").write_bytes(Path(files["mdm"]).read_bytes())
    nine = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    for puzzle, sampler in ((nine, "posterior"), (PUZZLE, "confidence")):
        words = ["--puzzle", puzzle]
        if asked == "puzzles":
            words = ["--puzzles", lines_file(tmp_path, "1234", puzzle)]
        assert sample.main(words) == (0 if asked == "puzzle" else 2)  # for the bad line
        assert f" of 1 solved, {sampler}, " in capsys.readouterr().out
    assert sample.main(["--puzzle", nine[1:]]) == 2
    assert "has 80 cells and sudoku9 needs 81" in capsys.readouterr().err


def test_where_there_is_no_checkpoint_the_command_that_makes_one_is_named(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "none")
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    assert sample.main([]) == 2
    assert (capsys.readouterr().err
            == f"sample.py: there is no checkpoint of any task: {TRAIN_ONE}\n")


def test_sample_bench_prints_a_row_for_every_batch_and_number_of_passes(files, capsys):
    assert sample.main([files["fmlm+"], "--bench"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[batch, nfe] for batch in ("1", "64", "256")
                                         for nfe in ("1", "4", "16")]
    for batch, _, rate, milliseconds in rows:
        assert (float(rate.replace(",", ""))
                == pytest.approx(int(batch) / float(milliseconds) * 1000, rel=0.2))


def test_sample_bench_completes_the_puzzles_given_over_and_over(files, capsys, tmp_path,
                                                                monkeypatch):
    asked = []
    run = lambda model, tokens, known, nfe: asked.append(tokens.where(known, -1)) or tokens
    monkeypatch.setitem(sample.SAMPLERS, "posterior", sample.Sampler(run, ("fmlm+",)))
    first, second = "12.4341.2.4343.1", "1" + "." * 15
    path = tmp_path / "puzzles"
    path.write_text(f"{first}\n\n{second}\nnone\n")
    assert sample.main([files["fmlm+"], "--bench", "--puzzles", str(path)]) == 2
    assert "puzzles, line 4: " in capsys.readouterr().err
    rows = [torch.tensor(sudoku.parse(FOUR, text)) for text in (first, second)]
    assert {len(each) for each in asked} == {1, 64, 256}
    assert all(each.equal(torch.stack([rows[i % 2] for i in range(len(each))])) for each in asked)


@pytest.mark.parametrize("threshold", ["0.999", "0", "inf"])
def test_a_threshold_is_that_of_posterior_refinement(threshold, files, capsys):
    assert sample.main([files["fmlm+"], "-n", "5", "--nfe", "4", "--seed", "3", "--json",
                        "--threshold", threshold, "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    model, nothing, trace = checkpoints.load_checkpoint(files["fmlm+"])[0], torch.zeros(5, 16), []
    boards = sample.posterior_refinement(
        model, nothing.long(), nothing.bool(), 4, threshold=float(threshold),
        generator=torch.Generator().manual_seed(3), trace=trace)
    assert said["boards"] == [sudoku.to_string(FOUR, board) for board in boards.tolist()]
    assert said["nfe"] == len(trace) == (1 if threshold == "0" else 4)


def test_a_model_that_is_sure_to_0_995_needs_one_pass_by_default_and_all_at_0_999(
        monkeypatch, capsys):
    """The default of 4 rounds is 1 - 0.05 / 4 = 0.9875. At inf even p_max = 1 is not enough."""
    def passes(p_max, *arguments):
        model = lambda x, s, t: torch.tensor([p_max] + 3 * [(1 - p_max) / 3]).log().expand(x.shape)
        model.vocab_size = 4
        info = {"task": "sudoku4", "state": {}, "objective": "fmlm+"}
        monkeypatch.setattr(sample, "load_checkpoint", lambda *_: (model, info))
        assert sample.main(["any", "--nfe", "4", "--json", "--device", "cpu", *arguments]) == 0
        return json.loads(capsys.readouterr().out)["nfe"]

    assert passes(0.995) == passes(1.0, "--threshold", "0.999") == 1
    assert passes(0.995, "--threshold", "0.999") == passes(1.0, "--threshold", "inf") == 4
    assert passes(0.995, "--threshold", "0.999", "--sampler", "posterior-early") == 4


def test_the_mark_that_some_editors_put_first_into_a_file_is_no_cell(oracle, tmp_path, capsys):
    path = tmp_path / "puzzles.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{PUZZLE}\r\n{SOLUTION}\r\n".encode())
    assert solve("--puzzles", str(path)) == 0
    said = capsys.readouterr()
    assert "2 of 2 solved" in said.out and said.err == ""


def test_lines_are_counted_from_the_first_and_empty_ones_count(oracle, tmp_path, capsys):
    path = lines_file(tmp_path, "", PUZZLE, "", "1234", SOLUTION, "x" * 16)
    assert solve("--puzzles", path) == 2
    said = capsys.readouterr()
    assert "2 of 2 solved" in said.out
    named = re.findall(r"^sample.py: (.*), line (\d): ", said.err, re.M)
    assert named == [(path, "4"), (path, "6")]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no endless file")
def test_a_file_of_puzzles_without_end_is_refused_in_one_sentence(oracle, capsys):
    said = refused(sample.main, "sample.py", ["any", "--puzzles", "/dev/zero"], capsys)
    assert said == "sample.py: /dev/zero is longer than 67,108,864 characters: split it\n"


# ---- mistakes: exit status 2 and one sentence

def refused(main, name, arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"{name}: ")
    assert len(said.err) < 400
    assert "Traceback" not in said.err and "Error" not in said.err
    return said.err


TRAINING = {  # arguments, with {names} of files, and what the sentence must say
    "unknown task": (["sudoku5"], "sudoku4"),
    "unknown objective": (["--objective", "gpt"], "fmlm+"),
    "unknown option": (["--fast"], "--fast"), "no number": (["--steps", "x"], "--steps"),
    "no steps": (["--steps", "0"],
                 "argument --steps: must be a whole number from 1 to 10,000,000, not '0'"),
    "negative minutes": (["--minutes", "-1"], "--minutes"),
    "endless": (["--minutes", "inf"], "--minutes"), "rate nan": (["--lr", "nan"], "--lr"),
    "no batch": (["--batch", "0"], "--batch"),
    "ema 1": (["--ema", "1"], "--ema"), "seed": (["--seed", "-1"], "--seed"),
    "seed huge": (["--seed", "9" * 30], "--seed"),
    "no bench": (["--bench", "0"], "--bench"), "huge network": (["--width", "99999"], "--width"),
    "heads": (["--width", "15", "--heads", "2", "--out", "{folder}/x"],
              "--width 15 must be a multiple of --heads 2"),
    "device": (["--device", "nonsense"], "nonsense"),
    "resume missing": (["--resume", "{missing}"], "there is no checkpoint"),
    "resume truncated": (["--resume", "{truncated}"], "is damaged or not"),
    "resume text": (["--resume", "{text}"], "is damaged or not"),
    "init missing": (["--init", "{missing}", "--out", "{folder}/x"], "there is no checkpoint"),
    "init truncated": (["--init", "{truncated}", "--out", "{folder}/x"], "is damaged or not"),
    "init of another task": (["sudoku6", "--boards", "9", "--init", "{mdm}", "--out", "{folder}/x"],
                             "sudoku4"),
    "init of another size": (["--init", "{mdm}", "--out", "{folder}/x"], "'width': 16"),
    "init of more blocks": ([*TINY, "--init", "{deep}", "--out", "{folder}/x"], "'depth': 2",
                            "'depth': 1", "or fewer blocks"),
    "both": (["--init", "{mdm}", "--resume", "{mdm}"], "not allowed with"),
    "resume another task": (["sudoku9", "--resume", "{mdm}"],
                            "a run with task sudoku4, not sudoku9"),
    "resume another objective": (["--objective", "flm", "--resume", "{mdm}"],
                                 "a run with objective mdm, not flm"),
    "resume another width": (["--width", "32", "--resume", "{mdm}"], "a run with width 16, not 32"),
    "resume fewer steps": (["--steps", "1", "--resume", "{mdm}"], "has done 2 steps already"),
    "resume as many steps": (["--steps", "2", "--resume", "{mdm}"], "has done 2 steps already"),
    "teacher missing": (["--teacher", "{missing}", "--out", "{folder}/x"],
                        "there is no checkpoint {missing}"),
    "teacher truncated": (["--teacher", "{truncated}", "--out", "{folder}/x"],
                          "{truncated} is damaged or not"),
    "teacher of another task": (["sudoku6", *TINY, "--boards", "9", "--teacher", "{mdm}", "--out",
                                 "{folder}/x"],
                                "--teacher {mdm} is sudoku4, mdm", "this run, sudoku6, fmlm+"),
    "teacher of another size": ([*TINY, "--width", "32", "--teacher", "{mdm}", "--out",
                                 "{folder}/x"],
                                "--teacher {mdm} is sudoku4, mdm", "'width': 16", "'width': 32"),
    "teacher of more blocks": ([*TINY, "--teacher", "{deep}", "--out", "{folder}/x"], "'depth': 2",
                               "'depth': 1", "or fewer blocks"),
    "teacher of another objective": ([*TINY, "--teacher", "{flm}", "--out", "{folder}/x"],
                                     "--teacher {flm} is sudoku4, flm", "sudoku4, fmlm+",
                                     "trained as mdm or flm+ or fmlm+"),
    "two mdms": ([*TINY, "--teacher", "{mdm}", "--teacher", "{mdm}", "--out", "{folder}/x"],
                 "--teacher {mdm} is the second mdm: name one mdm, one teacher of the rest"),
    "two of the diagonal": ([*TINY, "--teacher", "{fmlm+}", "--teacher", "{flm+}", "--out",
                             "{folder}/x"], "--teacher {flm+} is the second flm+: name one mdm"),
    "two for an fmlm": ([*TINY, "--objective", "fmlm", "--teacher", "{flm}", "--teacher", "{flm}",
                         "--out", "{folder}/x"], "--teacher {flm} is the second flm"),
    "the second teacher as out": (["--teacher", "{mdm}", "--teacher", "{flm+}", "--out", "{flm+}"],
                                  "--teacher {flm+} would be overwritten"),
    "stage 1 without a teacher": ([*TINY, "--objective", "fmlm-residual", "--out", "{folder}/x"],
                                  "fmlm-residual learns from a frozen flm: name one with --"),
    "stage 2 without a teacher": ([*TINY, "--objective", "fmlm-compressed", "--out", "{folder}/x"],
                                  "fmlm-compressed learns from a frozen fmlm-residual: name one"),
    "stage 2 from stage 0": ([*TINY, "--objective", "fmlm-compressed", "--teacher", "{flm}",
                              "--out", "{folder}/x"], "--teacher {flm} is sudoku4, flm",
                             "trained as fmlm-residual"),
    "stage 1 from an fmlm": ([*TINY, "--objective", "fmlm-residual", "--teacher", "{fmlm}",
                              "--out", "{folder}/x"], "--teacher {fmlm} is sudoku4, fmlm",
                             "trained as flm"),
    **{f"weighting for {objective}": (["--objective", objective, "--weighting", "elbo", "--out",
                                       "{folder}/x"],
                                      f"--weighting is for mdm, not for {objective}")
       for objective in ("fmlm+", "mlfm", "flm")},
    "weighting unknown": (["--objective", "mdm", "--weighting", "log"], "argument --weighting"),
    "resume with another weighting": (["--resume", "{mdm}", "--weighting", "elbo"],
                                      "a run with weighting None, not elbo"),
    "teacher of an fmlm": ([*TINY, "--objective", "fmlm", "--teacher", "{mdm}", "--out",
                            "{folder}/x"],
                           "--teacher {mdm} is sudoku4, mdm", "sudoku4, fmlm", "trained as flm"),
    "init of another objective": ([*TINY, "--init", "{flm}", "--out", "{folder}/x"],
                                  "--init {flm} is sudoku4, flm", "sudoku4, fmlm+",
                                  "trained as mdm or flm+ or fmlm or fmlm+"),
    "init of an mlfm": ([*TINY, "--objective", "mlfm", "--init", "{fmlm+}", "--out", "{folder}/x"],
                        "--init {fmlm+} is sudoku4, fmlm+", "sudoku4, mlfm",
                        "trained as mdm or mlfm"),
    "init of another task, named": (["sudoku6", *TINY, "--boards", "9", "--init", "{mdm}", "--out",
                                     "{folder}/x"],
                                    "--init {mdm} is sudoku4, mdm", "this run, sudoku6, fmlm+"),
    **{f"teacher of nothing: {objective}": (["--objective", objective, "--teacher", "{flm}",
                                             "--out", "{folder}/x"],
                                            f"fmlm-compressed, not for {objective}")
       for objective in ("mdm", "flm", "mlfm")},
    "distill without a teacher": (["--distill", "0.5", "--out", "{folder}/x"],
                                  "--distill is the share of the batch",
                                  "--teacher teaches: name one"),
    **{f"distill {share}": (["--teacher", "{mdm}", "--distill", share, "--out", "{folder}/x"],
                            "argument --distill: must be a number from 0 to 1", f"not '{share}'")
       for share in ("-0.1", "1.01", "nan", "inf")},
    "distill no number": (["--teacher", "{mdm}", "--distill", "some"], "--distill"),
    "distill from a flow map": ([*TINY, "--teacher", "{fmlm+}", "--distill", "0.5", "--out",
                                 "{folder}/x"],
                                "--distill is the share taught by an MDM, and {fmlm+} is fmlm+"),
    "distill from an flm": ([*TINY, "--objective", "fmlm", "--teacher", "{flm}", "--distill", "0.5",
                             "--out", "{folder}/x"],
                            "--distill is the share taught by an MDM, and {flm} is flm"),
    **{f"tau for {objective}": (["--objective", objective, "--tau", "--out", "{folder}/x"],
                                f"fmlm+ and flm+, not for {objective}")
       for objective in ("mdm", "mlfm", "ar")},
    "boundary for an mdm": (["--objective", "mdm", "--boundary", "0.5", "--out", "{folder}/x"],
                            "--boundary is for fmlm and fmlm+, not for mdm"),
    **{f"lagrangian for {objective}": (["--objective", objective, "--lagrangian", "--out",
                                        "{folder}/x"],
                                       f"--lagrangian is for fmlm and fmlm+, not for {objective}")
       for objective in ("mdm", "mlfm", "flm")},
    "resume with another share": (["--resume", "{mdm}", "--distill", "0.5"],
                                  "a run with distill None, not 0.5"),
    "resume with another target": (["--resume", "{fmlm+}", "--lagrangian"],
                                   "a run with lagrangian None, not True"),
    "resume without tau": (["--resume", "{flm}", "--no-tau"], "a run with tau True, not False"),
    "resume with a teacher of nothing": (["--resume", "{mdm}", "--teacher", "{mdm}"],
                                         "fmlm-compressed, not for mdm"),
    "ship nothing": (["--ship", "{folder}/x"], "name it with --resume"),
    "ship what is missing": (["--resume", "{missing}", "--ship", "{folder}/x"],
                             "there is no checkpoint {missing}"),
    "ship into no folder": (["--resume", "{mdm}", "--ship", "{missing}/x"],
                            "cannot write {missing}/x"),
    "ship onto a folder": (["--resume", "{mdm}", "--ship", "{folder}"], "cannot write {folder}"),
    "out in no folder": (["--out", "{missing}/x.pt"], "a folder that exists"),
    "out is a folder": (["--out", "{folder}"], "cannot write"),
}
SAMPLING = {
    "missing": (["{missing}"], "there is no checkpoint"),
    "a folder": (["{folder}"], "there is no checkpoint"),
    "truncated": (["{truncated}"], "is damaged or not"), "text": (["{text}"], "is damaged or not"),
    "empty": (["{empty}"], "is damaged or not"),
    "unknown sampler": (["{mdm}", "--sampler", "magic"], "choose from posterior"),
    "a sampler that does not suit": (["{mdm}", "--sampler", "posterior"], "use confidence or"),
    "nfe 0": (["{fmlm+}", "--nfe", "0"], "--nfe"),
    "nfe 0 in blocks": (["{fmlm+}", "--nfe", "0", "--sampler", "block"], "--nfe"),
    "nfe no number": (["{fmlm+}", "--nfe", "many"], "--nfe"),
    "nfe above the tokens": (["{fmlm+}", "--nfe", "17"], "17 rounds"),
    "blocks above the tokens": (["{fmlm+}", "--nfe", "17", "--sampler", "block"], "17"),
    "mdm above the tokens": (["{mdm}", "--nfe", "17"], "17"),
    "n 0": (["{fmlm+}", "-n", "0"], "-n"), "seed": (["{fmlm+}", "--seed", "-1"], "--seed"),
    "device": (["{fmlm+}", "--device", "nonsense"], "nonsense"),
    "unknown option": (["{fmlm+}", "--fast"], "--fast"),
    "flm knows no context": (["{flm}", "--puzzle", PUZZLE], "no context"),
    "puzzle and puzzles": (["{mdm}", "--puzzle", PUZZLE, "--puzzles", "{text}"],
                           "--puzzles: not allowed with argument --puzzle"),
    "trace and json": (["{mdm}", "--trace", "--json"],
                       "--json: not allowed with argument --trace\n"),
    "no file": (["{mdm}", "--puzzles", "{missing}"], "cannot read"),
    "a folder of puzzles": (["{mdm}", "--puzzles", "{folder}"], "cannot read"),
    "no text": (["{mdm}", "--puzzles", "{binary}"], "cannot read"),
    "no puzzle in the file": (["{mdm}", "--puzzles", "{empty}"], "holds no puzzle"),
    "no good puzzle in the file": (["{mdm}", "--puzzles", "{bad puzzles}"], "line 1"),
    **{f"puzzle {why}": (["{mdm}", "--puzzle", puzzle], "") for why, puzzle in BAD.items()},
    "n without end": (["{fmlm+}", "-n", "9" * 20], "argument -n: must be a whole number from 1 to"),
    "nfe without end": (["{flm}", "--nfe", str(10**9)], "argument --nfe: must be a whole number"),
    "seed without end": (["{fmlm+}", "--seed", "9" * 20], "argument --seed: must be a whole"),
    "threshold of another": (["{fmlm+}", "--sampler", "a-priori", "--threshold", "0.9"],
                             "of Posterior Refinement, not of the sampler 'a-priori'"),
    "threshold of an mdm": (["{mdm}", "--threshold", "0.9"], "not of the sampler 'confidence'"),
    "threshold of an mlfm": (["{mlfm}", "--threshold", "0.9"], "not of the sampler 'promotion'"),
    "threshold of an flm": (["{flm}", "--threshold", "0.9"], "not of the sampler 'flow-map-tau'"),
    **{f"threshold {p}": (["{fmlm+}", f"--threshold={p}"],
                          f"argument --threshold: must be a number from 0 to inf, not '{p}'")
       for p in ("-0.1", "nan", "-inf", "sure")},
    "no checkpoint's name": ([""], "argument checkpoint: must name a file, not ''"),
    "no file's name": (["{mdm}", "--puzzles", ""], "argument --puzzles: must name a file, not ''"),
    "no sampler's name": (["{mdm}", "--sampler", ""], "unknown sampler ''"),
}


@pytest.mark.parametrize("case", TRAINING.values(), ids=TRAINING)
def test_train_refuses_in_one_sentence(case, files, capsys):
    arguments, *words = case
    before = {file.name: file.read_bytes() for file in Path(files["folder"]).iterdir()}
    said = refused(train.main, "train.py",
                   [argument.format_map(files) for argument in arguments], capsys)
    for part in words:  # a sentence about two things names both
        assert (part if part.startswith("'") else part.format_map(files)) in said
    assert {file.name: file.read_bytes() for file in Path(files["folder"]).iterdir()} == before


@pytest.mark.parametrize("arguments, words", SAMPLING.values(), ids=SAMPLING)
def test_sample_refuses_in_one_sentence(arguments, words, files, capsys):
    assert words in refused(sample.main, "sample.py",
                            [argument.format_map(files) for argument in arguments], capsys)


@pytest.mark.parametrize("arguments", [
    ["--steps", "1e23"], ["--steps", "9" * 20], ["--steps", "0"], ["--seed", "9" * 20],
    ["--seed", "-1"], ["--plot", "x.xyz"], ["--plot", ""]])
def test_the_toy_refuses_before_it_trains(arguments, monkeypatch, capsys):
    monkeypatch.setattr(two_mode, "train", None)
    said = refused(two_mode.main, "toy.two_mode", arguments, capsys)
    assert f"argument {arguments[0]}: must" in said and f"not {arguments[1]!r}" in said


@pytest.mark.parametrize("arguments", [
    ["-n", "9" * 20], ["-n", "0"], ["--seed", "9" * 20], ["--train", "9" * 20], ["--train", "-1"]])
def test_the_vocabularies_refuse_before_they_count(arguments, monkeypatch, capsys):
    monkeypatch.setattr(vocabulary, "Exact", None)
    said = refused(vocabulary.main, "toy.vocabulary", arguments, capsys)
    assert f"argument {arguments[0]}: must be a whole number" in said
    assert f"not {arguments[1]!r}" in said


# ---- from a shell

def shell(*arguments):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=120)


def test_from_a_shell_train_then_sample(tmp_path):
    path = str(tmp_path / "run.pt")
    trained = shell("train.py", *TINY, "--steps", "3", "--out", path)
    assert trained.returncode == 0 and "valid boards, %" in trained.stdout
    assert "Traceback" not in trained.stderr
    drawn = shell("sample.py", path, "-n", "1", "--nfe", "2", "--trace")
    assert drawn.returncode == 0 and "1 valid, posterior, 2 network passes" in drawn.stdout
    assert "\033" not in drawn.stdout
    assert drawn.stderr == ""


def test_a_system_without_unix_resources_can_sample_and_train():
    """Windows has no module `resource`; only --bench of train.py asks for it."""
    loaded = shell("-c", "import sys; sys.modules['resource'] = None; import sample, train")
    assert (loaded.returncode, loaded.stderr) == (0, "")


def test_from_a_shell_a_mistake_is_one_sentence_and_status_2(tmp_path):
    refused = shell("sample.py", str(tmp_path / "none.pt"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"sample.py: there is no checkpoint {tmp_path}/none.pt: {TRAIN_ONE}\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(files):
    """As in `python sample.py -n 2000 | head -1`: what is printed is more than a pipe holds."""
    words = [sys.executable, "sample.py", files["fmlm+"], "-n", "2000", "--nfe", "1"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    with subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().count("|") == 1  # the first row of a board
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")
