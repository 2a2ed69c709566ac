"""FMLM in two stages (2602.16813 as released), on the exact model of three sequences; and its runs.

The exact model stands in for the teacher, EXACT(x, s, s) = log D_s, and gives the exact g, what a
jump adds to the Euler step: with both, stage 1 has nothing to learn.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fmlm
import sample
import train
from baselines import two_stage
from fmlm import flow_map, interpolate, midpoint, midpoint_in_tau, token_times
from harness import runs
from harness.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from harness.options import parse
from sudoku import evaluate
from toy.exact import Exact
from train import Run

EXACT = Exact([[0, 1, 2], [2, 1, 0], [1, 1, 1]], [0.5, 0.3, 0.2])
LINE = torch.arange(3)[:, None]
in_tau = lambda s, t: midpoint_in_tau(s, t, 3)


class Stub(nn.Module):
    """A module whose forward and logits are a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = self.logits = function


def exact_g(x, s, t):
    """g = 2 (X_{s,t} - x - D v) / D^2, from the exact flow map and the exact velocity; s < t."""
    delta, denoised = EXACT(x, s, t).exp(), EXACT(x, s, s).exp()
    end, v, by = flow_map(x, delta, s, t), fmlm.velocity(x, denoised, s), (t - s)[..., None]
    return torch.where(by > 0, 2 * (end - x - by * v) / by.where(by > 0, 1.0) ** 2, 0.0)


def residual(g):
    """The residual map with the exact teacher and this g."""
    model = two_stage.Residual(3, LINE, width=8, depth=1, heads=1)
    model.teacher, model.body = Stub(EXACT), Stub(g)
    return model


def points(n=40, seed=0):
    """x_s, s < t <= 1 of n sequences, one time a sequence; every second has a clean first token."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(EXACT.weights, n, True, generator=generator)
    x1 = F.one_hot(EXACT.sequences[rows], 3).double()
    s, t = (torch.rand(2, n, generator=generator).double() * 0.8).sort(0).values
    t[::5], s[::10] = 1, 0
    context = torch.zeros(n, 3, dtype=torch.bool)
    context[::2, 0] = True
    s, t = token_times(s, context), token_times(t, context)
    return interpolate(x1, torch.randn(x1.shape, generator=generator).double(), s), s, t, context


def test_with_the_exact_g_the_residual_map_is_the_exact_flow_map():
    x, s, t, context = points()
    model = residual(exact_g)
    found, exact = model(x, s, t), EXACT(x, s, t).exp()
    assert ((found - exact).abs().amax(-1) * ~context).max() < 1e-6
    by = (t - s)[..., None]
    v = fmlm.velocity(x, EXACT(x, s, s).exp(), s)
    assert (x + by * v + by**2 / 2 * exact_g(x, s, t) - flow_map(x, found, s, t)).abs().max() < 1e-9


def test_with_the_exact_teacher_and_g_the_loss_is_zero_and_the_target_is_the_exact_map():
    x, s, t, context = points()
    model = residual(exact_g)
    for halve in (midpoint, in_tau):
        denoised = EXACT(x, s, s).exp()
        target = two_stage.half_jumps(model, EXACT, x, s, t, denoised, halve)
        assert ((target - EXACT(x, s, t).exp()).abs().amax(-1) * ~context).max() < 1e-6
        loss = two_stage.residual_loss(model, EXACT, x, s, t, halve)
        assert (loss * ~context).max() < 1e-10


def test_a_zero_g_is_the_euler_step_and_its_target_two_of_them_on_the_way():
    x, s, t, context = points()
    model = residual(lambda x, s, t: torch.zeros_like(x))
    euler = x + (t - s)[..., None] * fmlm.velocity(x, EXACT(x, s, s).exp(), s)
    assert (flow_map(x, model(x, s, t), s, t) - euler).abs().max() < 1e-12
    u = (s + t) / 2
    half = x + (u - s)[..., None] * fmlm.velocity(x, EXACT(x, s, s).exp(), s)
    end = half + (t - u)[..., None] * fmlm.velocity(half, EXACT(half, u, u).exp(), u)
    target = two_stage.half_jumps(model, EXACT, x, s, t, EXACT(x, s, s).exp(), midpoint)
    assert ((flow_map(x, target, s, t) - end).abs().amax(-1) * ~context).max() < 1e-12
    loss = two_stage.residual_loss(model, EXACT, x, s, t, midpoint)
    assert (loss[~context].mean() > 1e-3), "what the Euler step misses is to be learned"


def test_the_compressed_student_learns_the_end_of_the_map():
    x, s, t, context = points()
    model = residual(exact_g)
    assert (two_stage.compressed_loss(EXACT, model, x, s, t) * ~context).max() < 1e-10
    other = torch.zeros_like(x).log_softmax(-1)
    loss = two_stage.compressed_loss(lambda *_: other, model, x, s, t)
    by = ((t - s) / (1 - s)).nan_to_num()
    expected = by**2 * (EXACT(x, s, t).exp() - 1 / 3).square().sum(-1)  # of two ends, from one x
    assert ((loss - expected) * ~context).abs().max() < 1e-9


# ---- the runs

TINY = ("sudoku4 --width 16 --depth 1 --heads 1 --batch 8 --warmup 1 --no-compile --no-table "
        "--device cpu").split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each stage after the one before it; the FLM with weights of some size."""
    folder, made = tmp_path_factory.mktemp("stages"), {}
    for objective, before in (("flm", None), ("fmlm-residual", "flm"),
                              ("fmlm-compressed", "fmlm-residual")):
        made[objective] = str(folder / f"{objective}.pt")
        teacher = ["--teacher", made[before]] if before else []
        assert train.main([*TINY, "--objective", objective, *teacher, "--lr", "0.02", "--steps",
                           "8", "--puzzles", "5", "--out", made[objective]]) == 0
    return made


