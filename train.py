"""One training loop for every objective and task: FMLM+, FMLM, FLM, MDM and MLFM on Sudoku of 4x4, 6x6 and 9x9.

    python train.py                                4x4, FMLM+, three minutes on two CPU cores, then its table
    python train.py sudoku6 --objective mdm        a masked diffusion model; every other road starts from, or learns from, one:
    python train.py sudoku6 --init checkpoints/sudoku6-mdm.pt                 FMLM+ from its weights; mlfm likewise
    python train.py sudoku6 --teacher checkpoints/sudoku6-mdm.pt              FMLM+ with a quarter of the batch taught by it
    python train.py sudoku6 --objective fmlm --teacher checkpoints/sudoku6-flm.pt      the flow map of an FLM
    python train.py sudoku9 --steps 20000 --minutes 100, then --resume checkpoints/sudoku9-fmlm+.pt
    torchrun --nproc_per_node=8 train.py sudoku9   one process a GPU
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm import tqdm

import fmlm
from sudoku import boards as sudoku, evaluate, speed
from sudoku.checkpoints import (CHECKPOINTS, FORMAT, LARGEST, OBJECTIVES, WITHOUT_CONTEXT, alike, build, compiled,
                                keep_memory, load_checkpoint, read_checkpoint, save_checkpoint, ship)
from sudoku.commands import Parser, device

# Settings of each task, chosen for two CPU cores. Rates warm up, stay, and fall linearly over the second half to 2%.
TASKS = {
    "sudoku4": dict(minutes=2.3, batch=256, width=64, depth=5, heads=4, boards=288, puzzles=0),
    "sudoku6": dict(minutes=9.5, batch=128, width=96, depth=6, heads=4, boards=20_000, puzzles=0),
    "sudoku9": dict(minutes=100., batch=128, width=128, depth=8, heads=4, boards=50_000, puzzles=20_000),
}
ALL_TASKS = dict(objective="fmlm+", lr=2e-3, warmup=100, ema=0.999, seed=0, bf16=True, compile=True)
RECIPE = dict(task=str, objective=str, steps=int, minutes=float, width=int, depth=int, heads=int, batch=int, lr=float,
              warmup=int, ema=float, boards=int, puzzles=int, seed=int, bf16=bool, compile=bool, tau=bool, lagrangian=bool,
              teacher=str, distill=float)  # what makes a run: saved with it
STARTS = {"fmlm+": ("mdm", "fmlm+"), "fmlm": ("flm", "fmlm"), "flm": ("flm",), "mdm": ("mdm", "fmlm+"), "mlfm": ("mdm", "mlfm")}
TEACHERS = {"fmlm+": ("mdm", "fmlm+"), "fmlm": ("flm",)}  # what an objective can start from, and learn from
DIAGONAL = 0.5  # share of a batch with s = t, trained on the data; the others, but puzzles, learn from the network itself
BOUNDARY = 1 / 32  # share of the others pinned at (s, t) = (0, 1)
ASKED = 1 / 8  # beside puzzles, which are all there: share of the boards that is there too
FEW = 1 / 4  # share of the random context that these puzzles and boards keep, for samplers start with little
SURE = 0.99  # p_max that makes a draft context for every other one of them
BOARDS_FIRST = 1 / 2  # share of the schedule before puzzles come in: they are learned late as well, boards are not
SAVE_EVERY = 60  # seconds
NO_RUN = "holds weights to sample from, but no training run to resume"


def puzzle_rows(n: int) -> slice:
    """Where puzzles are in a batch of n: its middle half, half of them on the diagonal and half not."""
    return slice(n // 4, n // 4 + n // 2)


@torch.no_grad()
def after_a_round(model: fmlm.Model, x1: Tensor, context: Tensor, decided: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """x1 (B, L, V) and context (B, L) after one round of Posterior Refinement: what delta_{0,1} is sure of is context too.
    Where the context leaves one solution (`decided`, (B,) bool) only what is right; else the draft is x1 from now on."""
    s = context.to(x1.dtype)
    p_max, draft = model(fmlm.interpolate(x1, noise, s), s, torch.ones_like(s)).exp().max(-1)
    sure = ~context & (p_max >= SURE) & ((draft == x1.argmax(-1)) | ~decided[:, None])
    return torch.where(sure[..., None], F.one_hot(draft, x1.shape[-1]).to(x1.dtype), x1), context | sure


def training_loss(options: argparse.Namespace, model: fmlm.Model, x1: Tensor, generator: Generator, rank: int = 0,
                  world: int = 1, parts: dict | None = None, teacher: fmlm.Model | None = None,
                  prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw context, times and noise for x1 (B, L, V); returns the loss and the number of tokens it is a mean over.
    `prompt`, (B, L) bool: the clues of the puzzles in `puzzle_rows`, always context, which leave x1 as the one solution;
    None where there are no puzzles yet."""
    B, objective = len(x1), options.objective
    strata = dict(generator=generator, rank=rank, world=world)
    noise = lambda: torch.randn(x1.shape, generator=generator, device=x1.device)
    context = torch.zeros(x1.shape[:2], dtype=torch.bool, device=x1.device) if prompt is None else prompt
    if objective not in WITHOUT_CONTEXT:
        context, _ = fmlm.sample_context(context, **strata, cosine=objective == "mlfm")
    if objective == "mdm":
        return fmlm.mdm_loss(model, x1, context), (~context).sum()
    if objective == "mlfm":
        t = fmlm.sample_bridge_times(B, device=x1.device, **strata)
        return fmlm.mlfm_loss(model, x1, context, t, noise()), (~context).sum()
    distilled = round(B * (options.distill or 0))  # taught by an MDM; the others split into diagonal and off-diagonal
    diagonal = B if objective == "flm" else distilled + round((B - distilled) * DIAGONAL)
    boundary = 0.0 if options.lagrangian else BOUNDARY  # at (0, 1) the Lagrangian target says nothing
    s, t = fmlm.sample_times(B, diagonal, boundary, device=x1.device, distilled=distilled, **strata)
    if options.tau:
        s, t = fmlm.inverse_decoding_time(s, x1.shape[-1]), fmlm.inverse_decoding_time(t, x1.shape[-1])
    if objective == "flm":
        return fmlm.flm_loss(model, x1, t, noise()), (~context).sum()
    taught = 0 if teacher is None else distilled if options.distill is not None else diagonal
    from_data = diagonal
    if prompt is not None and diagonal < B:  # what samplers ask: (0, 1) with little context, and with what a round makes of it
        from_data = max(diagonal, puzzle_rows(B).stop)
        end = from_data + round((B - from_data) * (ASKED if boundary else 0))
        asked, later = slice(diagonal, end), slice(diagonal, end, 2)
        s[asked], t[asked] = 0, 1
        context[asked] &= prompt[asked] | (torch.rand(x1.shape[:2], generator=generator, device=x1.device)[asked] < FEW)
        x1 = x1.clone()
        x1[later], context[later] = after_a_round(model, x1[later], context[later], prompt[later].any(1), noise()[later])
    return fmlm.flow_map_loss(model, x1, context, s, t, noise(), from_data, parts, teacher, taught,
                              fmlm.lagrangian if options.lagrangian else fmlm.semigroup), (~context).sum()


