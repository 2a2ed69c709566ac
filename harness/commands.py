"""What all command lines share: whatever is wrong ends in one sentence on stderr, and a status.

2: what was asked for cannot be done. 1: a training went wrong. 128 + n: ended by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are ValueErrors like all others."""

    def error(self, message: str) -> None:
        begins = "expected" in message and "argument" in message  # "-1e-3" looks like an option
        raise ValueError(message + " (write --option=-1 for what begins with -)" * begins)


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option: a whole number from low to high."""
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,30}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high:,}, "
                                             f"not {text[:40]!r}")
        return int(text)
    return read


def number(low: float, high: float, open: bool = True) -> Callable[[str], float]:
    """The type of an option: a number from low to high, low itself only where not `open`."""
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value <= high or value == low and not open):
            bounds = f"above {low:g} and at most" if open else f"from {low:g} to"
            raise argparse.ArgumentTypeError(f"must be a number {bounds} {high:g}, not "
                                             f"{text[:40]!r}")
        return value
    return read


COUNT, NFE, SEED = whole(1, 10**7), whole(1, 10**5), whole(0, 2**32 - 1)


def path(text: str) -> str:
    """The type of an option that names a file: "" (an unset variable, say) names none."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must name a file, not {text!r}")
    return text


def device(name: str) -> torch.device:
    """The type of --device. An error where this machine has none of that name."""
    try:
        torch.zeros(1, device=name).tolist()
    except Exception as error:  # each kind of device fails in its own way
        raise argparse.ArgumentTypeError(f"there is no device {name[:40]!r} here") from error
    return torch.device(name)


def device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device,
                        default="cuda" if torch.cuda.is_available() else "cpu")


def processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; 0 and 1 without it. ValueError for
    an environment that contradicts itself."""
    words = {name: os.environ.get(name, str(default))
             for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))}
    if (not all(re.fullmatch(r"\d{1,9}", word) for word in words.values())
            or int(words["RANK"]) >= int(words["WORLD_SIZE"])):
        raise ValueError("RANK, WORLD_SIZE and LOCAL_RANK are set by torchrun, numbers with RANK "
                         f"below WORLD_SIZE, not {', '.join(words.values())!r}: unset them")
    rank, world, local = map(int, words.values())
    if world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError(f"WORLD_SIZE {world} without MASTER_ADDR and MASTER_PORT: start with "
                         "torchrun, or unset it")
    if world > 1 and torch.cuda.is_available():
        torch.cuda.set_device(local)
    return rank, world


def clue_count(text: str) -> int | str:
    """The type of --clues: a number, or a kind of puzzle."""
    return text if text in ("minimal", "symmetric", "few") else whole(0, 10**4)(text)


def file_of(*suffixes: str) -> Callable[[str], str]:
    """The type of an option that names a file to write. Checked before the work, not after it."""
    def read(text: str) -> str:
        file = Path(path(text))
        if (file.suffix.lower() not in suffixes or text.endswith(os.sep) or file.is_dir()
                or not file.parent.is_dir()):
            *others, last = suffixes
            names = f"{', '.join(others)} or {last}" if others else last
            raise argparse.ArgumentTypeError(f"must be a {names} in a folder that exists, not "
                                             f"{text!r}")
        return text

    return read


figure_file, animation_file = file_of(".png", ".pdf", ".svg"), file_of(".gif", ".png")


def say(words: str) -> None:
    """One line on stderr, if it can be written to: work goes on where nobody listens."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # full, closed, none at all
        sys.stderr.write(f"{words}\n")
        sys.stderr.flush()


def out_of_memory(error: BaseException) -> bool:
    words = str(error)
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and (
        "memory" in words or "bad_alloc" in words)


def sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    words = " ".join(str(error).split())[:1000] or type(error).__name__
    if out_of_memory(error):
        return ("there is not enough memory for this: ask for less (-n, --batch, --width, --boards)"
                + f" ({words[:200]})" * bool(str(error)))
    if isinstance(error, OSError) and error.errno and error.filename is None:
        return f"cannot read or write ({error.strerror})"  # stdout, say: it has no name
    if isinstance(error, (ValueError, OSError, RuntimeError)):
        return words
    return f"{type(error).__name__}: {words}"  # a mistake of ours: python -X dev shows where


def command(name: str) -> Callable:
    """Around a `main`: the one place that turns any exception into a sentence and a status."""
    def around(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(arguments: list[str] | None = None) -> int:
            try:
                status = main(arguments)
                if not status and sys.stdout:
                    sys.stdout.flush()  # what cannot be written is no success
                return status
            except BrokenPipeError:  # who reads has seen enough, as in `| head`
                return 141  # 128 + SIGPIPE
            except KeyboardInterrupt:
                return 128 + signal.SIGINT
            except Exception as error:
                if sys.flags.dev_mode:
                    raise
                say(f"{name}: {sentence(error)}")
                return 2
        return guarded
    return around


def run(main: Callable[[], int]) -> None:
    """Be the process of a command, and end with its status. Streams that are closed, full or of few
    characters raise nothing, and Ctrl-C is heard once: who holds it down gets no traceback."""
    def once(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened, a checkpoint, would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, once)
        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except SystemExit as end:  # --help
        status = end.code
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        try:
            stream.flush()
        except OSError:  # what is left over is not tried again, or Python says so at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.exit(status)
