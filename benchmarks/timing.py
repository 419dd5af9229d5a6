"""The harness: several calls timed side by side, peak memory of one, and tables that say where they came from.

Whatever is compared runs in one process, round-robin, on the same inputs and in the same grad mode. A ratio is taken
within a round, where both sides met the same machine, and its median is reported; a ratio of two medians is not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fnmatch
import gc
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

import weightmorph as wm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Call = Callable[[], object]
HOPELESS, SHORT = 2.5, 0.1
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's mallopt, see malloc.h


# Time


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call; the median of its ratios to the first call of the same round, with quartiles."""

    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int


def interleave(
    calls: Mapping[str, Call],
    seconds: float = 1.0,
    *,
    least: int = 5,
    most: int = 400,
    warm: int = 2,
    rivals: Collection[str] = (),
    patience: float = float("inf"),
) -> dict[str, Timing]:
    """Time calls round-robin: every round times each once, in an order of its own.

    What ran before a call leaves its mark on caches and on the allocator. So no call always follows the same one, and
    one that takes less than `SHORT` seconds is made once more, untimed, right before it is timed. The garbage
    collector runs between rounds and never within a timed call.

    Args:
        calls: name to call; ratios are to the first.
        seconds: rounds are added until so much time has passed, but `least` at the least and `most` at the most.
        least: rounds that are always made.
        most: rounds that are never passed.
        warm: calls of each before the clock starts; one, for those that take over two seconds.
        rivals: names among which only the fastest matters: one that takes `HOPELESS` times its time when warm is
            timed in two rounds, or, if that is beyond patience as well, in the warm one alone.
        patience: a call that takes longer, in seconds, is timed in two rounds; one that takes five times that long
            only when warm.
    """
    names = list(calls)

    def once(name: str, settle: bool = False) -> float:
        if settle and before[name] < SHORT:
            calls[name]()
        start = time.perf_counter()
        calls[name]()
        return time.perf_counter() - start

    before = {name: once(name) for name in names}
    for _ in range(warm - 1):
        before = {name: once(name) if before[name] < 2 else before[name] for name in names}
    limit = HOPELESS * min((before[name] for name in rivals), default=0.0)
    rounds_of = dict.fromkeys(names, most)
    for name in names[1:]:
        slow, lost = before[name] > patience, name in rivals and before[name] > limit
        beyond = before[name] > 5 * patience or (slow and lost)
        rounds_of[name] = 0 if beyond else 2 if slow or lost else most
    taken: list[dict[str, float]] = []
    shuffle = random.Random(0)
    with _quiet_collector():
        start = time.perf_counter()
        while len(taken) < least or (len(taken) < most and time.perf_counter() - start < seconds):
            order = [name for name in names if len(taken) < rounds_of[name]]
            shuffle.shuffle(order)
            taken.append({name: once(name, settle=True) for name in order})
            gc.collect()
    return {name: _timing(name, names[0], taken if rounds_of[name] else [before]) for name in names}


def _timing(name: str, first: str, rounds: Sequence[Mapping[str, float]]) -> Timing:
    mine = [taken[name] for taken in rounds if name in taken]
    ratios = [taken[name] / taken[first] for taken in rounds if name in taken]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Timing(statistics.median(mine), middle, low, high, len(mine))


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Nothing is collected unasked, and asking is cheap: what exists by now is set aside."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def settle() -> None:
    """Have the C library keep what is freed, as the allocators that networks are served with do.

    By itself glibc gives larger blocks back to the system and gets them again page by page, one side of a comparison
    more often than the other, which can double the time of small networks. Elsewhere nothing is done.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**26), (MMAP_MAX, 0)):
            libc.mallopt(parameter, value)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Memory


@dataclass(frozen=True)
class Peak:
    """Bytes: what the process held before the call, and by how much the call exceeded that at its peak."""

    before: int
    above: int


def peak_memory(build: Callable[..., tuple[Call, Call]], *args: Any, thread_count: int = 1) -> Peak:
    """Peak memory of a call, in a fresh process.

    Args:
        build: a function of a module's top level; `build(*args)` gives a small call, made once to load whatever the
            first call loads, and the call that is measured. That one runs twice: as in training, the second finds
            what the first has left.
        args: plain data.
        thread_count: torch's threads.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, build, args, thread_count).result()


