"""What a training step costs: python -m toy.scaling times one FMLM+ step against length, vocabulary and batch.

Random tokens, one position table, the network of the 4x4 task; each size is varied alone, from L = 36, V = 9, B = 32. The
last column is the exponent between neighbours, d log(time) / d log(size): 1 is proportional, below 1 the fixed cost of a
step still shows, towards 2 in L the attention matrix takes over.
"""

from __future__ import annotations

import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import fmlm
from sudoku.commands import Parser, command, device


def step_time(length: int, vocab_size: int, batch: int, device: torch.device, repeats: int = 7) -> float:
    """Median seconds of one FMLM+ step, forward of the targets to the optimizer: one-hot inputs, bf16 matrices."""
    torch.manual_seed(0)
    model = fmlm.Denoiser(vocab_size, torch.arange(length)[:, None], width=64, depth=3, heads=2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    nothing = torch.zeros(batch, length, dtype=torch.bool, device=device)
    seconds = []
    for _ in range(3 + repeats):
        start = time.perf_counter()
        x1 = F.one_hot(torch.randint(vocab_size, (batch, length), device=device), vocab_size).float()
        context, _ = fmlm.sample_context(nothing)
        s, t = fmlm.sample_times(batch, batch // 2, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = fmlm.flow_map_loss(model, x1, context, s, t, torch.randn_like(x1), batch // 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


@command("toy.scaling")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m toy.scaling", description="Time a training step against its sizes.")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    base = {"length": 36, "vocab_size": 9, "batch": 32}
    sizes = {"length": (16, 36, 81, 256), "vocab_size": (4, 16, 64, 256, 1024), "batch": (8, 32, 128, 512)}
    print(f"{'':<12}{'size':>6}{'ms a step':>11}{'exponent':>10}")
    for name, values in sizes.items():
        previous = None
        for value in values:
            seconds = step_time(**(base | {name: value}), device=options.device)
            exponent = "" if previous is None else f"{math.log(seconds / previous[1]) / math.log(value / previous[0]):.2f}"
            print(f"{name:<12}{value:>6}{1e3 * seconds:>11.1f}{exponent:>10}", flush=True)
            previous = value, seconds
    return 0


if __name__ == "__main__":
    sys.exit(main())
