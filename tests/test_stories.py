"""Arithmetic stories: the generator against its stated law, the judge on every kind of error, the
task around them. Expected values: the law by hand, and stories written by hand.
"""

import json
import math
from collections import Counter
from functools import partial
from itertools import product

import pytest
import torch
from torch import Generator

import sample
import train
from baselines import mlfm
from fmlm import Batch, Draws, Target
from harness import runs
from harness.attempts import judge, judge_by_halves, judge_for
from harness.checkpoints import build, read_checkpoint, save_checkpoint
from harness.measure import likelihood_bound
from harness.tasks import check_draw, load_task, name_of
from sample import Pass
from text import evaluate
from text import judge as study
from text.recipe import recipe
from text.stories import GAINS, LANGUAGES, LOSSES, NAMES, THINGS, marginals, total_variation
from text.task import suits
from text.tokens import END, PAD, held_out

SMALL, LARGE = LANGUAGES.values()
SAMPLERS = sample.SAMPLERS | mlfm.SAMPLERS
both = pytest.mark.parametrize("language", [SMALL, LARGE], ids=LANGUAGES)
STORY = ("tom has 7 apples . he buys 3 and loses 2 . how many apples ? "
         "7 + 3 = 10 - 2 = 8 , so he has 8 .")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def encoded(text, language=SMALL):
    """A story with END and PAD behind it, unless it holds some."""
    words = text.split() if END in text else [*text.split(), END]
    words += [PAD] * (language.length - len(words))
    return [language.ids[word] for word in words]


def margin(probabilities, n):
    """How far n draws of a law are from it at most, in total variation, but once in a million.

    The mean is at most 1/2 sum sqrt(p (1-p) / n); one draw moves it by 1/n, so it is above its
    mean by x with a probability of exp(-2 n x^2) at most (McDiarmid).
    """
    mean = sum(math.sqrt(p * (1 - p) / n) for p in probabilities) / 2
    return mean + math.sqrt(math.log(1e6) / 2 / n)


def apart(values, law):
    """Total variation between what values are and a law."""
    counts = Counter(values)
    assert counts.keys() <= law.keys()
    return sum(abs(counts[value] / len(values) - p) for value, p in law.items()) / 2


# ---- the generator

@both
def test_every_story_of_the_generator_is_valid(language):
    stories = language.draw(500, seeded())
    assert stories.shape == (500, language.length) and stories.dtype == torch.int64
    assert all(language.judge(story).valid for story in stories.tolist())


@both
def test_the_marginals_are_those_of_the_law(language):
    verdicts = [language.judge(story) for story in language.draw(4000, seeded(1)).tolist()]
    measured = total_variation(language, verdicts)
    assert measured.keys() == marginals(language).keys()
    for name, law in marginals(language).items():
        assert sum(law.values()) == pytest.approx(1)
        assert measured[name] < margin(law.values(), 4000) < 0.12, name


@both
def test_the_next_total_is_uniform_on_those_that_are_far_enough_away(language):
    stories = language.draw(6000, seeded(2)).tolist()
    questions = [language.judge(story).question for story in stories]
    totals = range(language.low, language.high + 1)
    pairs = [(q.first, q.first + (1 if q.events[0].gain else -1) * q.events[0].number)
             for q in questions]
    law = {(one, other): 1 / len(totals) / sum(abs(one - c) >= language.apart for c in totals)
           for one in totals for other in totals if abs(one - other) >= language.apart}
    assert sum(law.values()) == pytest.approx(1)
    if language is SMALL:
        assert apart(pairs, law) < margin(law.values(), 6000)
    else:  # 90 numbers have too many pairs: the second number alone
        second = Counter()
        for (_, other), p in law.items():
            second[other] += p
        assert {*pairs} <= law.keys()
        assert apart([other for _, other in pairs], second) < margin(second.values(), 6000)


def test_verbs_are_uniform_given_the_direction():
    text = [SMALL.text(story) for story in SMALL.draw(3000, seeded(3)).tolist()]
    verbs = Counter(word for story in text for word in story.split())
    for group in (("buys", "finds", "gets"), ("sells", "loses", "gives")):
        total = sum(verbs[verb] for verb in group)
        assert all(abs(verbs[verb] / total - 1 / 3) < 5 * math.sqrt(2 / 9 / total)
                   for verb in group)


def test_the_entropy_of_the_law_by_hand():
    # name, thing, first number, events x works x places x subjects; two events in the mean, each
    # one of 11 other totals and one of 3 verbs.
    assert SMALL.entropy == pytest.approx(math.log(8 * 8 * 12 * 36) + 2 * math.log(11 * 3))