def run_of(*arguments):
    options, task, _ = parse([*TINY, "--steps", "4", *arguments])
    return Run(options, task)


def steps(run, n):
    losses = []
    for _ in range(n):
        loss = run.loss(run.network, run.draw())
        loss.backward()
        run.update()
        losses.append(loss.item())
    return losses


def inputs(n=6):
    generator = torch.Generator().manual_seed(5)
    s, t = torch.rand(2, n, 16, generator=generator).sort(0).values
    return torch.randn(n, 16, 4, generator=generator), s, t


def test_each_stage_starts_as_the_flm_and_stage_1_as_its_euler_step(files):
    flm, (x, s, t) = load_checkpoint(files["flm"])[0], inputs()
    expected = flm(x, s, s).exp()
    assert expected.std() > 0.01
    run = run_of("--objective", "fmlm-residual", "--teacher", files["flm"])
    for model in (run.model, run.ema.model):
        assert model(x, s, t).equal(expected), "g is zero"
        assert model.body.embed.weight.equal(flm.embed.weight), "its body is the teacher's"
        assert model.log_weight(s).abs().max() == 0
    run = run_of("--objective", "fmlm-compressed", "--teacher", files["fmlm-residual"])
    for model in (run.model, run.ema.model):
        assert model(x, s, t).exp().equal(expected)


def test_the_teacher_inside_the_residual_map_stays_what_it_is_and_all_else_learns(files):
    run = run_of("--objective", "fmlm-residual", "--teacher", files["flm"])
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    steps(run, 4)
    for name, weight in run.model.named_parameters():
        assert weight.equal(before[name]) == name.startswith("teacher."), name
    averaged = dict(run.ema.model.named_parameters())
    assert all(averaged[name].equal(weight) == name.startswith("teacher.")
               for name, weight in before.items())
    flm = load_checkpoint(files["flm"])[0].state_dict()
    held = load_checkpoint(files["fmlm-residual"])[0].teacher.state_dict()
    assert flm.keys() == held.keys() and all(held[name].equal(flm[name]) for name in flm)


@pytest.mark.parametrize("objective, teacher", [("fmlm-residual", "flm"),
                                                ("fmlm-compressed", "fmlm-residual")])
def test_a_stage_resumed_goes_on_bit_for_bit(objective, teacher, files, tmp_path):
    arguments = ["--objective", objective, "--teacher", files[teacher], "--puzzles", "5"]
    whole, first, second = (run_of(*arguments) for _ in range(3))
    expected, losses = steps(whole, 4), steps(first, 2)
    save_checkpoint(tmp_path / "run.pt", first.state())
    runs.restore(second, read_checkpoint(tmp_path / "run.pt"), "run.pt")
    assert losses + steps(second, 2) == expected
    for one, other in zip(whole.ema.model.parameters(), second.ema.model.parameters()):
        assert one.equal(other)
    path = str(tmp_path / "shipped.pt")
    assert train.main(["--resume", str(tmp_path / "run.pt"), "--ship", path]) == 0
    assert read_checkpoint(path)["prompted"] and read_checkpoint(path)["network"]["tau"]
    assert train.main(["--resume", str(tmp_path / "run.pt"), "--steps", "5"]) == 0


