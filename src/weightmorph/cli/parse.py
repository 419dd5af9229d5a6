"""From the command line and a YAML file to a command's options.

[jsonargparse](https://jsonargparse.readthedocs.io) makes flags, help, completion and the check of types from
signatures. What is added here: one file serves every command (each reads the keys that it knows), and an error is one
line.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import jsonargparse

from ..errors import ConfigError, near
from ..storage import versions
from .commands import COMMANDS
from .files import read_mapping
from .options import FromFunction, Job
from .sources import absolute

__all__ = ["parse"]

EPILOG = """\
A configuration holds the same keys as the flags: base, data, trainer: {steps: 500} … Flags prevail. One file serves
all commands, and keys that are another's are passed over. Every result has the configuration that reproduces it beside
it.

exit codes: 0 done; 1 it failed; 2 a flag or a configuration cannot be used; 130 interrupted (fit goes on from there
when it is called again); 143 terminated.

completion: eval "$(weightmorph --print_completion=shtab-bash)", or shtab-zsh, shtab-fish, shtab-powershell.
"""

RECORD = "made"
"""What a written configuration says of its own making; not read."""


def parse(argv: Sequence[str]) -> Job:
    """What to do.

    Raises:
        ConfigError: if a flag, a key or a value cannot be used.
        SystemExit: with 0, after help, the version, a configuration or a completion script was printed.

    Example:
        >>> job = parse(["bake", "model.safetensors", "--base", "net.py:make", "--at.angle", "30"])
        >>> job.command, job.options.model, job.options.at
        ('bake', 'model.safetensors', {'angle': 30.0})
    """
    command, *words = [word for word in argv if word != "--debug"] or ["--help"]
    if command.startswith("-"):
        _general([command, *words])
    if command not in COMMANDS:
        raise ConfigError(f"no command is named {command!r}{near(command, COMMANDS)}; there are {', '.join(COMMANDS)}")
    parser = _command(command)
    types = parser.types()
    try:
        given, words = _FIRST.parse_known_args(words)
        if words and not words[0].startswith("-") and "model" in _defaults(command):
            words = ["--model", *words]
        values: Any = None
        rest: dict[str, Any] = {}
        for file in given.config:
            known, others = _read(Path(file), command)
            values, rest = parser.parse_object(known, values, defaults=False), rest | others
        options = parser.parse_args(words, namespace=values)
    except (argparse.ArgumentError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{_one_line(str(error), types)}; see weightmorph {command} --help") from error
    for key, kind in types.items():  # jsonargparse takes null from a file, whatever the type
        if key in options and options[key] is None and not re.search("null|Any", kind):
            raise ConfigError(f"{key}: expected {kind}, got null")
    return Job(command, options, rest)


_FIRST = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
_FIRST.add_argument("--config", action="append", default=[])
"""What is read before the other options, because they prevail over the files wherever they stand."""


def _general(words: Sequence[str]) -> NoReturn:
    """Print help, the version or a completion script, which needs the parser of all commands.

    Raises:
        SystemExit: when it is printed.
        ConfigError: for other flags.
    """
    jsonargparse.set_parsing_settings(add_print_completion_argument=True)
    try:
        about = "Condition a frozen network on a parameter by learning to transform its weights."
        parser = _Parser(prog="weightmorph", description=about, version=versions()["weightmorph"], **_COMMON)
        commands = parser.add_subcommands(required=False)
        for name in COMMANDS:
            one = _command.__wrapped__(name)  # a new one, because what has printed a script cannot be used again
            commands.add_subcommand(name, one, help=one.description)
        parser.parse_args(words)
    except (argparse.ArgumentError, ValueError) as error:
        raise ConfigError(f"{' '.join(str(error).split())[:400]}; see weightmorph --help") from error
    finally:
        jsonargparse.set_parsing_settings(add_print_completion_argument=False)
    raise ConfigError(f"a command is missing; there are {', '.join(COMMANDS)}")


@functools.cache
def _command(name: str) -> _Parser:
    """The parser of one command."""
    parser = _Parser(prog=f"weightmorph {name}", description=COMMANDS[name].run.__doc__, **_COMMON)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for group in COMMANDS[name].options:
        group.add_to(parser) if isinstance(group, FromFunction) else parser.add_class_arguments(group)
    return parser


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """The epilog's lines as they are; docstrings without their Markdown."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text is EPILOG else super()._fill_text(text, width, indent)

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r"\[`([^`]*)`\]\[[^\]]*\]|`([^`]*)`", r"\1\2", super()._expand_help(action))


_COMMON: dict[str, Any] = {
    "epilog": EPILOG, "exit_on_error": False, "allow_abbrev": False, "formatter_class": _Formatter,
}  # fmt: skip


class _Parser(jsonargparse.ArgumentParser):
    """A parser that can say of which types its options are."""

    def types(self) -> dict[str, str]:
        """Option to type, in words."""
        return {action.dest: _words(getattr(action, "_typehint", action.type)) for action in self._actions}


@functools.cache
def _defaults(command: str) -> dict[str, Any]:
    """A command's options and their defaults; of a group, a namespace."""
    return {name: value for name, value in vars(_command(command).get_defaults()).items() if name != "config"}


def _read(path: Path, command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those entries of a file that a command knows, and those that are for others, paths made absolute.

    Raises:
        ConfigError: if a key is no command's, or holds a value in place of a group.
    """
    entries = read_mapping(path)
    entries.pop(RECORD, None)
    known = {key: value for name in COMMANDS for key, value in _defaults(name).items() if key != "debug"}
    for key, value in entries.items():
        if key not in known:
            raise ConfigError(f"{path}: no option is named {key!r}{near(key, known)}")
        if isinstance(known[key], jsonargparse.Namespace) and not isinstance(value, dict):
            raise ConfigError(f"{path}: {key}: expected entries such as {{steps: …}}, got {value!r:.80}")
    entries = {key: absolute(key, value, path.parent) for key, value in entries.items()}
    own = {key: value for key, value in entries.items() if key in _defaults(command)}
    return own, {key: value for key, value in entries.items() if key not in own}


def _words(kind: Any) -> str:
    """A type in words.

    Example:
        >>> _words(int | None), _words(Literal["a", "b"])
        ('int | null', "one of ['a', 'b']")
    """
    if kind is NoneType:
        return "null"
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"one of {list(get_args(kind))}"
    plain = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return re.sub(r"\b(typing|collections\.abc)\.", "", plain).replace("None", "null")


def _one_line(message: str, types: Mapping[str, str]) -> str:
    """An error of jsonargparse's in one line, with the option's type or what is near."""
    if found := re.match(r'Parser key "([\w.]+)":.*(?:Given|Got) value: (.*)', message, re.DOTALL):
        return f"{found[1]}: expected {types.get(found[1], 'something else')}, got {' '.join(found[2].split())[:200]}"
    if found := re.match(r"unrecognized arguments: --([^\s=]+)", message):
        return f"no option is named --{found[1]}{near(f'--{found[1]}', [f'--{key}' for key in types])}"
    return " ".join(message.split())[:400]
