"""Which alternative to prefer, by a written rule, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .result import Evaluation, Row

__all__ = ["listing", "preferred", "sentence"]


def preferred(found: Evaluation) -> Row:
    """The alternative to prefer.

    1. One row is *as good as* another if its mean over the grid is not lower by more than the noise: two standard
       errors of the difference, paired image by image.
    2. Of the rows that are as good as the one with the highest mean, the one that asks for least is preferred:
       the frozen network; then undoing the transform on the input; then what had to be trained: first what holds the
       conditioned network's clean accuracy, by trainable numbers (ours first where they are equal, unknown ones last);
       then what loses some, by the clean accuracy that it keeps.
    """
    ours = found.ours

    def demand(row: Row) -> tuple[float, ...]:
        if row.role == "frozen":
            return (0,)
        if row.role == "inverse":
            return (1,)
        numbers = math.inf if row.trainable is None else float(row.trainable)
        return (2, numbers, row is not ours) if row.clean >= ours.clean else (3, -row.clean, numbers)

    best = max(found.rows, key=lambda row: row.mean)
    return min((row for row in found.rows if not _beyond(found, best, row)), key=demand)


def _beyond(found: Evaluation, one: Row, other: Row) -> bool:
    """Is the first row's mean higher by more than the noise?"""
    # The slack is for rounding: equal scores, summed in another order.
    return one.mean - other.mean > found.noise(one, other) + 1e-12


def sentence(found: Evaluation) -> str:
    """The preferred alternative and why, in one sentence that names whatever reached a higher mean."""
    row, ours = found.preferred, found.ours
    word = "accuracy" if found.metric == "accuracy" else "score"
    rivals = sorted((rival for rival in found.rows if rival is not row), key=lambda rival: -rival.mean)
    reaches = f"reaches {found.text(row.mean)} on average over {listing(found.grid)} ({found.text(row.worst)} at worst)"
    named = rivals[0] if rivals and row.role in ("conditioned", "frozen") else ours
    # The rule may pass over a higher mean, because the noise would explain it; that one is named too.
    passed = [rival for rival in rivals if rival.mean > row.mean and rival is not named]
    also = "".join(f"; {_called(r)} with {found.text(r.mean)} is as good {_noise(found, row, r)}" for r in passed[:1])

    if row.role == "frozen":
        against = f" {_against(found, row, named)}" if rivals else ""
        return f"Leave the network as it is: unchanged it {reaches}{against}{also}, and nothing needs training."
    if row.role == "inverse":
        spent = ""
        if row.cost is not None and ours.cost is not None:
            spent = (
                f"; a call takes {row.cost:.2f} times the frozen network's time, with conditioned weights made once "
                f"{ours.cost:.2f} times"
            )
        return (
            f"Undo the transform on the input: with the frozen network this {reaches} {_against(found, row, named)}"
            f"{also}, and it needs no training{spent}."
        )
    clean = found.text(row.clean)
    if row is ours:
        against = f" {_against(found, row, named)}" if rivals else ""
        undone = ", and the transform cannot be undone on the input" if "inverse" in found.absent else ""
        return (
            f"Prefer the conditioned network: it {reaches}{against}{undone}{also}; its clean {word} is {clean}, and it "
            f"has {_numbers(row)} trainable numbers."
        )
    return (
        f"Prefer {row.name}: it {reaches} {_against(found, row, ours)}{also}; "
        f"{'its' if row.clean >= ours.clean else 'but its'} clean {word} is {clean} against {found.text(ours.clean)}, "
        f"and it has {_numbers(row)} trainable numbers against {_numbers(ours)}."
    )


def listing(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    Example:
        >>> listing(["angle", "blur", "zoom"])
        'angle, blur and zoom'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _against(found: Evaluation, row: Row, rival: Row) -> str:
    differ = _beyond(found, row, rival) or _beyond(found, rival, row)
    told = f"a difference beyond the noise of {_width(found, row, rival)}" if differ else ""
    told = told or f"as good {_noise(found, row, rival)}"
    return f"against {found.text(rival.mean)} for {_called(rival)}, {told}"


def _noise(found: Evaluation, row: Row, rival: Row) -> str:
    return f"within the noise of {_width(found, row, rival)}"


def _width(found: Evaluation, row: Row, rival: Row) -> str:
    return f"±{found.text(found.noise(row, rival), spread=True)}"


def _called(row: Row) -> str:
    known = {
        "conditioned": "the conditioned network",
        "frozen": "the frozen network",
        "inverse": "undoing the transform",
    }
    return known.get(row.role, row.name)


def _numbers(row: Row) -> str:
    return "an unknown number of" if row.trainable is None else f"{row.trainable:,}"
