"""What this project adds to the paper's training batch for Sudoku; `train.py --no-recipe` leaves it
out. Published (2606.24773): puzzles are prompts in every row of a training of their own, off the
diagonal 1/32 of the rows are at (0, 1), and no row goes on from a round of refinement.

Half of the rows are puzzles, boards whose clues are a prompt, once boards are half learned. A
puzzle with one solution flows there from any noise, so off the diagonal too its target is the data,
and all of them are asked where samplers ask: at (0, 1), with little context beside the clues, and
every other one with what a round of Posterior Refinement has made of it. sudoku/FINDINGS.md says
what each of these is worth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fmlm import Batch, Draws, Model, interpolate
from harness.recipes import learn_data_at_0_1

BOARDS_FIRST = 1 / 2  # share of the schedule before puzzles come in; published: boards or puzzles
BOARDS_AT_01 = 1 / 8  # share of the boards off the diagonal that are at (0, 1); published: 1/32
CONTEXT_KEPT = 1 / 4  # share of the random context that is left at (0, 1); published: all
SURE_P_MAX = 0.99  # p_max from which a draft is context for every other row; published: no such row


def recipe(batch: Batch, model: Model, draws: Draws) -> Batch:
    """A batch with puzzles in `decided_rows` (a prompt of their clues), as samplers will ask it.

    See `learn_data_at_0_1`. A batch too small to have such rows stays as it is, and one on the
    diagonal alone.
    """
    batch, asked = learn_data_at_0_1(batch, "puzzles", BOARDS_AT_01)
    if asked.start == asked.stop:
        return batch
    later = slice(asked.start, asked.stop, 2)
    context, x1 = batch.context.clone(), batch.x1.clone()
    kept = draws.uniform(*context.shape) < CONTEXT_KEPT
    context[asked] &= batch.prompt[asked] | kept[asked]
    x1[later], context[later] = after_a_round(model, x1[later], context[later],
                                              batch.prompt[later].any(1),
                                              draws.normal(*x1.shape)[later])
    return batch._replace(x1=x1, context=context)


@torch.no_grad()
def after_a_round(model: Model, x1: Tensor, context: Tensor, decided: Tensor,
                  noise: Tensor) -> tuple[Tensor, Tensor]:
    """x1 (B, L, V) and context (B, L) after one round of Posterior Refinement: what delta_{0,1} is
    sure of is context too. Where the context leaves one solution (`decided`, (B,) bool) only what
    is right; else the draft is x1 from there on."""
    s = context.to(x1.dtype)
    p_max, draft = model(interpolate(x1, noise, s), s, torch.ones_like(s)).exp().max(-1)
    right = draft == x1.argmax(-1)
    sure = ~context & (p_max >= SURE_P_MAX) & (right | ~decided[:, None])
    drafted = F.one_hot(draft, x1.shape[-1]).to(x1.dtype)
    return torch.where(sure[..., None], drafted, x1), context | sure
