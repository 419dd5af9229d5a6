"""The command line: `weightmorph fit | evaluate | compare | infer | bake | export | summary | serve | doctor`.

`docs/command_line.md` describes it. Built on [jsonargparse](https://jsonargparse.readthedocs.io), because the
signatures of the library's functions are then at once the flags, the YAML keys, their help and their types, and on
[rich](https://rich.readthedocs.io) for what is printed.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, WeightmorphError, require
from .exits import DONE, FAILED, INTERRUPTED, TERMINATED, UNUSABLE

__all__ = ["DONE", "FAILED", "INTERRUPTED", "TERMINATED", "UNUSABLE", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: what follows the program's name; unless given, the process's own arguments.

    Returns:
        the exit code: 0 done; 1 it failed; 2 a flag or a configuration cannot be used; 130 interrupted; 143
        terminated.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        weightmorph ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    name = " ".join(["weightmorph", *[word for word in words[:1] if not word.startswith("-")]])
    shown = warnings.showwarning
    warnings.showwarning = _one_line(name)
    try:
        return _run(words)
    except SystemExit as error:  # after --help and the like
        return error.code if isinstance(error.code, int) else DONE if error.code is None else FAILED
    except KeyboardInterrupt as error:
        return _end(name, f"interrupted; {error}" if str(error) else "interrupted", error, debug, INTERRUPTED)
    except ConfigError as error:
        return _end(name, str(error), error, debug, UNUSABLE)
    except (WeightmorphError, OSError) as error:
        return _end(name, str(error), error, debug, FAILED)
    except Exception as error:
        text = f"{type(error).__name__}: {error}; --debug shows where"
        return _end(name, text, error, debug, FAILED)
    finally:
        warnings.showwarning = shown


def _run(words: list[str]) -> int:
    for package in ("jsonargparse", "rich"):
        require(package, "cli", "the command line")
    from .commands import run
    from .parse import parse

    return run(parse(words))


def _end(name: str, text: str, error: BaseException, debug: bool, code: int) -> int:
    """Say on one line what went wrong, or all there is to know."""
    if debug:
        traceback.print_exception(error)
    print(f"{name}: {'' if code == INTERRUPTED else 'error: '}{' '.join(text.split())}", file=sys.stderr)
    return code


def _one_line(name: str) -> Any:
    def show(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
        print(f"{name}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    return show
