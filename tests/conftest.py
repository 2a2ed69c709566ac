"""What several chapters need: a cache of their own, and a checkpoint on demand."""

import pytest
import torch

from harness import checkpoints
from harness.tasks import load_task
from sudoku import boards as sudoku


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """With pytest.mark.usefixtures("cache"), no test of a file reads or writes the real cache."""
    monkeypatch.setattr(sudoku, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes a fresh network as train.py would."""
    def write(objective):
        network = {"vocab_size": 4, "width": 8, "depth": 1, "heads": 2}
        state = {"format": checkpoints.FORMAT, "task": "sudoku4", "state": {}, "step": 7,
                 "objective": objective, "network": network}
        model = checkpoints.build(state, load_task("sudoku4"))
        torch.save(state | {"model": model.state_dict()}, tmp_path / f"{objective}.pt")
        return str(tmp_path / f"{objective}.pt")
    return write