def learning_rate(progress: float, step: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps; constant for half of the run (progress 0 to 1), then linear down to 2%."""
    return peak * min(1.0, (step + 1) / warmup, 1 - 0.98 * (2 * progress - 1))


class Run:
    """A training run: everything that a checkpoint saves, and the step that changes it."""

    def __init__(self, options: argparse.Namespace, rank: int = 0, world: int = 1) -> None:
        self.options, self.rank, self.world = options, rank, world
        self.device, self.shape = options.device, sudoku.SHAPES[options.task]
        self.info = dict(format=FORMAT, task=options.task, objective=options.objective,
                         network={name: getattr(options, name) for name in LARGEST})
        torch.manual_seed(options.seed)  # the initial weights, the same on every process
        self.model = build(self.info).to(self.device)
        self.model.time_t.requires_grad_(options.objective in ("fmlm", "fmlm+"))  # else the second time is silent
        self.ema = fmlm.EMA(self.model, options.ema)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr, weight_decay=0, fused=True)
        for weight in self.model.parameters():  # what AdamW makes at its first step; here, so that `restore` can compare
            self.optimizer.state[weight] = dict(step=torch.zeros((), device=self.device),
                                                exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        self.generator = Generator(self.device).manual_seed(options.seed * world + rank)
        self.boards = sudoku.load_boards(self.shape, "train", options.boards).to(self.device)
        self.puzzles = None
        if options.puzzles:  # boards too, with their clues marked
            clues, solutions = sudoku.load_puzzles(self.shape, "minimal", options.puzzles, split="train")
            self.puzzles = (solutions + self.shape.size * (clues >= 0)).to(self.device)
        self.step, self.seconds = 0, 0.0
        self.broken = torch.tensor(0, device=self.device)  # the first step, from 1, whose gradient was not finite
        self.network = compiled(self.model, self.device, dynamic=False) if options.compile else self.model
        self.teacher = None
        if options.teacher:
            teacher, info = load_checkpoint(options.teacher, self.device)
            self.fits(info, TEACHERS, "--teacher", options.teacher)
            self.teacher = compiled(teacher, self.device, dynamic=False) if options.compile else teacher
            if info["objective"] == "mdm":
                self.teacher = fmlm.masked(self.teacher)
                self.options.distill = 0.25 if options.distill is None else options.distill
            elif options.distill is not None:
                raise ValueError(f"--distill is the share taught by an MDM, and {options.teacher} is {info['objective']}")
            if options.objective == "fmlm":  # the student starts as its teacher: the second time is silent
                self.load(info)
        if world > 1:
            self.network = nn.parallel.DistributedDataParallel(self.network)

    def shows_puzzles(self) -> bool:
        return self.puzzles is not None and self.progress() >= BOARDS_FIRST

    def draw(self) -> Tensor:
        """Random training boards, each under a random symmetry: (B, L), the digits from `size` on are a puzzle's clues."""
        n, rng = self.options.batch // self.world, dict(generator=self.generator, device=self.device)
        boards = self.boards[torch.randint(len(self.boards), (n,), **rng)]
        if self.shows_puzzles():
            boards[puzzle_rows(n)] = self.puzzles[torch.randint(len(self.puzzles), (n // 2,), **rng)]
        return sudoku.augment(self.shape, boards, self.generator)

    def loss(self, model: fmlm.Model, boards: Tensor, parts: dict) -> Tensor:
        x1 = F.one_hot(boards % self.shape.size, self.shape.size).float()
        prompt = boards >= self.shape.size if self.shows_puzzles() else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            loss, count = training_loss(self.options, model, x1, self.generator, self.rank, self.world, parts, self.teacher,
                                        prompt)
        parts["loss"] = loss.detach()
        if self.world > 1:  # DDP averages over processes; weigh each by its tokens, so that all tokens count alike
            total = count.clone()
            dist.all_reduce(total)
            loss = loss * count * self.world / total.clamp(min=1)
        return loss

    def progress(self) -> float:
        """The share of the learning-rate schedule that is done: of the steps if their number is given, else of the time."""
        return self.step / self.options.steps if self.options.steps else self.seconds / (60 * self.options.minutes)

    def update(self) -> None:
        """Clip the gradient, step, average the weights. No value is read back: a GPU is never waited for."""
        lr, warmup = self.options.lr, self.options.warmup
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.progress(), self.step, lr, warmup)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        self.step += 1
        self.broken = torch.where((self.broken == 0) & ~torch.isfinite(norm), self.step, self.broken)

    def state(self) -> dict:
        """All that sampling and `restore` need."""
        options = {name: getattr(self.options, name) for name in RECIPE}
        return dict(self.info, options=options, step=self.step, seconds=self.seconds, updates=self.ema.updates,
                    model=self.ema.model.state_dict(), running=self.model.state_dict(),
                    optimizer=self.optimizer.state_dict()["state"], generator=self.generator.get_state())

    def fits(self, state: dict, allowed: dict, option: str, path: str) -> None:
        """ValueError unless the checkpoint is of this task and size (or of fewer blocks), and of an allowed objective."""
        own, suits = self.info, allowed.get(self.info["objective"], ())
        network = dict(state["network"], depth=max(state["network"]["depth"], own["network"]["depth"]))
        if state["objective"] not in suits or state["task"] != own["task"] or network != own["network"]:
            raise ValueError(f"{option} {path} is {state['task']}, {state['objective']}, {state['network']}, but this run, "
                             f"{own['task']}, {own['objective']}, {own['network']}, needs its own task and size (or fewer "
                             f"blocks), trained as {' or '.join(suits) or 'nothing: it takes none'}")

    def load(self, state: dict) -> None:
        """Start from the weights of another run: an MDM's, say, which is this network at s = t = 0. Blocks that it lacks
        write nothing yet, so that a deeper network starts out as the same function."""
        for model in (self.model, self.ema.model):
            model.load_state_dict(state["model"], strict=False)
            for block in model.blocks[state["network"]["depth"]:]:
                for last in (*block.out.parameters(), *block.down.parameters()):
                    nn.init.zeros_(last)

    def restore(self, state: dict, path: str) -> None:
        """Continue where `state` was: the next step is the one that would have come next, bit for bit on a CPU."""
        own = {name: value for name, value in self.state().items() if name not in ("options", "generator")}
        if not (alike({name: state.get(name) for name in own}, own)
                and all(0 <= state[name] < 1e9 for name in ("step", "seconds", "updates"))):
            raise ValueError(f"{path} {NO_RUN}")
        self.ema.model.load_state_dict(state["model"])
        self.model.load_state_dict(state["running"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]})
        self.ema.updates, self.step, self.seconds = state["updates"], state["step"], state["seconds"]
        if self.rank == 0 and alike(state.get("generator"), self.generator.get_state()):
            self.generator.set_state(state["generator"])
        else:  # only the first process saves its random state, and a GPU's means nothing to a CPU: go on with a fresh one
            self.generator.manual_seed((self.options.seed + self.step) * self.world + self.rank)
        if self.progress() >= 1:
            raise ValueError(f"{path} has done {self.step} steps already, so ask for more --steps or --minutes")


def train(run: Run, out: Path) -> int:
    """Train until the schedule or this sitting's minutes end, or a signal comes; save every minute and at the end.
    Returns the exit status: 0, or 128 + the signal's number, or 1 after a gradient that is not finite.
    """
    before, started = run.seconds, time.perf_counter()
    saved, ending, signals, parts = started, 0, [], {}
    every = 1 if run.device.type == "cpu" else 50  # to fetch a loss is to wait for the GPU
    sitting = 60 * run.options.minutes if run.options.steps and run.options.minutes else math.inf
    handlers = {number: signal.signal(number, lambda number, frame: signals.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    with tqdm(initial=run.step, unit="step", disable=run.rank > 0, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        while run.progress() < 1 and run.seconds - before < sitting and not ending:
            run.loss(run.network, run.draw(), parts).backward()
            run.update()
            run.seconds, ending = before + time.perf_counter() - started, max(signals, default=0)
            if run.world > 1:  # a clock or a signal is one process's own: agree on both, so that all end after one step
                agreed = torch.tensor([run.seconds, ending], dtype=torch.float64)
                dist.all_reduce(agreed, dist.ReduceOp.MAX)
                run.seconds, ending = float(agreed[0]), int(agreed[1])
            if run.step % every == 0:
                if run.broken:
                    break
                bar.total = max(run.step, round(run.step / run.progress()))
                bar.set_postfix({name: f"{float(value):.3f}" for name, value in parts.items()}, refresh=False)
                if run.rank == 0 and time.perf_counter() - saved > SAVE_EVERY:
                    save_checkpoint(out, run.state())
                    saved = time.perf_counter()
            bar.update()
    if run.rank == 0 and not run.broken:
        save_checkpoint(out, run.state())
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if run.rank == 0 and run.broken:
        print(f"train.py: the gradient of step {int(run.broken)} is not finite, so training stops and {out} is left as it "
              "was: try a smaller --lr", file=sys.stderr)
    return 1 if run.broken else 128 + ending if ending else 0


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict | None]:
    """The options of a run, from the command line, then from the checkpoint to resume, then from the task's settings."""
    parser = Parser(prog="train.py", description="Train a flow map language model, then print its evaluation table.")
    parser.add_argument("task", nargs="?", choices=TASKS, help="default: sudoku4")
    parser.add_argument("--objective", choices=OBJECTIVES, help="default: fmlm+")
    parser.add_argument("--steps", type=int, help="length of the learning-rate schedule; default: that of --minutes")
    parser.add_argument("--minutes", type=float, help="length of the schedule, or of this sitting where --steps is given")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", metavar="CKPT", help="continue this run, with the settings that it was started with")
    start.add_argument("--init", metavar="CKPT", help="start from the weights of this checkpoint, such as an MDM's; it may "
                       "have fewer blocks than --depth")
    parser.add_argument("--out", metavar="CKPT", help="default: checkpoints/TASK-OBJECTIVE.pt, or the resumed checkpoint")
    parser.add_argument("--teacher", metavar="CKPT", help="learn the diagonal from this frozen model: fmlm from an flm, from "
                        "which it also starts; fmlm+ from an fmlm+, or from an mdm at s = t = 0")
    parser.add_argument("--distill", type=float, metavar="X", help="share of the batch that an mdm teaches (default 0.25)")
    parser.add_argument("--tau", action=argparse.BooleanOptionalAction,
                        help="draw times uniformly in the decoding time tau(t) (default for flm and fmlm)")
    parser.add_argument("--lagrangian", action=argparse.BooleanOptionalAction,
                        help="off-diagonal target: the Lagrangian identity for the semigroup's")
    for name in ("batch", "width", "depth", "heads", "lr", "warmup", "ema", "boards", "puzzles", "seed"):
        parser.add_argument(f"--{name}", type=RECIPE[name], metavar="X", help=f"4x4: {(ALL_TASKS | TASKS['sudoku4'])[name]}")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="matrix products in bfloat16 (default)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="a minute to start, then twice as fast (default)")
    parser.add_argument("--table", action=argparse.BooleanOptionalAction, default=True, help="evaluate at the end (default)")
    parser.add_argument("--ship", metavar="FILE", help="train nothing: write the weights of --resume there, in half precision")
    parser.add_argument("--bench", type=int, metavar="N", help="time N steps and train nothing")
    options = parser.parse_args(arguments)
    if options.ship and (not options.resume or Path(options.ship).resolve() == Path(options.resume).resolve()):
        raise ValueError("--ship writes the weights of a run to another file, so name the run with --resume")
    state, settings = None, {}
    if options.resume:
        state = read_checkpoint(options.resume)
        settings = state.get("options")
        head = dict(state["network"], task=state["task"], objective=state["objective"])
        if (not isinstance(settings, dict) or settings.keys() != RECIPE.keys()
                or not all(value is None or type(value) is RECIPE[name] for name, value in settings.items())
                or any(settings[name] != head[name] for name in head if name in RECIPE)):
            raise ValueError(f"{options.resume} {NO_RUN}")
        for name in RECIPE.keys() - {"steps", "minutes", "bf16", "compile", "teacher"}:
            if (given := getattr(options, name)) not in (None, settings[name]):
                raise ValueError(f"{options.resume} is a run with {name} {settings[name]}, not {given}: leave that out")
    task = options.task or settings.get("task") or "sudoku4"
    defaults = dict(ALL_TASKS, task=task) | TASKS[task]
    if (options.objective or settings.get("objective")) in WITHOUT_CONTEXT:
        defaults |= dict(tau=True, puzzles=0)
    defaults |= {name: value for name, value in settings.items() if value is not None}
    if options.steps or settings.get("steps"):  # minutes are then those of a sitting, and of this one only
        defaults["minutes"] = None
    vars(options).update({name: value for name, value in defaults.items() if getattr(options, name) is None})
    options.vocab_size = sudoku.SHAPES[task].size
    flow = options.objective in ("fmlm", "fmlm+")
    for name, suits, those in (("tau", options.objective in WITHOUT_CONTEXT, "flm and fmlm"),
                               ("puzzles", options.objective not in WITHOUT_CONTEXT, "fmlm+, mdm and mlfm"),
                               ("lagrangian", flow, "fmlm and fmlm+"), ("teacher", flow, "fmlm and fmlm+")):
        if getattr(options, name) and not suits:
            raise ValueError(f"--{name} is for {those}, not for {options.objective}")
    if options.distill is not None and not (options.teacher and 0 <= options.distill <= 1):
        raise ValueError(f"--distill is a share in [0, 1] of what a --teacher teaches, got {options.distill} and "
                         f"{'the teacher ' + options.teacher if options.teacher else 'no teacher'}")
    if options.lagrangian and options.compile:  # forward-mode differentiation does not pass through a compiled network
        options.compile = False
    for name in ("batch", "width", "depth", "heads", "lr", "warmup", "boards", "minutes", "steps", "bench"):
        value, limit = getattr(options, name), LARGEST.get(name, 10**7)
        if value is not None and not 0 < value <= limit:
            raise ValueError(f"--{name} must be more than 0 and at most {limit}, got {value}")
    if not (0 <= options.ema < 1 and 0 <= options.seed < 2**32 and 0 <= options.puzzles <= 10**7):
        raise ValueError("--ema must lie in [0, 1), --seed in [0, 2^32) and --puzzles in [0, 10^7], got "
                         f"{options.ema}, {options.seed} and {options.puzzles}")
    return options, state


def main(arguments: list[str] | None = None) -> int:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    keep_memory()
    try:
        if world > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        options, state = parse(arguments)
        if options.ship:
            ship(Path(options.ship), state)
            return 0
        if options.batch % world:
            raise ValueError(f"--batch {options.batch} must be a multiple of the {world} processes")
        if options.lagrangian and world > 1:
            raise ValueError("--lagrangian trains in one process: DistributedDataParallel has no forward mode")
        out = Path(options.out or options.resume or CHECKPOINTS / f"{options.task}-{options.objective}.pt")
        if not options.out:
            CHECKPOINTS.mkdir(exist_ok=True)
        if not out.parent.is_dir() or out.is_dir() or not os.access(out.parent, os.W_OK):
            raise ValueError(f"cannot write {out}: --out must name a file in a folder that exists and can be written to")
        if world > 1:  # gradients travel by nccl, the agreement on when to end by gloo: it does not wait for the GPU
            dist.init_process_group("cpu:gloo,cuda:nccl" if options.device.type == "cuda" else "gloo")
        run = Run(options, rank, world)
        if options.init:
            start = read_checkpoint(options.init)
            run.fits(start, STARTS, "--init", options.init)
            run.load(start)
        if state:
            run.restore(state, options.resume)
        if options.bench:
            speed.training(run, options.bench)
            return 0
        if rank == 0:
            print(f"{options.task}, {options.objective}, batch {options.batch}, {run.device}; checkpoint {out}", flush=True)
        status = train(run, out)
        if status or rank > 0:
            return status
        print(f"{run.step} steps in {run.seconds:.0f} s, {1e3 * run.seconds / run.step:.1f} ms a step\n", flush=True)
        return evaluate.main([str(out), "--device", str(run.device)]) if options.table else 0
    except (ValueError, OSError, RuntimeError) as error:
        if rank == 0 or isinstance(error, RuntimeError):  # what is wrong with the command line, one process says for all
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after training; during it the loop takes care
        return 130
    finally:
        if dist.is_initialized():
            run = None  # whoever holds the group last ends its threads, and DDP would wait for them for ever
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
