"""From the command line and a YAML file to a command's options.

[jsonargparse](https://jsonargparse.readthedocs.io) makes flags, help, completion and the check of types from the
dataclasses of `options.py`; both a flag and a key of the file are held to the same type. What is added here: one file
serves every command (each reads the keys that it knows), paths in it are relative to it, and an error is one line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from ..errors import ConfigError, near
from .files import read_mapping
from .options import COMMANDS, Job
from .sources import moved

__all__ = ["parse"]

EPILOG = """\
A configuration holds the same keys as the flags: base, data, trainer: {steps: 500} … Flags go before it. One file
serves all commands, and keys that are another's are passed over. Every result has the configuration that reproduces it
beside it.

exit codes: 0 done; 1 it failed; 2 a flag or a configuration cannot be used; 130 interrupted (fit goes on from there
when it is called again); 143 terminated.

completion: eval "$(weightmorph --print_completion=shtab-bash)", or shtab-zsh, shtab-fish, shtab-powershell.
"""

RECORD = "made"
"""What a written configuration says of its own making; not read."""


def parse(argv: Sequence[str]) -> Job[Any]:
    """What to do.

    Raises:
        ConfigError: if a flag, a key or a value cannot be used.
        SystemExit: with 0, after help, the version, a configuration or a completion script was printed.

    Example:
        >>> job = parse(["bake", "model.safetensors", "--base", "net.py:make", "--at.angle", "30"])
        >>> job.command, job.options.model, job.options.at
        ('bake', 'model.safetensors', {'angle': 30.0})
    """
    argv = [word for word in argv if word != "--debug"]
    command = next((word for word in argv if not word.startswith("-")), None)
    rest: dict[str, Any] = {}
    if command in COMMANDS:
        argv, rest = _prepared(argv, command)
    try:
        # One that has printed a completion script cannot be used again.
        completion = any(word.startswith("--print_completion") for word in argv)
        found = (_parser.__wrapped__ if completion else _parser)().parse_args(argv)
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(_told(str(error), command)) from error
    name = str(found.subcommand)
    values = found[name].as_dict() if found[name] is not None else {}
    return Job(name, _filled(COMMANDS[name][0], values, ""), rest)


@functools.cache
def _parser() -> Any:
    """The parser of all commands."""
    jsonargparse.set_parsing_settings(add_print_completion_argument=True)
    parser = jsonargparse.ArgumentParser(
        prog="weightmorph",
        description="Condition a frozen network on a parameter by learning to transform its weights.",
        epilog=EPILOG,
        exit_on_error=False,
        formatter_class=_Formatter,
        version=_version(),
        default_env=False,
    )
    commands = parser.add_subcommands(required=False, dest="subcommand")
    for name, (kind, told) in COMMANDS.items():
        one = jsonargparse.ArgumentParser(
            exit_on_error=False, formatter_class=_Formatter, epilog=EPILOG, description=f"{told[0].upper()}{told[1:]}."
        )
        one.add_argument("--config", action="config", help="YAML file with any of the options below")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.add_class_arguments(kind)
        commands.add_subcommand(name, one, help=told)
    return parser


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text is EPILOG else super()._fill_text(text, width, indent)


def _version() -> str:
    from ..storage import versions

    return str(versions()["weightmorph"])


def _prepared(argv: list[str], command: str) -> tuple[list[str], dict[str, Any]]:
    """The model as first argument made a flag, each configuration file put in its place as text; and what is left."""
    at = argv.index(command) + 1
    head, rest = argv[:at], argv[at:]
    if rest and not rest[0].startswith("-") and "model" in _keys(command):
        rest = ["--model", *rest]
    files: list[str] = []
    others: list[str] = []
    left: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "--conf", "--confi"):
            others.append(word)
            continue
        path = value if equals else next(words, "")
        if not path:
            raise ConfigError("--config: expected a YAML file")
        kept, passed = _read(Path(path), command)
        files += ["--config", json.dumps(kept)]
        left |= passed
    return [*head, *files, *others], left  # flags after files, so that they prevail


def _read(path: Path, command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those entries of a file that a command knows, and those that are for others, paths made absolute.

    Raises:
        ConfigError: if a key is no command's, or a value cannot be what it should.
    """
    entries = read_mapping(path)
    entries.pop(RECORD, None)
    everyones = {key: kind for name in COMMANDS for key, kind in _keys(name).items()}
    own = _keys(command)
    kept: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in everyones:
            raise ConfigError(f"{path}: no option is named {key!r}{near(key, everyones)}")
        kind = own.get(key, everyones[key])
        if dataclasses.is_dataclass(kind):
            value = _group(path, key, value, kind)
        (kept if key in own else passed)[key] = moved(key, value, path.parent)
    return kept, passed


