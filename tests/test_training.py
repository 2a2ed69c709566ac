"""Training that can be trusted: exact to resume, safe to interrupt, the same on two processes.

Networks here are tiny (8 thousand weights); what is tested does not depend on their size. Processes
are started from a fork server that has imported torch once: 0.2 s each instead of 3.
"""

import errno
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Generator

import fmlm
import train
from baselines import mlfm
from fmlm import Batch, Denoiser, Draws, Target, data_and_self
from harness import checkpoints, files, runs, sitting, tasks
from harness.checkpoints import (FORMAT, OBJECTIVES, build, load_checkpoint, read_checkpoint,
                                 save_checkpoint)
from harness.files import PART
from sample import posterior_refinement
from sudoku import boards as sudoku
from sudoku.recipe import after_a_round, recipe
from sudoku.task import Sudoku
from train import LOSSES, Run, learning_rate, parse

os.environ["OMP_NUM_THREADS"] = "1"  # of processes started here: threads that share a core crawl
os.environ["PYTHONPATH"] = str(Path(train.__file__).parent)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train", "sudoku.task", "pytest", "torch._dynamo"])

TINY = "--width 16 --depth 1 --heads 1 --batch 8 --warmup 5 --no-compile --device cpu".split()
ENDLESS = [*TINY, "--steps", "9999999"]


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch):
    monkeypatch.setattr(Sudoku, "table", lambda task, path, device: 0)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    for process in PROCESSES.active_children():
        process.kill()


def run_of(*arguments):
    """A run as train.py makes it from these words, untrained."""
    options, task, _ = parse([*TINY, *arguments])
    return Run(options, task)


def steps(run, n):
    for _ in range(n):
        run.loss(run.network, run.draw()).backward()
        run.update()
    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A real one, of 5 of 40 steps. Tests copy it before they change it."""
    path = tmp_path_factory.mktemp("checkpoint") / "real.pt"
    save_checkpoint(path, steps(run_of("--steps", "40"), 5).state())
    return path


def same(one, other):
    """Equal bit for bit, through dictionaries and tensors."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def sentences(capsys):
    """The lines that were said on stderr, but for the progress bar."""
    said = re.sub(r"[^\n]*\r", "", capsys.readouterr().err)
    return [line for line in said.splitlines()
            if line.strip() and "step/s" not in line and "s/step" not in line]


def sentence(capsys):
    """What was said on stderr but for the progress bar: it must be one line, of one command."""
    said = sentences(capsys)
    assert len(said) == 1 and said[0].startswith("train.py: ") and len(said[0]) < 300, said
    return said[0]


# ---- the parts of a step

def test_the_rate_warms_up_stays_for_half_of_the_run_and_falls_linearly_to_2_percent():
    rates = [learning_rate(0, step, 2.0, 10) for step in (0, 4, 9, 50)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0])
    rates = [learning_rate(progress, 50, 2.0, 10) for progress in (0.3, 0.5, 0.75, 1)]
    assert rates == pytest.approx([2, 2, 1.02, 0.04])
    assert learning_rate(1, 0, 2.0, 100) == pytest.approx(0.02)  # warm-up holds at the end as well


def random_model(network=Denoiser, **told):
    torch.manual_seed(1)
    model = network(4, sudoku.SHAPES["sudoku4"].coords(), width=16, depth=1, heads=1, **told)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def options_of(*arguments):
    return parse([*TINY, "--steps", "5", *arguments])[0]


def boards_of_8():
    return torch.eye(4)[torch.randint(4, (8, 16), generator=Generator().manual_seed(3))]


def draws_of(seed=7, rank=0, world=1):
    return Draws(Generator().manual_seed(seed), "cpu", rank, world)


def hand_made(options, draws, mdm=None, recipe=recipe, vocab_size=4):
    """All that an objective asks of a run."""
    task = SimpleNamespace(vocab_size=vocab_size)
    law = mlfm.BridgeDenoiser(vocab_size, torch.arange(2)[:, None])  # has the curve of an MLFM
    run = SimpleNamespace(options=options, draws=draws, mdm=mdm, teacher=None, recipe=recipe,
                          model=law, world=1,
                          parts={}, task=task)
    run.halve, run.sample_times = partial(Run.halve, run), partial(Run.sample_times, run)
    return run


def training_loss(options, model, x1, draws, parts=None, mdm=None, prompt=None):
    """The loss of an objective, with Sudoku's recipe, and how many tokens it is a mean over."""
    run = hand_made(options, draws, mdm)
    loss, context = train.loss_of(options.objective)(run, model, x1, prompt)
    if parts is not None:
        parts.update(run.parts)
    return loss, (~context).sum()


@pytest.mark.parametrize("objective, options", [
    ("fmlm+", []), ("fmlm+", ["--lagrangian"]), ("fmlm+", ["--tau"]), ("fmlm", []),
    ("fmlm", ["--no-tau"]), ("flm", []), ("flm", ["--no-tau"]), ("flm+", []), ("flm+", ["--tau"]),
    ("mdm", []), ("mdm", ["--weighting", "elbo"]),
    ("mlfm", [])])
def test_the_training_loss_is_the_objectives_own_for_the_same_draws(objective, options):
    model, draws, x1 = random_model(), draws_of(), boards_of_8()
    randn = lambda: draws.normal(8, 16, 4)
    in_tau = "--tau" in options or objective in ("flm", "fmlm") and not options
    axis = partial(fmlm.inverse_decoding_time, vocab_size=4) if in_tau else lambda time: time
    halve = partial(fmlm.midpoint_in_tau, vocab_size=4) if in_tau else fmlm.midpoint
    nothing, lagrangian, parts = torch.zeros(8, 16, dtype=bool), "--lagrangian" in options, {}
    if objective in ("flm", "fmlm"):
        half = 8 if objective == "flm" else 4
        s, t = map(axis, fmlm.sample_times(8, half, draws, 1 / 32))
        assert (s < t).sum() == 8 - half
        own = partial(fmlm.semigroup, model, halve=halve)
        batch = Batch(x1, None, nothing, s, t, [Target("data", 4), Target("own", 4, own)])
        expected = (fmlm.flm_loss(model, x1, t, randn()) if objective == "flm" else
                    fmlm.flow_map_loss(model, batch, randn()))
        context = nothing
    else:
        if objective == "mlfm":
            context = mlfm.sample_bridge_context(nothing, draws)
        else:
            context, rate = fmlm.sample_context(nothing, draws)
        if objective == "mdm" and options:  # nats a token, and every sequence counts alike
            expected, context = fmlm.mdm_loss(model, x1, context, rate, "elbo") / 16, nothing
        elif objective == "mdm":
            expected = fmlm.mdm_loss(model, x1, context)
        elif objective == "flm+":  # FMLM+ with all rows on the diagonal
            _, t = map(axis, fmlm.sample_times(8, 8, draws))
            batch = Batch(x1, None, context, t, t, [Target("data", 8)])
            expected = fmlm.flow_map_loss(model, batch, randn())
        elif objective == "mlfm":
            line = torch.linspace(1, 0, 33)  # nothing is measured yet
            t = mlfm.sample_bridge_times(8, draws, 0.5, line)
            expected = fmlm.mlfm_loss(model, x1, context, t, randn(), 0.5)
            context = context.all(1)  # sequences count alike, not tokens
        else:  # half of the batch on the diagonal, 1/32 of the rest at (0, 1): semigroup alone
            s, t = map(axis, fmlm.sample_times(8, 4, draws, 0 if lagrangian else 1 / 32))
            own = partial(fmlm.semigroup, model, halve=halve)
            of = [Target("data", 4),
                  Target("own", 4, partial(fmlm.lagrangian, model) if lagrangian else own)]
            expected = fmlm.flow_map_loss(model, Batch(x1, None, context, s, t, of), randn())
    loss, tokens = training_loss(options_of("--objective", objective, *options), model, x1,
                                 draws_of(), parts=parts)
    assert loss == expected and int(tokens) == int((~context).sum())
    names = {"data", "lagrangian" if lagrangian else "semigroup"}
    known = {name for name, value in parts.items() if value}
    assert known == (names if objective in ("fmlm", "fmlm+") else set())


