"""One training loop for every objective and task: FMLM+, FLM and MDM on Sudoku boards of 4x4, 6x6 and 9x9.

    python train.py                                4x4, FMLM+, three minutes on two CPU cores, then its table
    python train.py sudoku6 --objective mdm
    python train.py sudoku9 --steps 20000 --minutes 100, then --resume checkpoints/sudoku9-fmlm+.pt
    torchrun --nproc_per_node=8 train.py sudoku9   one process a GPU
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import fmlm
from sample import CHECKPOINTS, FORMAT, OBJECTIVES, build, read_checkpoint
from sudoku import boards as sudoku, evaluate

# Settings of each task, chosen for two CPU cores. Rates warm up, stay, and fall linearly over the second half to 2%.
TASKS = {
    "sudoku4": dict(minutes=2.7, width=64, depth=3, heads=2, batch=256, lr=3e-3, warmup=100, ema=0.999, boards=288,
                    compile=False),
    "sudoku6": dict(minutes=9.5, width=96, depth=4, heads=3, batch=256, lr=2e-3, warmup=200, ema=0.999, boards=20_000,
                    compile=True),
    "sudoku9": dict(minutes=100, width=128, depth=4, heads=4, batch=256, lr=1.5e-3, warmup=200, ema=0.9995, boards=20_000,
                    compile=True),
}
RECIPE = ("task", "objective", "steps", "minutes", "width", "depth", "heads", "batch", "lr", "warmup", "ema", "boards",
          "seed")  # what makes a run the run that it is: saved with it
DIAGONAL = 0.5  # share of a batch with s = t, trained on the data; the others learn the flow map from the network itself
BOUNDARY = 1 / 32  # share of the others pinned at (s, t) = (0, 1)


def training_loss(objective: str, model: fmlm.Model, x1: Tensor, generator: Generator, rank: int = 0, world: int = 1,
                  parts: dict | None = None) -> tuple[Tensor, Tensor]:
    """Draw context, times and noise for x1 (B, L, V); returns the loss and the number of tokens it is a mean over."""
    B, L, _ = x1.shape
    strata = dict(generator=generator, rank=rank, world=world)
    noise = lambda: torch.randn(x1.shape, generator=generator, device=x1.device)
    if objective == "flm":
        t = fmlm.stratified_uniform(B, device=x1.device, **strata)
        return fmlm.flm_loss(model, x1, t, noise()), x1.new_tensor(B * L)
    context, _ = fmlm.sample_context(torch.zeros(B, L, dtype=torch.bool, device=x1.device), **strata)
    generated = (~context).sum()
    if objective == "mdm":
        return fmlm.mdm_loss(model, x1, context), generated
    diagonal = round(B * DIAGONAL)
    s, t = fmlm.sample_times(B, diagonal, BOUNDARY, device=x1.device, **strata)
    return fmlm.flow_map_loss(model, x1, context, s, t, noise(), diagonal, parts), generated


def learning_rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps; constant for half of the run (progress 0 to 1), then linear down to 2%."""
    return peak * min(1.0, (step + 1) / warmup, 1 - 0.98 * (2 * progress - 1))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write to a temporary file, flush it to the disk, rename: whatever happens, `path` is the old file or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Run:
    """A training run: everything that a checkpoint saves, and the step that changes it."""

    def __init__(self, options: argparse.Namespace, rank: int = 0, world: int = 1) -> None:
        self.options, self.rank, self.world = options, rank, world
        self.device = torch.device(options.device)
        self.shape = sudoku.SHAPES[options.task]
        torch.manual_seed(options.seed)  # the initial weights, the same on every process
        network = dict(vocab_size=self.shape.size, width=options.width, depth=options.depth, heads=options.heads)
        self.info = dict(format=FORMAT, task=options.task, objective=options.objective, network=network)
        self.model = build(self.info).to(self.device)
        self.model.time_t.requires_grad_(options.objective == "fmlm+")  # without a flow map the second time stays silent
        self.ema = fmlm.EMA(self.model, options.ema)
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=options.lr, weight_decay=0, fused=True)
        self.generator = Generator(self.device).manual_seed(options.seed * world + rank)
        self.boards = sudoku.load_boards(self.shape, "train", options.boards).to(self.device)
        self.step, self.seconds = 0, 0.0
        self.broken = torch.tensor(-1, device=self.device)  # the first step whose gradient was not finite
        self.network = torch.compile(self.model) if options.compile else self.model
        if world > 1:
            self.network = nn.parallel.DistributedDataParallel(self.network)

    def draw(self) -> Tensor:
        """Random training boards, each under a random symmetry, one-hot: (B, L, V)."""
        chosen = torch.randint(len(self.boards), (self.options.batch // self.world,), generator=self.generator,
                               device=self.device)
        return F.one_hot(sudoku.augment(self.shape, self.boards[chosen], self.generator), self.shape.size).float()

    def loss(self, model: fmlm.Model, x1: Tensor, parts: dict) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            loss, count = training_loss(self.options.objective, model, x1, self.generator, self.rank, self.world, parts)
        parts["loss"] = loss.detach()
        if self.world > 1:  # DDP averages over processes; weigh each by its tokens, so that all tokens count alike
            total = count.clone()
            dist.all_reduce(total)
            loss = loss * count * self.world / total
        return loss

    def progress(self) -> float:
        """The share of the learning-rate schedule that is done: of the steps if their number is given, else of the time."""
        if self.options.steps:
            return self.step / self.options.steps
        return self.seconds / (60 * self.options.minutes)

    def update(self) -> None:
        """Clip the gradient, step, average the weights. No value is read back: a GPU is never waited for."""
        rate = learning_rate(self.progress(), self.step, self.options.lr, self.options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.broken = torch.where((self.broken < 0) & ~torch.isfinite(norm), self.step, self.broken)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write all that sampling and `restore` need; `path` holds the old checkpoint or the new one, whatever happens."""
        save_checkpoint(path, dict(
            self.info, options={name: getattr(self.options, name) for name in RECIPE}, step=self.step, seconds=self.seconds,
            model=self.ema.model.state_dict(), running=self.model.state_dict(), updates=self.ema.updates,
            optimizer=self.optimizer.state_dict(), generator=self.generator.get_state()))

    def load(self, state: dict, path: str) -> None:
        """Start from another run's weights: an MDM's, say, which is this network at s = t = 0."""
        if (state["task"], state["network"]) != (self.info["task"], self.info["network"]):
            raise ValueError(f"--init {path} is {state['task']} with {state['network']}, "
                             f"this run is {self.info['task']} with {self.info['network']}")
        for model in (self.model, self.ema.model):
            model.load_state_dict(state["model"])

    def restore(self, state: dict, path: Path) -> None:
        """Continue where `save` was: the next step is the one that would have come next, bit for bit on a CPU."""
        try:
            self.ema.model.load_state_dict(state["model"])
            self.model.load_state_dict(state["running"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.updates, self.step, self.seconds = state["updates"], state["step"], state["seconds"]
            if self.rank == 0:
                self.generator.set_state(state["generator"])
            else:  # only the first process saves; the others go on with fresh random numbers
                self.generator.manual_seed((self.options.seed + self.step) * self.world + self.rank)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} holds weights to sample from, but no training run to resume") from error


def train(run: Run, out: Path) -> int:
    """Train until the schedule or this sitting's minutes end, or a signal comes; save every minute and at the end.

    Returns the exit status: 0, or 128 + the signal's number, or 1 after a gradient that is not finite.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    parts, every = {}, 1 if run.device.type == "cpu" else 50  # to fetch a loss is to wait for the GPU
    before, started = run.seconds, time.perf_counter()
    saved = started
    sitting = 60 * run.options.minutes if run.options.steps and run.options.minutes else math.inf
    bar = tqdm(initial=run.step, unit="step", disable=run.rank > 0, mininterval=0.5 if sys.stderr.isatty() else 30)
    while run.progress() < 1 and run.seconds - before < sitting and not signals:
        run.loss(run.network, run.draw(), parts).backward()
        run.update()
        run.seconds = before + time.perf_counter() - started
        if run.world > 1:  # a signal or a clock is one process's own: agree on both
            shared = torch.tensor([run.seconds, max(signals, default=0)], dtype=torch.float64, device=run.device)
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            run.seconds, signals = float(shared[0]), [int(shared[1])] if shared[1] else []
        if run.step % every == 0:
            if run.broken >= 0:
                print(f"\ntrain.py: the gradient of step {int(run.broken)} is not finite, so training stops; "
                      f"{out} is as it was saved before: try a smaller --lr", file=sys.stderr)
                return 1
            bar.total = max(run.step, round(run.step / run.progress()))
            bar.set_postfix({name: f"{float(value):.3f}" for name, value in parts.items()}, refresh=False)
            if run.rank == 0 and time.perf_counter() - saved > 60:
                run.save(out)
                saved = time.perf_counter()
        bar.update()
    bar.close()
    if run.rank == 0 and run.broken < 0:
        run.save(out)
    return 128 + signals[0] if signals else 0


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def bench(run: Run, steps: int) -> None:
    """Time `steps` training steps part by part, after 5 to warm up, and print medians, rates and peak memory."""
    rows = []

    def network(x: Tensor, s: Tensor, t: Tensor) -> Tensor:  # books passes without gradient apart: they make targets
        start = clock(run.device)
        log_delta = run.network(x, s, t)
        rows[-1]["forward" if torch.is_grad_enabled() else "targets"] += clock(run.device) - start
        return log_delta

    def step() -> None:
        rows.append({"data": 0.0, "targets": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0})
        times = [clock(run.device)]
        x1 = run.draw()
        times.append(clock(run.device))
        loss = run.loss(network, x1, {})
        times.append(clock(run.device))
        loss.backward()
        times.append(clock(run.device))
        run.update()
        times.append(clock(run.device))
        rows[-1].update(data=times[1] - times[0], backward=times[3] - times[2], optimizer=times[4] - times[3])
        rows[-1].update({"in all": times[4] - times[0],
                         "loss": times[2] - times[1] - rows[-1]["targets"] - rows[-1]["forward"]})

    for _ in range(5 + steps):
        step()
    rows = rows[5:]
    with FlopCounterMode(display=False) as counter:  # matrix products of one step, as torch counts them
        run.loss(run.model, run.draw(), {}).backward()
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    total = sorted(row["in all"] for row in rows)
    low, high = total[len(total) // 10], total[-1 - len(total) // 10]
    tokens = run.options.batch // run.world * run.shape.cells
    a = torch.randn(tokens, run.options.width, device=run.device, dtype=torch.bfloat16 if run.options.bf16 else None)
    b = torch.randn(4 * run.options.width, run.options.width, device=run.device, dtype=a.dtype)
    products = []
    for _ in range(20):
        start = clock(run.device)
        F.linear(a, b)
        products.append(clock(run.device) - start)
    rate, peak = counter.get_total_flops() / median["in all"], 2 * a.numel() * len(b) / statistics.median(products)
    memory = (torch.cuda.max_memory_allocated() if run.device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(f"{run.options.task} {run.options.objective}, batch {run.options.batch}, {run.device.type}, "
          f"{'bf16' if run.options.bf16 else 'float32'}{', compiled' if run.options.compile else ''}: "
          f"{1e3 * median['in all']:.1f} ms per step (10% to 90%: {1e3 * low:.1f} to {1e3 * high:.1f}), "
          f"{tokens / median['in all']:,.0f} tokens/s, peak memory {memory / 2**20:,.0f} MiB")
    print("   ".join(f"{name} {1e3 * median[name]:.1f}" for name in median if name != "in all") + "   (ms, medians)")
    print(f"{rate / 1e9:,.0f} GFLOP/s in matrix products, {100 * rate / peak:.0f}% of the {peak / 1e9:,.0f} GFLOP/s of one "
          f"{len(a)} x {run.options.width} x {len(b)} product alone")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict | None]:
    """The options of a run, from the command line, then from the checkpoint to resume, then from the task's settings."""
    parser = argparse.ArgumentParser(description="Train a flow map language model, then print its evaluation table.",
                                     epilog="Sizes and rates that are not given come from the task's line in train.py.")
    parser.add_argument("task", nargs="?", choices=TASKS, help="default: sudoku4")
    parser.add_argument("--objective", choices=OBJECTIVES, help="default: fmlm+")
    parser.add_argument("--steps", type=int, help="length of the learning-rate schedule; default: that of --minutes")
    parser.add_argument("--minutes", type=float, help="length of the schedule, or of this sitting where --steps is given")
    parser.add_argument("--resume", metavar="CKPT", help="continue this run, with the settings that it was started with")
    parser.add_argument("--init", metavar="CKPT", help="start from the weights of this checkpoint, such as an MDM's")
    parser.add_argument("--out", metavar="CKPT", help="default: checkpoints/TASK-OBJECTIVE.pt, or the resumed checkpoint")
    for name, kind in dict(batch=int, width=int, depth=int, heads=int, lr=float, warmup=int, ema=float, boards=int).items():
        parser.add_argument(f"--{name}", type=kind, metavar="X")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="matrix products in bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="slow to start, then faster")
    parser.add_argument("--bench", type=int, metavar="N", help="time N steps and train nothing")
    options = parser.parse_args(arguments)
    state, settings = None, {}
    if options.resume:
        state = read_checkpoint(options.resume)
        settings = state.get("options")
        if not isinstance(settings, dict) or set(settings) != set(RECIPE):
            raise ValueError(f"{options.resume} holds weights to sample from, but no training run to resume")
        for name in RECIPE:
            given = getattr(options, name)
            if name not in ("steps", "minutes") and given not in (None, settings[name]):
                raise ValueError(f"{options.resume} is a run with {name} {settings[name]}, not {given}: leave that option out")
        if options.steps is not None and options.steps <= state["step"]:
            raise ValueError(f"{options.resume} has done {state['step']} steps already: ask for more than --steps {options.steps}")
        if settings["steps"]:  # there the minutes were only those of a sitting
            settings = dict(settings, minutes=None)
    task = options.task or settings.get("task") or "sudoku4"
    defaults = dict(TASKS[task], task=task, objective="fmlm+", seed=0) | settings
    if options.steps or settings.get("steps"):
        defaults.setdefault("steps", None)
        defaults["minutes"] = settings.get("minutes")
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("batch", "width", "depth", "heads", "lr", "warmup", "boards", "minutes", "steps", "bench"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be more than 0, got {value}")
    if not 0 <= options.ema < 1:
        raise ValueError(f"--ema must lie in [0, 1), got {options.ema}")
    return options, state


def main(arguments: list[str] | None = None) -> int:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        options, state = parse(arguments)
        if options.batch % world:
            raise ValueError(f"--batch {options.batch} must be a multiple of the {world} processes")
        if world > 1:
            if options.device == "cuda":
                options.device = f"cuda:{os.environ['LOCAL_RANK']}"
            dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
        out = Path(options.out or options.resume or CHECKPOINTS / f"{options.task}-{options.objective}.pt")
        if not options.out:
            CHECKPOINTS.mkdir(exist_ok=True)
        if not out.parent.is_dir() or out.is_dir():
            raise ValueError(f"cannot write {out}: --out must name a file in a folder that exists")
        run = Run(options, rank, world)
        if options.init:
            run.load(read_checkpoint(options.init), options.init)
        if state:
            run.restore(state, options.resume)
        if options.bench:
            bench(run, options.bench)
            return 0
        print(f"{options.task}, {options.objective}: {sum(p.numel() for p in run.model.parameters()):,} parameters, "
              f"batch {options.batch}, {run.device}; checkpoint {out}", file=sys.stderr if rank else sys.stdout, flush=True)
        status = train(run, out)
        if status == 0 and rank == 0:
            print(f"{run.step} steps in {run.seconds:.0f} s, {1e3 * run.seconds / run.step:.1f} ms a step\n")
            evaluate.main([str(out), "--device", str(run.device)])
        return status
    except (ValueError, OSError, RuntimeError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