def test_the_entropy_of_the_larger_law_is_the_mean_of_log_p_over_what_it_draws():
    logs = []
    for story in LARGE.draw(2000, seeded(4)).tolist():
        question = LARGE.judge(story).question
        total, nats = question.first, math.log(8 * 8 * 90 * 48)
        for event in question.events:
            nats += math.log(3 * sum(abs(c - total) >= 10 for c in range(10, 100)))
            total += event.number if event.gain else -event.number
        logs.append(nats)
    logs = torch.tensor(logs)
    assert abs(float(logs.mean()) - LARGE.entropy) < 5 * float(logs.std()) / math.sqrt(2000)


def test_the_longest_story_fills_forty_tokens_and_nearly_sixty_four():
    used = [int((size.templates != size.ids[PAD]).sum(1).max()) for size in (SMALL, LARGE)]
    assert used == [40, 60] and [language.length for language in (SMALL, LARGE)] == [40, 64]


@both
def test_the_same_seed_gives_the_same_stories_and_nearly_all_differ(language):
    stories = language.draw(3000, seeded(5))
    assert stories.equal(language.draw(3000, seeded(5)))
    assert len(stories.unique(dim=0)) > 2950


# ---- the split

@both
def test_a_tenth_is_held_out_and_no_story_is_on_both_sides(language):
    everything = language.draw(20_000, seeded(6))
    share = float(held_out(everything).double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.09 / 20_000)
    sides = [language.draw_split(3000, test, seeded(7)) for test in (False, True)]
    assert [held_out(side).unique().tolist() for side in sides] == [[False], [True]]
    assert not set(map(tuple, sides[0].tolist())) & set(map(tuple, sides[1].tolist()))


def test_what_is_held_out_is_a_matter_of_the_tokens_alone():
    def by_hand(tokens):  # in Python's integers, kept to 64 bits with a sign
        def wrap(value):
            return (value + 2**63) % 2**64 - 2**63
        factor, place, mixed = 6364136223846793005, 1, 0
        for token in tokens:
            place = wrap(place * factor)
            mixed = wrap(mixed + (token + 1) * place)
        for shift, by in ((33, -49064778989728563), (29, -4265267296055464877)):
            mixed = wrap((mixed ^ (mixed >> shift)) * by)
        return (mixed ^ (mixed >> 32)) % 10 == 0

    stories = SMALL.draw(300, seeded(8))
    assert held_out(stories).tolist() == [by_hand(story) for story in stories.tolist()]


# ---- the judge

def test_the_story_of_the_docstring_is_right_in_everything():
    verdict = SMALL.judge(encoded(STORY))
    wording = ("chain", "after", "pronoun")
    assert verdict[1:] == (True, True, True, True, (True, True), True, wording)
    assert verdict.valid and verdict.error is None and verdict.question.answer() == 8


@pytest.mark.parametrize("solution", [
    "tom has 8 , since 7 + 3 = 10 - 2 = 8 .",
    "3 more is 10 , 2 less is 8 , so tom has 8 .",
    "then 10 , then 8 , so he has 8 .",
    "he has 8 , since then 10 , then 8 ."])
def test_every_phrasing_and_order_is_right(solution):
    verdict = SMALL.judge(encoded(STORY.partition("7 + ")[0] + solution))
    assert verdict.valid and verdict.answer


FORM = {
    "nothing": "<end>",
    "no end": " ".join(["tom"] * 40),
    "a full stop is missing": STORY[:-2],
    "a word too many": STORY.replace("how many", "how how many"),
    "a word in the middle of the padding": f"{STORY} <end> <pad> tom",
    "two ends": f"{STORY} <end> <end>",
    "padding inside": STORY.replace("so he", "so <pad> he"),
    "no question": STORY.replace("how many apples ? ", ""),
    "no work": STORY.replace("7 + 3 = 10 - 2 = 8 , ", ""),
    "no answer": STORY.replace(" , so he has 8", ""),
    "one step for two events": STORY.replace(" - 2 = 8", ""),
    "three steps for two events": STORY.replace("= 8 ,", "= 8 + 1 = 9 ,"),
    "two kinds of work": STORY.replace("7 + 3 = 10 - 2 = 8", "then 10 , 2 less is 8"),
    "a work of the other size": STORY.replace("7 + 3 = 10 - 2 = 8", "7 + 3 is 10 , 10 - 2 is 8"),
    "events without `and`": STORY.replace("3 and loses", "3 , loses"),
    "a name that is no word of that place": STORY.replace("he buys", "tom buys"),
}
COPY = {
    "name: another pronoun": (STORY.replace("he buys", "she buys"), "name"),
    "name: somebody else answers": (STORY.replace("so he", "so ben"), "name"),
    "name: the other pronoun answers": (STORY.replace("so he", "so she"), "name"),
    "thing: another is asked for": (STORY.replace("many apples", "many books"), "thing"),
    "number: work from another first number":
        (STORY.replace("7 + 3 = 10 - 2 = 8 , so he has 8", "6 + 3 = 9 - 2 = 7 , so he has 7"),
         "numbers"),
    "number: work with another event":
        (STORY.replace("10 - 2 = 8 , so he has 8", "10 - 1 = 9 , so he has 9"), "numbers"),
    "number: another sign":
        (STORY.replace("10 - 2 = 8 , so he has 8", "10 + 2 = 12 , so he has 12"), "numbers"),
    "number: the answer is not the last total": (STORY.replace("has 8", "has 9"), "numbers"),
    "number: more for less": (STORY.replace("7 + 3 = 10 - 2 = 8 , so he has 8",
                                            "3 more is 10 , 2 more is 12 , so he has 12"),
                              "numbers"),
}
SUMS = {
    "the first sum, and so the answer": ("7 + 3 = 11 - 2 = 9 , so he has 9", (False, True), False),
    "the last sum": ("7 + 3 = 10 - 2 = 9 , so he has 9", (True, False), False),
    "two that make up for each other": ("7 + 3 = 9 - 2 = 8 , so he has 8", (False, False), True),
    "in words": ("3 more is 11 , 2 less is 9 , so he has 9", (False, True), False),
    "totals alone": ("then 10 , then 7 , so he has 7", (True, False), False),
    "answer first": ("he has 9 , since 7 + 3 = 10 - 2 = 9", (True, False), False),
}


