"""Checkpoints: what train.py writes and all commands read. A file is replaced whole or not at all, and nothing in it is run."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from fmlm import Denoiser
from sudoku import boards as sudoku

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
SHIPPED = Path(__file__).parent / "sudoku9.pt"
FORMAT = 2
TRAIN = "`python train.py`, or `python train.py sudoku9` for 9x9"
OBJECTIVES = ("fmlm+", "fmlm", "flm", "mdm", "mlfm")
WITHOUT_CONTEXT = ("fmlm", "flm")  # trained with all tokens at one time: they cannot complete a puzzle
LARGEST = dict(vocab_size=4096, width=4096, depth=128, heads=4096)  # no network of more is made or believed


def build(info: dict, device: str | torch.device = "cpu") -> Denoiser:
    """The network that a checkpoint describes, with fresh weights."""
    coords = sudoku.SHAPES[info["task"]].coords()
    with torch.device(device):
        return Denoiser(coords=coords, **info["network"])


def alike(saved: object, own: object) -> bool:
    """Whether what a file holds has the keys, types and shapes of `own`. Tensors are dense, and may be in half precision."""
    if isinstance(own, dict):
        return isinstance(saved, dict) and saved.keys() == own.keys() and all(alike(saved[key], own[key]) for key in own)
    if not isinstance(own, Tensor):
        return type(saved) is type(own)
    return (isinstance(saved, Tensor) and saved.layout == torch.strided and saved.device.type == "cpu"
            and saved.shape == own.shape and saved.is_contiguous()
            and (saved.dtype == own.dtype or (saved.dtype, own.dtype) == (torch.float16, torch.float32)))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write to a temporary file, flush it to the disk, rename: whatever happens, `path` is the old file or the new one."""
    part, buffer = path.with_name(f"{path.name}.part"), io.BytesIO()
    torch.save(state, buffer)
    try:
        with open(part, "wb") as file:  # also takes the place of what a killed run has left
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({error}): what it held before is still there") from error


def ship(path: Path, state: dict) -> None:
    """Write only what sampling and the model card need of a run, the weights in half precision."""
    small = {name: state.get(name) for name in ("format", "task", "objective", "network", "step", "seconds", "options")}
    weights = {name: value.half() if value.is_floating_point() else value for name, value in state["model"].items()}
    save_checkpoint(path, dict(small, model=weights))


def read_checkpoint(path: str | Path) -> dict:
    """Read what `train.py` wrote. Nothing in the file is run, and no more memory is taken than it is long.

    Of the dictionary returned, "format", "task", "objective", "network" and "model" (the EMA weights) are validated.
    ValueError, in one sentence, for a file that is missing, damaged, not ours, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: train one with {TRAIN}")
    damaged = ValueError(f"{path} is damaged or not a checkpoint of train.py: train it again with {TRAIN}")
    try:
        # torch.save writes a zip file. Of such a file torch believes what no checksum covers, and then reads memory that
        # nobody wrote; so Python reads and checks every member, and torch gets a fresh archive of them.
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean := io.BytesIO(), "w") as copy:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise damaged
            for name in archive.namelist():
                copy.writestr(name, archive.read(name))
        clean.seek(0)
        state = torch.load(clean, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way at all
        raise damaged from error
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise damaged
    if state["format"] != FORMAT:
        raise ValueError(f"{path} has format {state['format']} and this code reads {FORMAT}: train it again with {TRAIN}")
    head = {name: state.get(name) for name in ("task", "objective", "network")}
    if (not alike(head, dict(task="", objective="", network=LARGEST)) or head["task"] not in sudoku.SHAPES
            or head["objective"] not in OBJECTIVES or head["network"]["vocab_size"] != sudoku.SHAPES[head["task"]].size
            or not all(1 <= size <= LARGEST[name] for name, size in head["network"].items())
            or head["network"]["width"] % head["network"]["heads"]):
        raise damaged
    weights = state.get("model")
    if (not alike(weights, build(state, "meta").state_dict())  # on "meta", a network takes no memory
            or sum(weight.numel() * weight.element_size() for weight in weights.values()) > path.stat().st_size
            or not all(weight.isfinite().all() for weight in weights.values())
            or not weights["coords"].equal(sudoku.SHAPES[head["task"]].coords())):
        raise damaged
    return state


def keep_memory() -> None:
    """Ask the C library to keep what a pass frees for the next one: fresh pages can cost a CPU half of its time."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # only glibc can
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest: 32 MiB
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def compiled(model: Denoiser, device: str | torch.device, dynamic: bool | None = None) -> Denoiser:
    """The network compiled, or as it is where that does not work: it takes a compiler of C++, on a GPU Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
        return torch.compile(model, dynamic=dynamic)
    except Exception:  # what is missing can fail in any way
        print("torch.compile does not work here: going on without it, at half the speed", file=sys.stderr)
        return model


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu", compile: bool = False) -> tuple[Denoiser, dict]:
    """The network of a checkpoint, ready to sample from, and what the file says of it. Raises as `read_checkpoint`."""
    state = read_checkpoint(path)
    model = build(state)
    model.load_state_dict(state["model"])  # half precision is widened here
    model = model.to(device).eval().requires_grad_(False)
    keep_memory()
    return compiled(model, device) if compile else model, state


def newest_checkpoint(shape: sudoku.Shape | None = None) -> Path:
    """The checkpoint trained here last, of boards of this shape by the name that train.py gives it, else the weights that
    ship with the repository."""
    return max(CHECKPOINTS.glob(f"{shape.name if shape else ''}*.pt"), key=lambda path: path.stat().st_mtime, default=SHIPPED)
