"""Checkpoints: what train.py writes and every command reads.

A file is replaced whole or not at all, and nothing in it is run.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pickletools
import zipfile
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from fmlm import Denoiser
from harness.commands import out_of_memory, say
from harness.files import alone, written
from harness.tasks import ROOT, TASKS, Task, load_task

CHECKPOINTS = ROOT / "checkpoints"
FORMAT = 3  # 2 had neither the state of the task nor that of the schedule: it is read as well
TRAIN = f"`python train.py TASK`, TASK one of {', '.join(TASKS)}"
OBJECTIVES = ("fmlm+", "fmlm", "flm", "mdm", "flm+")
BASELINES = {"ar": "baselines.ar", "duo": "baselines.duo", "candi": "baselines.candi",
             "sflm": "baselines.sflm", "sflm-naive": "baselines.sflm",  # other systems' objectives
             "mlfm": "baselines.mlfm",
             "fmlm-residual": "baselines.two_stage", "fmlm-compressed": "baselines.two_stage"}
MASKED = ("mdm", "mlfm")  # shown [MASK], the zero vector, where the others are shown noise at s = 0
ONE_BY_ONE = ("ar",)  # a pass a token, no less
IN_TAU = ("flm", "fmlm", "fmlm-residual", "fmlm-compressed")  # know a prompt at most
MAY_TAU = (*IN_TAU, "fmlm+", "flm+")  # learn at random times: in tau or in t
LARGEST = dict(vocab_size=65536, width=4096, depth=128, heads=4096)  # none larger is made or read
MOST_ENTRIES, MOST_OPERATIONS, LONGEST_PICKLE = 20_000, 2**20, 2**23  # over three times LARGEST
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2",  # what torch.save names
           *(f"torch {kind}Storage" for kind in "Float Double Half Long Int Byte Bool".split())}


# ---- writing


class Saver:
    """The one place that writes a checkpoint: whatever happens, `path` is the old file or the new.

    That it can be written is tried at once, not after a night of training. What another process
    saves there meanwhile stays: this one steps aside, to a name beside it, and says so. Raises
    ValueError for a path that cannot be written, or whose file must not be lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(os.path.realpath(path))  # where a link leads to: the link stays
        try:
            self.seen = mark(path)
            if path.is_dir() or not path.parent.is_dir():
                raise ValueError(f"cannot write {path}: it must be a file in a folder that exists")
            if self.seen and not path.is_file():
                raise ValueError(f"cannot write {path}: it is no regular file, so name another")
            if self.seen and path.stat().st_size and not is_checkpoint(path):
                raise ValueError(f"{path} is no checkpoint of train.py, or a damaged one, and "
                                 "would be lost: move it away, or name another file")
            with written(path, b""):
                pass
        except OSError as error:
            raise ValueError(f"cannot write {path} ({error.strerror or error}): name a file in a "
                             "folder that can be written to") from error

    def save(self, state: dict) -> None:
        """Replace the file. Raises OSError, in one sentence, where the disk refuses."""
        torch.save(state, buffer := io.BytesIO())
        try:
            with written(self.path, buffer.getbuffer()) as part, alone(self.path.parent):
                if mark(self.path) not in (None, self.seen):
                    self._step_aside()
                self.seen = mark(part)  # a rename changes nothing of it
                try:
                    os.replace(part, self.path)
                except OSError:  # a file that is mounted, say: what was trained is not lost for it
                    self._step_aside()
                    os.replace(part, self.path)
        except OSError as error:
            raise OSError(f"cannot write {self.path} ({error.strerror or error}): what was there "
                          "before is there still") from error

    def _step_aside(self) -> None:
        taken = self.path
        names = (taken.with_name(f"{taken.stem}-{number}{taken.suffix}") for number in count(2))
        self.path = next(path for path in names if not os.path.lexists(path))
        say(f"{taken} is not what this run has left there, or cannot be replaced, so it stays as "
            f"it is: this run goes on in {self.path}")


def mark(path: Path) -> tuple | None:
    """What tells a file from any other that takes its place; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write `state` to a file that is not there, or is a checkpoint: see `Saver`."""
    Saver(path).save(state)


def ship(path: str | Path, state: dict) -> None:
    """Write only what sampling and the model card need of a run, in half precision. Raises as
    `halves`."""
    names = ("format", "task", "state", "objective", "network", "prompted", "step", "seconds",
             "options")
    weights = halves(state["model"])
    save_checkpoint(path, {name: state.get(name) for name in names} | dict(model=weights))