@pytest.mark.parametrize("text", FORM.values(), ids=FORM)
def test_a_story_of_wrong_form_is_not_valid_and_nothing_else_is_said(text):
    verdict = SMALL.judge(encoded(text))
    assert not verdict.valid and verdict.error == "form"


@pytest.mark.parametrize("text, part", COPY.values(), ids=COPY)
def test_what_is_not_taken_over_rightly_is_an_error_of_copying(text, part):
    verdict = SMALL.judge(encoded(text))
    wrong = {name for name in ("name", "thing", "numbers") if not getattr(verdict, name)}
    assert verdict.form and wrong == {part} and all(verdict.sums)
    assert not verdict.valid and verdict.error == "copy"


@pytest.mark.parametrize("solution, sums, answer", SUMS.values(), ids=SUMS)
def test_each_sum_is_judged_as_it_is_written(solution, sums, answer):
    verdict = SMALL.judge(encoded(f"{STORY.partition('7 + ')[0]}{solution} ."))
    assert verdict.form and verdict.name and verdict.thing and verdict.numbers
    assert (verdict.sums, verdict.answer) == (sums, answer)
    assert not verdict.valid and verdict.error == "sum"


def test_numbers_of_two_digits_are_read_and_judged():
    story = ("ann has 4 7 pens . she gives 2 5 . how many pens does ann have ? "
             "4 7 - 2 5 is 2 2 , so ann has 2 2 .")
    assert LARGE.judge(encoded(story, LARGE)).valid
    other = story.replace("does ann", "does eva")
    assert LARGE.judge(encoded(other, LARGE)).error == "copy"
    assert LARGE.judge(encoded(story.replace("2 2", "2 3"), LARGE)).error == "sum"
    assert LARGE.judge(encoded(story.replace("4 7", "0 7"), LARGE)).error == "form"


def test_a_change_of_one_token_never_stays_valid_unless_it_is_another_story_of_the_law():
    """All changes of one token of the story, against those that can be made by hand: the name to
    another he (3), a verb to one of its direction (2, twice), who answers to the name (1)."""
    valid, story = 0, encoded(STORY)
    for place in range(len(STORY.split()) + 1):
        for token in range(len(SMALL.words)):
            if token != story[place]:
                changed = [*story[:place], token, *story[place + 1:]]
                valid += SMALL.judge(changed).valid
    assert valid == 3 + 2 + 2 + 1


# ---- the task

@pytest.fixture(scope="module", params=LANGUAGES)
def task(request):
    return load_task(request.param)


def test_the_task_draws_training_stories_with_the_question_as_prompt_in_half_of_the_rows(task):
    draw = task.load(asked_for(task.name, "--no-recipe"), torch.device("cpu"))
    check_draw(task, draw, 7, torch.device("cpu"))
    stories, prompt = draw(64, seeded(), 0.0)
    assert not held_out(stories).any() and held_out(task.held_out(64)).all()
    assert prompt.any(1).tolist() == [True, False] * 32
    for story, given in zip(stories[::2].tolist(), prompt[::2].tolist()):
        asked = task.language.text(story).split().index("?") + 1
        assert given == [True] * asked + [False] * (len(story) - asked)


def asked_for(*words, started=False):
    options = train.parse([*words, "--no-bf16", "--device", "cpu"])[0]
    options.started = started
    return options


