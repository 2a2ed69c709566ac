"""What recipes of tasks share: rows whose prompt leaves one sequence, and where they are asked."""

from __future__ import annotations

from fmlm import Batch, Target


def decided_rows(n: int) -> slice:
    """Where such rows are in a batch of n: its middle half, half of them on the diagonal."""
    return slice(n // 4, n // 4 + n // 2)


def learn_data_at_0_1(batch: Batch, name: str, share: float) -> tuple[Batch, slice]:
    """The batch with the `decided_rows` off the diagonal at (0, 1), where they learn the data as a
    target of this name, and the rows that are there now.

    All noise flows to the one sequence that their prompt leaves. The last target is that of the
    rows off the diagonal. A `share` of its others is moved to (0, 1) as well, but for the
    Lagrangian target, which says nothing there. No row: the batch is as it was.
    """
    *first, own = batch.targets
    n, diagonal = len(batch.x1), len(batch.x1) - own.rows
    end = max(diagonal, decided_rows(n).stop)
    others = round((n - end) * share) if own.name == "semigroup" else 0
    asked = slice(diagonal, end + others)
    if own.of is None or asked.start == asked.stop:
        return batch, slice(0, 0)
    s, t = batch.s.clone(), batch.t.clone()
    s[asked], t[asked] = 0, 1
    targets = [*first, Target(name, end - diagonal), own._replace(rows=n - end)]
    return batch._replace(s=s, t=t, targets=targets), asked
