"""Arithmetic stories: GSM8K in miniature, with a law that is known exactly.

    tom has 7 apples . he buys 3 and loses 2 . how many apples ? 7 + 3 = 10 - 2 = 8 , so he has 8 .

The law, all choices independent and uniform unless it says otherwise:
    name        one of NAMES, whose pronoun is used;    thing    one of THINGS
    events      1 to 3
    totals      c_0 of all numbers of the size; c_i of those that are at least `apart` from c_{i-1}
    verb        one of GAINS where c_i > c_{i-1}, else of LOSSES; its number is |c_i - c_{i-1}|
    wording     the work in one of `works`; the answer after it or before it, of the name or pronoun
So a question has one answer, and many solutions. Two sizes: numbers 1 to 12, a token each; 10 to
99, at least 10 apart, a token a digit. END follows a story, then PAD.

1. the language   2. the law and draws from it   3. the judge   4. what was drawn, against the law
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from text.tokens import END, HELD_OUT_ONE_IN, PAD, held_out

NAMES = {"tom": "he", "ben": "he", "sam": "he", "max": "he",
         "ann": "she", "eva": "she", "mia": "she", "zoe": "she"}
THINGS = ("apples", "books", "coins", "pens", "cards", "shells", "cups", "eggs")
GAINS, LOSSES = ("buys", "finds", "gets"), ("sells", "loses", "gives")
MOST_EVENTS = 3
ANSWERS = ("{work} , so {subject} has {last} .", "{subject} has {last} , since {work} .")
SUBJECTS = ("name", "pronoun")
WORKS = {  # one step, and what stands between two; {c}: the total, {b}: the one before
    "chain": ("{sign} {a} = {c}", " "),  # after the first number
    "words": ("{a} {more} is {c}", " , "),
    "totals": ("then {c}", " , "),
    "steps": ("{b} {sign} {a} is {c}", " , "),
}


# --------------------------------------------------------------------------------------------------
# 1. The language
# --------------------------------------------------------------------------------------------------


def events_text(count: int) -> str:
    """`he buys 3`, `he buys 3 and loses 2`, `he buys 3 , loses 2 and finds 1`, with slots."""
    parts = [f"{{verb{i}}} {{a{i}}}" for i in range(1, count + 1)]
    return "{pronoun} " + " and ".join(filter(None, [" , ".join(parts[:-1]), parts[-1]]))


def work_text(work: str, count: int) -> str:
    """The work of so many events, with slots."""
    step, between = WORKS[work]
    steps = [step.format(a=f"{{a{i}}}", b=f"{{c{i - 1}}}", c=f"{{c{i}}}", sign=f"{{sign{i}}}",
                         more=f"{{more{i}}}") for i in range(1, count + 1)]
    return ("{c0} " if work == "chain" else "") + between.join(steps)


@dataclass(frozen=True)
class Language:
    """The stories of one size: see above."""

    name: str
    length: int  # L
    low: int
    high: int
    apart: int
    works: tuple[str, ...]
    question: str = "how many {thing} ?"

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary: END, PAD, then all words and numbers."""
        grammar = [self.question, *ANSWERS, events_text(3), "{name} has {c0} {thing} .",
                   *(work_text(work, 3) for work in self.works)]
        fixed = [word for text in grammar for word in text.split() if word[0] != "{"]
        numbers = "0123456789" if self.digits else map(str, range(self.low, self.high + 1))
        every = [*NAMES, "he", "she", *THINGS, *GAINS, *LOSSES, "+", "-", "more", "less", *fixed,
                 *numbers]
        return list(dict.fromkeys([END, PAD, *every]))

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @property
    def digits(self) -> bool:
        return self.low >= 10

    def number(self, value: int) -> str:
        """A number as words: `12`, or its digits `1 2`."""
        return " ".join(str(value)) if self.digits else str(value)

    # ----------------------------------------------------------------------------------------------
    # 2. The law, and draws from it
    # ----------------------------------------------------------------------------------------------

    @cached_property
    def forms(self) -> list[tuple[int, str, int, str]]:
        """Every form of a story: events, work, place of the answer, subject of the answer."""
        return list(product(range(1, MOST_EVENTS + 1), self.works, range(len(ANSWERS)), SUBJECTS))

    @cached_property
    def slots(self) -> dict[str, int]:
        """Where a row of values holds what: after all words come the choices of one story."""
        names = ["name", "pronoun", "thing"]
        names += [f"{kind}{i}" for i in range(1, MOST_EVENTS + 1)
                  for kind in ("verb", "sign", "more")]
        for number in ("c0", *(f"{kind}{i}" for i in range(1, MOST_EVENTS + 1) for kind in "ac")):
            names += [f"{number}.{digit}" for digit in range(2 if self.digits else 1)]
        return {name: len(self.words) + i for i, name in enumerate(names)}

    @cached_property
    def templates(self) -> Tensor:
        """(forms, L): which of the values each token of a story is."""
        rows = []
        for count, work, place, subject in self.forms:
            solution = ANSWERS[place].format(work=work_text(work, count),
                                             subject=f"{{{subject}}}", last=f"{{c{count}}}")
            text = f"{{name}} has {{c0}} {{thing}} . {events_text(count)} . {self.question}"
            row = []
            for word in f"{text} {solution}".split():
                if word[0] != "{":
                    row.append(self.ids[word])
                elif word[1:-1] in self.slots:
                    row.append(self.slots[word[1:-1]])
                else:
                    row += [self.slots[f"{word[1:-1]}.{digit}"]
                            for digit in range(2 if self.digits else 1)]
            row.append(self.ids[END])
            rows.append(row + [self.ids[PAD]] * (self.length - len(row)))
        return torch.tensor(rows)

    def draw(self, n: int, generator: Generator | None = None,
             device: str | torch.device = "cpu", most: int = MOST_EVENTS) -> Tensor:
        """n stories of the law, held out or not, given at most so many events: (n, L) int64."""
        pick = lambda count: torch.randint(count, (n,), generator=generator, device=device)
        table = lambda words: torch.tensor([self.ids[word] for word in words], device=device)
        name = pick(len(NAMES))
        values = [table(NAMES)[name], table(NAMES.values())[name], table(THINGS)[pick(len(THINGS))]]
        totals = [self.low + pick(self.high - self.low + 1)]
        events = []
        for _ in range(MOST_EVENTS):
            before = totals[-1]
            below = (before - self.apart - self.low + 1).clamp(min=0)
            choices = below + (self.high - before - self.apart + 1).clamp(min=0)
            u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
            rank = (u * choices).long()
            after = torch.where(rank < below, self.low + rank, before + self.apart + rank - below)
            up = (after > before).long()
            verb = pick(len(GAINS))
            events += [table(LOSSES + GAINS)[up * len(LOSSES) + verb], table("-+")[up],
                       table(("less", "more"))[up]]
            totals.append(after)
        values += events
        numbers = [totals[0]]
        for before, after in zip(totals, totals[1:]):
            numbers += [(after - before).abs(), after]
        for number in numbers:
            parts = (number // 10, number % 10) if self.digits else (number - 1,)
            first = self.ids["0" if self.digits else "1"]
            values += [first + part for part in parts]
        words = torch.arange(len(self.words), device=device).expand(n, -1)
        forms = len(self.forms) * most // MOST_EVENTS  # those of one event come first
        row = torch.cat([words, torch.stack(values, 1)], 1)
        return row.gather(1, self.templates.to(device)[pick(forms)])

    def slots_of(self, stories: Tensor) -> Tensor:
        """Which of the `slots` each token of these stories fills, or which word of the form it is:
        (n, L), a row of `templates`."""
        templates = self.templates.to(stories.device)
        fits = (stories[:, None] == templates) | (templates >= len(self.words))
        for slot, words in (("name", NAMES), ("pronoun", ("he", "she"))):  # of the answer: either
            of = stories.new_tensor([self.ids[word] for word in words])
            fits &= torch.isin(stories, of)[:, None] | (templates != self.slots[slot])
        return templates[fits.all(2).long().argmax(1)]

    def draw_split(self, n: int, test: bool, generator: Generator | None = None,
                   device: str | torch.device = "cpu", most: int = MOST_EVENTS) -> Tensor:
        """n stories of the law that are held out, or n that are not: (n, L)."""
        parts, missing = [], n
        share = 1 / HELD_OUT_ONE_IN if test else 1 - 1 / HELD_OUT_ONE_IN
        while missing > 0:  # a little more than the share suggests: seldom a second time
            drawn = self.draw(int(missing / share * 1.1) + 16, generator, device, most)
            parts.append(drawn[held_out(drawn) == test][:missing])
            missing -= len(parts[-1])
        return torch.cat(parts)

    @cached_property
    def entropy(self) -> float:
        """Of the law, in nats: no honest bound on -log p of its stories is below it."""
        totals = list(range(self.low, self.high + 1))
        choices = [[c for c in totals if abs(c - before) >= self.apart] for before in totals]
        p = [1 / len(totals)] * len(totals)
        events = []  # of the i-th event: its total and its verb
        for _ in range(MOST_EVENTS):
            events.append(sum(q * math.log(len(c)) for q, c in zip(p, choices)) + math.log(3))
            after = [0.0] * len(totals)
            for q, those in zip(p, choices):
                for c in those:
                    after[c - self.low] += q / len(those)
            p = after
        mean = sum(sum(events[:count]) for count in range(1, MOST_EVENTS + 1)) / MOST_EVENTS
        return math.log(len(NAMES) * len(THINGS) * len(totals) * len(self.forms)) + mean

    # ----------------------------------------------------------------------------------------------
    # 3. The judge
    # ----------------------------------------------------------------------------------------------

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern]:
        number = r"[1-9] \d" if self.digits else "|".join(
            sorted(map(str, range(self.low, self.high + 1)), key=len, reverse=True))
        one_of = lambda words: "(" + "|".join(words) + ")"
        number, name, thing = f"({number})", one_of(NAMES), one_of(THINGS)
        who = one_of([*NAMES, "he", "she"])
        event = f"{one_of(GAINS + LOSSES)} {number}"
        asked = self.question.replace("?", r"\?").format(thing=thing, name=name)
        slots = dict(a=number, b=number, c=number, sign="([+-])", more="(more|less)")
        return {
            "question": re.compile(rf"{name} has {number} {thing} \. (he|she) (.+?) \. {asked}"),
            "events": re.compile(rf"{event}(?:(?: , {event})? and {event})?"),
            "event": re.compile(event),
            "after": re.compile(rf"(.+) , so {who} has {number} \."),
            "before": re.compile(rf"{who} has {number} , since (.+) \."),
            "answer": re.compile(rf"{who} has {number} [.,]"),
            "first": re.compile(rf"{number} "),
            **{f"{work} step": re.compile(step.format(**slots))
               for work, (step, _) in WORKS.items()},
        }

    def text(self, tokens: Sequence[int]) -> str:
        """All tokens, (L,), with a space between."""
        return " ".join(self.words[token] for token in tokens)

    def read_question(self, text: str) -> Question | None:
        """What a story says up to its question, which `text` must begin with."""
        found = self._patterns["question"].match(text)
        events = found and self._patterns["events"].fullmatch(found[5])
        if not events:
            return None
        told = [Event(verb in GAINS, self._value(a))
                for verb, a in self._patterns["event"].findall(found[5])]
        groups = found.groups()
        return Question(found[1], self._value(found[2]), found[3], found[4], told,
                        asked=[word for word in groups[5:]], end=found.end())

    def _value(self, text: str) -> int:
        return int(text.replace(" ", ""))

    def judge(self, tokens: Sequence[int]) -> Verdict:
        """What is right in a whole sequence, (L,)."""
        story = re.fullmatch(rf"(.*?)(?: {END}(?: {PAD})*)", self.text(tokens))
        return self.judge_text(story[1]) if story else WRONG

    def judge_text(self, text: str) -> Verdict:
        """The same of the words before END."""
        question = self.read_question(text)
        solution = question and self._read_solution(text[question.end:].strip())
        if not solution:
            return WRONG._replace(question=question)
        work, place, subject, answer, steps = solution
        first, told = question.first, question.events
        values = [first]
        for event in told:
            values.append(values[-1] + event.number * (1 if event.gain else -1))
        form = len(steps) == len(told)
        name = (question.pronoun == NAMES[question.name]
                and subject in (question.name, question.pronoun)
                and all(word == question.name for word in question.asked if word in NAMES))
        thing = all(word == question.thing for word in question.asked if word in THINGS)
        numbers, sums, before = True, [], first
        for step, event in zip(steps, told):
            b, gain, a, c = step
            numbers &= b in (None, before) and gain in (None, event.gain)
            numbers &= a in (None, event.number)
            b = before if b is None else b
            a = event.number if a is None else a
            gain = event.gain if gain is None else gain
            sums.append(c == b + (a if gain else -a))
            before = c
        numbers &= answer == before
        wording = (work, place, "name" if subject == question.name else "pronoun")
        return Verdict(question, form, name, thing, numbers, tuple(sums), answer == values[-1],
                       wording)

    def _read_solution(self, text: str) -> tuple | None:
        """Work, place of the answer, its subject, its number, and the steps: (the total before,
        whether it is a gain, the number of the event, the total), None where a work is silent."""
        if found := self._patterns["after"].fullmatch(text):
            place, work, subject, answer = "after", *found.groups()
        elif found := self._patterns["before"].fullmatch(text):
            place, subject, answer, work = "before", *found.groups()
        else:
            return None
        for kind in self.works:
            if steps := self._read_steps(kind, work):
                return kind, place, subject, self._value(answer), steps
        return None

    def _read_steps(self, kind: str, text: str) -> list[tuple] | None:
        step, (_, between) = self._patterns[f"{kind} step"], WORKS[kind]
        first, start, steps = None, 0, []
        if kind == "chain":
            if not (found := self._patterns["first"].match(text)):
                return None
            first, start = self._value(found[1]), found.end()
        while True:
            if not (found := step.match(text, start)):
                return None
            *said, c = found.groups()
            b = self._value(said.pop(0)) if kind == "steps" else first
            first = None
            gain = {"+": True, "more": True, "-": False, "less": False}
            a = next((self._value(word) for word in said if word not in gain), None)
            up = next((gain[word] for word in said if word in gain), None)
            steps.append((b, up, a, self._value(c)))
            if found.end() == len(text):
                return steps
            if not text.startswith(between, found.end()):
                return None
            start = found.end() + len(between)

    def answer(self, text: str) -> int | None:
        """The answer that a text gives after its question, whatever else it says."""
        found = self._patterns["answer"].search(text.partition("?")[2])
        return self._value(found[2]) if found else None


