"""What this project adds to the paper's training batch for stories; `train.py --no-recipe` leaves
it out. Published (2606.24773): a question is a prompt, and off the diagonal 1/32 of the rows are at
(0, 1).

Half of the rows are stories that lack words which their others decide. Such a story flows to one
end from any noise, and off the diagonal too its target is the data, at (0, 1), where samplers ask.
A run begins with what is easy: stories of one event, in which what comes first decides what comes
later (`Stories.repeated`, then `decided`). In half of the other rows the words of the form are a
prompt (`Stories.form`): what is asked for is what happens. A run that starts from another has had
both. text/RESULTS.md says what this is worth.
"""

from __future__ import annotations

from fmlm import Batch, Draws, Model
from harness.recipes import decided_rows, learn_data_at_0_1, taught_rows

EASY = (1 / 8, 1 / 4)  # shares of the schedule from which stories have up to 2, and up to 3 events
EITHER_WAY = 1 / 2  # share from which what comes later may also decide what comes first
AT_01 = 1 / 8  # share of the other rows off the diagonal that are at (0, 1); published: 1/32


def most_events(progress: float) -> int:
    """The events that a story has at most, when so much of the schedule is done."""
    return 1 + sum(progress >= begins for begins in EASY)


def recipe(batch: Batch, model: Model, draws: Draws) -> Batch:
    """A batch with decided rows in `decided_rows`, which have no context but their prompt; off the
    diagonal see `learn_data_at_0_1`."""
    rows, context = decided_rows(len(batch.x1), taught_rows(batch)), batch.context.clone()
    context[rows] = batch.prompt[rows]
    batch, _ = learn_data_at_0_1(batch._replace(context=context), "decided", AT_01)
    return batch
