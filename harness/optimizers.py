"""What a training run takes its steps with: AdamW, as published, or Muon."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmlm import Block


class Muon(torch.optim.AdamW):
    """Muon (K. Jordan et al., 2024, kellerjordan.github.io/posts/muon) for the matrices W (R, C) of
    the blocks, of gradient G; AdamW for all other weights:

        M <- 0.95 M + 0.05 G,   W <- W - lr 0.2 sqrt(max(R, C)) orthogonal(0.95 M + 0.05 G)

    The factor gives a step the size that AdamW's has, so that one rate suits both (2502.16982).
    """

    MOMENTUM = 0.95

    def __init__(self, network: nn.Module, lr: float, bf16: bool = False) -> None:
        blocks = [module for module in network.modules() if isinstance(module, Block)]
        matrices = [linear.weight for block in blocks
                    for linear in (block.qkv, block.out, block.up, block.down)]
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        own = set(matrices)
        super().__init__([weight for weight in network.parameters() if weight not in own], lr=lr,
                         weight_decay=0, fused=True)
        self.add_param_group({"params": matrices})

    @torch.no_grad()
    def step(self) -> None:
        group, alike = self.param_groups[1], {}  # those of one shape are made orthogonal together
        for weight in group["params"]:
            if weight.grad is not None:
                alike.setdefault(weight.shape, []).append(weight)
        for shape, weights in alike.items():
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["exp_avg"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, self.MOMENTUM))
            steps = orthogonal(ahead.to(self.dtype)).to(weights[0].dtype)
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_add_(weights, steps.unbind(), alpha=-size)
            for weight in weights:  # what has no gradient AdamW passes over
                weight.grad = None
        super().step()


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T for matrices U S V^T, (..., R, C), nearly: five Newton-Schulz steps with Muon's
    coefficients bring singular values to 0.7 ... 1.2, but for those that vanish beside the rest."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def make(name: str, network: nn.Module, lr: float, bf16: bool) -> torch.optim.Optimizer:
    """The optimizer "adamw" or "muon" of a network, with a state as after no step."""
    optimizer = (Muon(network, lr, bf16) if name == "muon" else
                 torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0, fused=True))
    averages = ("exp_avg", "exp_avg_sq"), ("exp_avg",)  # of Muon's matrices one
    for group, names in zip(optimizer.param_groups, averages):
        for weight in group["params"]:  # as it would be at the first step: to be compared
            optimizer.state[weight] = dict(step=torch.zeros((), device=weight.device))
            optimizer.state[weight] |= {name: torch.zeros_like(weight) for name in names}
    return optimizer