def test_with_the_recipe_half_of_the_rows_lack_words_that_the_others_decide(task):
    stories, prompt = task.load(asked_for(task.name), torch.device("cpu"))(64, seeded(), 1.0)
    assert stories.equal(task.load(asked_for(task.name, "--no-recipe"), torch.device("cpu"))(64, seeded(), 1.0)[0])
    assert not prompt[16:48].all(1).any()
    for story, given in zip(stories[16:48].tolist(), prompt[16:48].tolist()):
        words = task.language.text(story).split()
        hidden = {word for word, known in zip(words, given) if not known}
        assert hidden <= {*NAMES, "he", "she", *THINGS, "+", "-", "more", "less",
                          *filter(str.isdecimal, words)}
        first = next(i for i, word in enumerate(words) if word.isdecimal())
        assert given[first] and given[words.index("?")] and given[-1]


def test_with_the_recipe_the_other_rows_have_as_prompt_the_question_or_the_words_of_the_form(task):
    """A quarter the question, a half every word that says only how the story is told."""
    stories, prompt = task.load(asked_for(task.name), torch.device("cpu"))(64, seeded(), 1.0)
    told = {*NAMES, "he", "she", *THINGS, *GAINS, *LOSSES, "+", "-", "more", "less"}
    for row in (*range(16), *range(48, 64)):
        words, given = task.language.text(stories[row].tolist()).split(), prompt[row].tolist()
        asked = words.index("?")
        assert given == [(i <= asked, word not in told and not word.isdecimal(),
                          word not in told and not word.isdecimal(), False)[row % 4]
                         for i, word in enumerate(words)]
    draw = task.load(asked_for(task.name, started=True), torch.device("cpu"))
    stories, prompt = draw(64, seeded(), 0.0)  # a run from another: the questions alone
    rows = torch.cat([torch.arange(16), torch.arange(48, 64)])
    assert prompt[rows].equal(task.questions(stories[rows]) & (rows % 2 == 0)[:, None])


@both
def test_a_story_fills_the_slots_of_its_form(language):
    """Every form is met; a slot holds one word wherever it stands; all else is the form's own."""
    stories = language.draw(2000, seeded(13))
    slots = language.slots_of(stories)
    assert len(slots.unique(dim=0)) == len(language.forms) == len(language.templates)
    for story, row in zip(stories.tolist(), slots.tolist()):
        held = set(zip(row, story))
        assert len(held) == len(dict(held))
        assert all(slot == word for slot, word in held if slot < len(language.words))
        named = 1 + ("{name}" in language.question) + (language.judge(story).wording[2] == "name")
        assert row.count(language.slots["name"]) == named


def test_at_first_they_lack_all_that_is_repeated_unless_the_run_starts_from_another(task):
    draw = task.load(asked_for(task.name), torch.device("cpu"))
    stories, prompt = draw(64, seeded(), 0.49)
    for story, given in zip(stories[16:48].tolist(), prompt[16:48].tolist()):
        words = task.language.text(story).split()
        told, asked = words.index("."), words.index("?")
        assert given == [i < told or word not in {"he", "she", *THINGS} if i < asked else
                         word not in {"+", "-", "more", "less"} and not word.isdecimal()
                         for i, word in enumerate(words)]
    later = draw(64, seeded(), 0.5)[1]
    assert not prompt[16:48].equal(later[16:48])
    started = task.load(asked_for(task.name, started=True), torch.device("cpu"))
    assert started(64, seeded(), 0.0)[1][16:48].equal(later[16:48])


def test_what_decided_rows_lack_has_one_answer(task):
    """By the judge: of all ways to write one of these words otherwise, none is valid."""
    stories = task.language.draw(12, seeded(12))
    for hidden in task.repeated(stories), task.decided(stories, seeded(1)):
        for row, place in hidden.nonzero().tolist():
            others = stories[row].repeat(task.vocab_size, 1)
            others[:, place] = torch.arange(task.vocab_size)
            valid = [task.language.judge(other).valid for other in others.tolist()]
            assert valid == others.eq(stories[row]).all(1).tolist()


def test_all_that_decided_rows_lack_is_decided_together():
    """Stories of one event: of all ways to write all that is missing, one is valid."""
    task, kinds = load_task("stories"), [
        [*NAMES], ["he", "she"], [*THINGS], ["+", "-"], ["more", "less"], [*map(str, range(1, 13))]]
    stories, done = task.language.draw(40, seeded(14), most=1), 0
    hidden = torch.cat([task.decided(stories, seeded(2))[:20], task.repeated(stories)[20:]])
    for story, hidden in zip(stories.tolist(), hidden.tolist()):
        words = task.language.text(story).split()
        choices = [next(kind for kind in kinds if word in kind) if missing else [word]
                   for word, missing in zip(words, hidden)]
        if math.prod(map(len, choices)) < 5000:
            done += 1
            valid = [text for text in product(*choices)
                     if task.language.judge([task.ids[word] for word in text]).valid]
            assert valid == [tuple(words)]
    assert done > 10


