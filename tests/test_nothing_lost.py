"""Nothing is lost: failing streams, full disks, signals, several writers, files of strangers.

What is refused ends in one sentence and status 2, before any work, and no file that was there is
changed. Processes are started from a fork server that has imported torch once.
"""

import contextlib
import errno
import fcntl
import importlib
import io
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

import fmlm
import sample
import train
from harness import checkpoints, commands, files, roads, sitting
from harness import plot as curves
from harness.checkpoints import Saver, read_checkpoint, save_checkpoint
from sudoku import boards as sudoku, evaluate, plot, refinement
from toy import scaling, two_mode, vocabulary
from train import Run, parse

os.environ["OMP_NUM_THREADS"] = "1"  # of processes started here: threads that share a core crawl
os.environ["PYTHONPATH"] = str(Path(train.__file__).parent)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train", "sudoku.task", "sudoku.evaluate", "pytest",
                                  "torch._dynamo"])

TINY = ("--width 16 --depth 1 --heads 1 --batch 8 --warmup 5 --no-compile --no-table "
        "--device cpu").split()
ENDLESS = [*TINY, "--steps", "9999999"]
MAINS = dict(train=train.main, sample=sample.main, evaluate=evaluate.main, plot=plot.main,
             curves=curves.main, refinement=refinement.main, roads=roads.main,
             two_mode=two_mode.main, vocabulary=vocabulary.main, scaling=scaling.main)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    for process in PROCESSES.active_children():
        process.kill()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of files: checkpoints of three objectives, of five steps each, and what is none."""
    folder = tmp_path_factory.mktemp("made")
    for objective in ("fmlm+", "mdm", "flm"):
        options, task, _ = parse([*TINY, "--steps", "40", "--objective", objective])
        run = Run(options, task)
        for _ in range(5):
            run.loss(run.network, run.draw()).backward()
            run.update()
        save_checkpoint(folder / f"{objective}.pt", run.state())
    checkpoints.ship(folder / "shipped.pt", read_checkpoint(folder / "fmlm+.pt"))
    (folder / "thesis.txt").write_text("years of work\n")
    torch.save({"weights": torch.ones(3)}, folder / "other.pt")
    (folder / "truncated.pt").write_bytes((folder / "mdm.pt").read_bytes()[:-2000])
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(folder / "thesis.txt")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def mine(made, path):
    """A checkpoint of one's own, that must not be lost."""
    path.write_bytes((made / "fmlm+.pt").read_bytes())
    return path


def contents(folder):
    return {file: file.read_bytes() for file in folder.iterdir()
            if file.is_file() and not file.is_symlink()} | {
            file: os.readlink(file) for file in folder.iterdir() if file.is_symlink()}


def refused(name, arguments, capsys, words=""):
    """One sentence on stderr, nothing on stdout, status 2."""
    assert MAINS[name](list(map(str, arguments))) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "Error" not in said.err, said.err
    assert words in said.err
    return said.err


# ---- processes of their own

def child(module, arguments, folder, how):
    """Be a command: its streams are files in the folder, unless told otherwise."""
    for number, stream in enumerate(("out", "err"), 1):
        target = how.get(stream, str(folder / stream))
        if target == "pipe":  # whose reader is gone
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(writer, number)
    encoding = how.get("encoding", "utf-8")
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    for number in how.get("closed", ()):
        os.close(number)
        if number:
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python starts then
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if how.get("nohup") else signal.SIG_DFL)
    how.get("prepare", lambda: None)()
    sys.argv = [module, *map(str, arguments)]
    commands.run(importlib.import_module(module).main)


def start(module, arguments, folder, **how):
    for name in ("out", "err"):
        (folder / name).unlink(missing_ok=True)
    process = PROCESSES.Process(target=child, args=(module, arguments, folder, how))
    process.start()
    return process


def ended(process, seconds=60):
    process.join(seconds)
    return process.exitcode


