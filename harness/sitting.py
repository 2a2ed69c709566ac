"""A sitting of training: all of its loop that is no training. Signals, the clock, the agreement of
several processes, the progress bar, and saving, which nothing that fails around it can skip."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from tqdm import tqdm

from harness.checkpoints import Saver
from harness.commands import say

if TYPE_CHECKING:
    from train import Run

SAVE_EVERY = 60  # seconds
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


class Forgiving:
    """A stream whose errors are nobody's: a full disk under a log, a reader that went away."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class Sitting:
    """`with Sitting(run, saver) as sitting:`, iterate over it and take a step each time.

    It ends with the schedule, with this sitting's minutes, at a gradient that is not finite, or
    after a signal, when the step that runs is finished. Everything is saved every minute and at the
    end, whatever the end is. `status`: 0; 128 + the signal's number; 1 where training went wrong; 2
    where the disk did.
    """

    def __init__(self, run: Run, saver: Saver | None) -> None:
        self.run, self.saver, self.first = run, saver, run.step
        self.status, self.ending, self.caught = 0, 0, []
        minutes = run.options.minutes if run.options.steps else None
        self.longest = 60 * minutes if minutes else math.inf
        self.every = 1 if run.device.type == "cpu" else 50  # to fetch a loss is to wait for a GPU

    def __enter__(self) -> Sitting:
        nohup = {number for number in SIGNALS[2:] if signal.getsignal(number) == signal.SIG_IGN}
        catch = lambda number, frame: self.caught.append(number)
        self.handlers = {number: signal.signal(number, catch)
                         for number in SIGNALS if number not in nohup}
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(initial=self.run.step, unit="step", file=Forgiving(sys.stderr),
                        disable=self.run.rank > 0, mininterval=0.5 if terminal else 30)
        return self

    def __iter__(self) -> Iterator[int]:
        run, before, started = self.run, self.run.seconds, time.perf_counter()
        saved = started
        while not (run.over() or run.seconds - before >= self.longest or self.ending):
            yield run.step
            run.seconds = before + time.perf_counter() - started
            self._agree()
            if run.step % self.every == 0:
                if run.broken:
                    break
                self._show()
                if time.perf_counter() - saved > SAVE_EVERY:
                    self.bar.clear()  # what saving has to say begins a line
                    self._save()
                    saved = time.perf_counter()
            self.bar.update()

    def __exit__(self, *error: object) -> None:
        try:
            with contextlib.suppress(Exception):  # a bar, whatever it does, is not worth a run
                self.bar.close()
            self.status = self._save()
        finally:
            self.ending = max([self.ending, *self.caught])
            self.status = self.status or (128 + self.ending if self.ending else 0)
            for number, handler in self.handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: not one of Python's

    def _agree(self) -> None:
        """A clock or a signal is one process's own: all agree on both, to end after one step."""
        self.ending = max(self.caught, default=0)
        if self.run.world > 1:
            agreed = torch.tensor([self.run.seconds, self.ending], dtype=torch.float64)
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
            self.run.seconds, self.ending = float(agreed[0]), int(agreed[1])

    def _show(self) -> None:
        self.bar.total = max(self.run.step, round(self.run.step / max(self.run.progress(), 1e-9)))
        shown = {name: f"{float(value):.3f}" for name, value in self.run.parts.items()}
        self.bar.set_postfix(shown, refresh=False)

    def _save(self) -> int:
        """Write the checkpoint, unless what is to be written is broken. Returns a status."""
        run, broken = self.run, int(self.run.broken)
        if broken or not run.finite():
            what = f"the gradient of step {broken}" if broken else f"a weight after step {run.step}"
            if self.saver:
                say(f"train.py: {what} is not finite, so training stops and {self.saver.path} is "
                    "left as it was: try a smaller --lr")
            run.broken.fill_(broken or run.step)
            return 1
        try:
            if self.saver and run.step > self.first:  # else there is nothing that is new
                self.saver.save(run.state())
            return 0
        except OSError as error:  # a disk that is full may have room in a minute
            say(f"train.py: {error}")
            return 2
