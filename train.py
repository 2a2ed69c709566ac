"""One training loop for every objective and every task.

    python train.py                              4x4 Sudoku, FMLM+, three minutes on two CPU cores
    python train.py sudoku6 --objective mdm      a masked diffusion model; others start from one,
    python train.py sudoku6 --init checkpoints/sudoku6-mdm.pt       FMLM+ from its weights, or MLFM
    python train.py sudoku6 --teacher checkpoints/sudoku6-mdm.pt    or learn from one
    python train.py sudoku6 --objective fmlm --teacher checkpoints/sudoku6-flm.pt    an FLM's map
    python train.py sudoku9 --steps 20000 --minutes 100, then --resume checkpoints/sudoku9-fmlm+.pt
    torchrun --nproc_per_node=8 train.py sudoku9 one process a GPU

1. the objectives: what one step of each paper draws and learns   2. a run   3. the command line
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

import fmlm
from fmlm import Batch, Target, given
from harness import commands, optimizers, runs, speed
from harness.checkpoints import (CHECKPOINTS, FORMAT, OBJECTIVES, Saver, baseline, build, compiled,
                                 keep_memory, read_checkpoint, ship)
from harness.options import parse, same_file
from harness.recipes import distilled_rows
from harness.sitting import Sitting
from harness.tasks import Task, check_draw

DIAGONAL = 0.5  # share of a batch with s = t; as published


# --------------------------------------------------------------------------------------------------
# 1. The objectives: (run, model, x1 (B, L, V), prompt (B, L) bool or None) -> loss, context (B, L);
#    what is no context counts alike between processes
# --------------------------------------------------------------------------------------------------


def fmlm_plus(run: Run, model: fmlm.Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """FMLM+ (2606.24773): the paper's training step, then what the task adds to it."""
    context, _ = fmlm.sample_context(given(x1, prompt), run.draws)
    s, t, targets = flow_map_times(run, model, x1)
    batch = with_recipe(run, model, Batch(x1, prompt, context, s, t, targets))
    return fmlm.flow_map_loss(model, batch, run.draws.normal(*x1.shape), run.parts), batch.context


def with_recipe(run: Run, model: fmlm.Model, batch: Batch) -> Batch:
    """What the task adds to the paper's batch, where it has prompts."""
    return run.recipe(batch, model, run.draws) if run.recipe and batch.prompt is not None else batch


