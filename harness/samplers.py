"""What the command lines know of a sampler: which objectives it suits, and the passes it makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fmlm import Model
from harness.checkpoints import BASELINES
from harness.measure import BATCH, known_after, passes_used


class Drawn(NamedTuple):
    """What a sampler drew: tokens (n, L), how sure it was of each when it last said so, 1 of what
    was given and -1 of what it did not commit, (n, L), and the passes of each sequence, (n,). And
    the `sample.Pass`es of the first batch: those of all would fill the memory."""

    tokens: Tensor
    sure: Tensor
    passes: Tensor
    trace: list


class Sampler(NamedTuple):
    """A sampler of the command lines, (model, tokens, known, nfe), and the objectives it suits."""

    run: Callable[..., Tensor]
    objectives: tuple[str, ...]
    chance: bool = True  # whether another attempt draws anything else
    gives_up: bool = False  # whether it can leave out its last round: see `sample.refine`

    def complete(self, model: Model, given: Tensor, nfe: int,
                 generator: Generator | None = None) -> Drawn:
        """Complete `given` (n, L), -1 where unknown, BATCH at a time."""
        done = []
        for part in given.split(BATCH):
            known, trace = part >= 0, []
            tokens = self.run(model, part.clamp(min=0), known, nfe, generator=generator,
                              trace=trace)
            sure = trace[-1].confidence if trace else torch.ones(part.shape, device=part.device)
            done.append(Drawn(tokens, sure.where(known_after(known, trace), -1),
                              passes_used(known, trace), [] if done else trace))
        return Drawn(*(torch.cat([getattr(each, name) for each in done])
                       for name in ("tokens", "sure", "passes")), done[0].trace)


def samplers_for(objective: str) -> dict[str, Sampler]:
    """The samplers that suit an objective, its default first: those of sample.py, or another
    system's own."""
    known = import_module(BASELINES.get(objective, "sample")).SAMPLERS
    return {name: sampler for name, sampler in known.items() if objective in sampler.objectives}


def choose_sampler(objective: str, name: str | None = None,
                   threshold: float | None = None) -> tuple[str, Sampler]:
    """The sampler of that name, or the objective's default, with a threshold of its own if given.

    ValueError where they do not go together.
    """
    suits = samplers_for(objective)
    name = next(iter(suits), "") if name is None else name
    if name not in suits:
        every = dict.fromkeys([*import_module("sample").SAMPLERS,
                               *(key for other in BASELINES for key in samplers_for(other))])
        if name not in every:
            raise ValueError(f"unknown sampler {name!r}: choose from {', '.join(every)}")
        raise ValueError(f"the sampler {name!r} does not suit a model trained as {objective}: use "
                         f"{' or '.join(suits)}")
    if threshold is None:
        return name, suits[name]
    if not name.startswith("posterior"):
        raise ValueError(f"--threshold is of Posterior Refinement, not of the sampler {name!r}")
    return name, suits[name]._replace(run=partial(suits[name].run, threshold=threshold))
