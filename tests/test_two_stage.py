"""FMLM in two stages (2602.16813 as released), on the exact model of three sequences; and its runs.

The exact model stands in for the teacher, EXACT(x, s, s) = log D_s, and gives the exact g, what a
jump adds to the Euler step: with both, stage 1 has nothing to learn.
"""

import torch
import torch.nn.functional as F
from torch import nn

import fmlm
from baselines import two_stage
from fmlm import flow_map, interpolate, midpoint, midpoint_in_tau, token_times
from toy.exact import Exact

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