def _group(path: Path, key: str, value: Any, kind: Any) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: expected entries such as {{{known[0]}: …}}, got {value!r}")
    for name in value:
        if name not in known:
            raise ConfigError(f"{path}: no option is named {f'{key}.{name}'!r}{near(name, known)}")
    return value


def _keys(command: str) -> dict[str, Any]:
    """A command's options: name to type, of a group its dataclass."""
    kinds = {}
    for entry in dataclasses.fields(COMMANDS[command][0]):
        kinds[entry.name] = _grouped(entry) or entry.type
    return kinds


def _grouped(entry: dataclasses.Field[Any]) -> Any:
    """The dataclass that an option holds, or None."""
    factory: Any = entry.default_factory
    return factory if dataclasses.is_dataclass(factory) else None


def _filled(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass from what was parsed."""
    given = {}
    for entry in dataclasses.fields(kind):
        if entry.name not in values:
            continue
        value, group = values[entry.name], _grouped(entry)
        if group is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{entry.name}: expected entries, got {value!r}")
            value = _filled(group, value, f"{entry.name}.")
        elif value is None and not ("None" in str(entry.type) or entry.type == "Recipe"):
            raise ConfigError(f"{prefix}{entry.name}: expected {_words(str(entry.type))}, got null")
        given[entry.name] = value
    return kind(**given)


def _told(message: str, command: str | None) -> str:
    """An error of jsonargparse's in one line, with what is near."""
    flags = sorted(_flags(command)) if command in COMMANDS else []
    see = f"; see weightmorph {f'{command} ' if command in COMMANDS else ''}--help"
    if found := re.match(r'Parser key "([\w.+-]+)":\s*(.*)', message, re.DOTALL):
        key, rest = found[1].removeprefix(f"{command}."), found[2]
        got = next(
            (after for word in ("Given value: ", "Got value: ") if (after := rest.rpartition(word)[2]) != rest), ""
        )
        expected = _expected(key, command)
        if got and expected:
            return f"{key}: expected {expected}, got {' '.join(got.split())[:200]}{see}"
        return f"{key}: {' '.join(rest.split())[:400]}{see}"
    if found := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        return f"no option is named {flag}{near(flag, flags)}{see}"
    if found := re.search(r"invalid choice: (\S+)", message):
        name = found[1].strip("'\",()")
        if command == name:
            return f"no command is named {name!r}{near(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
    return f"{' '.join(message.split())[:400]}{see}"


def _expected(key: str, command: str | None) -> str:
    """The type of an option, as the help writes it."""
    if command not in COMMANDS:
        return ""
    group, _, name = key.rpartition(".")
    kind: Any = _keys(command).get(group) if group else COMMANDS[command][0]
    if not dataclasses.is_dataclass(kind):
        kind, name = COMMANDS[command][0], group.partition(".")[0] or name
    return next((_words(str(entry.type)) for entry in dataclasses.fields(kind) if entry.name == name), "")


def _words(kind: str) -> str:
    return kind.replace("None", "null").replace("Literal", "one of ").replace("Recipe", "a recipe")


def _flags(command: str) -> Iterator[str]:
    for name, kind in _keys(command).items():
        yield f"--{name}"
        if dataclasses.is_dataclass(kind):
            yield from (f"--{name}.{entry.name}" for entry in dataclasses.fields(kind))