def said(folder, stream="err"):
    """What was said but for the progress bar."""
    words = (folder / stream).read_text(errors="replace") if (folder / stream).exists() else ""
    assert "Traceback" not in words and "Exception ignored" not in words, words
    lines = [line.split("\r")[-1] for line in words.splitlines()]
    bar = re.compile(r"(step|it)/s|s/(step|it)")
    return [line for line in lines if line.strip() and not bar.search(line)]


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened for half a minute"
        time.sleep(0.005)


def training(folder, path, *arguments, **how):
    """An endless training that has begun."""
    process = start("train", [*(arguments or ENDLESS), "--out", path], folder, **how)
    until(lambda: "checkpoint" in "".join(said(folder, "out")))
    time.sleep(0.1)
    return process


# ---- 1, 2, 12: streams that fail

STREAMS = {"2>&-": dict(closed=[2]), ">&-": dict(closed=[1]), "all closed": dict(closed=[0, 1, 2]),
           "2>/dev/full": dict(err="/dev/full"), "2> a pipe without a reader": dict(err="pipe")}


@pytest.mark.parametrize("how", STREAMS.values(), ids=STREAMS)
def test_training_ends_and_saves_whatever_its_streams_are(how, path, tmp_path):
    assert ended(start("train", [*TINY, "--steps", "30", "--out", path], tmp_path, **how)) == 0
    assert read_checkpoint(path)["step"] == 30
    said(tmp_path)


@pytest.mark.parametrize("how", STREAMS.values(), ids=STREAMS)
def test_sampling_works_and_a_mistake_is_status_2_whatever_the_streams_are(how, made, tmp_path):
    assert ended(start("sample", [made / "fmlm+.pt", "-n", "2"], tmp_path, **how)) == 0
    said(tmp_path)
    assert ended(start("sample", [made / "none.pt"], tmp_path, **how)) == 2
    assert said(tmp_path, "out") == []


@pytest.mark.parametrize("out, status, words", [("/dev/full", 2, "No space"), ("pipe", 141, "")])
def test_output_that_cannot_be_written_is_no_success_and_no_traceback(
        out, status, words, made, path, tmp_path):
    assert ended(start("sample", [made / "fmlm+.pt"], tmp_path, out=out)) == status
    assert words in "".join(said(tmp_path)) and len(said(tmp_path)) == (status == 2)
    train_it = start("train", [*TINY, "--steps", "9", "--out", path], tmp_path, out=out)
    assert ended(train_it) == status


def test_ctrl_c_with_a_tee_that_dies_first_saves_the_run(path, tmp_path):
    reader, writer = os.pipe()  # stderr goes to a tee, which ends at the same Ctrl-C
    process = training(tmp_path, path, err=f"/proc/{os.getpid()}/fd/{writer}")
    os.close(writer)
    os.close(reader)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130 and read_checkpoint(path)["step"] > 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_cannot_spell_loses_no_evaluation(encoding, made, tmp_path):
    strange = tmp_path / "наука.pt"
    strange.write_bytes((made / "fmlm+.pt").read_bytes())
    words = [strange, "-n", "2", "--nfe", "1"]
    assert ended(start("sudoku.evaluate", words, tmp_path, encoding=encoding)) == 0
    assert "valid boards" in "".join(said(tmp_path, "out")) and said(tmp_path) == []


# ---- 3, 4, 7: several writers, and what they leave

