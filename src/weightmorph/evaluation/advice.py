"""Which alternative to prefer, by a written rule, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .result import Evaluation, Row

__all__ = ["IMAGE", "listing", "preferred", "sentence", "untold"]

IMAGE = "θ inferred per image"
"""The row in which θ is inferred for each image by itself."""

ASIDE = ("offset", "inferred")
"""Rows of the conditioned network under other conditions than the rest: no alternatives to it where θ is known."""


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

    rows = [row for row in found.rows if row.role not in ASIDE]
    best = max(rows, key=lambda row: row.mean)
    return min((row for row in rows if not _beyond(found, best, row)), key=demand)


def _beyond(found: Evaluation, one: Row, other: Row) -> bool:
    """Is the first row's mean higher by more than the noise?"""
    # The slack is for rounding: equal scores, summed in another order.
    return one.mean - other.mean > found.noise(one, other) + 1e-12


def sentence(found: Evaluation) -> str:
    """The preferred alternative and why, in one sentence that names whatever reached a higher mean."""
    row, ours = found.preferred, found.ours
    word = "accuracy" if found.metric == "accuracy" else "score"
    others = (rival for rival in found.rows if rival is not row and rival.role not in ASIDE)
    rivals = sorted(others, key=lambda rival: -rival.mean)
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


def untold(found: Evaluation) -> str:
    """What to prefer where nobody knows θ, in one sentence; empty if θ was not inferred for single images.

    The rows that need not be told θ are compared: the one with the highest mean is preferred, unless the frozen network
    is as good. Images that share a θ are another matter, and named at the end.
    """
    rows = [row for row in found.rows if not row.told and (row.role != "inferred" or row.name == IMAGE)]
    if not any(row.role == "inferred" for row in rows):
        return ""
    best = max(rows, key=lambda row: row.mean)
    frozen = next((row for row in rows if row.role == "frozen"), None)
    row = best if frozen is None or _beyond(found, best, frozen) else frozen
    rivals = sorted((rival for rival in rows if rival is not row), key=lambda rival: -rival.mean)
    against = f" {_against(found, row, rivals[0])}" if rivals else ""
    what = "infer it for each image: this" if row.role == "inferred" else f"prefer {_called(row)}: it"
    shared = [f"{found.text(r.mean)} {r.name.removeprefix('θ inferred ')}" for r in found.rows if _pooled(r)]
    more = f"; inferred for images that share it, {listing(shared)}" if shared else ""
    return f"Where nobody knows θ, {what} reaches {found.text(row.mean)}{against}{more}."


def _pooled(row: Row) -> bool:
    return row.role == "inferred" and row.name != IMAGE


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
        "inferred": "inferring it for each image",
    }
    return known.get(row.role, row.name)


def _numbers(row: Row) -> str:
    return "an unknown number of" if row.trainable is None else f"{row.trainable:,}"