def halves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision; what is no number with a point stays. ValueError for a weight that
    half precision cannot hold."""
    weights = {name: value.half() if value.is_floating_point() else value
               for name, value in weights.items()}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"the weight {name} has entries beyond half precision: choose another "
                             "checkpoint")
    return weights


# ---- reading


def _unpack(path: Path) -> dict:
    """The dictionary in a file of torch.save. Any exception at all where it is none.

    Nothing is run, and memory is taken by what the file is long, not by what it claims: the archive
    has entries of a number that can be, stored plainly and together no longer than the file; the
    pickle has operations of a number that can be, and names nothing but tensors. Of an entry torch
    believes what no checksum covers: Python reads and checks each, and torch gets a fresh archive.
    """
    with open(path, "rb") as file:  # before Python lists them, at ten times their length
        parts = iter(lambda: file.read(2**20), b"")
        if sum(part.count(b"PK\1\2") for part in parts) > MOST_ENTRIES:
            raise ValueError("too many entries")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean := io.BytesIO(), "w") as copy:
        entries = archive.infolist()
        if (sum(entry.file_size for entry in entries) > path.stat().st_size
                or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                or len({entry.filename for entry in entries}) < len(entries)):
            raise ValueError("the entries are no plain ones of this file")
        for entry in entries:
            data = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _check_pickle(entry.filename, data)
            copy.writestr(entry.filename, data)
    clean.seek(0)
    state = torch.load(clean, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise ValueError("no checkpoint of train.py")
    return state


def _check_pickle(name: str, data: bytes) -> None:
    """ValueError for a pickle that is longer than one of tensors, or names anything else."""
    if not name.endswith("/data.pkl") or len(data) > LONGEST_PICKLE:  # others are of TorchScript
        raise ValueError("no pickle of torch.save, or one that is too long")
    for number, (operation, operand, _) in enumerate(pickletools.genops(data)):
        named = "GLOBAL" in operation.name or operation.name == "INST"
        if number > MOST_OPERATIONS or named and operand not in GLOBALS:
            raise ValueError("the pickle does more than name tensors")


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a whole checkpoint of train.py, of whatever format."""
    try:
        return bool(_unpack(path))
    except Exception:  # a file that is none can fail in any way at all
        return False


def read_checkpoint(path: str | Path) -> dict:
    """Read what `train.py` wrote: see `_unpack` for what a file cannot do.

    "format", "task", "state", "objective", "network", "prompted" and "model" (the EMA weights) are
    validated. A network that is told tau says so; one of a file without that word is told t.
    ValueError, in one sentence, for a file that is missing, damaged, not ours, of another format or
    of a task that is not here.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: train one with {TRAIN}")
    damaged = ValueError(f"{path} is damaged or not a checkpoint of train.py: train it again with "
                         f"{TRAIN}")
    try:
        state = _unpack(path)
    except PermissionError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        if out_of_memory(error):
            raise
        raise damaged from error
    if state["format"] not in (2, FORMAT):
        raise ValueError(f"{path} has format {state['format']} and this code reads {FORMAT}: train "
                         f"it again with {TRAIN}")
    if state["format"] == 2:
        state["state"] = {}
    state.setdefault("prompted", False)
    head = {name: state.get(name) for name in ("task", "objective", "network", "prompted")}
    told = isinstance(head["network"], dict) and "tau" in head["network"]
    sizes = LARGEST | ({"tau": True} if told else {})
    if not alike(head, dict(task="", objective="", network=sizes, prompted=True)):
        raise damaged
    if head["task"] not in TASKS:
        raise ValueError(f"{path} is of the task {head['task'][:40]!r}, which is not here: choose "
                         f"a checkpoint of {', '.join(TASKS)}")
    network = head["network"]
    if (head["objective"] not in (*OBJECTIVES, *BASELINES)
            or not isinstance(state.get("state"), dict)
            or not all(1 <= network[name] <= largest for name, largest in LARGEST.items())
            or network["width"] % network["heads"]):
        raise damaged
    try:
        task = load_task(head["task"], state["state"])
        fresh = build(state, task, "meta").state_dict()  # takes no memory
    except Exception as error:  # the state is a stranger's as well
        raise damaged from error
    weights = state.get("model")
    if head["objective"] == "mlfm" and isinstance(weights, dict) and "curve" not in weights:
        raise ValueError(f"{path} is an MLFM of an older form, whose law of times is another: "
                         f"train it again with {TRAIN}")
    if (network["vocab_size"] != task.vocab_size
            or not alike(weights, fresh)
            or sum(w.numel() * w.element_size() for w in weights.values()) > path.stat().st_size
            or not all(weight.isfinite().all() for weight in weights.values())
            or not all(weight.equal(task.coords) for name, weight in weights.items()
                       if name.endswith("coords"))):
        raise damaged
    return state


def alike(saved: object, own: object) -> bool:
    """Whether what a file holds has the keys, types and shapes of `own`. Tensors are dense, and may
    be in half precision."""
    if isinstance(own, dict):
        return (isinstance(saved, dict) and saved.keys() == own.keys()
                and all(alike(saved[key], own[key]) for key in own))
    if not isinstance(own, Tensor):
        return type(saved) is type(own)
    return (isinstance(saved, Tensor) and saved.layout == torch.strided
            and saved.device.type == "cpu" and saved.shape == own.shape and saved.is_contiguous()
            and (saved.dtype == own.dtype
                 or (saved.dtype, own.dtype) == (torch.float16, torch.float32)))


# ---- the network of a checkpoint


def baseline(objective: str) -> ModuleType | None:
    """The module of another system (see baselines/__init__.py), None for an objective of fmlm's."""
    return import_module(BASELINES[objective]) if objective in BASELINES else None