@pytest.mark.parametrize("objective", [*OBJECTIVES, "mlfm"])
def test_every_uniform_of_a_process_comes_from_its_own_strata(objective, monkeypatch):
    asked, stratified = [], Draws.stratified

    def recorded(draws, n):
        values = stratified(draws, n)
        asked.append((draws.rank, draws.world))
        assert ((values * n * draws.world).long() % draws.world == draws.rank).all()
        return values

    monkeypatch.setattr(Draws, "stratified", recorded)
    training_loss(options_of("--objective", objective), random_model(), boards_of_8(),
                  draws_of(rank=2, world=5))
    assert asked and set(asked) == {(2, 5)}


@pytest.mark.parametrize("objective", ["flm", "mdm", "mlfm", "fmlm", "fmlm+"])
def test_the_second_time_learns_only_where_there_is_a_flow_map(objective):
    run = run_of("--objective", objective, "--steps", "5")
    before = {name: weight.clone() for name, weight in run.model.time_t.named_parameters()}
    steps(run, 5)
    still = all(torch.equal(weight, before[name])
                for name, weight in run.model.time_t.named_parameters())
    assert still == (objective in ("flm", "mdm", "mlfm"))
    if still:
        for model in (run.model, run.ema.model):
            assert not model.time_t(torch.rand(3, 16)).any()


def test_from_half_of_the_schedule_on_half_of_the_rows_shows_clues_that_leave_one_solution():
    """The middle half."""
    shape = sudoku.SHAPES["sudoku6"]
    run = run_of("sudoku6", "--boards", "50", "--puzzles", "10", "--batch", "40", "--steps", "9")
    run.step = 4
    assert run.draw()[1] is None
    run.step = 5
    boards, marked = run.draw()
    assert sudoku.valid(shape, boards).all() and not sudoku.held_out(shape, boards).any()
    shown = marked.any(1)
    assert shown[10:30].all() and shown.sum() == 20
    for puzzle in torch.where(marked, boards, -1)[shown].tolist():
        assert sudoku.count_solutions(shape, puzzle) == 1
    run.options.distill = 0.25  # an MDM teaches 10 rows, which show none; 15 of the others do
    assert torch.where(run.draw()[1].any(1))[0].tolist() == list(range(17, 32))
    without = run_of("sudoku6", "--boards", "50")
    assert without.draw()[1] is None and without.draw(progress=1.0)[1] is None


@pytest.mark.parametrize("objective", ["fmlm+", "mdm", "mlfm"])
def test_clues_are_context_and_so_are_random_cells_more(objective):
    times, model = [], random_model()
    options, prompt = options_of("--objective", objective), torch.arange(16) % 3 == 0

    def spy(x, s, t):
        times.append(s)
        return model(x, s, t)

    training_loss(options, spy, boards_of_8(), draws_of(), prompt=prompt.expand(8, 16))
    s = times[-1]
    assert (s[:, prompt] == 1).all() and (s[:, ~prompt] == 1).any() and (s[:, ~prompt] < 1).any()


def batch_of(monkeypatch, model, options, x1, prompt):
    """The `Batch` that training hands to `flow_map_loss`."""
    seen = []
    monkeypatch.setattr(fmlm, "flow_map_loss", lambda model, batch, *rest: seen.append(batch))
    training_loss(options_of(*options), model, x1, draws_of(), prompt=prompt)
    return seen[0]