class Event(NamedTuple):
    gain: bool
    number: int


class Question(NamedTuple):
    """A story up to its question: `asked`, the names and things in the question; `end`, where it
    ends in the text."""

    name: str
    first: int
    thing: str
    pronoun: str
    events: list[Event]
    asked: list[str]
    end: int

    def answer(self) -> int:
        return self.first + sum(e.number if e.gain else -e.number for e in self.events)


class Verdict(NamedTuple):
    """What is right in a story. Where the form is not, nothing else is."""

    question: Question | None
    form: bool  # the grammar, to the last token
    name: bool  # the pronoun is the name's, and whoever is named later is the same
    thing: bool  # what is asked for is what there is
    numbers: bool  # the work and the answer take over the right numbers and signs
    sums: tuple[bool, ...]  # each sum of the work, as written
    answer: bool  # the answer is that of the question
    wording: tuple[str, str, str] | None = None  # work, place of the answer, its subject

    @property
    def valid(self) -> bool:
        return (self.form and self.name and self.thing and self.numbers and all(self.sums)
                and self.answer)

    @property
    def error(self) -> str | None:
        """The first kind of error: "form", "copy", "sum"; None where all is right."""
        if not self.form:
            return "form"
        if not (self.name and self.thing and self.numbers):
            return "copy"
        return None if self.valid else "sum"