def build(info: dict, task: Task, device: str | torch.device = "cpu") -> Denoiser:
    """The network that a checkpoint describes, with fresh weights."""
    system = baseline(info["objective"])  # imported here: what it makes on import stays real
    with torch.device(device):
        if system:
            sizes = {name: size for name, size in info["network"].items() if name != "vocab_size"}
            return system.NETWORKS[info["objective"]](task, sizes)
        return Denoiser(coords=task.coords, **info["network"])


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu",
                    compile: bool = False) -> tuple[Denoiser, dict]:
    """The network of a checkpoint, ready to sample from, and what the file says of it.

    Raises as `read_checkpoint`.
    """
    state = read_checkpoint(path)
    model = build(state, task_of(state))
    model.load_state_dict(state["model"])  # half precision is widened here
    model = model.to(device).eval().requires_grad_(False)
    keep_memory()
    return compiled(model, device) if compile else model, state


def completes(info: dict) -> bool:
    """Whether a checkpoint's model knows clean context: an FLM or FMLM does where it was trained
    with prompts, all others always."""
    return info["objective"] not in IN_TAU or info["prompted"]


def task_of(info: dict) -> Task:
    """The task of a checkpoint that was read."""
    return load_task(info["task"], info["state"])


def newest_checkpoint(*names: str) -> Path:
    """The checkpoint of one of these tasks (of any) that was trained here last, by the names that
    train.py gives, else the weights that ship with the repository. ValueError where there are
    neither."""
    def of_task(path: Path) -> str | None:  # "a-b-mdm.pt" is of the task "a-b", not of "a"
        return max((task for task in TASKS if path.name.startswith(f"{task}-")), key=len,
                   default=None)

    trained = [path for path in CHECKPOINTS.glob("*.pt") if not names or of_task(path) in names]
    shipped = [path for task, module in TASKS.items() if not names or task in names
               if (path := ROOT / module.split(".")[0] / f"{task}.pt").exists()]
    found = sorted(trained, key=lambda path: path.stat().st_mtime)[-1:] or shipped
    if not found:
        raise ValueError(f"there is no checkpoint of {' or '.join(names) or 'any task'}: train one "
                         f"with {TRAIN}")
    return found[0]


def keep_memory() -> None:
    """Ask the C library to keep what a pass frees for the next: fresh pages can cost half of it."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # only glibc can
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest: 32 MiB
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def compiled(model: Denoiser, device: str | torch.device, dynamic: bool | None = None) -> Denoiser:
    """The network compiled, or as it is where that does not work: it takes a compiler of C++, on a
    GPU Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
        return torch.compile(model, dynamic=dynamic)
    except Exception:  # what is missing can fail in any way
        say("torch.compile does not work here: going on without it, at half the speed")
        return model
