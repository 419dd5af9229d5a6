"""YAML in and out: strict in what it reads, whole or nothing in what it writes."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..io import write_atomically

__all__ = ["dump", "read_mapping", "read_settings", "write_yaml"]

LARGEST = 2**16
"""Bytes that a configuration may have; many settings may be in a longer JSON or CSV file."""

MOST, DEEPEST = 20_000, 24
"""Values in a configuration, aliases written out, and how deep they may be nested."""


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2's plain values: `no` and `on` are words, `1e-3` is a number, and no key is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for entry, _ in node.value:
            key = self.construct_object(entry, deep=True)
            if not isinstance(key, str) or key in seen:
                fault = "there twice" if isinstance(key, str) else "no name"
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is {fault}", entry.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_PLAIN = {
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "null": ("~nN", r"~|null|Null|NULL|"),
    "int": ("-+0123456789", r"[-+]?[0-9]+|0x[0-9a-fA-F]+"),
    "float": (
        "-+.0123456789",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
}
"""What is read as something else than text: kind, first characters, pattern."""

_Loader.yaml_implicit_resolvers = {}
for _kind, (_first, _pattern) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])


class _Dumper(yaml.SafeDumper):
    """Text in quotes where the loader above would read something else, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        quoted = any(re.fullmatch(pattern, value) for _, pattern in _PLAIN.values())
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)


_Dumper.add_representer(str, _Dumper.text)


def read_mapping(path: Path) -> dict[str, Any]:
    """The entries of a YAML (or JSON) file.

    Raises:
        ConfigError: if it cannot be read, is no mapping, holds a key twice, or is larger than a configuration can be.
    """
    data = _read(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got a {type(data).__name__}")
    return data


def _read(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(f"{path}: larger than {LARGEST:,} bytes, so hardly a configuration")
        text = content.decode("utf-8")
        # Refuse what the parser would work on for very long: brackets in brackets, quotes and comments not looked at.
        steps = [1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text)]
        if max(itertools.accumulate(steps), default=0) > 4 * DEEPEST:
            raise ConfigError(f"{path}: too deeply nested for a configuration")
        data = yaml.load(text, _Loader)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected a text file in UTF-8: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: not YAML: {str(error) or type(error).__name__}") from error
    _check_size(path, data)
    return data


def _check_size(path: Path, data: Any) -> None:
    """Refuse what aliases blow up, or tie into a ring."""
    left, stack = MOST, [(data, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ConfigError(f"{path}: too large or too deeply nested for a configuration, aliases written out")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        stack += [(item, depth + 1) for item in inner]


def read_settings(path: Path) -> dict[str, dict[str, Any]] | list[dict[str, Any]]:
    """Settings of θ: names to settings, or a list of them; in YAML, JSON, or CSV whose first line names the columns.

    Raises:
        ConfigError: if the file holds something else, or nothing.
    """
    kind = path.suffix.lower()
    readers: dict[str, Callable[[Path], Any]] = {".csv": _table, ".json": _json}
    try:
        found = readers.get(kind, _read)(path)
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as {kind[1:].upper()}: {error}") from error
    rows = list(found.items()) if isinstance(found, dict) else list(enumerate(found)) if isinstance(found, list) else []
    if not rows:
        raise ConfigError(f"{path}: expected a list of settings such as {{angle: 30}}, or names to settings")
    for name, row in rows:
        good = isinstance(row, dict) and row and all(isinstance(key, str) for key in row)
        if not good or not all(isinstance(v, int | float | str) and not isinstance(v, bool) for v in row.values()):
            raise ConfigError(
                f"{path}: setting {name}: expected names and values such as {{angle: 30}}, got {row!r:.80}"
            )
    return found  # type: ignore[no-any-return]  # as checked above


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _table(path: Path) -> Any:
    """The rows of a CSV file, by their column `name` if there is one."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file, strict=True)]
    if not rows or "name" not in rows[0]:
        return rows
    names = [str(row.pop("name")).removesuffix(".0") for row in rows]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: the name {max(names, key=names.count)!r} is there more than once")
    return dict(zip(names, rows, strict=True))


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text.strip() if isinstance(text, str) else text


def dump(data: Any) -> str:
    """Plain data as YAML that [`read_mapping`][weightmorph.cli.files.read_mapping] reads as it was."""
    # By way of JSON, so that what is written is plain data: tuples become lists.
    plain = json.loads(json.dumps(data))
    written: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return written


def write_yaml(path: Path, data: dict[str, Any], remark: str) -> Path:
    """Write data under a line of remark, atomically."""
    return write_atomically(path, f"# {remark}\n{dump(data)}".encode())