WRONG = Verdict(None, False, False, False, False, (), False)

# --------------------------------------------------------------------------------------------------
# 4. What was drawn, against the law
# --------------------------------------------------------------------------------------------------


def marginals(language: Language) -> dict[str, dict]:
    """The law of what `features` reads off a story."""
    uniform = lambda values: {value: 1 / len(values) for value in values}
    places = ("after", "before")
    return {"name": uniform(list(NAMES)), "thing": uniform(THINGS),
            "first number": uniform(range(language.low, language.high + 1)),
            "events": uniform(range(1, MOST_EVENTS + 1)),
            "wording": uniform(list(product(language.works, places, SUBJECTS)))}


def features(verdict: Verdict) -> dict[str, object]:
    """Of a valid story, what `marginals` has the law of."""
    question = verdict.question
    return {"name": question.name, "thing": question.thing, "first number": question.first,
            "events": len(question.events), "wording": verdict.wording}


def total_variation(language: Language, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """1/2 sum |share - law| of each marginal, over the valid ones of these; {} for none."""
    seen = [features(verdict) for verdict in verdicts if verdict.valid]
    result = {}
    for name, law in marginals(language).items() if seen else ():
        values = [story[name] for story in seen]
        apart = sum(abs(values.count(value) / len(values) - p) for value, p in law.items())
        result[name] = apart / 2
    return result


LANGUAGES = {size.name: size for size in (
    Language("stories", 40, 1, 12, 1, ("chain", "words", "totals")),
    Language("stories-large", 64, 10, 99, 10, ("chain", "words", "totals", "steps"),
             "how many {thing} does {name} have ?"),
)}