def test_a_run_begins_with_stories_of_one_event_and_one_that_starts_from_another_does_not(task):
    events = lambda stories: [len(task.language.judge(row).question.events)
                              for row in stories.tolist()]
    draw = task.load(asked_for(task.name), torch.device("cpu"))
    most = [max(events(draw(200, seeded(), progress)[0])) for progress in (0, 0.124, 0.125, 0.25)]
    assert most == [1, 1, 2, 3]
    for options in (asked_for(task.name, "--no-recipe"), asked_for(task.name, started=True)):
        draw = task.load(options, torch.device("cpu"))
        assert max(events(draw(200, seeded(), 0.0)[0])) == 3


def recipe_batch(targets, n=16):
    times = Draws(seeded()).uniform(n)
    prompt = torch.arange(4).expand(n, 4) < 2
    return Batch(torch.eye(4).expand(n, 4, 4), prompt, torch.ones(n, 4, dtype=torch.bool), times,
                 times, targets)


def test_decided_rows_have_no_context_but_their_prompt_and_off_the_diagonal_learn_the_data():
    """Of 16 rows an MDM teaches the first 4, which have none; of the other 12 the middle half is
    decided, 3 on the diagonal and 3 off it: without the MDM's share all 6 on the diagonal were, and
    nothing there was learned of stories that are open."""
    own = Target("semigroup", 6, lambda x, s, t: x)
    old = recipe_batch([Target("mdm", 4, lambda x, s, t: x), Target("data", 6), own])
    new = recipe(old, None, None)
    decided = [7 <= row < 13 for row in range(16)]
    assert new.context.equal(old.prompt.where(torch.tensor(decided)[:, None], old.context))
    assert [(target.name, target.rows) for target in new.targets] == [
        ("mdm", 4), ("data", 6), ("decided", 3), ("semigroup", 3)]
    assert new.targets[2].of is None and new.targets[3].of is own.of
    moved = [10 <= row < 13 for row in range(16)]  # an eighth of the three others is none
    assert (new.s == 0).tolist() == (new.t == 1).tolist() == moved
    assert new.s[:10].equal(old.s[:10]) and old.context.all()


def test_decided_rows_are_drawn_where_the_recipe_looks_for_them_beside_an_mdms_share_too(task):
    options = asked_for(task.name)
    for distill, rows in ((None, slice(16, 48)), (0.25, slice(28, 52))):  # of 16 an MDM teaches
        options.distill = distill
        _, prompt = task.load(options, torch.device("cpu"))(64, seeded(), 1.0)
        lacking, length = (~prompt).sum(1), prompt.shape[1]
        assert 0 < lacking[rows].min() and lacking[rows].max() < length / 2
        assert lacking[:rows.start].max() == lacking[rows.stop:].max() == length  # no prompt at all


def test_an_eighth_of_the_other_rows_is_at_0_1_but_for_the_lagrangian_target():
    for name, others in (("semigroup", 2), ("lagrangian", 0)):
        own = Target(name, 32, lambda x, s, t: x)
        new = recipe(recipe_batch([Target("data", 32), own], 64), None, None)
        assert (new.t == 1).tolist() == [32 <= row < 48 + others for row in range(64)]
        assert [target.rows for target in new.targets] == [32, 16, 16]


def test_a_batch_on_the_diagonal_alone_keeps_its_times():
    old = recipe_batch([Target("data", 16)])
    new = recipe(old, None, None)
    assert new.s.equal(old.s) and new.targets == old.targets
    assert new.context.all(1).tolist() == [not 4 <= row < 12 for row in range(16)]


def test_an_mdm_of_stories_is_asked_for_all_that_decided_rows_lack():
    options, task, _ = train.parse("stories --objective mdm --width 8 --depth 1 --heads 1 --batch "
                                   "8 --no-compile --no-bf16 --device cpu".split())
    run = train.Run(options, task)
    tokens, prompt = run.draw(1.0)
    x1 = torch.nn.functional.one_hot(tokens, task.vocab_size).float()
    _, context = train.mdm(run, run.model, x1, prompt)
    assert context[2:6].equal(prompt[2:6]) and not context[2:6].all(1).any()


def test_a_run_that_started_from_another_is_resumed_as_one(tmp_path):
    first, path = str(tmp_path / "mdm.pt"), str(tmp_path / "fmlm+.pt")
    small = ("stories --width 8 --depth 1 --heads 1 --batch 8 --no-compile --no-bf16 --no-table "
             "--device cpu --steps 2").split()
    assert train.main([*small, "--objective", "mdm", "--out", first]) == 0
    assert train.main([*small, "--init", first, "--out", path]) == 0
    states = read_checkpoint(first), read_checkpoint(path)
    assert [state["started"] for state in states] == [False, True]
    for path, state in zip((first, path), states):
        options, task, _ = train.parse(["--resume", path, "--steps", "99"])
        run = train.Run(options, task, origin=state)
        runs.restore(run, state, path)
        stories = run.draw(0.0)[0].tolist()
        events = [len(task.language.judge(story).question.events) for story in stories]
        assert (max(events) > 1) == state["started"]


