"""What a run of train.py is saved with, can start from, learn from, and go on from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

import fmlm
from harness.checkpoints import LARGEST, alike, baseline, load_checkpoint, read_checkpoint
from harness.tasks import Task

if TYPE_CHECKING:
    from train import Run

KEPT = dict(task=str, objective=str, steps=int, minutes=float, width=int, depth=int, heads=int,
            batch=int, lr=float, warmup=int, ema=float, seed=int, bf16=bool, compile=bool, tau=bool,
            recipe=bool, lagrangian=bool, teacher=list, distill=float,
            weighting=str, sigma=float, optimizer=str, boundary=float)  # what makes a run
STARTS = {"fmlm+": ("mdm", "flm+", "fmlm", "fmlm+"), "fmlm": ("flm", "fmlm"), "flm": ("flm",),
          "flm+": ("mdm", "flm+"), "mdm": ("mdm", "fmlm+"),
          "mlfm": ("mdm", "mlfm")}  # what an objective can start from
TEACHERS = {"fmlm+": ("mdm", "flm+", "fmlm+"), "fmlm": ("flm",), "fmlm-residual": ("flm",),
            "fmlm-compressed": ("fmlm-residual",)}  # and learn from
STARTS_AS_TEACHER = ("fmlm", "fmlm-residual", "fmlm-compressed")
NO_RUN = "holds weights to sample from, but no training run to resume"


def kinds(task: Task) -> dict[str, type]:
    """The options that a checkpoint keeps, and their types: the task's own last."""
    return KEPT | {name: type(default) for name, (default, *_) in task.own.items()}


def settings_of(state: dict, task: Task, path: str) -> dict:
    """The options that a checkpoint's run was started with. ValueError where there are none."""
    settings, types = state.get("options"), kinds(task)
    if isinstance(settings, dict):  # an older file lacks some of these, and has one teacher at most
        missing = dict(weighting=None, sigma=None, optimizer="adamw",
                       boundary=1 / 32 if state["objective"] in ("fmlm", "fmlm+") else None)
        missing |= {"recipe": True} if state["format"] == 2 else {}
        settings = missing | settings
        if isinstance(settings.get("teacher"), str):
            settings["teacher"] = [settings["teacher"]]
    head = dict(state["network"], task=state["task"], objective=state["objective"])
    head.pop("tau", None)  # who starts from a network that is told tau, or t, is told the same
    if (not isinstance(settings, dict) or settings.keys() != types.keys()
            or not all(value is None or type(value) is types[name] and possible(value)
                       for name, value in settings.items())
            or any(settings[name] != head[name] for name in head if name in types)
            or not (settings["steps"] or settings["minutes"])):
        raise ValueError(f"{path} {NO_RUN}")
    return settings


def possible(value: object) -> bool:
    """Whether an option can have this value, if it is a number or a list."""
    if isinstance(value, list):
        return bool(value) and all(type(entry) is str for entry in value)
    return type(value) not in (int, float) or 0 <= value < 2**32


def fits(run: Run, state: dict, allowed: dict, option: str, path: str) -> None:
    """ValueError unless a checkpoint is of this task and size (or of fewer blocks), and of an
    objective that is allowed. Whether it is told t or tau is its own affair."""
    own, suits = run.info, allowed.get(run.info["objective"], ())
    depth = max(state["network"]["depth"], own["network"]["depth"])
    sizes = [{name: info["network"][name] for name in LARGEST} for info in (state, own)]
    if (state["objective"] not in suits or sizes[0] | {"depth": depth} != sizes[1]
            or any(state[name] != own[name] for name in ("task", "state"))):
        words = [", ".join(map(str, (info["task"], info["objective"], size)))
                 for info, size in zip((state, own), sizes)]
        raise ValueError(f"{option} {path} is {words[0]}, but this run, {words[1]}, needs its own "
                         "task and size (or fewer blocks), trained as "
                         f"{' or '.join(suits) or 'nothing: it takes none'}")


def load(run: Run, state: dict) -> None:
    """Start from the weights of another run: an MDM's, say, which is this network at s = t = 0.
    Blocks that it lacks write nothing yet: a deeper network starts out as the same function."""
    system = baseline(run.options.objective)
    weights = system.start(run.options.objective, state["model"]) if system else state["model"]
    for model in (run.model, run.ema.model):
        model.load_state_dict(weights, strict=False)
        for network in model.modules():
            if isinstance(network, fmlm.Denoiser):
                for block in network.blocks[state["network"]["depth"]:]:
                    for last in (*block.out.parameters(), *block.down.parameters()):
                        nn.init.zeros_(last)


