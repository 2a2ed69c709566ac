"""How fast: the tables that --bench of train.py and of sample.py print."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fmlm import Denoiser

if TYPE_CHECKING:
    from train import Run


def sampling(sampler: Callable[..., Tensor], model: Denoiser, length: int, device: torch.device) -> None:
    """Print boards per second and milliseconds a call, by batch size and NFE; batch 1 shows the latency of one board."""
    print(f"{'batch':>7}{'NFE':>6}{'boards/s':>12}{'ms a call':>12}")
    for batch, nfe in itertools.product((1, 64, 256), (1, 4, 16)):
        tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            sampler(model, tokens, tokens.bool(), nfe).cpu()  # .cpu() waits for a GPU
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds[1:])
        print(f"{batch:>7}{nfe:>6}{batch / middle:>12,.0f}{1e3 * middle:>12.1f}", flush=True)


def training(run: Run, steps: int) -> None:
    """Time `steps` training steps part by part, after 5 to warm up, and print times, rates and peak memory."""
    import resource  # here: Windows has none, and these two take 0.1 s that no puzzle should wait
    from torch.utils.benchmark import Timer
    from torch.utils.flop_counter import FlopCounterMode

    cuda, rows, mark = run.device.type == "cuda", [], 0.0

    def lap(part: str) -> None:  # books the time since the last one
        nonlocal mark
        if cuda:
            torch.cuda.synchronize()
        start, mark = mark, time.perf_counter()
        rows[-1][part] += mark - start

    def network(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        lap("loss")
        log_delta = run.network(x, s, t)
        lap("forward" if torch.is_grad_enabled() else "targets")
        return log_delta

    for _ in range(5 + steps):
        rows.append(dict(data=0.0, targets=0.0, forward=0.0, loss=0.0, backward=0.0, optimizer=0.0))
        mark = time.perf_counter()
        boards = run.draw()
        lap("data")
        loss = run.loss(network, boards, {})
        lap("loss")
        loss.backward()
        lap("backward")
        run.update()
        lap("optimizer")
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as counter:  # matrix products of one step, as torch counts them
        run.loss(run.model, run.draw(), {}).backward()
    tokens, width = run.options.batch // run.world * run.shape.cells, run.options.width
    a = torch.randn(tokens, width, device=run.device, dtype=torch.bfloat16 if run.options.bf16 else torch.float32)
    b = torch.randn(4 * width, width, device=run.device, dtype=a.dtype)
    product = Timer("F.linear(a, b)", globals=dict(F=F, a=a, b=b), num_threads=torch.get_num_threads()).blocked_autorange()
    if run.rank > 0:
        return
    rows = sorted(rows[5:], key=lambda row: sum(row.values()))
    middle = rows[steps // 4:steps - steps // 4]  # its means add up; medians of each part need not
    parts = {name: statistics.mean(row[name] for row in middle) for name in rows[0]}
    total = [sum(row.values()) for row in rows]
    step, low, high = statistics.median(total), total[steps // 10], total[-1 - steps // 10]
    rate, peak = counter.get_total_flops() / step, 2 * tokens * width * 4 * width / product.median
    print(f"{run.options.task} {run.options.objective}, batch {run.options.batch}, {run.device.type}, "
          f"{'bf16' if run.options.bf16 else 'float32'}{', compiled' if run.options.compile else ''}: "
          f"{1e3 * step:.1f} ms per step (10% to 90%: {1e3 * low:.1f} to {1e3 * high:.1f}), "
          f"{tokens / step:,.0f} tokens/s, peak memory {memory / 2**20:,.0f} MiB")
    print("   ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in parts.items()) + "   (ms, mean of the middle half)")
    print(f"{rate / 1e9:,.0f} GFLOP/s in matrix products, {100 * rate / peak:.0f}% of the {peak / 1e9:,.0f} GFLOP/s of one "
          f"{tokens} x {width} x {4 * width} product alone")
