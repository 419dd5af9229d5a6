"""Which alternative to prefer, by a written rule, and the sentence that says so."""

from __future__ import annotations

import math

from .figures import IMAGE, Figures, Row, listing

__all__ = ["preferred", "sentence", "unknown_theta"]

OTHER_CONDITIONS = ("offset", "inferred")
"""Roles of rows that show the conditioned network without the true θ: no alternatives to it where θ is known."""


def preferred(found: Figures) -> Row:
    """The alternative to prefer.

    1. One row is *as good as* another if its mean over the grid is not lower by more than the noise: two standard
       errors of the difference, paired image by image.
    2. Of the rows that are as good as the one with the highest mean, the one that asks for least is preferred:
       the frozen network; then undoing the transform on the input; then what had to be trained: first what holds the
       conditioned network's clean accuracy, by trainable numbers (ours first where they are equal, unknown ones last);
       then what loses some, by the clean accuracy that it keeps.

    Example:
        >>> ours = Row("conditioned", "conditioned", (0.98, 0.96), 0.99, 0.002, trainable=2916)
        >>> frozen = Row("frozen", "frozen", (0.99, 0.21), 0.99, 0.004, trainable=0)
        >>> preferred(Figures({}, {"angle": (0.0, 90.0)}, (ours, frozen))).name
        'conditioned'
    """
    ours = found.ours

    def demand(row: Row) -> tuple[float, ...]:
        if row.role == "frozen":
            return (0,)
        if row.role == "inverse":
            return (1,)
        numbers = math.inf if row.trainable is None else float(row.trainable)
        return (2, numbers, row is not ours) if row.clean >= ours.clean else (3, -row.clean, numbers)

    rows = [row for row in found.rows if row.role not in OTHER_CONDITIONS]
    best = max(rows, key=lambda row: row.mean)
    return min((row for row in rows if not _beyond(found, best, row)), key=demand)


def _beyond(found: Figures, one: Row, other: Row) -> bool:
    """Whether the first row's mean is higher by more than the noise."""
    # The slack is for rounding, because equal scores may be summed in another order.
    return one.mean - other.mean > found.noise(one, other) + 1e-12


def sentence(found: Figures) -> str:
    """The preferred alternative and why, in one sentence that names every row with a higher mean that matters."""
    row, ours = preferred(found), found.ours
    others = (rival for rival in found.rows if rival is not row and rival.role not in OTHER_CONDITIONS)
    rivals = sorted(others, key=lambda rival: -rival.mean)
    reaches = f"reaches {found.text(row.mean)} on average over {listing(found.grid)} ({found.text(row.worst)} at worst)"
    compared = rivals[0] if rivals and row.role in ("conditioned", "frozen") else ours
    against = f" {_against(found, row, compared)}" if rivals else ""
    # The rule may pass over a higher mean, because the noise would explain it; that one is named too.
    passed = [rival for rival in rivals if rival.mean > row.mean and rival is not compared]
    as_good = [f"; {_name(r)} with {found.text(r.mean)} is as good within {_noise(found, row, r)}" for r in passed]
    also = as_good[0] if passed else ""
    if row.role == "frozen":
        return f"Leave the network as it is: unchanged it {reaches}{against}{also}, and nothing needs training."
    if row.role == "inverse":
        return (
            f"Undo the transform on the input: with the frozen network this {reaches}{against}{also}, and it needs no "
            f"training{_times(row, ours)}."
        )
    word = "accuracy" if found.metric == "accuracy" else "score"
    clean = found.text(row.clean)
    if row is ours:
        undone = ", and the transform cannot be undone on the input" if "inverse" in found.absent else ""
        return (
            f"Prefer the conditioned network: it {reaches}{against}{undone}{also}; its clean {word} is {clean}, and it "
            f"has {_numbers(row)} trainable numbers."
        )
    return (
        f"Prefer {row.name}: it {reaches}{against}{also}; {'its' if row.clean >= ours.clean else 'but its'} clean "
        f"{word} is {clean} against {found.text(ours.clean)}, and it has {_numbers(row)} trainable numbers against "
        f"{_numbers(ours)}."
    )


def unknown_theta(found: Figures) -> str:
    """What to prefer where nobody knows θ, in one sentence; empty if θ was not inferred for single images.

    The rows that need no θ are compared: the one with the highest mean is preferred, unless the frozen network is as
    good. Rows in which several images share a θ are a different case, and are named at the end.
    """
    rows = [row for row in found.rows if not row.needs_theta and not _pooled(row)]
    if not any(row.role == "inferred" for row in rows):
        return ""
    best = max(rows, key=lambda row: row.mean)
    frozen = next((row for row in rows if row.role == "frozen"), None)
    row = best if frozen is None or _beyond(found, best, frozen) else frozen
    rivals = sorted((rival for rival in rows if rival is not row), key=lambda rival: -rival.mean)
    against = f" {_against(found, row, rivals[0])}" if rivals else ""
    what = "infer it for each image: this" if row.role == "inferred" else f"prefer {_name(row)}: it"
    shared = [f"{found.text(r.mean)} {r.name.removeprefix('θ inferred ')}" for r in found.rows if _pooled(r)]
    more = f"; inferred for images that share it, {listing(shared)}" if shared else ""
    return f"Where nobody knows θ, {what} reaches {found.text(row.mean)}{against}{more}."


def _pooled(row: Row) -> bool:
    """Whether θ was inferred for several images at once."""
    return row.role == "inferred" and row.name != IMAGE


def _against(found: Figures, row: Row, rival: Row) -> str:
    differ = _beyond(found, row, rival) or _beyond(found, rival, row)
    verdict = "a difference beyond" if differ else "as good within"
    return f"against {found.text(rival.mean)} for {_name(rival)}, {verdict} {_noise(found, row, rival)}"


def _noise(found: Figures, row: Row, rival: Row) -> str:
    return f"the noise of ±{found.text(found.noise(row, rival), spread=True)}"


def _times(row: Row, ours: Row) -> str:
    if row.cost is None or ours.cost is None:
        return ""
    return (
        f"; a call takes {row.cost:.2f} times the frozen network's time, with conditioned weights made once "
        f"{ours.cost:.2f} times"
    )


def _name(row: Row) -> str:
    """A row's name within a sentence."""
    names = {
        "conditioned": "the conditioned network",
        "frozen": "the frozen network",
        "inverse": "undoing the transform",
        "inferred": "inferring it for each image",
    }
    return names.get(row.role, row.name)


def _numbers(row: Row) -> str:
    return "an unknown number of" if row.trainable is None else f"{row.trainable:,}"