def told_tau(options: Namespace, origin: dict | None) -> dict:
    """{"tau": True}, for "network" of a checkpoint, where the network of a run is told tau: as are
    the weights that it goes on from, else as its times are drawn. An MDM knows 0 and 1 only, where
    tau(t) = t, so who starts from one has the choice."""
    if not origin and options.objective in STARTS_AS_TEACHER and options.teacher:
        origin = read_checkpoint(options.teacher[0])
    if origin and origin["objective"] == "mdm" != options.objective:
        origin = None
    told = origin["network"].get("tau", False) if origin else options.tau
    return {"tau": True} if told else {}


def teach(run: Run, prepare: Callable) -> tuple[fmlm.Model | None, fmlm.Model | None]:
    """The frozen teachers of a run: an MDM, which is shown [MASK] and teaches a share of the batch
    at s = t = 0, and one of the rest of the diagonal; None where there is none. ValueError for a
    checkpoint that cannot teach it, and for two of one kind."""
    options, mdm, teacher = run.options, None, None
    for path in options.teacher or []:
        network, info = load_checkpoint(path, run.device)
        fits(run, info, TEACHERS, "--teacher", path)
        if options.objective in STARTS_AS_TEACHER:
            load(run, info)
        network = prepare(getattr(run.model, "teacher", network))  # a residual map holds its own
        if (mdm if info["objective"] == "mdm" else teacher) is not None:
            raise ValueError(f"--teacher {path} is the second {info['objective']}: name one mdm, "
                             "one teacher of the rest of the diagonal, or both")
        if info["objective"] == "mdm":
            mdm = fmlm.masked(network)
        else:
            teacher = network
    if mdm:
        options.distill = 0.25 if options.distill is None else options.distill
    elif options.distill is not None:
        raise ValueError(f"--distill is the share taught by an MDM, and {options.teacher[0]} is "
                         f"{info['objective']}")
    return mdm, teacher


def restore(run: Run, state: dict, path: str) -> None:
    """Go on where `state` was: the next step is the one that would have come next, bit for bit on a
    CPU. Where the run is given more steps or minutes, what is left of its schedule is stretched
    over them: neither the rate nor what the task shows goes back to what it was earlier.

    ValueError for a file that holds no such run, or a run that is over.
    """
    if state["format"] == 2:
        state = state | dict(format=3, began=dict(progress=0.0, at=0.0))
    state = {"started": False} | state  # an older file does not say whether it began with --init
    own = {name: value for name, value in run.state().items()
           if name not in ("options", "generator")}
    saved = {name: state.get(name) for name in own}
    if not (alike(saved, own) and 0 <= saved["began"]["progress"] <= 1
            and all(0 <= saved[name] < 1e9 for name in ("step", "seconds", "updates"))
            and 0 <= saved["began"]["at"] < 1e9):
        raise ValueError(f"{path} {NO_RUN}")
    run.ema.model.load_state_dict(state["model"])
    run.model.load_state_dict(state["running"])
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": state["optimizer"]})
    run.ema.updates, run.step, run.seconds = state["updates"], state["step"], state["seconds"]
    generator = run.draws.generator
    if run.rank == 0 and alike(state.get("generator"), generator.get_state()):
        generator.set_state(state["generator"])
    else:  # only the first process saves its own, and a GPU's means nothing to a CPU: a fresh one
        generator.manual_seed((run.options.seed + run.step) * run.world + run.rank)
    run.began, run.prompted = dict(state["began"]), state["prompted"]
    asked = {name: getattr(run.options, name) for name in ("steps", "minutes")}
    before = {name: state["options"][name] for name in asked}
    vars(run.options).update(before)
    now, end = run.place()
    if not (run.began["at"] <= now and run.began["at"] < end):
        raise ValueError(f"{path} {NO_RUN}")
    done = min(run.progress(), 1.0)
    vars(run.options).update(asked)
    by = "steps" if asked["steps"] else "minutes"  # minutes beside steps are those of a sitting
    if asked[by] != before[by]:
        run.began = dict(progress=done, at=float(run.place()[0]))
    if run.over():
        raise ValueError(f"{path} has done {run.step} steps already, so ask for more --steps or "
                         "--minutes")
