"""What all command lines share: whatever is wrong ends in one sentence on stderr and exit status 2."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

import torch


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are ValueErrors like all others."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def device(name: str) -> torch.device:
    """The device of --device. ValueError where this machine has none of that name."""
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here") from error
    return torch.device(name)


def clue_count(text: str) -> int | str:
    """The number of clues of --clues, or "minimal"."""
    return text if text == "minimal" else int(text)


def command(name: str) -> Callable:
    """Around a `main`: what is wrong with its arguments or files ends in one sentence on stderr and exit status 2."""
    def around(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: list[str] | None = None) -> int:
            try:
                return main(arguments)
            except (ValueError, OSError, RuntimeError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
        return run
    return around