def fmlm_(run: Run, model: fmlm.Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """FMLM (2602.16813) in the form of FMLM+: no context but a prompt, one (s, t) a sequence."""
    context = given(x1, prompt)
    s, t, targets = flow_map_times(run, model, x1)
    batch = Batch(x1, prompt, context, s, t, targets)
    return fmlm.flow_map_loss(model, batch, run.draws.normal(*x1.shape), run.parts), context


def flow_map_times(run: Run, model: fmlm.Model, x1: Tensor) -> tuple[Tensor, Tensor, list[Target]]:
    """s, t (B,) of a batch and whom its rows learn from: an MDM at s = t = 0, the data or a teacher
    on the rest of the diagonal, the network itself off it."""
    n = len(x1)
    distilled = distilled_rows(n, run.options.distill)
    diagonal = distilled + round((n - distilled) * DIAGONAL)
    # At t = 1 the Lagrangian target says nothing, so that no row is pinned there.
    boundary = 0.0 if run.options.lagrangian else run.options.boundary
    s, t = run.sample_times(x1, diagonal, boundary, distilled)
    mdm, teacher = (of if of is None else fmlm.denoised(of) for of in (run.mdm, run.teacher))
    taught = [Target("mdm", distilled, mdm), Target("data", diagonal - distilled, teacher)]
    own = (Target("lagrangian", n - diagonal, partial(fmlm.lagrangian, model))
           if run.options.lagrangian else
           Target("semigroup", n - diagonal, partial(fmlm.semigroup, model, halve=run.halve)))
    return s, t, [target for target in taught if target.rows] + [own]


def flm(run: Run, model: fmlm.Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """FLM (2602.16813): the denoiser at one time a sequence, uniform in the decoding time tau."""
    _, t = run.sample_times(x1, len(x1))
    noise = run.draws.normal(*x1.shape)
    return fmlm.flm_loss(model, x1, t, noise, prompt), given(x1, prompt)


def flm_plus(run: Run, model: fmlm.Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """FLM+ (2606.24773): FMLM+ on the diagonal alone, an FLM that knows context."""
    context, _ = fmlm.sample_context(given(x1, prompt), run.draws)
    _, t = run.sample_times(x1, len(x1))
    return fmlm.flm_loss(model, x1, t, run.draws.normal(*x1.shape), context), context


def mdm(run: Run, model: fmlm.Model, x1: Tensor, prompt: Tensor | None) -> tuple:
    """Masked diffusion (2406.07524). A mean over all masked tokens: FMLM+ at s = t = 0; or MDLM's
    own weight, nats a token of the bound, so that gradients are clipped alike."""
    context, rate = fmlm.sample_context(given(x1, prompt), run.draws)
    if run.options.weighting == "elbo":  # all sequences count alike
        return fmlm.mdm_loss(model, x1, context, rate, "elbo") / x1.shape[1], given(x1, None)
    s, data = x1.new_zeros(len(x1)), [Target("data", len(x1))]
    context = with_recipe(run, model, Batch(x1, prompt, context, s, s, data)).context
    return fmlm.mdm_loss(model, x1, context), context


LOSSES = dict(zip(OBJECTIVES, (fmlm_plus, fmlm_, flm, mdm, flm_plus)))


def loss_of(objective: str) -> Callable:
    """The loss of an objective: one of these, or another system's."""
    system = baseline(objective)
    return (system.LOSSES if system else LOSSES)[objective]


# --------------------------------------------------------------------------------------------------
# 2. A run
# --------------------------------------------------------------------------------------------------


def learning_rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps; constant for half of the run (progress 0 to 1), then
    linear down to 2%. Published: 2,500 steps of warm-up, then constant."""
    return peak * min(1.0, (step + 1) / warmup, 1 - 0.98 * (2 * progress - 1))


class Run:
    """A training run: everything that a checkpoint saves, and the step that changes it."""

    def __init__(self, options: Namespace, task: Task, rank: int = 0, world: int = 1,
                 origin: dict | None = None) -> None:
        """origin: the checkpoint whose weights will be loaded, if any."""
        self.options, self.task, self.rank, self.world = options, task, rank, world
        self.device = options.device
        options.started = bool(options.init or (origin or {}).get("started"))
        self.data = task.load(options, self.device)
        self.recipe = task.recipe if options.recipe else None
        sizes = dict(width=options.width, depth=options.depth, heads=options.heads)
        self.info = dict(format=FORMAT, task=task.name, state=task.state,
                         objective=options.objective,
                         network=dict(vocab_size=task.vocab_size) | sizes
                         | runs.told_tau(options, origin))
        torch.manual_seed(options.seed)  # the initial weights, the same on every process
        self.model = build(self.info, task).to(self.device)
        two_times = options.objective in ("fmlm", "fmlm+")
        if options.objective in OBJECTIVES:  # without a flow map the second time is silent
            self.model.time_t.requires_grad_(two_times)
        if options.sigma:  # the samplers of an MLFM read it there
            self.model.sigma.fill_(options.sigma)
        self.ema = fmlm.EMA(self.model, options.ema)
        self.optimizer = optimizers.make(options.optimizer, self.model, options.lr, options.bf16)
        generator = Generator(self.device).manual_seed(options.seed * world + rank)
        self.draws = fmlm.Draws(generator, self.device, rank, world)
        self.step, self.seconds, self.parts = 0, 0.0, {}
        self.prompted = False  # whether any batch had a prompt
        self.began = dict(progress=0.0, at=0.0)  # of the schedule: see `runs.restore`
        self.broken = torch.tensor(0, device=self.device)  # the first step of no finite gradient
        prepare = partial(compiled, device=self.device, dynamic=False)
        self.network = prepare(self.model) if options.compile else self.model
        self.mdm, self.teacher = runs.teach(self, prepare if options.compile else lambda net: net)
        if world > 1:
            self.network = nn.parallel.DistributedDataParallel(self.network)

    def sample_times(self, x1: Tensor, diagonal: int, *law: float) -> tuple[Tensor, Tensor]:
        """s, t (B,) of a batch x1 (B, L, V): `fmlm.sample_times`, in tau where asked."""
        s, t = fmlm.sample_times(len(x1), diagonal, self.draws, *law)
        if self.options.tau:
            s, t = (fmlm.inverse_decoding_time(time, x1.shape[-1]) for time in (s, t))
        return s, t

    def halve(self, s: Tensor, t: Tensor) -> Tensor:
        """Where a jump from s to t is halved."""
        if self.options.tau:
            return fmlm.midpoint_in_tau(s, t, self.task.vocab_size)
        return fmlm.midpoint(s, t)

    def place(self) -> tuple[float, float]:
        """How far the schedule is, and how long it is: in steps if they are given, else seconds."""
        if self.options.steps:
            return self.step, self.options.steps
        return self.seconds, 60 * self.options.minutes

    def progress(self) -> float:
        """The share of the schedule that is done."""
        (now, end), (done, at) = self.place(), self.began.values()
        return done + (1 - done) * (now - at) / (end - at) if done < 1 else 1.0

    def over(self) -> bool:
        now, end = self.place()
        return now >= end

    def draw(self, progress: float | None = None) -> tuple[Tensor, Tensor | None]:
        """Training sequences (B, L) and the prompt of each, or None."""
        n = self.options.batch // self.world
        return self.data(n, self.draws.generator, self.progress() if progress is None else progress)

    def loss(self, model: fmlm.Model, drawn: tuple[Tensor, Tensor | None]) -> Tensor:
        tokens, prompt = drawn
        self.prompted |= prompt is not None
        x1 = fmlm.one_hot(tokens, self.task.vocab_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            loss, context = loss_of(self.options.objective)(self, model, x1, prompt)
        self.parts["loss"] = loss.detach()
        if self.world > 1:  # DDP averages over processes: all tokens, or sequences, count alike
            count = (~context).sum()
            total = count.clone()
            dist.all_reduce(total)
            loss = loss * count * self.world / total.clamp(min=1)
        return loss

    def update(self) -> None:
        """Clip the gradient, step, average the weights. No value is read back from a GPU."""
        lr, warmup = self.options.lr, self.options.warmup
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress(), self.step, lr, warmup)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1
        first = (self.broken == 0) & ~torch.isfinite(norm)
        self.broken = torch.where(first, self.step, self.broken)

    def finite(self) -> bool:
        return all(bool(weight.isfinite().all()) for weight in self.model.parameters())

    def state(self) -> dict:
        """All that sampling and `runs.restore` need."""
        options = {name: getattr(self.options, name) for name in runs.kinds(self.task)}
        return dict(self.info, options=options, step=self.step, seconds=self.seconds,
                    began=dict(self.began), prompted=self.prompted, started=self.options.started,
                    updates=self.ema.updates, model=self.ema.model.state_dict(),
                    running=self.model.state_dict(), optimizer=self.optimizer.state_dict()["state"],
                    generator=self.draws.generator.get_state())


def train(run: Run, saver: Saver | None) -> int:
    """Train until the schedule or this sitting's minutes end, or a signal comes: see `Sitting`."""
    with Sitting(run, saver) as sitting:
        for _ in sitting:
            run.loss(run.network, run.draw()).backward()
            run.update()
    return sitting.status


# --------------------------------------------------------------------------------------------------
# 3. The command line
# --------------------------------------------------------------------------------------------------

@commands.command("train.py")
def main(arguments: list[str] | None = None) -> int:
    rank, world = commands.processes()
    keep_memory()
    try:
        options, task, state = parse(arguments)
        if options.ship:
            ship(options.ship, state)
            return 0
        if options.batch % world:
            raise ValueError(f"--batch {options.batch} must be a multiple of the {world} processes")
        if options.lagrangian and world > 1:
            raise ValueError("--lagrangian trains in one process: DistributedDataParallel has no "
                             "forward mode")
        out = options.out or options.resume or CHECKPOINTS / f"{task.name}-{options.objective}.pt"
        if not options.out:
            CHECKPOINTS.mkdir(exist_ok=True)
        others = [("--init", options.init)] if options.init else []
        for name, other in others + [("--teacher", path) for path in options.teacher or []]:
            if same_file(out, other):
                raise ValueError(f"{name} {other} would be overwritten: name another --out")
        saver = Saver(out) if rank == 0 and not options.bench else None
        start = read_checkpoint(options.init) if options.init else None
        if world > 1:  # gradients by nccl; when to end by gloo, which does not wait for the GPU
            cuda = options.device.type == "cuda"
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        run = Run(options, task, rank, world, state or start)
        if start:
            runs.fits(run, start, runs.STARTS, "--init", options.init)
            runs.load(run, start)
        if state:
            runs.restore(run, state, options.resume)
        check_draw(task, run.data, options.batch // world, run.device)  # last: data may take long
        if options.bench:
            speed.training(run, options.bench)
            return 0
        if rank == 0:
            print(f"{task.name}, {options.objective}, batch {options.batch}, {run.device}; "
                  f"checkpoint {saver.path}", flush=True)
        status = train(run, saver)
        if status or rank > 0:
            return status
        print(f"{run.step} steps in {run.seconds:.0f} s, {1e3 * run.seconds / run.step:.1f} ms a "
              "step\n", flush=True)
        return task.table(str(saver.path), run.device) if options.table else 0
    except (ValueError, OSError):
        if rank > 0:  # what is wrong with what was asked for, the first process says for all
            return 2
        raise
    finally:
        if dist.is_initialized():
            run = None  # whoever holds the group last ends its threads; DDP would wait for ever
            dist.destroy_process_group()


if __name__ == "__main__":
    commands.run(main)