def test_a_line_of_the_task_is_read_back_token_for_token(task):
    for story in task.language.draw(50, seeded(9)):
        assert task.parse(task.line(story)) == story.tolist()
        read = task.parse(task.show(story))
        end = task.line(story).split().index(END)
        assert read[:end] == story[:end].tolist() and set(read[end:]) == {-1}


def test_a_prompt_may_have_gaps_and_be_short_and_look_like_text():
    task = load_task("stories")
    words = lambda text: [task.language.words[i] if i >= 0 else "_" for i in task.parse(text)]
    assert words("Tom has _ apples. he") == [*"tom has _ apples . he".split(), *"_" * 34]
    assert words("")[:3] == ["_"] * 3
    asked = words("tom has 7 apples . he buys 3 . ?")
    assert asked[:13] == "tom has 7 apples . he buys 3 . how many apples ?".split()
    large = load_task("stories-large")
    assert large.parse("tom has 47 apples") == large.parse("tom has 4 7 apples")
    assert large.line(torch.tensor([large.parse("zoe has 12 eggs . she buys 34 . ?")[:18]])[0]) == (
        "zoe has 1 2 eggs . she buys 3 4 . how many eggs does zoe have ?")


@pytest.mark.parametrize("text, words", [
    ("tam has 7 apples .", "does not know 'tam': near it are "),
    ("tom has 13 apples .", "does not know '13'"),
    ("tom has 7 zebras .", "does not know 'zebras'"),
    ("tom " * 41, "the prompt has 41 tokens and a sequence of stories has 40")])
def test_a_prompt_that_is_none_is_refused_in_a_sentence(text, words):
    with pytest.raises(ValueError, match=words) as error:
        load_task("stories").parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_words_come_back_token_for_token_from_every_sampler(name):
    task = load_task("stories")
    sizes = dict(vocab_size=task.vocab_size, width=8, depth=1, heads=1)
    objective = "mlfm" if name == "promotion" else "fmlm+"
    model = build(dict(objective=objective, network=sizes), task)
    given = torch.tensor([task.parse("tom has 7 apples . he buys 3 . ?"), task.parse("_ _ 5 _ .")])
    tokens = SAMPLERS[name].complete(model, given, 3, seeded()).tokens
    assert tokens[given >= 0].equal(given[given >= 0]) and (tokens >= 0).all()


def test_the_judge_of_the_task_wants_what_was_given():
    task = load_task("stories")
    tokens = torch.tensor([encoded(STORY)] * 3)
    given = torch.full_like(tokens, -1)
    given[1, 0], given[2, 0] = tokens[1, 0], task.language.ids["ben"]
    assert task.judge(tokens, given).tolist() == [True, True, False]


def test_the_task_knows_the_answer_of_a_question_that_is_given():
    task = load_task("stories")
    given = torch.tensor(task.parse("tom has 7 apples . he buys 3 and loses 2 . ?"))
    assert task.remark(given, False) == "the answer is 8" and task.remark(given, True) == ""
    assert task.remark(torch.tensor(task.parse("tom has _ apples")), False) == ""


def test_texts_of_story_words_are_stories_and_puzzles_never_are():
    assert suits(["tom has 7 apples . he buys 3 . ?"]) == name_of(["tom has _ apples"]) == "stories"
    assert name_of(["tom has 47 apples ."]) == "stories-large"
    puzzle = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    assert name_of([puzzle]) == "sudoku9" and name_of(["1...2.4........2"]) == "sudoku4"
    for text in (puzzle, "1 2 _ 4", "....", "", "the cat sat", "1___2_4________2"):
        assert suits([text]) is None


def test_a_pass_shows_what_is_given_committed_and_sent_back():
    task = load_task("stories")
    draft = torch.tensor(encoded(STORY))
    record = Pass(draft, torch.full((40,), 0.6), torch.arange(40) == 3)
    record.confidence[4:6] = torch.tensor([0.95, 0.1])
    known = torch.arange(40) < 3
    words = task.show(draft, record, known).split()
    assert words[:7] == ["tom", "has", "7", "[apples]", ".'", "he*", "buys~"]
    assert "\033[32m[apples]\033[0m" in task.show(draft, record, known, color=True)
    assert task.show(draft) == STORY


# ---- the evaluation

def test_the_generators_own_stories_are_all_valid_and_close_to_the_law():
    task = load_task("stories")
    row = evaluate.drawn_stories(task, task.language.draw(2000, seeded(10)))
    assert row["percent"] == 100 and row["errors"] == {"form": 0, "copy": 0, "sum": 0}
    assert row["distinct"] > 1950
    for name, law in marginals(SMALL).items():
        assert row["tv"][name] < margin(law.values(), 2000)


