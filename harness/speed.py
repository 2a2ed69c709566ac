"""How fast: the tables that --bench of train.py and of sample.py print."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fmlm import Denoiser, Model
from harness.commands import say

if TYPE_CHECKING:
    from train import Run


@cache
def bf16_pays(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 than in single precision: on a CPU as
    measured, on a GPU always. A CPU that has none in hardware takes ten times as long for one, and
    over forty for a training step."""
    if device.type != "cpu":
        return True
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, laps = torch.ones(256, 256, dtype=dtype), []
        for _ in range(4):
            start = time.perf_counter()
            a @ a
            laps.append(time.perf_counter() - start)
        seconds.append(min(laps))
    return seconds[1] < seconds[0]


def check_bf16(asked: bool, device: torch.device) -> None:
    """Say so where bfloat16 is asked for and makes things slower."""
    if asked and not bf16_pays(device):
        say(f"bfloat16 is slower than single precision on this {device.type}: leave --bf16 out")


def in_bf16(asked: bool | None, device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16: where asked for, or, if None, where that is faster."""
    check_bf16(bool(asked), device)
    return torch.autocast(device.type, torch.bfloat16,
                          enabled=bf16_pays(device) if asked is None else asked)


def sampling(sampler: Callable[..., Tensor], model: Denoiser, given: Tensor,
             budgets: Sequence[int] = (1, 4, 16)) -> None:
    """Print sequences per second and milliseconds a call, by batch size and NFE, completing `given`
    (n, L), -1 where unknown, over and over; batch 1 shows the latency of one sequence."""
    print(f"{'batch':>7}{'NFE':>6}{'sequences/s':>12}{'ms a call':>12}")
    for batch, nfe in itertools.product((1, 64, 256), budgets):
        asked = given[torch.arange(batch, device=given.device) % len(given)]
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            sampler(model, asked.clamp(min=0), asked >= 0, nfe).cpu()  # .cpu() waits for a GPU
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds[1:])
        print(f"{batch:>7}{nfe:>6}{batch / middle:>12,.0f}{1e3 * middle:>12.1f}", flush=True)


def training(run: Run, steps: int) -> None:
    """Time `steps` training steps part by part, after 5 to warm up, and print times, rates and peak
    memory. The steps are those of the end of a training, with all that a task brings in late."""
    import resource  # here: Windows has none, and these two take 0.1 s that no command should wait
    from torch.utils.benchmark import Timer
    from torch.utils.flop_counter import FlopCounterMode

    cuda, rows, mark = run.device.type == "cuda", [], 0.0

    def lap(part: str) -> None:  # books the time since the last one
        nonlocal mark
        if cuda:
            torch.cuda.synchronize()
        start, mark = mark, time.perf_counter()
        rows[-1][part] += mark - start

    def timed(model: Model) -> Model:
        def network(*asked: Tensor) -> Tensor:
            lap("loss")
            log_delta = model(*asked)
            lap("forward" if torch.is_grad_enabled() else "targets")
            return log_delta
        return network

    network = timed(run.network)
    run.mdm, run.teacher = (of and timed(of) for of in (run.mdm, run.teacher))
    for _ in range(5 + steps):
        rows.append(dict(data=0.0, targets=0.0, forward=0.0, loss=0.0, backward=0.0, optimizer=0.0))
        mark = time.perf_counter()
        drawn = run.draw(progress=1.0)
        lap("data")
        loss = run.loss(network, drawn)
        lap("loss")
        loss.backward()
        lap("backward")
        run.update()
        lap("optimizer")
    memory = (torch.cuda.max_memory_allocated() if cuda else
              resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    with FlopCounterMode(display=False) as counter:  # the matrix products of one step
        run.loss(run.model, run.draw(progress=1.0)).backward()
    width = run.options.width
    tokens = run.options.batch // run.world * len(run.task.coords)
    on = dict(device=run.device, dtype=torch.bfloat16 if run.options.bf16 else torch.float32)
    names = dict(F=F, a=torch.randn(tokens, width, **on), b=torch.randn(4 * width, width, **on))
    product = Timer("F.linear(a, b)", globals=names, num_threads=torch.get_num_threads())
    peak = 2 * tokens * width * 4 * width / product.blocked_autorange().median
    if run.rank > 0:
        return
    rows = sorted(rows[5:], key=lambda row: sum(row.values()))
    middle = rows[steps // 4:steps - steps // 4]  # its means add up; medians of each part need not
    parts = {name: statistics.mean(row[name] for row in middle) for name in rows[0]}
    total = [sum(row.values()) for row in rows]
    step, low, high = statistics.median(total), total[steps // 10], total[-1 - steps // 10]
    rate = counter.get_total_flops() / step
    how = "bf16" if run.options.bf16 else "float32"
    how += ", compiled" if run.options.compile else ""
    print(f"{run.options.task} {run.options.objective}, batch {run.options.batch}, "
          f"{run.device.type}, {how}: "
          f"{1e3 * step:.1f} ms per step (10% to 90%: {1e3 * low:.1f} to {1e3 * high:.1f}), "
          f"{tokens / step:,.0f} tokens/s, peak memory {memory / 2**20:,.0f} MiB")
    print("   ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in parts.items())
          + "   (ms, mean of the middle half)")
    print(f"{rate / 1e9:,.0f} GFLOP/s in matrix products, {100 * rate / peak:.0f}% of the "
          f"{peak / 1e9:,.0f} GFLOP/s of one {tokens} x {width} x {4 * width} product alone")