def test_of_two_runs_with_one_out_neither_is_lost_and_the_second_says_where_it_is(
        path, made, capsys):
    states = [read_checkpoint(made / name) for name in ("fmlm+.pt", "mdm.pt")]
    savers = [Saver(path), Saver(path)]
    for _ in range(2):
        for saver, state in zip(savers, states):
            saver.save(state)
    beside = path.with_name("run-2.pt")
    assert [read_checkpoint(file)["objective"] for file in (path, beside)] == ["fmlm+", "mdm"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"this run goes on in {beside}" in lines[0]
    assert set(path.parent.iterdir()) == {path, beside}


def test_two_trainings_of_one_out_that_end_together_both_keep_what_they_learned(path, tmp_path):
    (tmp_path / "b").mkdir()
    both = [start("train", [*ENDLESS, "--out", path, "--seed", seed], folder)
            for seed, folder in (("0", tmp_path), ("1", tmp_path / "b"))]
    for folder in (tmp_path, tmp_path / "b"):
        until(lambda: "checkpoint" in "".join(said(folder, "out")))
    time.sleep(0.1)
    for process in both:
        os.kill(process.pid, signal.SIGINT)
    assert [ended(process) for process in both] == [130, 130]
    assert {read_checkpoint(file)["options"]["seed"] for file in tmp_path.glob("run*.pt")} == {0, 1}


def save_all_the_time():
    sitting.SAVE_EVERY = 0
    os.fsync = lambda file: time.sleep(0.01)


def test_two_writers_killed_inside_the_save_leave_loadable_files_only(tmp_path):
    (tmp_path / "b").mkdir()
    for moment in range(3):
        path = tmp_path / f"{moment}.pt"
        both = [start("train", [*ENDLESS, "--out", path], folder, prepare=save_all_the_time)
                for folder in (tmp_path, tmp_path / "b")]
        until(path.exists)
        time.sleep(0.07 * moment)
        for process in both:
            process.kill()
            process.join()
        for file in tmp_path.glob(f"{moment}*.pt"):
            assert read_checkpoint(file)["step"] > 0


def test_what_is_put_at_out_while_a_run_trains_stays_and_so_does_the_run(path, tmp_path):
    process = training(tmp_path, path)
    path.write_text("a thesis")
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 143 and path.read_text() == "a thesis"
    assert read_checkpoint(path.with_name("run-2.pt"))["step"] > 0


def test_a_file_that_cannot_be_replaced_is_stepped_aside_from(mine, made, monkeypatch, capsys):
    saver, replace = Saver(mine), os.replace

    def mounted(source, target):
        if Path(target) == mine:
            raise OSError(errno.EBUSY, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", mounted)
    saver.save(read_checkpoint(made / "mdm.pt"))
    assert read_checkpoint(mine)["objective"] == "fmlm+"
    assert read_checkpoint(mine.with_name("run-2.pt"))["objective"] == "mdm"
    assert "goes on in" in capsys.readouterr().err


def test_a_file_that_was_removed_while_a_run_trains_is_written_again(mine, made):
    saver = Saver(mine)
    mine.unlink()
    saver.save(read_checkpoint(made / "mdm.pt"))
    assert saver.path == mine and read_checkpoint(mine)["objective"] == "mdm"


def test_a_link_at_the_temporary_name_is_not_followed(path, made, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    thesis = path.with_name("thesis")
    thesis.write_text("years of work")
    path.with_name(f".fmlm-{'0' * 16}.part").symlink_to(thesis)
    with pytest.raises(ValueError, match="cannot write"):
        Saver(path)
    assert thesis.read_text() == "years of work" and not path.exists()


def test_a_link_at_out_stays_a_link_and_its_target_is_the_checkpoint(mine, made):
    link = mine.with_name("link.pt")
    link.symlink_to(mine)
    Saver(link).save(read_checkpoint(made / "mdm.pt"))
    assert link.is_symlink() and read_checkpoint(mine)["objective"] == "mdm"


def test_what_killed_runs_left_is_swept_and_what_others_write_is_not(path, made):
    old, held, young = (path.with_name(f".fmlm-{letter * 16}.part") for letter in "abc")
    for part in (old, held, young):
        part.write_text("half")
    for part in (old, held):
        os.utime(part, (0, 0))
    with open(held) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Saver(path)
    assert not old.exists() and held.exists() and young.exists()


def test_who_holds_the_lock_of_the_folder_keeps_no_run_from_being_saved(path, made):
    with files.alone(path.parent):
        Saver(path).save(read_checkpoint(made / "mdm.pt"))
    assert read_checkpoint(path)


# ---- 5: caches

def zero_rows(data, sealed=False):
    """Empty every clue of some puzzles, under the old checksum or under a right one."""
    array = np.load(io.BytesIO(data[32:]))
    array[0, :3] = 0
    np.save(file := io.BytesIO(), array)
    checksum = blake2b(file.getvalue(), digest_size=32).digest()
    return (checksum if sealed else data[:32]) + file.getvalue()


DAMAGE = {"rows zeroed": zero_rows,
          "rows zeroed, checksum right": lambda data: zero_rows(data, sealed=True),
          "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
          "truncated": lambda data: data[:-50], "longer": lambda data: data + b"0",
          "empty": lambda data: b"", "text": lambda data: b"years of work"}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_again_with_a_word_about_it(damage, cache, capsys):
    shape = sudoku.SHAPES["sudoku6"]
    puzzles, _ = sudoku.load_puzzles(shape, 14, 6)
    file, = cache.glob("*puzzles*")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    capsys.readouterr()
    assert sudoku.load_puzzles(shape, 14, 6)[0].equal(puzzles) and file.read_bytes() == whole
    words = capsys.readouterr().err
    assert words.count("made again") == 1 and str(file) in words
    sudoku.load_puzzles(shape, 14, 6)
    assert capsys.readouterr().err == ""


# ---- 6: empty names

OUT = ["--out", "{folder}/new.pt"]
EMPTY = [("train", [*TINY, *OUT, name]) for name in ("--resume", "--init", "--teacher", "--ship")]
EMPTY += [("train", [*TINY, "--out"]), ("sample", []), ("sample", ["{fmlm+}", "--sampler"]),
          ("sample", ["{fmlm+}", "--puzzles"]), ("sample", ["{fmlm+}", "--device"]),
          ("evaluate", []), ("evaluate", ["{fmlm+}", "--sampler"]), ("refinement", []),
          ("plot", ["--out", "{folder}/x.png"]), ("plot", ["{fmlm+}", "--out"]),
          ("curves", ["--out", "{folder}/x.png"]), ("curves", ["{thesis}", "--out"]),
          ("roads", ["--folder"]), ("two_mode", ["--plot"])]


def filled(arguments, made, folder):
    names = {file.stem: file for file in made.iterdir()} | dict(folder=folder, made=made)
    return [str(argument).format_map(names) for argument in arguments]


@pytest.mark.parametrize("name, arguments", EMPTY,
                         ids=[f"{name} {' '.join(words[-1:])}" for name, words in EMPTY])
def test_an_empty_name_as_of_an_unset_variable_is_refused(name, arguments, made, tmp_path, capsys):
    refused(name, [*filled(arguments, made, tmp_path), ""], capsys, "''")
    assert not any(tmp_path.iterdir())


# ---- 8, 10: what --out must not replace, noticed before training

OUTS = {"a text": "{made}/thesis.txt", "another file of torch": "{made}/other.pt",
        "a damaged checkpoint": "{made}/truncated.pt", "a fifo": "{made}/fifo",
        "a folder": "{made}/folder", "a device": "/dev/null", "a link to a text": "{made}/link",
        "a link to itself": "{made}/loop", "no folder": "{made}/none/x.pt",
        "below a file": "{made}/thesis.txt/x.pt", "/proc": "/proc/x.pt",
        "a name that is too long": "{made}/" + "x" * 300}


@pytest.mark.parametrize("option", ["--out", "--ship"])
@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS)
def test_what_is_no_checkpoint_is_not_replaced_and_that_is_said_before_training(
        out, option, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Run, "__init__", None)
    before, (out,) = contents(made), filled([out], made, tmp_path)
    start = [*TINY, "--steps", "3"] if option == "--out" else ["--resume", made / "fmlm+.pt"]
    refused("train", [*start, option, out], capsys)
    assert contents(made) == before


@pytest.mark.parametrize("option", ["--init", "--teacher"])
def test_what_a_run_starts_or_learns_from_is_not_its_out(option, mine, capsys):
    before, link = mine.read_bytes(), mine.with_name("link.pt")
    link.symlink_to(mine)
    for out in (mine, link):
        refused("train", [*TINY, option, mine, "--out", out], capsys, "would be overwritten")
    assert mine.read_bytes() == before


WRONG = {"out": ["--out", "{thesis}"], "init": [*OUT, "--init", "{flm}"],
         "teacher": [*OUT, "--teacher", "{flm}"], "damaged": [*OUT, "--teacher", "{truncated}"],
         "shipped": [*OUT, "--resume", "{shipped}"],
         "over": [*OUT, "--resume", "{mdm}", "--steps", "5"]}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_every_file_is_checked_before_boards_are_made(
        arguments, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sudoku, "load_boards", None)
    arguments = filled(arguments, made, tmp_path)
    refused("train", arguments if "--resume" in arguments else [*TINY, *arguments], capsys)


# ---- 9: memory

def repacked(source, target, edit=lambda name, data: data, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", method) as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, edit(entry.filename, archive.read(entry)))


def with_pickle(data):
    return lambda made, file: repacked(made / "mdm.pt", file, lambda name, old: (
        data if name.endswith("data.pkl") else old))


def deflated(made, file):
    repacked(made / "mdm.pt", file, method=zipfile.ZIP_DEFLATED, edit=lambda name, data: (
        bytes(200_000_000) if name.endswith("data/0") else data))
    with zipfile.ZipFile(file) as archive:
        claim = next(entry for entry in archive.infolist() if entry.file_size == 200_000_000)
    file.write_bytes(file.read_bytes().replace(struct.pack("<L", claim.file_size),
                                               struct.pack("<L", 1000)))


def overlapping(made, file):
    """2,000 names of one megabyte."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("a/data.pkl", os.urandom(2**20))
    data = buffer.getvalue()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    names = b"".join(data[start:end].replace(b"a/data", b"%06d" % k) for k in range(2000))
    file.write_bytes(data[:start] + names + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2000, 2000,
                                                        len(names), start, 0))


def expanded(made, file):
    state = read_checkpoint(made / "mdm.pt")
    state["network"] = dict(vocab_size=4, width=2048, depth=16, heads=8)
    task = checkpoints.task_of(state)
    weights = checkpoints.build(state, task, "meta").state_dict()
    state["model"] = {name: task.coords if name == "coords" else torch.zeros(1).expand(weight.shape)
                      for name, weight in weights.items()}
    torch.save(state, file)


SIZE = struct.pack("<l", 10**9)
BOMBS = {"deflated": deflated, "overlapping entries": overlapping, "expanded weights": expanded,
         "bytearray": with_pickle(b"\x80\2c__builtin__\nbytearray\nJ" + SIZE + b"\x85R."),
         "many lists": with_pickle(b"\x80\2" + b"]" * 7_000_000 + b"."),
         "many references": with_pickle(b"\x80\2]q\0(" + b"h\0" * 20_000_000 + b"e."),
         "many entries": lambda made, file: file.write_bytes(
             b"".join(struct.pack("<4s24xH16x", b"PK\1\2", 6) + b"%06d" % k for k in range(60_000))
             + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60_000, 60_000, 52 * 60_000, 0, 0))}


def reads(file, result):
    """In a process of its own: read a file, and note by how many bytes the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_checkpoint(file)
        words = "read"
    except ValueError as error:
        words = str(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    result.write_text(json.dumps([words, grown]))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_file_of_a_stranger_takes_memory_by_its_length_not_by_its_claims(bomb, made, tmp_path):
    bomb(made, file := tmp_path / "bomb.pt")
    process = PROCESSES.Process(target=reads, args=(file, result := tmp_path / "result"))
    process.start()
    assert ended(process) == 0
    words, grown = json.loads(result.read_text())
    assert "is damaged or not a checkpoint" in words
    assert grown < 3 * file.stat().st_size + 2**26


def test_an_honest_file_takes_three_times_its_length_at_most(made, tmp_path):
    state = read_checkpoint(made / "mdm.pt") | dict(more=torch.zeros(10_000_000))
    torch.save(state, file := tmp_path / "long.pt")
    process = PROCESSES.Process(target=reads, args=(file, result := tmp_path / "result"))
    process.start()
    assert ended(process) == 0
    words, grown = json.loads(result.read_text())
    assert words == "read" and grown < 3 * file.stat().st_size + 2**26


# ---- 11, 13, 15, 19: numbers, words, environments

ALL = 10**20
NUMBERS = [("sample", ["{fmlm+}", "-n", ALL]), ("sample", ["{fmlm+}", "--nfe", 10**9]),
           ("sample", ["{fmlm+}", "--seed", ALL]), ("sample", ["{fmlm+}", "--seed", -1]),
           ("evaluate", ["{fmlm+}", "-n", ALL]), ("evaluate", ["{fmlm+}", "--seed", ALL]),
           ("evaluate", ["{fmlm+}", "--clues", "x"]), ("evaluate", ["{fmlm+}", "--clues", ALL]),
           ("refinement", ["{fmlm+}", "-n", ALL]), ("refinement", ["{fmlm+}", "--nfe", ALL]),
           ("vocabulary", ["-n", ALL]), ("vocabulary", ["--train", "-1"]),
           ("two_mode", ["--steps", "1e23"]), ("two_mode", ["--steps", ALL]),
           ("roads", ["--steps", "nan"]), ("roads", ["--steps", 0]), ("roads", ["--steps", ALL]),
           ("roads", ["--threshold", "-1"]), ("roads", ["--seeds", ALL]),
           ("train", [*OUT, "--seed", -1]), ("train", [*OUT, "--batch", ALL]),
           ("train", [*OUT, "--lr", "nan"]), ("train", [*OUT, "--lr", "-1e-3"]),
           ("train", [*OUT, "--steps", "--5"]), ("train", [*OUT, "--boards", 0]),
           ("scaling", ["--device", "gpu"])]


@pytest.mark.parametrize("name, arguments", NUMBERS,
                         ids=[f"{name} {a[-2]} {str(a[-1])[:6]}" for name, a in NUMBERS])
def test_a_number_that_cannot_be_is_refused_by_the_name_of_its_option(name, arguments, made,
                                                                      tmp_path, capsys):
    refused(name, filled(arguments, made, tmp_path), capsys, arguments[-2])
    assert not any(tmp_path.iterdir())


def test_a_value_that_begins_with_a_minus_is_told_how_to_be_written(capsys):
    assert "write --option=-1" in refused("train", ["--lr", "-1e-3"], capsys)
    assert "must be a number above 0" in refused("train", ["--lr=-1e-3"], capsys)


@pytest.mark.parametrize("environment", [
    {"RANK": "x"}, {"RANK": "1", "WORLD_SIZE": "1"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"},
    {"RANK": ""}, {"RANK": "9" * 40, "WORLD_SIZE": "9" * 41}, {"LOCAL_RANK": "two"},
    {"RANK": "7", "WORLD_SIZE": "8"}], ids=str)
def test_an_environment_that_is_not_torchruns_is_said(environment, path, monkeypatch, capsys):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused("train", [*TINY, "--steps", "3", "--out", path], capsys, "torchrun")


def fail_to_allocate(*arguments):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")


def fail_without_words(*arguments):
    raise MemoryError


@pytest.mark.parametrize("failure", [fail_to_allocate, fail_without_words])
def test_too_little_memory_is_one_sentence_with_advice(failure, made, monkeypatch, capsys):
    monkeypatch.setattr(sample.Sampler, "complete", failure)
    refused("sample", [made / "fmlm+.pt"], capsys, "ask for less")


def little_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("module, arguments", [
    ("sample", ["{fmlm+}", "-n", 10**7]), ("sudoku.evaluate", ["{fmlm+}", "-n", 10**7]),
    ("toy.vocabulary", ["-n", 10**7])])
def test_under_a_limit_of_memory_a_huge_number_is_one_sentence(module, arguments, made, tmp_path):
    arguments = filled(arguments, made, tmp_path)
    process = start(module, arguments, tmp_path, prepare=little_memory)
    assert ended(process) == 2
    line, = said(tmp_path)
    assert "not enough memory" in line


@pytest.mark.parametrize("name", [None, "", "x", "posterior"])
def test_no_sampler_suits_an_objective_that_is_none(name):
    with pytest.raises(ValueError):
        sample.choose_sampler("x", name)


@pytest.mark.parametrize("ask", [
    lambda draws: fmlm.sample_times(8, 4, draws, math.nan), lambda draws: fmlm.EMA(None, 2),
    lambda draws: fmlm.Denoiser(4, torch.ones(4, 1, dtype=torch.int64), 16, -1, 1)])
def test_functions_refuse_what_cannot_be(ask):
    with pytest.raises(ValueError):
        ask(fmlm.Draws())


# ---- 14, 16: fields of files

def changed(source, target, **fields):
    state = torch.load(source, weights_only=True)
    state = {name: value for name, value in (state | fields).items() if value is not None}
    torch.save(state, target)


@pytest.mark.parametrize("fields", [dict(seconds=None), dict(seconds=math.nan), dict(seconds="1"),
                                    dict(step=0), dict(step="5"), dict(options=None),
                                    dict(objective="mdm")], ids=str)
def test_a_checkpoint_that_roads_did_not_train_is_named_and_not_used(
        fields, made, tmp_path, capsys):
    changed(made / "fmlm+.pt", file := tmp_path / "sudoku4-fmlm+-0.pt", **fields)
    refused("roads", ["sudoku4", "--folder", tmp_path, "--steps", "5", "--seeds", "1", "--roads",
                      "fmlm+"], capsys, f"{file.name} is damaged or not what")


@pytest.mark.parametrize("step", ["five", math.nan, None])
def test_an_evaluation_is_not_lost_for_a_step_that_is_no_number(step, made, tmp_path, capsys):
    changed(made / "fmlm+.pt", file := tmp_path / "x.pt", step=step)
    assert evaluate.main([str(file), "-n", "2", "--nfe", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["steps"] is None


@pytest.mark.parametrize("name, value", [
    ("batch", 0), ("batch", -8), ("boards", 10**9), ("seed", -1), ("lr", math.nan), ("ema", 2.0),
    ("steps", -3)])
def test_settings_that_no_command_line_can_ask_for_are_not_resumed(name, value, mine, capsys):
    options = read_checkpoint(mine)["options"] | {name: value}
    changed(mine, mine, options=options)
    refused("train", ["--resume", mine], capsys, "no training run to resume")


@pytest.mark.parametrize("row", [dict(nfe=0), dict(nfe=-3), dict(percent=101), dict(low=50)],
                         ids=str)
def test_a_row_that_cannot_be_is_not_drawn(row, tmp_path, capsys):
    row = dict(sampler="posterior", nfe=1, percent=5, low=1, high=9) | row
    (tmp_path / "table.json").write_text(json.dumps([dict(objective="mdm", unconditional=[row])]))
    refused("curves", [tmp_path / "table.json", "--out", tmp_path / "x.png"], capsys, "cannot be")
    assert not (tmp_path / "x.png").exists()


# ---- 17, 18: signals, and weights that are not finite

@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_a_signal_saves_and_is_the_status(number, status, path, tmp_path):
    process = training(tmp_path, path)
    os.kill(process.pid, number)
    assert ended(process) == status and read_checkpoint(path)["step"] > 0 and said(tmp_path) == []


@pytest.mark.parametrize("pause", [0, 0.002, 0.02])
def test_ctrl_c_held_down_is_heard_once(pause, path, tmp_path):
    process = training(tmp_path, path)
    for _ in range(30):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        time.sleep(pause)
    assert ended(process) == 130 and read_checkpoint(path)["step"] > 0 and said(tmp_path) == []


def test_what_nohup_ignores_stays_ignored(path, tmp_path):
    process = training(tmp_path, path, *TINY, "--steps", "60", nohup=True)
    os.kill(process.pid, signal.SIGHUP)
    assert ended(process) == 0 and read_checkpoint(path)["step"] == 60


def interrupted_save():
    """SIGTERM comes inside the first save, which is the last."""
    fsync = os.fsync

    def interrupted(file):
        if os.fstat(file).st_size:
            os.kill(os.getpid(), signal.SIGTERM)
        fsync(file)

    os.fsync = interrupted


def test_a_signal_during_the_last_save_is_the_status_and_the_save_is_whole(path, tmp_path):
    arguments = [*TINY, "--steps", "5", "--out", path]
    assert ended(start("train", arguments, tmp_path, prepare=interrupted_save)) == 143
    assert read_checkpoint(path)["step"] == 5


@pytest.mark.parametrize("module, arguments", [
    ("sample", ["{fmlm+}", "-n", 10**6]), ("sudoku.evaluate", ["{fmlm+}", "-n", 10**6]),
    ("toy.two_mode", ["--steps", 10**6]), ("toy.vocabulary", ["-n", 10**6])])
def test_ctrl_c_ends_every_command_without_a_traceback(module, arguments, made, tmp_path):
    process = start(module, filled(arguments, made, tmp_path), tmp_path)
    time.sleep(1)
    for _ in range(5):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    assert ended(process) == 130
    said(tmp_path)


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_ctrl_c_while_torch_is_imported_is_no_traceback(script, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal, time\n"
                                       "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    done = subprocess.run([sys.executable, Path(train.__file__).with_name(script)], timeout=60,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("spoil", [dict(exp_avg=math.nan), dict(exp_avg_sq=-1.0)], ids=str)
def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(spoil, mine, capsys):
    optimizer = read_checkpoint(mine)["optimizer"]
    for moments in optimizer.values():
        for name, value in spoil.items():
            moments[name].fill_(value)
    changed(mine, mine, optimizer=optimizer)
    before = mine.read_bytes()
    assert train.main(["--resume", str(mine), "--steps", "6", "--no-table", "--device", "cpu"]) == 1
    assert "not finite" in capsys.readouterr().err and mine.read_bytes() == before


@pytest.mark.parametrize("step, status", [(7, "saved"), (0, "stays")])
def test_a_step_that_fails_loses_no_step_before_it_and_replaces_nothing_by_nothing(
        step, status, mine, monkeypatch, capsys):
    before, loss = mine.read_bytes(), Run.loss
    monkeypatch.setattr(Run, "loss", lambda run, *rest: (
        fail_to_allocate() if run.step == step else loss(run, *rest)))
    assert train.main([*TINY, "--steps", "50", "--out", str(mine)]) == 2
    assert "not enough memory" in capsys.readouterr().err
    assert read_checkpoint(mine)["step"] == (step or 5)
    assert (mine.read_bytes() == before) == (status == "stays")


def few_bytes():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_is_full_is_one_sentence_and_the_file_before_stays(mine, tmp_path):
    before = mine.read_bytes()
    arguments = [*TINY, "--steps", "3", "--out", mine]
    assert ended(start("train", arguments, tmp_path, prepare=few_bytes)) == 2
    line, = said(tmp_path)
    assert line.startswith("train.py: cannot write") and mine.read_bytes() == before
    assert not list(tmp_path.glob(".fmlm-*"))