def test_one_story_over_and_over_is_valid_and_far_from_the_law():
    row = evaluate.drawn_stories(load_task("stories"), torch.tensor([encoded(STORY)] * 20))
    assert row["percent"] == 100 and row["distinct"] == 1
    assert row["tv"]["name"] == 1 - 1 / len(NAMES) and row["tv"]["thing"] == 1 - 1 / len(THINGS)
    assert row["tv"]["first number"] == round(11 / 12, 4)


def test_errors_are_counted_by_kind_and_without_a_valid_story_there_is_no_distance():
    texts = [FORM["no work"], COPY["name: another pronoun"][0], STORY.replace("10 - 2", "9 - 2"),
             STORY.replace("= 10", "= 9")]
    row = evaluate.drawn_stories(load_task("stories"), torch.tensor([encoded(t) for t in texts]))
    assert row["errors"] == {"form": 25, "copy": 25, "sum": 50} and row["tv"] == {}


def test_an_answer_can_be_right_where_its_story_is_not():
    task, truth = load_task("stories"), torch.tensor([encoded(STORY)] * 4)
    question = task.questions(truth)
    texts = [STORY, STORY.replace("= 10", "= 9"), STORY.replace("has 8", "has 9"),
             STORY.partition("7 + ")[0] + "so so he has 8 ."]
    tokens = torch.tensor([encoded(text) for text in texts])
    row = evaluate.asked_stories(task, tokens, truth, question)
    assert (row["percent"], row["answers"]) == (25, 75)
    other = evaluate.asked_stories(task, truth, truth.roll(1, 1), question)  # nothing is kept
    assert other["percent"] == 0


