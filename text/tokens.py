"""From text to tokens and back; and which sequences are held out.

White space is one space, and so is what cannot be printed, and `_`, which stands for a missing
token wherever text is read. Then a text is its tokens, token for token:
    words   split(join(tokens)) = tokens;   chars, gpt2   join(split(text)) = text
A kind of tokens is "words", "chars", or byte pairs, which are those of "gpt2" (text/pairs.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from text.pairs import BytePairs

UNKNOWN, END, PAD = SPECIAL = ("<unk>", "<end>", "<pad>")  # ordinary tokens; no text holds them
MISSING = "_"
KINDS = ("words", "chars", "gpt2")
HELD_OUT_ONE_IN = 10
# A letter string, with what apostrophes and hyphens hold together; one digit; one mark, repeated.
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d|([^\w\s])\1*|\w")
GIVEN = re.compile("|".join((*SPECIAL, MISSING)))


def clean(text: str) -> str:
    """The text with single spaces, none at its ends, and nothing that cannot be printed."""
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    odd = {ord(c): " " for c in set(text) if not c.isprintable() or c == MISSING}
    return text.translate(odd)


def split(kind: str | BytePairs, text: str) -> list[str]:
    """The tokens of a text, of any Unicode."""
    if not isinstance(kind, str):
        return kind.split(text)
    text = clean(text)
    return list(text) if kind == "chars" else [word[0] for word in WORD.finditer(text)]


def split_given(kind: str | BytePairs, text: str) -> list[str]:
    """The same for a prompt, where special tokens and `_` stand for themselves."""
    tokens, end = [], 0
    for found in GIVEN.finditer(text := " ".join(text.split())):
        tokens += [*_between(kind, text[end:found.start()]), found[0]]
        end = found.end()
    return tokens + _between(kind, text[end:])


def _between(kind: str | BytePairs, text: str) -> list[str]:
    """The tokens of a part of a prompt: among characters a space at its ends counts, and a byte
    pair holds the space before it."""
    if not isinstance(kind, str):
        return kind.split(text, after=text.startswith(" "))
    return [c if c.isprintable() else " " for c in text] if kind == "chars" else split(kind, text)


def join(kind: str | BytePairs, tokens: Sequence[str]) -> str:
    """One line of text: characters as they are, words with a space between, but digits in a row."""
    if not isinstance(kind, str):
        return kind.join(tokens)
    if kind == "chars":
        return "".join(tokens)
    text, before = "", ""
    for token in tokens:
        text += token if before.isdecimal() and token.isdecimal() else f" {token}"
        before = token
    return text[1:]


def look_up(tokens: Sequence[str], vocabulary: dict[str, int], length: int,
            name: str) -> list[int]:
    """A prompt of at most `length` tokens, filled up with -1, unknown. ValueError for one that is
    longer, or holds a token that is not in the vocabulary."""
    if len(tokens) > length:
        raise ValueError(f"the prompt has {len(tokens)} tokens and a sequence of {name} has "
                         f"{length}: give it less")
    for token in tokens:
        if token not in vocabulary and token != MISSING:
            near = difflib.get_close_matches(token[:40], vocabulary, 4)
            near = near or difflib.get_close_matches(token[:40].lower(), vocabulary, 4)
            raise ValueError(f"{name} does not know {token[:40]!r}: " + (
                             f"near it are {', '.join(near)}" if near else
                             "write _ for what is missing"))
    ids = [-1 if token == MISSING else vocabulary[token] for token in tokens]
    return ids + [-1] * (length - len(ids))


def held_out(tokens: Tensor) -> Tensor:
    """Which sequences, (N, L) int64, no training sees: a tenth, by a hash of the tokens. (N,)."""
    place = torch.full((tokens.shape[1],), 6364136223846793005, device=tokens.device).cumprod(0)
    mixed = ((tokens + 1) * place).sum(1)  # modulo 2^64, as all of this
    for shift, factor in ((33, -49064778989728563), (29, -4265267296055464877)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 32)) % HELD_OUT_ONE_IN == 0


def before_first(tokens: Tensor, word: int) -> Tensor:
    """Whether a token (N, L) stands before the first `word` of its sequence, or is that."""
    return (tokens == word).cumsum(1) - (tokens == word).long() == 0
