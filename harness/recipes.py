"""What recipes of tasks share: rows whose prompt leaves one sequence, and where they are asked."""

from __future__ import annotations

from fmlm import Batch, Target


def decided_rows(n: int, taught: int = 0) -> slice:
    """Where such rows are in a batch of n, of which an MDM teaches the first `taught` at s = t = 0:
    of the others the middle half, half of it on the diagonal."""
    rest = n - taught
    return slice(taught + rest // 4, taught + rest // 4 + rest // 2)


def distilled_rows(n: int, share: float | None) -> int:
    """How many rows of a batch of n an MDM teaches where --distill is this share."""
    return round(n * (share or 0))


def taught_rows(batch: Batch) -> int:
    """How many rows of a batch an MDM teaches."""
    return sum(target.rows for target in batch.targets if target.name == "mdm")


def learn_data_at_0_1(batch: Batch, name: str, share: float) -> tuple[Batch, slice]:
    """The batch with the `decided_rows` off the diagonal at (0, 1), where they learn the data as a
    target of this name, and the rows that are there now.

    All noise flows to the one sequence that their prompt leaves. The last target is that of the
    rows off the diagonal. A `share` of its others is moved to (0, 1) as well, but for the
    Lagrangian target, which says nothing there. No row: the batch is as it was.
    """
    *first, own = batch.targets
    n, diagonal = len(batch.x1), len(batch.x1) - own.rows
    end = max(diagonal, decided_rows(n, taught_rows(batch)).stop)
    others = round((n - end) * share) if own.name == "semigroup" else 0
    asked = slice(diagonal, end + others)
    if own.of is None or asked.start == asked.stop:
        return batch, slice(0, 0)
    s, t = batch.s.clone(), batch.t.clone()
    s[asked], t[asked] = 0, 1
    targets = [*first, Target(name, end - diagonal), own._replace(rows=n - end)]
    return batch._replace(s=s, t=t, targets=targets), asked
