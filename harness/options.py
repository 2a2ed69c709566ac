"""The command line of train.py: what a run can be asked for, and what goes together."""

from __future__ import annotations

import argparse
import os
import sys

from harness import commands, runs, speed
from harness.checkpoints import (BASELINES, IN_TAU, LARGEST, MAY_TAU, OBJECTIVES,
                                 read_checkpoint)
from harness.tasks import TASKS, Task, load_task

DEFAULTS = dict(objective="fmlm+", lr=2e-3, warmup=100, ema=0.999, seed=0, compile=True,
                optimizer="adamw", recipe=True, minutes=3.0, batch=128, width=64, depth=4, heads=4,
                boundary=1 / 32,  # as published
                sigma=0.5)  # chosen on 4x4 boards; published: 0.2, in a space of embeddings
ONLY = dict(tau=MAY_TAU, boundary=("fmlm", "fmlm+"), lagrangian=("fmlm", "fmlm+"),  # objectives
            weighting=("mdm",), sigma=("mlfm",), teacher=tuple(runs.TEACHERS))  # that have these


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Task, dict | None]:
    """The options of a run, its task, and the checkpoint to resume, or None.

    An option is what the command line says, else what the resumed run was started with, else the
    task's setting, else the default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = commands.Parser(add_help=False)
    first.add_argument("--resume", type=commands.path)
    resumed = first.parse_known_args(arguments)[0].resume
    state = None if resumed is None else read_checkpoint(resumed)
    default = state["task"] if state else next(iter(TASKS))
    name = next((word for word in arguments if word in TASKS), default)
    task = load_task(name, state["state"] if state and state["task"] == name else None)
    options = _parser(task).parse_args(arguments)
    if options.task not in (None, name):  # none at all, or one after an option's value of its name
        task = load_task(options.task)
        options = _parser(task).parse_args(arguments)
    settings = _settings(state, task, resumed) if state and not options.ship else {}
    free = {"steps", "minutes", "bf16", "compile", "teacher"}
    for name in settings.keys() - free:
        if (asked := getattr(options, name)) not in (None, settings[name]):
            raise ValueError(f"{resumed} is a run with {name} {settings[name]}, not {asked}: leave "
                             "that out")
    defaults = DEFAULTS | task.settings | {name: own[0] for name, own in task.own.items()}
    objective = options.objective or settings.get("objective") or DEFAULTS["objective"]
    if objective in IN_TAU:
        defaults |= dict(tau=True, recipe=False) | task.without_context
    defaults = {name: value for name, value in defaults.items()
                if objective in ONLY.get(name, (objective,))}
    defaults |= dict(task=task.name) | {name: value for name, value in settings.items()
                                        if value is not None or name in ONLY}
    if options.steps or settings.get("steps"):  # minutes are then those of a sitting, of this one
        defaults["minutes"] = None
    unset = {name for name, value in vars(options).items() if value is None}
    vars(options).update({name: value for name, value in defaults.items() if name in unset})
    _check(options, task)
    if options.bf16 is None:
        options.bf16 = speed.bf16_pays(options.device)
    speed.check_bf16(options.bf16, options.device)
    return options, task, state


def _settings(state: dict, task: Task, path: str) -> dict:
    """The settings of the run in a checkpoint. ValueError for those that no command line asks."""
    settings = runs.settings_of(state, task, path)
    words = [f"--{name}={value}" if type(value) is not bool else f"--{'' if value else 'no-'}{name}"
             for name, values in settings.items() if values is not None and name != "task"
             for value in (values if type(values) is list else [values])]
    try:
        _parser(task).parse_args(words)
    except ValueError as error:
        raise ValueError(f"{path} {runs.NO_RUN} ({error})") from error
    return settings


def _parser(task: Task) -> commands.Parser:
    parser = commands.Parser(prog="train.py", description="Train a flow map language model, then "
                             "print its evaluation table.")
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    default = DEFAULTS | task.settings
    add("task", nargs="?", help=f"{', '.join(TASKS)}; default: {next(iter(TASKS))}")
    add("--objective", choices=(*OBJECTIVES, *BASELINES), help="default: fmlm+")
    add("--steps", type=commands.COUNT, help="length of the schedule; default: that of --minutes")
    add("--minutes", type=commands.number(0, 10**6),
        help="length of the schedule, or of this sitting where --steps is given (default "
        f"{default['minutes']:g})")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", type=commands.path, metavar="CKPT",
                       help="continue this run, with the settings that it was started with")
    start.add_argument("--init", type=commands.path, metavar="CKPT",
                       help="start from the weights of this checkpoint, such as an MDM's; it may "
                       "have fewer blocks than --depth")
    add("--out", type=commands.path, metavar="CKPT",
        help="default: checkpoints/TASK-OBJECTIVE.pt, or the resumed checkpoint")
    add("--teacher", type=commands.path, metavar="CKPT", action="append",
        help="learn from this frozen model: fmlm and fmlm-residual from an flm, fmlm-compressed "
        "from an fmlm-residual, all of which start from it; fmlm+ from an mdm at s = t = 0, from "
        "an flm+ or fmlm+ on the rest of the diagonal, or, named twice, from both")
    add("--distill", type=commands.number(0, 1, open=False), metavar="X",
        help="share of the batch that an mdm teaches (default 0.25)")
    add("--tau", action=switch, help="draw and halve times in tau(t), and tell the network tau "
        f"(default for {', '.join(MAY_TAU if 'tau' in default else IN_TAU)})")
    add("--weighting", choices=("uniform", "elbo"), help="of an mdm's masked tokens: alike "
        "(default), or 1 / masking rate as in the likelihood bound")
    add("--sigma", type=commands.number(0, 10), metavar="X",
        help=f"of mlfm: size of the bridge's noise (default {default['sigma']})")
    add("--boundary", type=commands.number(0, 1, open=False), metavar="X",
        help="share of the rows with s < t that are at (0, 1), where few passes ask (default "
        f"{default['boundary']:g}; published: 1/32)")
    add("--lagrangian", action=switch, help="off-diagonal target: the Lagrangian identity")
    add("--recipe", action=switch, help="what the task adds to the paper's batch (default)")
    add("--optimizer", choices=("adamw", "muon"), help="muon: of the matrices of the blocks, adamw "
        f"of all else (default: {default['optimizer']})")
    kinds = dict(batch=commands.whole(1, 10**6), lr=commands.number(0, 10), warmup=commands.COUNT,
                 ema=commands.number(0, 0.9999999, open=False), seed=commands.SEED)
    kinds |= {name: commands.whole(1, LARGEST[name]) for name in ("width", "depth", "heads")}
    for name, kind in kinds.items():
        add(f"--{name}", type=kind, metavar="X", help=f"default: {default[name]}")
    for name, (value, largest, words) in task.own.items():
        kind = commands.whole(0, largest) if isinstance(value, int) else type(value)
        said = f"{words} (default {value})" if value != "" else words
        add(f"--{name}", type=kind, metavar="X", help=said)
    commands.device_option(parser)
    add("--bf16", action=switch,
        help="matrix products in bfloat16 (default: where that is faster)")
    add("--compile", action=switch, help="a minute to start, then twice as fast (default)")
    add("--table", action=switch, default=True, help="evaluate at the end (default)")
    add("--ship", type=commands.path, metavar="FILE",
        help="train nothing: write the weights of --resume there, in half precision")
    add("--bench", type=commands.NFE, metavar="N", help="time N steps and train nothing")
    return parser


def _check(options: argparse.Namespace, task: Task) -> None:
    """ValueError for options that do not go together, before any work."""
    for name, those in ONLY.items():
        if getattr(options, name) and options.objective not in those:
            *others, last = those
            those = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(f"--{name} is for {those}, not for {options.objective}")
    taught = options.objective in BASELINES and options.objective in runs.TEACHERS
    if taught and not options.teacher:
        suits = " or ".join(runs.TEACHERS[options.objective])
        raise ValueError(f"{options.objective} learns from a frozen {suits}: name one with "
                         "--teacher")
    if options.ship and (not options.resume or same_file(options.ship, options.resume)):
        raise ValueError("--ship writes the weights of a run to another file than the run's: "
                         "name it with --resume")
    if options.distill is not None and not options.teacher:
        raise ValueError("--distill is the share of the batch that a --teacher teaches: name one")
    if options.width % options.heads:
        raise ValueError(f"--width {options.width} must be a multiple of --heads {options.heads}")
    if options.lagrangian:  # forward-mode differentiation does not pass a compiled network
        options.compile = False


def same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