@pytest.mark.parametrize("objective, share", [("fmlm-residual", 1 / 64),
                                              ("fmlm-compressed", 1 / 128)])
def test_times_are_uniform_diff_in_tau_the_share_at_0_1_is_the_published_and_passes_are_counted(
        objective, share, files):
    """Of 512 rows: s < t, tau(t) - tau(s) stratified but for those at (0, 1)."""
    teacher = "flm" if objective == "fmlm-residual" else "fmlm-residual"
    run, asked = run_of("--objective", objective, "--teacher", files[teacher]), []
    passes = []
    for network in run.model.modules():
        if isinstance(network, fmlm.Denoiser):
            network.logits = partial(lambda logits, *of: passes.append(1) or logits(*of),
                                     network.logits)
    model = lambda *of: asked.append(of) or run.model(*of)
    x1 = F.one_hot(torch.randint(4, (512, 16)), 4).float()
    prompt = torch.zeros(512, 16, dtype=torch.bool)
    prompt[:, :3] = True
    _, context = two_stage.LOSSES[objective](run, model, x1, prompt)
    x, s, t = asked[-1][:3]
    assert context.equal(prompt) and x[prompt].equal(x1[prompt])
    assert (s[prompt] == 1).all() and (t[prompt] == 1).all()
    s, t = s[:, 5].double(), t[:, 5].double()
    pinned = (s == 0) & (t == 1)
    assert int(pinned.sum()) == round(512 * share) and (s < t).all()
    gaps = (fmlm.decoding_time(t, 4) - fmlm.decoding_time(s, 4))[~pinned]
    assert (torch.histc(gaps, 512, 0, 1) > 1).sum() <= 8, "rounding may move one over an edge"
    # stage 1: g thrice and the teacher inside not once (it is asked through run.teacher, twice)
    assert len(passes) == (3 + 2 if objective == "fmlm-residual" else 1)


def test_the_learned_weight_is_at_rest_where_it_is_the_log_of_the_error(files):
    """exp(-w) L + w: with w = 0 it is L, and its slope in w is 1 - L exp(-w)."""
    run = run_of("--objective", "fmlm-residual", "--teacher", files["flm"], "--no-bf16")
    loss = run.loss(run.network, run.draw())
    loss.backward()
    error, bias = float(run.parts["error"]), run.model.weight[1].bias
    assert loss.item() == pytest.approx(error, rel=1e-5)
    assert float(bias.grad) == pytest.approx(1 - error, rel=1e-4)


@pytest.mark.parametrize("objective", ["fmlm-residual", "fmlm-compressed"])
def test_each_stage_draws_solves_and_is_evaluated_by_the_commands(objective, files, capsys):
    path = files[objective]
    for sampler in ("flow-map-tau", "flow-map"):
        assert sample.main([path, "-n", "2", "--nfe", "3", "--sampler", sampler]) == 0
        assert f"of 2 valid, {sampler}, 3 network passes" in capsys.readouterr().out
    assert sample.main([path, "--puzzle", "1..4............", "--trace"]) == 0
    assert "of 1 solved, flow-map-tau" in capsys.readouterr().out
    assert evaluate.main([path, "-n", "3", "--nfe", "2", "--clues", "6", "--json"]) == 0
    assert "puzzles" in capsys.readouterr().out


def test_a_sampler_follows_the_residual_map_jump_for_jump(files):
    """Its clean point may lie off the simplex, so no logarithm may come between."""
    model, known = load_checkpoint(files["fmlm-residual"])[0], torch.zeros(4, 16).bool()
    for weight in model.body.head.parameters():
        nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(1))
    sampler = two_stage.SAMPLERS["flow-map"].run
    tokens = sampler(model, known.long(), known, 2, generator=torch.Generator().manual_seed(2))
    x = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(2))
    zero, half, one = (torch.full((4, 16), time) for time in (0.0, 0.5, 1.0))
    with torch.no_grad():
        first = model(x, zero, half)
        last = model(flow_map(x, first, zero, half), half, one)
    assert first.min() < 0 and tokens.equal(last.argmax(-1))