def test_a_gap_is_the_second_sentence():
    story = torch.tensor([encoded(STORY)])
    given = load_task("stories").gaps(story)
    words = SMALL.text(story[~given].tolist())
    assert words == "he buys 3 and loses 2 ." and given.sum() == 40 - 7


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A checkpoint of an untrained network."""
    task = load_task("stories")
    info = dict(format=3, task="stories", state={}, objective="fmlm+",
                network=dict(vocab_size=task.vocab_size, width=8, depth=1, heads=1))
    path = tmp_path_factory.mktemp("stories") / "fresh.pt"
    save_checkpoint(path, info | dict(model=build(info, task).state_dict()))
    return str(path)


def test_the_evaluation_prints_a_table_and_one_document(fresh, capsys):
    arguments = [fresh, "--nfe", "1", "2", "--sampler", "posterior", "-n", "20", "--device", "cpu",
                 "--gaps", "--lengths"]
    assert evaluate.main(arguments) == 0
    table = capsys.readouterr().out
    for title in ("stories from nothing", "stories of which end and padding are given",
                  "held-out questions", "whose events are missing"):
        assert f"{title}, 20\n" in table
    assert evaluate.main([*arguments, "--json"]) == 0
    document, = json.loads(capsys.readouterr().out)
    assert [row["nfe"] for row in document["unconditional"]] == [1, 2]
    assert document["data"]["percent"] == 100 and document["puzzles"][0]["n"] == 20
    assert document["likelihood"]["limit"] == round(SMALL.entropy, 3)
    bits = document["likelihood"]["bound"] / 40 / math.log(2)
    assert document["likelihood"]["bits_a_token"] == pytest.approx(bits, abs=1e-3)


def test_attempts_at_stories_are_judged_and_counted_and_the_table_says_so(fresh, capsys):
    """An untrained network is sure of nothing: three attempts of two passes and two of a judge.
    Where the rules decide, for nothing, it fails as often."""
    arguments = [fresh, "--nfe", "2", "--sampler", "posterior", "-n", "10", "--device", "cpu",
                 "--attempts", "3"]
    for more, passes in ([], 12), (["--check-rules"], 6):
        assert evaluate.main([*arguments, *more, "--json"]) == 0
        document, = json.loads(capsys.readouterr().out)
        for row in document["unconditional"] + document["puzzles"]:
            assert row["passes"] == row["most_passes"] == passes and row["attempts"] == 3
            assert row["believed"] == row["believed_and_wrong"] == row["percent"] == 0
    assert evaluate.main(arguments) == 0
    assert "believed, %" in capsys.readouterr().out


def test_stories_are_judged_by_the_two_halves_of_what_was_written_each_given_the_other():
    """At s = t = 0, an FMLM+ from noise, as it learned it, an MDM without."""
    task = load_task("stories")
    judged, score = judge_for("fmlm+", task), partial(judge_by_halves, noise=1)
    tokens, known = task.language.draw(3, seeded(20)), torch.zeros(3, 40, dtype=torch.bool)
    model = build(dict(objective="fmlm+", network=dict(vocab_size=task.vocab_size, width=8)), task)
    torch.nn.init.normal_(model.head.weight, generator=seeded(21))
    expected = score(model, tokens, known, generator=seeded(22))
    assert (judged.passes, judged.believe) == (2, 0.2)
    assert judged.score(model, tokens, known, generator=seeded(22)).equal(expected)
    assert not judge(model, tokens, known, generator=seeded(22)).equal(expected)
    assert judge_for("fmlm+", load_task("sudoku4")).score is judge
    masked = judge_for("mdm", task)
    assert (masked.passes, masked.believe) == (2, 0.2)
    assert masked.score(model, tokens, known, generator=seeded(22)).equal(
        judge_by_halves(model, tokens, known, generator=seeded(22)))


def test_the_study_of_the_judge_has_questions_and_stories_from_nothing_and_no_other_task(
        fresh, checkpoint, capsys):
    arguments = ["-n", "5", "--nfe", "2", "--attempts", "2"]
    assert study.main([fresh, *arguments]) == 0
    said = capsys.readouterr().out
    for kind in ("questions", "stories from nothing"):
        assert f"drafts of {kind}, 2 passes\n" in said and f"{kind}, posterior, judge\n" in said
    assert "halves, delta_00" in said and "D_s, s = 0.9 " in said
    assert study.main([fresh, *arguments, "--json"]) == 0
    *_, questions, nothing = json.loads(capsys.readouterr().out)
    assert (questions["set"], nothing["set"]) == ("questions", "stories from nothing")
    assert questions["kept"]["nothing"][-1]["nfe"] == 8  # two attempts of two passes and a judge's
    assert study.main([checkpoint("fmlm+"), *arguments]) == 2
    assert "is of the task sudoku4, whose answers nobody can check" in capsys.readouterr().err


def test_an_attempt_that_is_believed_and_wrong_is_counted():
    wrongly = evaluate.evaluation.wrongly
    believed, good = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    assert wrongly(believed, good) == {"believed_and_wrong": 1} and wrongly(None, good) == {}


def test_what_is_compared_between_roads_are_shares_by_sampler_and_passes(fresh, monkeypatch):
    load = evaluate.load_checkpoint
    monkeypatch.setattr(evaluate, "load_checkpoint", lambda path, device, _: load(path, device))
    task, cpu = load_task("stories"), torch.device("cpu")
    document = task.measure(fresh, ["posterior"], [1, 2], 10, 0, cpu)
    assert document.keys() == {"unconditional", "puzzles", "likelihood"}
    for kind in ("unconditional", "puzzles"):
        assert [(row["sampler"], row["nfe"], row["percent"]) for row in document[kind]] == [
            ("posterior", 1, 0), ("posterior", 2, 0)]


BAD = {
    "--data of a story": (evaluate.main, ["--data", "x"], "--data is for a text"),
    "a judge that is none": (evaluate.main, ["--judge", "{fresh}"], "cannot judge"),
    "a sampler of another objective": (evaluate.main, ["--sampler", "ancestral"], "does not suit"),
    "rules without attempts": (evaluate.main, ["--check-rules"], "say how many by --attempts"),
    "an unknown word": (sample.main, ["--given", "tam has 7"], "near it are"),
    "too long a prompt": (sample.main, ["--given", "tom " * 41], "the prompt has 41 tokens"),
}


@pytest.mark.parametrize("main, arguments, words", BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_one_sentence_and_status_2(fresh, main, arguments, words, capsys):
    assert main([fresh, *(word.format(fresh=fresh) for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_stories_take_no_data(capsys):
    assert train.main(["stories", "--data", "x"]) == 2
    assert "--data" in capsys.readouterr().err


def test_the_command_line_completes_a_story(fresh, capsys):
    assert sample.main([fresh, "--given", "tom has 7 apples . he buys 3 . ?", "--trace",
                        "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "tom has 7 apples . he buys 3 . how many apples ? " in said
    assert "the answer is 10" in said and "0 of 1 solved" in said
    assert "not sure after 8 attempts" in said and "48 network passes" in said  # 4, and a judge's 2


# ---- training

def test_a_few_seconds_of_training_are_far_better_than_the_frequencies_of_words():
    """150 steps of a small network: its likelihood bound, in nats a token of held-out stories, is
    at least 1.5 below the cross-entropy of the words' frequencies (measured: 1.3 against 3.4)."""
    arguments = "stories --width 48 --depth 2 --heads 4 --batch 32 --steps 150 --lr 5e-3 --ema 0.98"
    options, task, _ = train.parse([*arguments.split(), "--warmup", "20", "--no-compile",
                                    "--no-bf16", "--device", "cpu"])
    run = train.Run(options, task)
    assert train.train(run, None) == 0
    seen = task.language.draw_split(2000, False, seeded(11)).flatten()
    frequency = (seen.bincount(minlength=task.vocab_size) + 1).double()
    words = -(frequency / frequency.sum()).log()[task.held_out(500)].mean()
    bound, error = likelihood_bound(task, run.ema.model, "fmlm+", seeded(), 500)
    assert (bound + error) / 40 < float(words) - 1.5
    assert bound + error > task.language.entropy
