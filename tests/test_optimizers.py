"""Muon: whose weights it moves, and by what."""

import copy

import pytest
import torch

from fmlm import Denoiser
from harness.optimizers import make, orthogonal
from train import Run, parse

ONES = 0.6964364094697522  # the polynomial 3.4445 s - 4.775 s^3 + 2.0315 s^5, five times, of 1


def network():
    torch.manual_seed(0)
    return Denoiser(7, torch.arange(5)[:, None], width=8, depth=2, heads=2)


def matrices(optimizer):
    return optimizer.param_groups[1]["params"]


def give_gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = scale * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("rows, columns", [(4, 9), (9, 4), (4, 4)])
def test_orthogonal_keeps_singular_vectors_and_maps_each_singular_value_by_the_polynomial(rows,
                                                                                          columns):
    torch.manual_seed(1)
    u, _ = torch.linalg.qr(torch.randn(rows, 4, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, 4, dtype=torch.float64))
    s = torch.tensor([3.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    mapped = s / s.norm()
    for _ in range(5):
        mapped = 3.4445 * mapped - 4.775 * mapped**3 + 2.0315 * mapped**5
    assert (orthogonal(u * s @ v.T) - u * mapped @ v.T).abs().max() < 1e-6
    assert ((mapped > 0.68) & (mapped < 1.21)).all()
    assert orthogonal(torch.zeros(rows, columns)).equal(torch.zeros(rows, columns))


def test_of_several_matrices_each_is_made_orthogonal_by_itself():
    torch.manual_seed(2)
    several = torch.randn(3, 4, 6)
    assert (orthogonal(several) - torch.stack(list(map(orthogonal, several)))).abs().max() < 1e-6


def test_its_matrices_are_the_four_of_every_block_and_no_other_weight():
    model = network()
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert [names[id(weight)] for weight in matrices(make("muon", model, 1e-3, False))] == [
        f"blocks.{block}.{name}.weight"
        for block in (0, 1) for name in ("qkv", "out", "up", "down")]


@pytest.mark.parametrize("objective", ["fmlm+", "ar", "duo", "candi", "sflm", "mlfm"])
def test_it_finds_the_blocks_of_every_system_and_moves_them(objective):
    """The gates of a fresh network are zero: from the second step on its blocks have gradients."""
    words = ["sudoku4", "--objective", objective, "--optimizer", "muon", "--steps", "5", "--batch",
             "8", "--width", "8", "--depth", "3", "--heads", "1", "--no-compile", "--device", "cpu"]
    options, task, _ = parse(words)
    run = Run(options, task)
    before = [weight.detach().clone() for weight in matrices(run.optimizer)]
    for _ in range(4):
        run.loss(run.network, run.draw()).backward()
        run.update()
    assert len(before) == 3 * 4 and run.finite()
    assert not any(map(torch.equal, before, matrices(run.optimizer)))


def test_text_and_9x9_are_trained_by_muon_unless_told_otherwise_and_all_else_by_adamw():
    assert [parse(words)[0].optimizer for words in (
        ["text"], ["text", "--optimizer", "adamw"], ["stories"], ["sudoku9"], ["sudoku6"])] == [
            "muon", "adamw", "adamw", "muon", "adamw"]


def test_two_steps_of_a_matrix_by_hand():
    """Gradients G and -0.9 G, G of rank one: momentum 0.05 G, then 0.0025 G. What is made
    orthogonal is 0.0975 G, then -0.042625 G: the second step goes back, against its momentum."""
    model, lr = network(), 0.01
    optimizer = make("muon", model, lr, False)
    weight = model.blocks[1].up.weight
    before, direction = weight.detach().clone(), torch.zeros(32, 8)
    direction[3, 5] = 1
    size = lr * 0.2 * 32**0.5 * ONES
    weight.grad = 7 * direction
    optimizer.step()
    assert (weight - (before - size * direction)).abs().max() < 1e-7
    weight.grad = -0.9 * 7 * direction
    optimizer.step()
    assert (weight - before).abs().max() < 1e-7
    assert (optimizer.state[weight]["exp_avg"] - 0.0025 * 7 * direction).abs().max() < 1e-7


def test_all_other_weights_step_as_adamw_does():
    model = network()
    other, first = copy.deepcopy(model), copy.deepcopy(model)
    muon, adamw = make("muon", model, 1e-3, False), make("adamw", other, 1e-3, False)
    for step in range(3):
        for each, optimizer in ((model, muon), (other, adamw)):
            give_gradients(each, step)
            optimizer.step()
    own = {id(weight) for weight in matrices(muon)}
    for mine, its, old in zip(*(each.parameters() for each in (model, other, first))):
        assert mine.equal(its) == (id(mine) not in own) and not mine.equal(old)


def test_the_size_of_its_steps_is_no_matter_of_the_gradients():
    steps = []
    for scale in (1e-3, 1e3):
        model = network()
        before = copy.deepcopy(model)
        optimizer = make("muon", model, 1e-3, False)
        give_gradients(model, 3, scale)
        optimizer.step()
        steps.append(model.blocks[0].qkv.weight - before.blocks[0].qkv.weight)
    assert (steps[0] - steps[1]).abs().max() < 1e-6 < steps[0].abs().max()


def test_in_bfloat16_a_step_is_nearly_the_same():
    """Three digits of the singular vectors: 5 rounds of products with 2^-9 each, in 8 columns."""
    models = [network(), network()]
    for model, bf16 in zip(models, (False, True)):
        optimizer = make("muon", model, 1e-3, bf16)
        give_gradients(model, 4)
        optimizer.step()
    one, other = (model.blocks[0].out.weight - network().blocks[0].out.weight for model in models)
    assert 0 < (one - other).norm() / one.norm() < 0.05