def _peak(build: Callable[..., tuple[Call, Call]], args: tuple[Any, ...], thread_count: int) -> Peak:
    torch.set_num_threads(thread_count)
    small, call = build(*args)
    small()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew, Linux only
        before, high = _status("VmRSS"), partial(_status, "VmHWM")
    except OSError:
        before, high = _maximum(), partial(_maximum)
    call()
    call()
    return Peak(before, max(high() - before, 0))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _maximum() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# Tables


def environment() -> dict[str, str]:
    """Machine and versions, and nothing that names a host or a path."""
    return {
        "date": str(date.today()),
        "weightmorph": f"{wm.__version__} ({_commit()})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def _commit() -> str:
    def git(*args: str) -> str:
        command = ["git", "--no-optional-locks", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" + changes" if git("status", "--porcelain", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit known"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns whose header starts with `>` are aligned right."""
    titles = [title.removeprefix(">") for title in header]
    rules = ["---:" if title.startswith(">") else "---" for title in header]
    lines = [titles, rules, *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(ratio: float) -> str:
    """A ratio as it stands in a table."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def milliseconds(seconds: float) -> str:
    """A time as it stands in a table, in ms."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def write(
    options: argparse.Namespace, name: str, title: str, blocks: Sequence[str], data: Any, extra: str = ""
) -> None:
    """`name.md` and `name.json` in the folder of results, each written beside itself and then moved into place."""
    found = environment()
    made = f"`{_command(options, name)}`, " + ", ".join(
        f"{value} cores" if key == "cores" else value if key in ("date", "system", "cpu") else f"{key} {value}"
        for key, value in found.items()
    )
    text = f"# {title}\n\n" + "\n\n".join(block for block in blocks if block) + f"\n\n{made}{extra}\n"
    out = folder(options)
    content = json.dumps({"environment": found, "threads": options.threads, "rows": data}, indent=1, ensure_ascii=False)
    for suffix, content_ in ((".md", text), (".json", content + "\n")):
        beside = out / f".{name}{suffix}"
        beside.write_text(content_, encoding="utf-8")
        beside.replace(out / f"{name}{suffix}")


def folder(options: argparse.Namespace) -> Path:
    """Where results go: what was measured in part does not replace what is committed, unless `--out` says so."""
    partly = options.quick or options.only
    out: Path = options.out or (ROOT / "results" if partly else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _command(options: argparse.Namespace, name: str) -> str:
    words = ["python", f"benchmarks/{name}.py", *(["--quick"] if options.quick else [])]
    words += ["--only", *map(repr, options.only)] if options.only else []
    return " ".join([*words, "--threads", *map(str, options.threads)])


# Options


def parser(description: str | None, thread_counts: Sequence[int] = (1, 2)) -> argparse.ArgumentParser:
    """What every benchmark can be told."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="few rounds and small sizes: does it run, not how fast")
    made.add_argument(
        "--threads", type=int, nargs="+", default=list(thread_counts), help="(default: %(default)s, one after another)"
    )
    made.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="rows whose name holds it, or matches")
    made.add_argument("--seconds", type=float, help="time for one comparison (default: each program's own)")
    made.add_argument(
        "--out", type=Path, help="folder of the table (default: benchmarks/results; results with --quick or --only)"
    )
    return made


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Was the row asked for?"""
    return not options.only or any(part in name or fnmatch.fnmatch(name, part) for part in options.only)


def say(*words: object) -> None:
    """A line of progress."""
    print(*words, flush=True)
