"""What a training step costs: python -m toy.scaling

Times one FMLM+ step against length, vocabulary and batch: random tokens, one position table, a
network of width 64 and depth 3; each size is varied alone, from L = 36, V = 9, B = 32. The last
column is the exponent between neighbours, d log(time) / d log(size): 1 is proportional, below 1 the
fixed cost of a step still shows, towards 2 in L the attention matrix takes over.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
import torch.nn.functional as F

import fmlm
from harness import commands
from harness.speed import in_bf16


def step_time(length: int, vocab_size: int, batch: int, device: torch.device,
              repeats: int = 7) -> float:
    """Median seconds of one FMLM+ step, forward of the targets to the optimizer: one-hot inputs,
    matrices in bfloat16 where that is faster."""
    torch.manual_seed(0)
    model = fmlm.Denoiser(vocab_size, torch.arange(length)[:, None], width=64, depth=3,
                          heads=2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    nothing = torch.zeros(batch, length, dtype=torch.bool, device=device)
    draws, targets = fmlm.Draws(device=device), fmlm.data_and_self(model, batch, batch // 2)
    seconds = []
    for _ in range(3 + repeats):
        start = time.perf_counter()
        x1 = F.one_hot(torch.randint(vocab_size, (batch, length), device=device),
                       vocab_size).float()
        context, _ = fmlm.sample_context(nothing, draws)
        s, t = fmlm.sample_times(batch, batch // 2, draws)
        with in_bf16(None, device):
            loss = fmlm.flow_map_loss(model, fmlm.Batch(x1, None, context, s, t, targets),
                                      torch.randn_like(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


@commands.command("toy.scaling")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(prog="python -m toy.scaling",
                             description="Time a training step against its sizes.")
    commands.device_option(parser)
    options = parser.parse_args(arguments)
    base = {"length": 36, "vocab_size": 9, "batch": 32}
    sizes = {"length": (16, 36, 81, 256), "vocab_size": (4, 16, 64, 256, 1024),
             "batch": (8, 32, 128, 512)}
    print(f"{'':<12}{'size':>6}{'ms a step':>11}{'exponent':>10}")
    for name, values in sizes.items():
        previous = None
        for value in values:
            seconds = step_time(**(base | {name: value}), device=options.device)
            exponent = ""
            if previous:
                size, time_then = previous
                exponent = f"{math.log(seconds / time_then) / math.log(value / size):.2f}"
            print(f"{name:<12}{value:>6}{1e3 * seconds:>11.1f}{exponent:>10}", flush=True)
            previous = value, seconds
    return 0


if __name__ == "__main__":
    commands.run(main)
