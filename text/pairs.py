"""GPT-2's tokens: byte pairs, from a local merges.txt as its vocabulary ships.

A text is its bytes in UTF-8, each written as a letter of ALPHABET (a space is Ġ); a line "a b" of
the file says that neighbours a and b become the token ab, the first lines first. So the file is the
whole vocabulary: GPT-2's has 50,000 lines, and with the 256 bytes and SPECIAL V is 50,259; the
papers' 50,258 are the same with <|endoftext|> and [MASK]. Cutting text takes the package
tokenizers, writing it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from text.tokens import SPECIAL, clean, printable

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that are their own letter
ODD = [byte for byte in range(256) if byte not in PRINTABLE]
ALPHABET = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(256 + rank) for rank, byte in enumerate(ODD)}
BYTES = {letter: byte for byte, letter in ALPHABET.items()}


class BytePairs:
    """The tokens of a list of lines "a b". ValueError for one that joins what is no token yet, or
    makes a special one."""

    def __init__(self, merges: list[str]) -> None:
        if not isinstance(merges, list):
            raise ValueError("byte pairs are a list of lines")
        known = dict.fromkeys(BYTES)
        for number, line in enumerate(merges, 1):
            parts = line.split(" ") if isinstance(line, str) else ()
            if len(parts) != 2 or not known.keys() >= {*parts} or "".join(parts) in SPECIAL:
                raise ValueError(f"pair {number} joins what is no token: {str(line)[:40]!r}")
            known["".join(parts)] = None
        self.merges, self.words = merges, [*SPECIAL, *known]

    @cached_property
    def tokenizer(self):
        """The package's. ValueError, in one sentence, where it is missing."""
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers
        except ImportError as error:
            raise ValueError("to cut text into GPT-2's tokens install their package: "
                             "pip install tokenizers") from error
        ids = {word: i for i, word in enumerate(self.words)}
        merges = [tuple(line.split(" ")) for line in self.merges]
        tokenizer = Tokenizer(models.BPE(ids, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tokenizer

    def split(self, text: str, after: bool = False) -> list[str]:
        """The tokens of a text, or of one that goes on `after` a space."""
        text = clean(text)
        return self.tokenizer.encode(" " * after + text).tokens if text else []

    def join(self, tokens: Sequence[str]) -> str:
        """One line of text. What is no UTF-8 is a replacement character, what cannot be printed a
        space."""
        text, run = "", bytearray()
        for token in (*tokens, ""):
            if token and token not in SPECIAL:
                run += bytes(BYTES[letter] for letter in token)
            else:
                text += printable(run.decode(errors="replace")) + token
                run.clear()
        return text.strip()


def read_merges(path: str) -> BytePairs:
    """The tokens of a merges.txt. ValueError for a file that cannot be read, or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(2**24).split("\n")  # GPT-2's has half a million letters
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--tokens is words, chars or the merges.txt of a GPT-2 vocabulary, and "
                         f"{path[:200]!r} cannot be read as that") from error
    lines = lines[lines[0].startswith("#version"):]
    try:
        return BytePairs([line for line in lines if line])
    except ValueError as error:
        raise ValueError(f"{path} is no merges.txt as GPT-2 has: {error}") from error