def half_puzzles(n):
    """n boards, of which the middle half are puzzles, with every third cell a clue."""
    prompt = torch.zeros(n, 16, dtype=torch.bool)
    prompt[n // 4:3 * n // 4, ::3] = True
    return boards_of_8().repeat(n // 8, 1, 1), prompt


@pytest.mark.parametrize("puzzles, from_data", [(True, 6), (False, 4)])
def test_a_puzzle_learns_the_data_off_the_diagonal_too(puzzles, from_data):
    """Of 8 rows the first 4 lie on the diagonal, and rows 2 to 5, the middle half, are puzzles: 4
    and 5 are at (0, 1), with a quarter of their random context. A round on row 4 draws noise, and
    changes nothing, for this model is sure of nothing."""
    model, draws, (x1, prompt) = random_model(), draws_of(), half_puzzles(8)
    context, _ = fmlm.sample_context(prompt & puzzles, draws)
    s, t = fmlm.sample_times(8, 4, draws, 1 / 32)
    if puzzles:
        s[4:6], t[4:6] = 0, 1
        context[4:6] &= prompt[4:6] | (draws.uniform(8, 16)[4:6] < 1 / 4)
        draws.normal(8, 16, 4)
    batch = Batch(x1, None, context, s, t, data_and_self(model, 8, from_data))
    expected = fmlm.flow_map_loss(model, batch, draws.normal(8, 16, 4))
    loss, _ = training_loss(options_of(), model, x1, draws_of(), prompt=prompt if puzzles else None)
    assert loss == expected


@pytest.mark.parametrize("target, of_64, of_448, deviation",
                         [("--no-lagrangian", 64, 14, 2.8), ("--lagrangian", 0, 0, 1e-9)])
def test_off_the_diagonal_all_puzzles_and_an_eighth_of_the_boards_are_at_0_1(
        monkeypatch, target, of_64, of_448, deviation):
    """Of 2,048 rows the last 1,024 lie off the diagonal, the first half of these are puzzles. Of
    the other 512 an eighth is there, and of the rest one in 32 as without puzzles: 32 of 1,024
    strata fall to rows without replacement, 14 +- 2.8 to these 448 (hypergeometric: sqrt(32
    448/1024 576/1024 992/1023)). At t = 1 the Lagrangian target says nothing."""
    batch = batch_of(monkeypatch, random_model(), [target], *half_puzzles(2048))
    pinned = (batch.s == 0) & (batch.t == 1)
    assert not pinned[:1024].any() and pinned[1024:1536].all()
    assert pinned[1536:1600].sum() == of_64
    assert abs(pinned[1600:].sum() - of_448) < 4.5 * deviation


def test_where_samplers_ask_an_eighth_of_the_cells_is_context_beside_the_clues(monkeypatch):
    """Elsewhere half of them: a share U ~ U(0, 1), there U / 4. No model is sure of anything here.
    At (0, 1) are 512 puzzles, 10 cells of which are no clues, and 64 boards: the share of their
    6,144 cells strays by sqrt(1/8 7/8 / 6144) = 0.0042 for the cells and sqrt(1/12 / 576) / 4 =
    0.003 for U, 0.0052 together; on the diagonal (1,024 rows) by less than 0.010, on the 448 last
    boards 0.015."""
    x1, prompt = half_puzzles(2048)
    seen, _, context, *_ = batch_of(monkeypatch, random_model(), [], x1, prompt)
    assert context[prompt].all() and seen.equal(x1)
    share = lambda rows: (context[rows] & ~prompt[rows]).sum() / (~prompt[rows]).sum()
    assert abs(share(slice(1024, 1600)) - 1 / 8) < 4.5 * 0.0052
    assert abs(share(slice(0, 1024)) - 1 / 2) < 4.5 * 0.010
    assert abs(share(slice(1600, 2048)) - 1 / 2) < 4.5 * 0.015


def test_every_other_row_there_goes_on_from_what_a_round_is_sure_of(monkeypatch):
    """A model that is sure of digit 0 everywhere: on a puzzle that is context where it is right, on
    a board it is the board."""
    sure = lambda x, s, t: torch.tensor([1.0, 0, 0, 0]).log().expand(x.shape)
    x1, prompt = half_puzzles(64)
    seen, _, context, *_ = batch_of(monkeypatch, sure, [], x1, prompt)
    zero, changed, new = x1.argmax(-1) == 0, (seen != x1).any(-1), context & ~prompt
    assert context[32:48:2][zero[32:48:2]].all() and not changed[:48].any()  # 16 puzzles
    assert context[48:50:2].all() and changed[48].any()
    assert changed[48].equal(~zero[48] & (seen[48].argmax(-1) == 0))
    assert not changed[49:].any() and not context[33:48:2][zero[33:48:2]].all()
    assert new[33:48:2].float().mean() < 0.3


def test_the_tokens_of_the_loss_are_those_that_are_no_context_after_the_round():
    """`Run.loss` weighs the loss of a process by them."""
    times, (x1, prompt), model = [], half_puzzles(64), random_model()
    spy = lambda x, s, t: times.append(s) or model(x, s, t)
    _, tokens = training_loss(options_of(), spy, x1, draws_of(), prompt=prompt)
    assert tokens == (times[-1] < 1).sum()


def test_where_an_mdm_teaches_the_whole_batch_no_round_is_played():
    sizes, (x1, prompt), model = [], half_puzzles(8), random_model()
    spy = lambda x, s, t: sizes.append(len(x)) or model(x, s, t)
    training_loss(options_of("--teacher", "an MDM", "--distill", "1"), spy, x1, draws_of(),
                  mdm=fmlm.masked(model), prompt=prompt)
    assert sizes == [8]


@pytest.mark.parametrize("share", ["0", "0.25", "0.5", "0.75", "1"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_no_network_is_asked_about_no_rows(share, size):
    """A batch so small that it leaves no puzzle, or no board, off the diagonal."""
    sizes, (x1, prompt), model = [], half_puzzles(8), random_model()
    spy = lambda x, s, t: sizes.append(len(x)) or model(x, s, t)
    for row in range(0, 8, size):
        mine = slice(row, row + size)
        training_loss(options_of("--teacher", "an MDM", "--distill", share), spy, x1[mine],
                      draws_of(), mdm=fmlm.masked(spy), prompt=prompt[mine])
    assert sizes and all(sizes)


def test_a_round_makes_context_of_what_is_sure_and_of_a_puzzle_only_what_is_right():
    """Four cells of truth 0: context (drafted as 1, surely), sure and right, sure of 1, and of 0
    with 0.98."""
    noise = torch.randn(2, 4, 3, generator=Generator().manual_seed(1))
    truth, context = torch.eye(3)[torch.zeros(2, 4, dtype=int)], torch.zeros(2, 4, dtype=bool)
    context[:, 0] = True
    answer = torch.tensor([[0.0, 1, 0], [0.99, 0.01, 0], [0.005, 0.99, 0.005], [0.98, 0.01, 0.01]])

    def model(x, s, t):
        assert s.equal(context.float()) and t.equal(torch.ones(2, 4))
        assert x[:, 0].equal(truth[:, 0]) and x[:, 1:].equal(noise[:, 1:])
        return answer.double().log().expand(2, 4, 3)

    x1, later = after_a_round(model, truth, context, torch.tensor([True, False]), noise)
    assert later.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert x1.argmax(-1).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert x1.sum(-1).eq(1).all() and x1.dtype == truth.dtype


def test_a_run_shows_the_network_the_clues_that_it_drew(monkeypatch):
    seen, run = [], run_of("--puzzles", "5", "--steps", "2")
    monkeypatch.setitem(LOSSES, "fmlm+", lambda run, model, x1, prompt: (
        seen.append((x1, prompt)) or (torch.tensor(0.0), None)))
    for run.step in (0, 1):
        boards, prompt = run.draw()
        run.loss(run.network, (boards, prompt))
        assert seen[-1][0].argmax(-1).equal(boards)
        assert seen[-1][1] is prompt
    assert seen[0][1] is None and seen[1][1].any()


def test_puzzles_are_for_who_asks_and_9x9_has_them_by_itself_where_context_is_known():
    assert parse(["sudoku9"])[0].puzzles == 20_000 and parse([])[0].puzzles == 0
    assert parse(["sudoku9", "--objective", "flm"])[0].puzzles == 0
    assert parse(["--objective", "fmlm", "--puzzles", "5"])[0].puzzles == 5  # clean prompts
    for arguments in (["--puzzles", "-1"], ["--puzzles", "99999999"]):
        with pytest.raises(ValueError, match="--puzzles"):
            parse(arguments)


@pytest.mark.parametrize("arguments", [
    ["--puzzles", "5"], ["--puzzles", "5", "--lagrangian"], ["--objective", "mdm"],
    ["--objective", "mlfm"], ["--objective", "flm"], ["--objective", "fmlm"]], ids=" ".join)
def test_a_step_is_made_where_the_network_is_and_waits_for_no_value(arguments, monkeypatch):
    """On the meta device tensors have shapes and no values, so that to read one back, for which a
    GPU would have to be waited for, is an error, and so is to mix in a tensor of the CPU. It has no
    random state, no autocast and no fused optimizer."""
    monkeypatch.setattr(train, "Generator",
                        lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, **options: torch.optim.SGD(weights))
    options, task, _ = parse([*TINY, "--steps", "5", *arguments])
    options.device = torch.device("meta")
    run = Run(options, task)
    for _ in range(5):
        boards, prompt = run.draw()
        loss = run.loss(run.network, (boards, prompt))
        loss.backward()
        run.update()
    assert loss.is_meta and run.broken.is_meta and boards.is_meta
    assert prompt.is_meta if "--puzzles" in arguments else prompt is None


def test_training_takes_nothing_from_the_global_random_state():
    run = run_of("--steps", "5")
    before = torch.get_rng_state()
    steps(run, 1)
    assert torch.equal(before, torch.get_rng_state())


# ---- the paper's step, and the recipe as a layer on it

def test_there_is_one_loss_an_objective_and_none_knows_a_task():
    """Five sequences of three tokens over seven words, of no task; a model that is no network."""
    assert set(LOSSES) == set(OBJECTIVES) and len(LOSSES) == len(OBJECTIVES)
    x1 = torch.eye(7)[torch.randint(7, (5, 3), generator=Generator().manual_seed(1))]
    slope = torch.tensor(2.0, requires_grad=True)
    model = lambda x, s, t: (slope * x + t[..., None]).log_softmax(-1)
    for objective in (*OBJECTIVES, "mlfm"):
        flow = objective in ("fmlm", "fmlm+")
        for options in [[], ["--lagrangian"]] if flow else [[]]:
            run = hand_made(options_of("--objective", objective, *options), draws_of(), recipe=None,
                            vocab_size=7)
            loss, context = train.loss_of(objective)(run, model, x1, None)
            loss.backward()
            assert loss.shape == () and loss.isfinite() and slope.grad.isfinite()
            counts = 1 if objective == "mlfm" else 3  # sequences, or tokens
            assert context.shape == (5, counts) and context.dtype == torch.bool
            assert context.any() == (objective in ("fmlm+", "mdm", "flm+"))
            assert bool(run.parts) == flow


@pytest.mark.parametrize("target", ["semigroup", "lagrangian"])
@pytest.mark.parametrize("puzzles", [True, False], ids=["puzzles", "no puzzles"])
def test_without_the_recipe_the_batch_is_the_papers(puzzles, target, monkeypatch):
    """Context and times are what `sample_context` and `sample_times` draw, rows off the diagonal
    learn from the network, and puzzles are prompts from the first step on."""
    seen, loss = [], fmlm.flow_map_loss
    monkeypatch.setattr(fmlm, "flow_map_loss", lambda model, batch, *rest: (
        seen.append(batch) or loss(model, batch, *rest)))
    words = ["--puzzles", "5"] if puzzles else []
    run = run_of("--no-recipe", "--steps", "5", f"--{'' if target == 'lagrangian' else 'no-'}"
                 "lagrangian", *words)
    drawn = run.draw()
    assert run.step == 0 and (drawn[1] is not None) == puzzles
    again = draws_of()
    again.generator.set_state(run.draws.generator.get_state())
    run.loss(run.network, drawn)
    prompt = drawn[1] if puzzles else torch.zeros(8, 16, dtype=torch.bool)
    context, _ = fmlm.sample_context(prompt, again)
    s, t = fmlm.sample_times(8, 4, again, 1 / 32 if target == "semigroup" else 0)
    batch, = seen
    assert batch.x1.argmax(-1).equal(drawn[0]) and batch.x1.sum(-1).eq(1).all()
    assert batch.context.equal(context) and batch.s.equal(s) and batch.t.equal(t)
    assert [(name, rows) for name, rows, _ in batch.targets if rows] == [("data", 4), (target, 4)]
    assert batch.targets[0].of is None
    with_it = run_of("--steps", "5", *words)
    assert run.recipe is None and with_it.recipe is recipe


def test_the_recipe_makes_a_batch_of_a_batch_and_leaves_the_first_as_it_was():
    model, draws, (x1, prompt) = random_model(), draws_of(), half_puzzles(64)
    context, _ = fmlm.sample_context(prompt, draws)
    s, t = fmlm.sample_times(64, 32, draws)
    batch = Batch(x1, prompt, context, s, t, data_and_self(model, 64, 32))
    before = [part.clone() for part in batch[:5]]
    new = recipe(batch, model, draws)
    assert all(one.equal(other) for one, other in zip(batch[:5], before))
    assert new.prompt is prompt and new.s[:32].equal(s[:32]) and new.t[:32].equal(t[:32])
    assert new.context[:32].equal(context[:32]) and new.x1[:32].equal(x1[:32])
    targets = [(name, rows) for name, rows, _ in new.targets]
    assert targets == [("data", 32), ("puzzles", 16), ("semigroup", 16)]
    assert new.targets[1].of is None and new.targets[2].of is batch.targets[1].of
    assert ((new.s == 0) & (new.t == 1))[32:50].all()  # 16 puzzles, and an eighth of 16 boards


def test_the_recipe_moves_no_board_of_a_lagrangian_batch_to_0_1():
    model, draws, (x1, prompt) = random_model(), draws_of(), half_puzzles(64)
    context, _ = fmlm.sample_context(prompt, draws)
    s, t = fmlm.sample_times(64, 32, draws, boundary=0)
    own = Target("lagrangian", 32, partial(fmlm.lagrangian, model))
    new = recipe(Batch(x1, prompt, context, s, t, [Target("data", 32), own]), model, draws)
    assert ((new.s == 0) & (new.t == 1)).nonzero().ravel().tolist() == list(range(32, 48))
    assert new.s[48:].equal(s[48:]) and new.t[48:].equal(t[48:])
    assert new.context[48:].equal(context[48:]) and new.x1[48:].equal(x1[48:])
    assert [(name, rows) for name, rows, _ in new.targets] == [
        ("data", 32), ("puzzles", 16), ("lagrangian", 16)]


# ---- exact

def losses_of(arguments, monkeypatch, end_after=None):
    """Run the command and record its losses; `end_after` that many steps it gets a SIGTERM."""
    losses, loss, update = [], Run.loss, Run.update

    def recorded(self, model, drawn):
        value = loss(self, model, drawn)
        losses.append(float(value.detach()))
        return value

    def interrupted(self):
        update(self)
        if self.step == end_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "loss", recorded)
        patch.setattr(Run, "update", interrupted)
        assert train.main(arguments) == (128 + signal.SIGTERM if end_after else 0)
    return losses


def teacher_of(folder, objective, *arguments):
    """A checkpoint of that objective with random weights, as opinionated as any training's."""
    run = run_of("--objective", objective, "--steps", "5", *arguments)
    for model in (run.model, run.ema.model):
        model.load_state_dict(random_model().state_dict())
        if objective in ("flm", "mdm", "mlfm", "flm+"):  # the second time of these is silent
            for weight in model.time_t.mlp[-1].parameters():
                torch.nn.init.zeros_(weight)
    save_checkpoint(folder / f"{objective}.pt", run.state())
    return str(folder / f"{objective}.pt")


ROADS = {"fmlm+": ("fmlm+", None, []),
         "puzzles from step 20 on": ("fmlm+", None, ["--puzzles", "5"]),
         "mdm": ("mdm", None, []), "mlfm": ("mlfm", None, []),
         "an FLM's map": ("fmlm", "flm", []), "flm with prompts": ("flm", None, ["--puzzles", "5"]),
         "FLM+": ("flm+", None, []), "MDLM's weight": ("mdm", None, ["--weighting", "elbo"]),
         "by Muon": ("fmlm+", None, ["--optimizer", "muon"]),
         "taught by an MDM": ("fmlm+", "mdm", []),
         "Lagrangian, taught by an FMLM+": ("fmlm+", "fmlm+", ["--lagrangian"])}


@pytest.mark.parametrize("objective, teacher, options", ROADS.values(), ids=ROADS)
def test_20_steps_and_20_resumed_equal_40_bit_for_bit(objective, teacher, options, tmp_path,
                                                      monkeypatch):
    whole, halves = str(tmp_path / "whole.pt"), str(tmp_path / "halves.pt")
    arguments = [*TINY, "--objective", objective, "--steps", "40", *options]
    if teacher:
        arguments += ["--teacher", teacher_of(tmp_path, teacher)]
    expected = losses_of([*arguments, "--out", whole], monkeypatch)
    first = losses_of([*arguments, "--out", halves], monkeypatch, end_after=20)
    assert read_checkpoint(halves)["step"] == len(first) == 20
    second = losses_of(["--resume", halves, "--no-compile"], monkeypatch)
    assert first + second == expected and len(expected) == 40
    one, other = read_checkpoint(whole), read_checkpoint(halves)
    assert one.pop("seconds") > 0 < other.pop("seconds")
    assert same(one, other)  # weights, EMA, optimizer, random state, settings, schedule


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path, monkeypatch):
    one, again, other = (
        losses_of([*TINY, "--steps", "5", "--seed", seed, "--out", str(tmp_path / "run.pt")],
                  monkeypatch) for seed in "001")
    assert one == again != other and all(map(math.isfinite, one))


def test_a_run_by_steps_can_be_done_in_sittings_of_some_minutes(tmp_path, capsys):
    path = str(tmp_path / "run.pt")
    assert train.main([*ENDLESS, "--minutes", "0.002", "--out", path]) == 0
    first = read_checkpoint(path)
    assert 0 < first["seconds"] < 5
    assert train.main(["--resume", path, "--minutes", "0.002", "--device", "cpu"]) == 0
    second = read_checkpoint(path)
    assert second["step"] > first["step"] and second["began"] == dict(progress=0.0, at=0.0)


def test_a_run_whose_teacher_is_gone_says_which_and_goes_on_with_the_copy_that_it_is_given(
        tmp_path, capsys):
    path, teacher = str(tmp_path / "run.pt"), teacher_of(tmp_path, "mdm")
    assert train.main([*TINY, "--teacher", teacher, "--steps", "2", "--out", path]) == 0
    elsewhere = str(tmp_path / "elsewhere.pt")
    os.rename(teacher, elsewhere)
    capsys.readouterr()
    assert train.main(["--resume", path, "--steps", "4"]) == 2
    assert f"there is no checkpoint {teacher}" in sentence(capsys)
    assert read_checkpoint(path)["step"] == 2
    assert train.main(["--resume", path, "--steps", "4", "--teacher", elsewhere]) == 0
    state = read_checkpoint(path)
    assert state["step"] == 4
    assert state["options"]["teacher"] == [elsewhere] and state["options"]["distill"] == 0.25


def test_precision_is_part_of_a_run_and_resumed_with_it(tmp_path):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--steps", "2", "--no-bf16", "--out", path]) == 0
    assert parse(["--resume", path, "--steps", "4"])[0].bf16 is False


def test_the_recipe_is_part_of_a_run_and_resumed_with_it(tmp_path, capsys):
    path = str(tmp_path / "run.pt")
    assert train.main([*TINY, "--steps", "2", "--no-recipe", "--out", path]) == 0
    assert parse(["--resume", path, "--steps", "4"])[0].recipe is False
    capsys.readouterr()
    assert train.main(["--resume", path, "--steps", "4", "--recipe"]) == 2
    assert "is a run with recipe False, not True" in sentence(capsys)


# ---- a run that is given more

def watched(arguments, monkeypatch, end_after=None):
    """Run the command: progress, rate and whether puzzles are shown, at each step."""
    seen, loss, update = [], Run.loss, Run.update

    def recorded(self, model, drawn):
        seen.append([self.progress(), None, drawn[1] is not None])
        return loss(self, model, drawn)

    def updated(self):
        update(self)
        seen[-1][1] = self.optimizer.param_groups[0]["lr"]
        if self.step == end_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "loss", recorded)
        patch.setattr(Run, "update", updated)
        assert train.main(arguments) == (128 + signal.SIGTERM if end_after else 0)
    return zip(*seen)


def test_a_run_given_more_steps_stretches_what_is_left_of_its_schedule(tmp_path, monkeypatch):
    """6 of 8 steps are done, 3/4 of the schedule; 8 more are to do for the last quarter. The rate
    is 1 - 0.98 (2 progress - 1) of its peak, 2e-3."""
    path = str(tmp_path / "run.pt")
    arguments = [*TINY, "--warmup", "1", "--puzzles", "5", "--steps", "8", "--out", path]
    progress, rates, puzzles = watched(arguments, monkeypatch, end_after=6)
    assert progress == tuple(step / 8 for step in range(6))
    assert puzzles == (False,) * 4 + (True,) * 2
    later, lower, shown = watched(["--resume", path, "--no-compile", "--steps", "14"], monkeypatch)
    assert later == pytest.approx([0.75 + 0.25 * step / 8 for step in range(8)], abs=1e-12)
    assert lower == pytest.approx([2e-3 * (0.51 - 0.49 * step / 8) for step in range(8)])
    assert all(shown) and later[0] > progress[-1] and lower[0] < rates[-1]
    assert read_checkpoint(path)["step"] == 14 and read_checkpoint(path)["options"]["steps"] == 14


def test_a_finished_run_given_more_steps_goes_on_at_the_last_rate(tmp_path, monkeypatch):
    path = str(tmp_path / "run.pt")
    arguments = [*TINY, "--warmup", "1", "--puzzles", "5", "--steps", "4", "--out", path]
    assert train.main(arguments) == 0
    for more in (7, 9):
        progress, rates, puzzles = watched(["--resume", path, "--no-compile", "--steps", str(more)],
                                           monkeypatch)
        assert set(progress) == {1.0} and rates == pytest.approx([4e-5] * len(rates))
        assert all(puzzles) and read_checkpoint(path)["step"] == more


def test_a_run_given_more_steps_is_resumed_bit_for_bit_too(tmp_path, monkeypatch):
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    losses_of([*TINY, "--puzzles", "5", "--steps", "8", "--out", str(one)], monkeypatch, 3)
    other.write_bytes(one.read_bytes())
    longer = ["--no-compile", "--steps", "13"]
    expected = losses_of(["--resume", str(one), *longer], monkeypatch)
    losses = losses_of(["--resume", str(other), *longer], monkeypatch, end_after=9)
    losses += losses_of(["--resume", str(other), *longer], monkeypatch, end_after=11)
    losses += losses_of(["--resume", str(other), "--no-compile"], monkeypatch)
    assert losses == expected and len(losses) == 10
    one, other = read_checkpoint(one), read_checkpoint(other)
    assert one.pop("seconds") > 0 < other.pop("seconds")
    assert same(one, other) and one["began"] == dict(progress=3 / 8, at=3.0)


def resumed(state, *arguments):
    """A run by these words that goes on from another's state."""
    run = run_of(*arguments)
    runs.restore(run, state, "run.pt")
    return run


def progress_at(run, **places):
    for name, value in places.items():
        setattr(run, name, value)
    return run.progress()


def test_a_run_given_more_minutes_or_steps_for_minutes_stretches_its_schedule_too():
    """20 of 60 seconds and 5 steps are done. 4 minutes leave 220 s for two thirds of the schedule,
    45 steps 40 of them. Half of what was left is then done in the middle: 1/3 + 1/3."""
    run = run_of("--minutes", "1")
    run.seconds, run.step = 20.0, 5
    state = run.state()
    longer = resumed(state, "--minutes", "4")
    assert longer.progress() == pytest.approx(1 / 3, abs=1e-12) and not longer.over()
    assert progress_at(longer, seconds=130.0) == pytest.approx(2 / 3, abs=1e-12)
    assert progress_at(longer, seconds=240.0) == pytest.approx(1) and longer.over()
    same_length = resumed(state, "--minutes", "1")
    assert same_length.began == dict(progress=0.0, at=0.0)
    assert progress_at(same_length, seconds=30.0) == 0.5
    by_steps = resumed(state, "--steps", "45")
    assert by_steps.progress() == pytest.approx(1 / 3, abs=1e-12)
    assert progress_at(by_steps, step=25) == pytest.approx(2 / 3, abs=1e-12)
    assert progress_at(by_steps, step=45) == pytest.approx(1) and by_steps.over()
    longer.seconds, longer.step = 130.0, 9
    again = resumed(longer.state(), "--minutes", "5")  # 170 s for the last third
    assert again.progress() == pytest.approx(2 / 3, abs=1e-12)
    assert progress_at(again, seconds=215.0) == pytest.approx(5 / 6, abs=1e-12)


def test_a_run_given_fewer_steps_ends_there_and_one_that_has_done_them_is_refused():
    run = run_of("--steps", "40")
    run.step = 10
    shorter = resumed(run.state(), "--steps", "20")
    assert shorter.progress() == pytest.approx(1 / 4, abs=1e-12)
    assert progress_at(shorter, step=15) == pytest.approx(5 / 8, abs=1e-12)
    assert progress_at(shorter, step=20) == pytest.approx(1) and shorter.over()
    for few in ("10", "5"):
        with pytest.raises(ValueError, match="has done 10 steps already, so ask for more --steps"):
            resumed(run.state(), "--steps", few)


# ---- the clock of --bench

def test_bench_times_steps_with_all_that_a_task_brings_in_late(tmp_path, monkeypatch, capsys):
    """Puzzles, that is, which the first step of a real training does not see."""
    path, prompts, asked, loss, draw = tmp_path / "run.pt", [], [], Run.loss, Run.draw
    monkeypatch.setattr(Run, "draw", lambda run, progress=None: (
        asked.append(progress) or draw(run, progress)))
    monkeypatch.setattr(Run, "loss", lambda run, model, drawn: (
        prompts.append(drawn[1]) or loss(run, model, drawn)))
    words = [*TINY, "--puzzles", "5", "--out", str(path)]
    assert train.main([*words, "--bench", "4"]) == 0
    assert len(prompts) == 5 + 4 + 1 and set(asked) == {1.0}
    assert all(prompt is not None and prompt[2:6].any(1).all() for prompt in prompts)
    assert "ms per step" in capsys.readouterr().out and not path.exists()


# ---- safe

def command(arguments, log, environment=None, patches=None, file_size=None, slow_disk=0):
    """In a process of its own: train.py with these arguments; what it says goes into a file."""
    os.environ.update(environment or {})
    if slow_disk:
        os.fsync = lambda file: time.sleep(slow_disk)
    for name, value in (patches or {}).items():
        setattr(sitting, name, value)
    Sudoku.table = lambda task, path, device: 0
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.exit(train.main(arguments))


def start(*arguments, **others):
    process = PROCESSES.Process(target=command, args=arguments, kwargs=others)
    process.start()
    return process


def says(log, words):
    return log.exists() and words in log.read_text()


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "it ended, or hung for a minute"
        time.sleep(0.002)


def parts_in(folder):
    """What killed processes have left half written there."""
    return [file for file in folder.iterdir() if PART.fullmatch(file.name)]


def test_a_run_killed_at_20_random_moments_always_leaves_a_checkpoint_to_resume(tmp_path):
    path, log, rng = tmp_path / "run.pt", tmp_path / "log", random.Random(0)
    done, left = 0, 0
    written = lambda: path.exists() and path.stat().st_mtime_ns
    for turn in range(20):
        log.unlink(missing_ok=True)
        process = start(["--resume", str(path)] if turn else [*ENDLESS, "--out", str(path)],
                        str(log), patches={"SAVE_EVERY": 0}, slow_disk=0.02)  # after every step
        wait_for(path.exists if not turn else lambda: says(log, "checkpoint"), process)
        for _ in range(rng.randrange(5)):  # so many steps at least, and then at any moment
            last = written()
            wait_for(lambda: written() != last, process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        state = read_checkpoint(path)
        assert state["step"] >= done  # and what was saved once is never lost
        done, parts = state["step"], parts_in(tmp_path)
        left += len(parts)
        assert {*tmp_path.iterdir()} <= {path, log, *parts}
        for part in parts:  # as if the kill had been a while ago: then the next run sweeps them
            os.utime(part, (0, 0))
    assert done > 20 and left > 0
    assert train.main(["--resume", str(path), "--steps", str(done + 1), "--device", "cpu"]) == 0
    assert read_checkpoint(path)["step"] == done + 1
    assert {*tmp_path.iterdir()} == {path, log}  # nothing is left to confuse anyone


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number, status, tmp_path):
    path, log = tmp_path / "run.pt", tmp_path / "log"
    process = start([*ENDLESS, "--out", str(path)], str(log))  # it would save every minute only
    wait_for(lambda: says(log, "?step/s"), process)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == status and read_checkpoint(path)["step"] > 0
    assert "Traceback" not in log.read_text()


def test_after_training_signals_do_again_what_they_did_before(tmp_path):
    before = [signal.getsignal(number) for number in sitting.SIGNALS]
    assert train.main([*TINY, "--steps", "1", "--out", str(tmp_path / "run.pt")]) == 0
    assert {signal.SIGINT, signal.SIGTERM} <= set(sitting.SIGNALS)
    assert [signal.getsignal(number) for number in sitting.SIGNALS] == before


def test_a_disk_that_is_full_is_one_sentence_and_the_checkpoint_before_stays_whole(
        tmp_path, checkpoint):
    path, log = tmp_path / "run.pt", tmp_path / "log"
    path.write_bytes(checkpoint.read_bytes())
    words = [*TINY, "--steps", "3", "--out", str(path)]
    process = start(words, str(log), file_size=20_000)
    process.join(60)
    said = log.read_text()
    assert process.exitcode == 2 and said.count("train.py: ") == 1 and "Traceback" not in said
    assert f"train.py: cannot write {path} ({os.strerror(errno.EFBIG)})" in said
    assert path.read_bytes() == checkpoint.read_bytes() and not parts_in(tmp_path)


def refusing(times):
    """An os.fsync that refuses a file with something in it, the first `times` times."""
    refused = []

    def fsync(file):
        if os.fstat(file).st_size and len(refused) < times:
            refused.append(file)
            raise OSError(errno.ENOSPC, "No space left on device")

    return fsync


def test_a_disk_that_fails_at_the_last_moment_leaves_the_checkpoint_before(
        tmp_path, checkpoint, monkeypatch, capsys):
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr(os, "fsync", refusing(math.inf))
    assert train.main([*TINY, "--steps", "3", "--out", str(path)]) == 2
    assert "No space left on device" in sentence(capsys)
    assert path.read_bytes() == checkpoint.read_bytes() and [*tmp_path.iterdir()] == [path]


def test_a_disk_that_is_full_for_a_while_is_said_and_training_goes_on(
        tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.pt"
    monkeypatch.setattr(sitting, "SAVE_EVERY", 0)
    monkeypatch.setattr(os, "fsync", refusing(2))
    assert train.main([*TINY, "--steps", "5", "--out", str(path)]) == 0
    said = sentences(capsys)
    assert said and all(line.startswith(f"train.py: cannot write {path} ") for line in said)
    assert len(said) <= 2 and read_checkpoint(path)["step"] == 5 and [*tmp_path.iterdir()] == [path]


def test_a_folder_that_may_not_be_written_to_is_refused_before_training(
        tmp_path, monkeypatch, capsys):
    def refuse(*arguments):  # for root every folder may be written to
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    monkeypatch.setattr(Run, "draw", None)
    assert train.main([*TINY, "--steps", "3", "--out", str(tmp_path / "run.pt")]) == 2
    assert "cannot write" in sentence(capsys)


def infinite_slope(loss, model):
    """Adds 0 to the loss, with a gradient that is not a number."""
    return loss + (next(iter(model.parameters())).sum() * 0).sqrt()


@pytest.mark.parametrize("spoil", [lambda loss, model: loss * math.nan,
                                   lambda loss, model: loss * math.inf, infinite_slope],
                         ids=["loss nan", "loss infinite", "gradient nan"])
def test_what_is_not_finite_ends_the_run_names_the_step_and_overwrites_nothing(
        spoil, tmp_path, checkpoint, monkeypatch, capsys):
    path, loss = tmp_path / "run.pt", Run.loss
    path.write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr(sitting, "SAVE_EVERY", 0)
    monkeypatch.setattr(Run, "loss", lambda run, model, drawn: (
        spoil(loss(run, model, drawn), model) if run.step == 5 else loss(run, model, drawn)))
    assert train.main(["--resume", str(path), "--no-compile"]) == 1
    assert "step 6 is not finite" in sentence(capsys)
    assert path.read_bytes() == checkpoint.read_bytes() and [*tmp_path.iterdir()] == [path]


# ---- checkpoints from strangers

def test_200_damaged_copies_of_a_checkpoint_give_a_clear_error_or_the_same_run(
        tmp_path, checkpoint):
    path, whole, rng = tmp_path / "damaged.pt", checkpoint.read_bytes(), random.Random(0)
    original, run = read_checkpoint(checkpoint), run_of("--steps", "40")
    refused = 0
    for case in range(200):
        data = bytearray(whole)
        if case % 4 == 0:
            del data[rng.randrange(len(data)):]
        else:  # anywhere, or in the zip file's directory at its end, or at its start
            ranges = [(0, len(data)), (len(data) - 4000, len(data)), (0, 3000)]
            place = rng.randrange(*ranges[case % 4 - 1])
            for k in range(place, min(place + rng.choice([1, 1, 4, 64]), len(data))):
                data[k] = rng.randrange(256)
        path.write_bytes(data)
        try:
            _, _, state = parse(["--resume", str(path)])
            runs.restore(run, state, str(path))
        except ValueError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
            refused += 1
        else:
            assert same(state, original)
            assert same(dict(run.state(), seconds=0), dict(original, seconds=0))
    assert 100 < refused < 200


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["format", "model", "options", "optimizer"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(place, tmp_path, checkpoint):
    state, path = read_checkpoint(checkpoint), tmp_path / "evil.pt"
    torch.save(state | {place: Evil(str(tmp_path / "it ran"))}, path)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("number", [1, FORMAT + 1])
def test_a_checkpoint_of_another_format_is_refused_with_both_numbers(number, tmp_path, checkpoint):
    torch.save(read_checkpoint(checkpoint) | {"format": number}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=f"has format {number} and this code reads {FORMAT}"):
        read_checkpoint(tmp_path / "old.pt")


def format_2(state):
    """The same run as a dictionary of format 2: no state of a task, no start of a schedule, no word
    of prompts, and no choice of a recipe, weighting, optimizer or boundary."""
    assert (state["options"]["optimizer"], state["options"]["boundary"]) == ("adamw", 1 / 32)
    lacks = ("state", "began", "prompted", "started")
    old = {name: value for name, value in state.items() if name not in lacks}
    options = {name: value for name, value in state["options"].items()
               if name not in ("recipe", "weighting", "optimizer", "boundary")}
    return old | {"format": 2, "options": options}


def test_a_checkpoint_of_format_2_is_sampled_from_shipped_and_resumed_bit_for_bit(
        tmp_path, checkpoint, monkeypatch):
    three, two = tmp_path / "three.pt", tmp_path / "two.pt"
    three.write_bytes(checkpoint.read_bytes())
    torch.save(format_2(read_checkpoint(checkpoint)), two)
    (one, _), (other, info) = load_checkpoint(three), load_checkpoint(two)
    assert same(one.state_dict(), other.state_dict())
    assert tasks.load_task(info["task"], info["state"]).name == "sudoku4" and info["state"] == {}
    assert train.main(["--resume", str(two), "--ship", str(tmp_path / "shipped.pt")]) == 0
    shipped = load_checkpoint(tmp_path / "shipped.pt")[0].state_dict()
    assert same(shipped, {name: value.half().float() if value.is_floating_point() else value
                          for name, value in one.state_dict().items()})
    losses = [losses_of(["--resume", str(path), "--no-compile"], monkeypatch)
              for path in (three, two)]
    assert losses[0] == losses[1] and len(losses[0]) == 35
    one, other = read_checkpoint(three), read_checkpoint(two)
    assert one.pop("seconds") > 0 < other.pop("seconds") and one["format"] == FORMAT
    assert same(one, other)


def test_a_run_of_format_2_given_more_steps_stretches_its_schedule(tmp_path, checkpoint):
    """5 of 40 steps are done: an eighth."""
    torch.save(format_2(read_checkpoint(checkpoint)), tmp_path / "two.pt")
    run = resumed(read_checkpoint(tmp_path / "two.pt"), "--steps", "75")
    assert run.progress() == 1 / 8 and progress_at(run, step=40) == 9 / 16


@pytest.mark.parametrize("fill", ["nothing", "one element", "one storage for all"])
def test_a_checkpoint_that_asks_for_a_huge_network_is_refused_before_memory_is_taken(
        fill, tmp_path, checkpoint):
    network = dict(vocab_size=4, width=4096, depth=16, heads=1)  # 5 billion weights, 20 GB
    state, path = read_checkpoint(checkpoint) | {"network": network}, tmp_path / "huge.pt"
    shared_bytes = 0
    if fill != "nothing":
        shapes = build(state, tasks.load_task("sudoku4"), "meta").state_dict()
        shared = torch.zeros(1 if fill == "one element" else 4096 * 4096 * 6)
        state["model"] = {name: shared.expand(own.shape) if fill == "one element"
                          else shared[:own.numel()].view(own.shape) for name, own in shapes.items()}
        state["model"]["coords"] = sudoku.SHAPES["sudoku4"].coords()
        shared_bytes = shared.numel() * 4
    names = ("format", "task", "state", "objective", "network", "model")
    torch.save({name: state[name] for name in names}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in KiB
    assert taken < 200_000 + 2 * shared_bytes // 1024


def changed(state, *keys, to):
    """A copy of nested dictionaries with one value replaced by what `to` makes of it."""
    own = state.get(keys[0]) if isinstance(keys[0], str) else state[keys[0]]
    return {**state, keys[0]: changed(own, *keys[1:], to=to) if keys[1:] else to(own)}


NOT_HERE = "is of the task 'chess', which is not here"
SAMPLING = {  # what a stranger could write into the part that sampling reads
    "task unknown": (["task"], lambda old: "chess", NOT_HERE),
    "task of another type": (["task"], lambda old: ["sudoku4"]),
    "task of another size": (["task"], lambda old: "sudoku9"),
    "state of another type": (["state"], lambda old: []),
    "state of another task": (["state"], lambda old: {"words": ["a", "b"]}),
    "objective unknown": (["objective"], lambda old: "gpt"),
    "network missing": (["network"], lambda old: None),
    "width a word": (["network", "width"], lambda old: "16"),
    "width 0": (["network", "width"], lambda old: 0),
    "depth true": (["network", "depth"], lambda old: True),
    "heads do not divide": (["network", "heads"], lambda old: 3),
    "tau a word": (["network", "tau"], lambda old: "yes"),
    "tau a number": (["network", "tau"], lambda old: 1),
    "prompts a number": (["prompted"], lambda old: 1),
    "vocabulary": (["network", "vocab_size"], lambda old: 9),
    "no weights": (["model"], lambda old: {}),
    "a weight more": (["model"], lambda old: old | {"more": torch.zeros(1)}),
    "weight nan": (["model", "head.bias"], lambda old: old * math.nan),
    "weight complex": (["model", "head.bias"], lambda old: old.cfloat()),
    "weight in 8 bits": (["model", "head.bias"], lambda old: old.to(torch.float8_e4m3fn)),
    "weight on no device": (["model", "head.bias"], lambda old: old.to("meta")),
    "weight sparse": (["model", "head.weight"], lambda old: old.to_sparse()),
    "coordinates off the board": (["model", "coords"], lambda old: old + 99),
    "format a float": (["format"], float),
}
RESUMING = {  # and into the part that only training reads
    "no run": (["options"], lambda old: None),
    "no width": (["options"], lambda old: {"width": 16}),
    "other width": (["options", "width"], lambda old: 4096),
    "lr a word": (["options", "lr"], lambda old: "fast"),
    "lr infinite": (["options", "lr"], lambda old: math.inf),
    "batch huge": (["options", "batch"], lambda old: 10**12),
    "boards huge": (["options", "boards"], lambda old: 10**12),
    "seed huge": (["options", "seed"], lambda old: 10**99),
    "other task": (["options", "task"], lambda old: "sudoku9"),
    "task a tensor": (["options", "task"], lambda old: torch.ones(3)),
    "other objective": (["options", "objective"], lambda old: "mdm"),
    "step negative": (["step"], lambda old: -5), "step a word": (["step"], str),
    "seconds nan": (["seconds"], lambda old: math.nan),
    "updates missing": (["updates"], lambda old: None),
    "running nothing": (["running"], lambda old: {}),
    "running of one element": (["running", "head.weight"],
                               lambda old: torch.zeros(1).expand(old.shape)),
    "moments missing": (["optimizer"], lambda old: {}),
    "moments of another shape": (["optimizer", 0, "exp_avg"], lambda old: torch.zeros(7)),
    "moments of one element": (["optimizer", 0, "exp_avg_sq"],
                               lambda old: torch.zeros(1).expand(old.shape)),
    "random state of zeros": (["generator"], torch.zeros_like),
    "no start of the schedule": (["began"], lambda old: None),
    "start a word": (["began", "at"], lambda old: "0"),
    "start nan": (["began", "at"], lambda old: math.nan),
    "start later than the run": (["began", "at"], lambda old: 30.0),
    "progress 2": (["began", "progress"], lambda old: 2.0),
    "progress nan": (["began", "progress"], lambda old: math.nan),
    "steps negative": (["options", "steps"], lambda old: -5),
    "neither steps nor minutes": (["options", "steps"], lambda old: None),
    "recipe a word": (["options", "recipe"], lambda old: "yes"),
    "weighting unknown": (["options", "weighting"], lambda old: "log"),
    "optimizer unknown": (["options", "optimizer"], lambda old: "sgd"),
    "optimizer not its own": (["options", "optimizer"], lambda old: "muon"),
    "no teacher": (["options", "teacher"], lambda old: []),
    "teacher a number": (["options", "teacher"], lambda old: [7]),
}


@pytest.mark.parametrize("case", SAMPLING.values(), ids=SAMPLING)
def test_a_checkpoint_with_a_field_that_cannot_be_is_refused(case, tmp_path, checkpoint):
    keys, to, words = (*case, "is damaged or not a checkpoint of train.py")[:3]
    torch.save(changed(read_checkpoint(checkpoint), *keys, to=to), tmp_path / "strange.pt")
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "strange.pt")


@pytest.mark.parametrize("keys, to", RESUMING.values(), ids=RESUMING)
def test_a_run_with_a_field_that_cannot_be_is_not_resumed_but_still_sampled(
        keys, to, tmp_path, checkpoint, capsys):
    path = tmp_path / "strange.pt"
    torch.save(changed(read_checkpoint(checkpoint), *keys, to=to), path)
    before = path.read_bytes()
    assert train.main(["--resume", str(path), "--no-compile"]) == 2
    assert "Error" not in sentence(capsys)
    assert path.read_bytes() == before
    load_checkpoint(path)


def test_shipped_weights_are_half_precision_small_sampled_from_and_not_resumed(
        tmp_path, checkpoint, capsys):
    state, path = read_checkpoint(checkpoint), tmp_path / "shipped.pt"
    assert train.main(["--resume", str(checkpoint), "--ship", str(path)]) == 0
    small, before = read_checkpoint(path), checkpoint.read_bytes()
    assert set(small) == {"format", "task", "state", "objective", "network", "prompted", "model",
                          "options", "step", "seconds"}
    for name, weight in state["model"].items():
        half = small["model"][name]
        assert half.dtype == (torch.float16 if weight.is_floating_point() else torch.int64)
        assert half.equal(weight.to(half.dtype))
    assert all(small[name] == state[name] for name in small.keys() - {"model"})
    assert path.stat().st_size < len(before) / 2 and checkpoint.read_bytes() == before
    model, _ = load_checkpoint(path)
    nothing = torch.zeros(3, 16, dtype=torch.int64)
    boards = posterior_refinement(model, nothing, nothing.bool(), 4,
                                  generator=Generator().manual_seed(0))
    assert boards.shape == (3, 16) and ((boards >= 0) & (boards < 4)).all()
    capsys.readouterr()
    assert train.main(["--resume", str(path), "--no-compile"]) == 2
    assert "holds weights to sample from, but no training run to resume" in sentence(capsys)


def test_a_run_is_shipped_without_its_teacher_and_without_training(tmp_path, monkeypatch):
    path, teacher = str(tmp_path / "run.pt"), teacher_of(tmp_path, "mdm")
    assert train.main([*TINY, "--teacher", teacher, "--steps", "1", "--out", path]) == 0
    os.unlink(teacher)
    monkeypatch.setattr(train, "Run", None)
    assert train.main(["--resume", path, "--ship", str(tmp_path / "shipped.pt")]) == 0
    assert load_checkpoint(tmp_path / "shipped.pt")[1]["objective"] == "fmlm+"


def test_weights_alone_in_half_precision_are_enough_to_sample_and_say_that_they_cannot_be_resumed(
        tmp_path, checkpoint, capsys):
    state, path = read_checkpoint(checkpoint), str(tmp_path / "shipped.pt")
    half = {name: weight.half() if weight.is_floating_point() else weight
            for name, weight in state["model"].items()}
    names = ("format", "task", "state", "objective", "network")
    torch.save({name: state[name] for name in names} | {"model": half}, path)
    model, _ = load_checkpoint(path)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert train.main(["--resume", path]) == 2
    assert "holds weights to sample from, but no training run to resume" in sentence(capsys)


# ---- two processes

def two(function, *arguments):
    """function(rank, *arguments) in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "GLOO_SOCKET_IFNAME": "lo"}
    own = lambda rank: dict(world, RANK=str(rank), LOCAL_RANK=str(rank))
    processes = [PROCESSES.Process(target=function, args=(rank, own(rank), *arguments))
                 for rank in (0, 1)]
    for process in processes:
        process.start()
    return processes


def statuses(processes, seconds=60):
    for process in processes:
        process.join(seconds)
    alive = [process for process in processes if process.is_alive()]
    assert not alive, [process.kill() for process in alive]
    return [process.exitcode for process in processes]


def joint_batch():
    """Boards, contexts, times and noise of 8 sequences; row r of the last index is what process r
    takes. Half of each process's rows is on the diagonal; one process has far more context than the
    other, and a sequence that is nothing else."""
    draw = Generator().manual_seed(5)
    x1 = torch.eye(4)[torch.randint(4, (8, 16), generator=draw)]
    context = torch.rand(8, 16, generator=draw) < torch.tensor([0.9, 0.9, 0.1, 0.1] * 2)[:, None]
    context[5] = True
    s = torch.rand(8, generator=draw) / 2
    t = torch.cat([s[:4], s[4:] + 0.4])
    share = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7]])
    return x1, context, s, t, torch.randn(8, 16, 4, generator=draw), share


def gradients_of_its_share(rank, environment, objective, folder):
    os.environ.update(environment)
    dist.init_process_group("gloo")
    options, task, _ = parse([*TINY, "--objective", objective, "--steps", "5", "--no-bf16"])
    run = Run(options, task, rank, 2)
    drawn, stratified = [], Draws.stratified

    def recorded(draws, n):
        drawn.append(stratified(draws, n))
        return drawn[-1]

    Draws.stratified = recorded
    boards = run.draw()
    run.loss(run.network, boards)
    run.model.load_state_dict(random_model(type(run.model)).state_dict() | {
        name: buffer for name, buffer in run.model.named_buffers() if name in ("sigma", "curve")})
    x1, context, s, t, noise, share = joint_batch()
    mine = share[rank]
    Draws.stratified = lambda draws, n: t[mine]
    Draws.normal = lambda draws, *shape: noise[mine]
    fmlm.sample_context = lambda prompt, draws: (context[mine], None)
    mlfm.sample_bridge_context = lambda prompt, draws: context[mine]
    mlfm.sample_bridge_times = lambda n, draws, sigma, curve: t[mine]
    fmlm.sample_times = lambda n, diagonal, draws, boundary=0, distilled=0: (s[mine], t[mine])
    run.loss(run.network, (x1[mine].argmax(-1), None)).backward()
    gradients = {name: weight.grad for name, weight in run.model.named_parameters()
                 if weight.grad is not None}
    torch.save({"gradients": gradients, "strata": drawn[0], "boards": boards[0],
                "curve": getattr(run.model, "curve", None)},
               Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("objective", ["fmlm+", "mdm", "flm", "mlfm"])
def test_two_processes_average_to_the_gradients_of_one_with_the_joint_batch(objective, tmp_path):
    assert statuses(two(gradients_of_its_share, objective, str(tmp_path))) == [0, 0]
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model = random_model(mlfm.BridgeDenoiser if objective == "mlfm" else Denoiser,
                         **dict(tau=True) if objective == "flm" else {})
    if objective == "mlfm":
        model.sigma.fill_(0.5)
    x1, context, s, t, noise, share = joint_batch()
    model.time_t.requires_grad_(objective == "fmlm+")
    tau = fmlm.inverse_decoding_time(t, 4)  # the times of an FLM are drawn in decoding time
    batch = Batch(x1, None, context, s, t, data_and_self(model, 8, 4))
    loss = {"mdm": lambda: fmlm.mdm_loss(model, x1, context),
            "flm": lambda: fmlm.flm_loss(model, x1, tau, noise),
            "mlfm": lambda: fmlm.mlfm_loss(model, x1, context, t, noise, 0.5),
            "fmlm+": lambda: fmlm.flow_map_loss(model, batch, noise)}[objective]()
    loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()
                if weight.grad is not None}
    assert same(both[0]["gradients"], both[1]["gradients"])
    assert both[0]["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(both[0]["gradients"][name], gradient, rtol=1e-4, atol=1e-7,
                                   msg=name)
    if objective == "mlfm":  # the law of both is what both have measured
        assert both[0]["curve"].equal(both[1]["curve"])
        assert (both[0]["curve"] != model.curve).sum() > 1
    # Their own draws: other boards each, and one uniform in every stratum of the joint batch.
    assert not torch.equal(both[0]["boards"], both[1]["boards"])
    strata = torch.cat([one["strata"] for one in both])
    assert (strata * 8).floor().sort().values.tolist() == list(range(8))


def command_of_two(rank, environment, arguments, folder):
    command(arguments, str(Path(folder) / f"log{rank}"), environment, {"SAVE_EVERY": 0})


def test_of_two_processes_only_the_first_writes_and_prints(tmp_path):
    path, folder = tmp_path / "run.pt", str(tmp_path)
    new = [*TINY, "--steps", "3", "--out", str(path)]
    assert statuses(two(command_of_two, new, folder)) == [0, 0]
    assert (tmp_path / "log1").read_text() == ""
    assert "3 steps in" in (tmp_path / "log0").read_text()
    assert read_checkpoint(path)["step"] == 3
    more = ["--resume", str(path), "--steps", "5"]
    assert statuses(two(command_of_two, more, folder)) == [0, 0]
    assert read_checkpoint(path)["step"] == 5


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(receiver, tmp_path):
    path = tmp_path / "run.pt"
    processes = two(command_of_two, [*ENDLESS, "--out", str(path)], str(tmp_path))
    wait_for(path.exists, processes[0])  # after the first step, which both took
    os.kill(processes[receiver].pid, signal.SIGTERM)
    assert statuses(processes, 20) == [143, 143] and read_checkpoint(path)["step"] > 0


def environment_of(processes, monkeypatch):
    """That of torchrun, in the first of so many."""
    words = dict(WORLD_SIZE=str(processes), RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for name, value in words.items():
        monkeypatch.setenv(name, value)


def test_the_lagrangian_target_in_several_processes_is_refused_in_one_sentence(
        tmp_path, monkeypatch, capsys):
    environment_of(2, monkeypatch)
    words = [*TINY, "--lagrangian", "--steps", "3", "--out", str(tmp_path / "run.pt")]
    assert train.main(words) == 2
    assert "--lagrangian trains in one process" in sentence(capsys)


def test_weights_are_not_shipped_over_the_run_that_they_are_of(checkpoint, capsys):
    before = checkpoint.read_bytes()
    assert train.main(["--resume", str(checkpoint), "--ship", str(checkpoint)]) == 2
    assert "to another file" in sentence(capsys) and checkpoint.read_bytes() == before


def test_a_batch_that_does_not_divide_is_one_sentence_of_the_first_process(
        tmp_path, monkeypatch, capsys):
    environment_of(3, monkeypatch)
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        assert train.main([*TINY, "--steps", "3", "--out", str(tmp_path / "run.pt")]) == 2
    assert "--batch 8 must be a multiple of the 3 processes" in sentence(capsys)


# ---- fast

def test_a_compiled_network_learns_what_the_network_learns(checkpoint):
    gradients = []
    for option in "--compile", "--no-compile":
        run = run_of("--objective", "mdm", option, "--no-bf16", "--steps", "1")
        if option == "--compile" and isinstance(run.network, Denoiser):
            pytest.skip("there is no compiler here")
        for weight in run.model.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
        run.loss(run.network, run.draw()).backward()
        gradients.append([weight.grad for weight in run.model.parameters()
                          if weight.requires_grad])
    assert all((one - two).abs().max() < 1e-6 < two.abs().max()
               for one, two in zip(*gradients, strict=True))
    assert not isinstance(load_checkpoint(checkpoint, compile=True)[0], Denoiser)


def test_without_a_compiler_the_network_is_used_as_it_is(checkpoint, monkeypatch, capsys):
    def missing(*arguments, **settings):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", missing)
    assert isinstance(run_of("--compile", "--steps", "1").network, Denoiser)
    assert "does not work here" in capsys.readouterr().err
    assert isinstance(load_checkpoint(checkpoint, compile=True)[0], Denoiser)


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    """M_MMAP_THRESHOLD is -3 and its largest value 32 MiB, M_TRIM_THRESHOLD is -1 (malloc.h)."""
    asked = []
    library = SimpleNamespace(mallopt=lambda *pair: asked.append(pair))
    for library in library, SimpleNamespace():
        monkeypatch.setattr(checkpoints.ctypes, "CDLL", lambda name: library)
        checkpoints.keep_memory()
    assert asked == [(-3, 32 * 1024**2), (-1, 2**31 - 1)]
