"""The command line when something is wrong, missing or malformed, or it is interrupted; its help and completion."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shell import CONFIG, run, shell, standing_in

from weightmorph.cli import DONE, FAILED, INTERRUPTED, TERMINATED, UNUSABLE
from weightmorph.cli.commands import COMMANDS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with standing_in(tmp_path, monkeypatch) as here:
        yield here


# Errors and exit codes


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["ft"], UNUSABLE, "no command is named 'ft'; did you mean 'fit'?"),
        (["fit", "--debgu"], UNUSABLE, "no option is named --debgu; did you mean '--debug'"),
        (["fit", "--trainer.stps", "3"], UNUSABLE, "no option is named --trainer.stps; did you mean '--trainer.steps'"),
        (["fit", "--trainer.lr", "fast"], UNUSABLE, "trainer.lr: expected float, got fast"),
        (["fit", "--trainer.steps", "few"], UNUSABLE, "trainer.steps: expected int | null, got few"),
        (["fit", "--config", "config.yaml", "--trainer.lr", "-1"], UNUSABLE, "trainer.lr: expected lr > 0, got -1.0"),
        (["fit", "--config", "config.yaml", "--trainer.epochs", "1"], UNUSABLE, "trainer.epochs: give epochs or steps"),
        (["fit", "--config", "none.yaml"], UNUSABLE, "none.yaml: cannot be read"),
        (["fit"], UNUSABLE, "input_transform: what does the world do to the input?"),
        (["fit", "--input_transform", "Rotat"], UNUSABLE, "no 'Rotat'; did you mean 'Rotate'"),
        (["fit", "--input_transform", "Rotate(low=3)"], UNUSABLE, "expected both low and high"),
        (["fit", "--config", "config.yaml", "--transform", "LowRank(0)"], UNUSABLE, "a rank of 1 or more, got 0"),
        (["fit", "--config", "config.yaml", "--transform", "LowRank(rnk=1)"], UNUSABLE, "unexpected keyword"),
        (["fit", "--config", "config.yaml", "--base", "tiny.py:Nett"], UNUSABLE, "no 'Nett'; did you mean 'Net'"),
        (["fit", "--config", "config.yaml", "--base", "tin.py:Net"], UNUSABLE, "base: there is no file"),
        (["fit", "--config", "config.yaml", "--base", "nowhere:Net"], UNUSABLE, "there is no module 'nowhere'"),
        (["fit", "--config", "config.yaml", "--base", "tiny.py:broken"], UNUSABLE, "Error: the disk is on fire"),
        (["fit", "--config", "config.yaml", "--base", "tiny.py:number"], UNUSABLE, "takes no options"),
        (["fit", "--config", "config.yaml", "--base_options.depth", "3"], UNUSABLE, "unexpected keyword"),
        (["fit", "--config", "config.yaml", "--parameters", "{turn: Angle(deg)}"], UNUSABLE, "it does not know 'turn'"),
        (["fit", "--config", "config.yaml", "--select", "cnv*"], UNUSABLE, "did you mean"),
        (["fit", "--config", "config.yaml", "--data_take", "[0, 9]"], UNUSABLE, "data_take: expected the numbers of"),
        (["summary", "none.safetensors", "--base", "tiny.py:Net"], UNUSABLE, "there is no file none.safetensors"),
        (["summary", "config.yaml", "--base", "tiny.py:Net"], FAILED, "config.yaml: "),
        (["serve", "--port", "70000"], UNUSABLE, "port: expected 0 to 65535, got 70000"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_an_exit_code(folder: Path, argv: list[str], code: int, told: str) -> None:
    done = run(*argv)
    assert done.code == code, done.err
    assert told in done.err
    line = done.err.strip()
    assert line.count("\n") == 0
    assert re.match(rf"weightmorph {argv[0]}: error: \S", line)
    assert "Traceback" not in done.err


# Malformed configurations

Malformed = Callable[[random.Random], str]


def _text(text: str) -> Malformed:
    return lambda rng: text


def _changed(key: str, *values: Any) -> Malformed:
    """The configuration with a value that cannot be."""

    def made(rng: random.Random) -> str:
        config = json.loads(json.dumps(CONFIG))
        *groups, last = key.split(".")
        into = config
        for group in groups:
            into = into.setdefault(group, {})
        into[last] = rng.choice(values)
        return json.dumps(config)

    return made


def _cut(rng: random.Random) -> str:
    """Cut off inside a string or a bracket."""
    text = json.dumps(CONFIG)
    return text[: rng.randrange(2, len(text) - 1)]


def _noise(rng: random.Random) -> str:
    return "\x00" + "".join(chr(rng.choice((0, 7, 11, 34, 58, 91, 123, 0xD7FF))) for _ in range(rng.randrange(1, 200)))


def _misspelt(rng: random.Random) -> str:
    config = dict(CONFIG)
    key = rng.choice(sorted(config))
    at = rng.randrange(len(key))
    config[f"{key[:at]}{rng.choice('xqz_')}{key[at:]}"] = config.pop(key)
    return json.dumps(config)


def _nested(rng: random.Random) -> str:
    depth = rng.choice((60, 3_000, 100_000))
    return f"base_options: {'[' * depth}{']' * rng.choice((0, depth))}"


NUMBER, TEXT, LIST, MAP = (3, 2.5), ("x y", "θ", ""), ([], [1, [2]]), ({}, {"a": 1})
MALFORMED: list[Malformed] = [
    _cut, _cut, _cut, _noise, _noise, _misspelt, _misspelt, _misspelt, _nested,
    _text("a: &a [*a]"), _text("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x]", *(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12))])),
    _text("base: a\nbase: b"), _text("- a\n- b"), _text("just words"), _text("3"), _text("!!python/object:os.system x"),
    _text("? [a]\n: b"), _text("\tbase: a"), _text("base: 'a"), _text("{1: 2}"), _text("%YAML 9.9\n---\n{"),
    _text("base: !!binary x"), _text("seed: " + "9" * 6000), _text("on: 1"),
    _changed("base", *NUMBER, *TEXT, *LIST, *MAP, True, "Net", "tiny.py", "tiny.py:", ":Net", "tiny.py:Nett",
             "os.path:sep"),
    _changed("base_options", *NUMBER, "x", [1], {"depth": 1}, {"width": "wide"}, {"width": -3}, True),
    _changed("weights", *NUMBER, *LIST, *MAP, "none.safetensors", "tiny.py", "."),
    _changed("seed", "x", 1.5, -1, 2**63, [1], {}, None, True),
    _changed("threads", "x", 1.5, 0, -2, 10**6, [1], {}),
    _changed("data", *NUMBER, *TEXT, *LIST, *MAP, "folder:none", "idx:.", "npz:tiny.py", "tiny.py:broken",
             "tiny.py:number"),
    _changed("data_options", *NUMBER, "x", [1], {"a": 1}),
    _changed("data_take", *NUMBER, "x", {}, [9, 1], [-1, 0], [], [0, 1, 2], ["x"], [1.5], [0]),
    _changed("input_transform", *NUMBER, *TEXT, *LIST, {}, {"a": 1}, "Rotat", "Rotate(low=1)", "Rotate(1, 0)",
             {"type": 3}, {"type": "Rotate", "mode": "cubic"}, ["Rotate", "Rotate"], "tiny.py:number", None),
    _changed("parameters", *NUMBER, *TEXT, *LIST, {}, {"angle": 3}, {"angle": "Angle(grad)"},
             {"angle": {"type": "Angel"}}, {"angle": "Interval(1, 0)"}, {"angle": "Interval(0, .inf)"},
             {"an gle": "Angle"}, {"angle": ["Angle", "Angle"]}),
    _changed("transform", *NUMBER, *TEXT, *LIST, {}, {"a": 1}, "Warp + ", "Warp + Nope", "LowRank", "LowRank(0)",
             "LowRank('x')", "LowRank(2, 3, 4, 5)", {"type": "LowRank", "rank": "two"}, {"type": []}, None,
             "tiny.py:images"),
    _changed("select", *NUMBER, {}, ["nothing.*"], "nothing.*", [3]),
    _changed("objective", *NUMBER, *TEXT, *LIST, *MAP, None, "supervisd", "tiny.py:number", "tiny.py:none"),
    _changed("objective_options", *NUMBER, "x", [1], {"temperature": 2.0}),
    _changed("trainer", *NUMBER, "x", [1], {"stps": 3}, True),
    _changed("trainer.steps", "x", 1.5, -1, [1], {}),
    _changed("trainer.batch_size", "x", 1.5, 0, -1, [1], {}, None),
    _changed("trainer.settings", "x", 1.5, 0, -3, [1], {}),
    _changed("trainer.lr", "x", 0, -1, [1], {}, None, float("inf"), float("nan")),
    _changed("trainer.schedule", "linear", 3, [1], {}, None),
    _changed("trainer.epochs", "x", 1.5, 3, -1, [1], {}),
    _changed("trainer.lightning", *NUMBER, "x", [1]),
    _changed("out", *NUMBER, *LIST, *MAP, None, True),
]  # fmt: skip


def refused(folder: Path, text: str) -> str:
    """One clear line, exit code 2, and nothing left behind."""
    (folder / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    start = time.monotonic()
    done = run("fit", "--config", "config.yaml")
    told = f"{text[:300]!r}: {done.err!r}"
    assert done.code == UNUSABLE, told
    assert re.fullmatch(r"weightmorph fit: error: [^\n]{10,900}\n", done.err), told
    assert "Traceback" not in done.err, told
    assert done.out == "", told
    assert time.monotonic() - start < 20, told
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in str(path)}
    assert left == {"config.yaml", "tiny.py"}, told
    return str(done.err)


def test_malformed_configurations(folder: Path) -> None:
    rng = random.Random(5)
    for number in range(300):
        refused(folder, MALFORMED[number % len(MALFORMED)](rng))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 70_000, "larger than 65,536 bytes"),
        ("- " * 30_000, "not YAML"),
        (f"base_options: [{'1,' * 10_000}]", "base_options: expected"),
        (f"base_options: [{'1,' * 25_000}]", "too large or too deeply nested"),
        ("a:\n" * 8_000, "line 2: not YAML: the key 'a' is there twice"),
        (f"base: {'[' * 60_000}", "too deeply nested"),
    ],
)
def test_large_configurations(folder: Path, text: str, told: str) -> None:
    """What would take a parser long, or its stack whole."""
    assert told in refused(folder, text)


# What is shown


def test_debug_shows_the_traceback(folder: Path) -> None:
    done = run("fit", "--config", "config.yaml", "--base", "tiny.py:broken", "--debug")
    assert done.code == UNUSABLE
    assert "Traceback" in done.err
    assert "tiny.py" in done.err
    assert done.err.strip().splitlines()[-1].startswith("weightmorph fit: error: base:")


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    done = run("doctor")
    assert done.code == FAILED
    assert "pip install 'weightmorph[cli]'" in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_gives_every_option_with_its_default(command: str) -> None:
    """Each option is explained, and quantities name their unit."""
    done = run(command, "--help")
    assert done.code == DONE
    text = " ".join(done.out.split())
    entries = re.split(r"\n(?=  -)", done.out.partition("\noptions:\n")[2])[1:]
    assert len(entries) > 6
    for entry in entries:
        if not re.match(r"  --(config|print_config|trainer) ", entry):
            assert "default: " in " ".join(entry.split()), entry
    assert "exit codes: 0 done; 1 it failed; 2 " in text
    for flag, unit in (("max_wait", "in ms"), ("max_body", "in MiB"), ("timeout", "in s"), ("grace", "in s")):
        if f"--{flag}" in text:
            assert re.search(rf"--{flag} {flag.upper()} [^(]*{unit}", text), flag


@pytest.mark.parametrize("kind", ["shtab-bash", "shtab-zsh"])
def test_shell_completion(kind: str) -> None:
    done = run(f"--print_completion={kind}")
    assert done.code == DONE
    assert "trainer.batch_size" in done.out


def test_completion_and_help_of_nothing(folder: Path) -> None:
    assert run().code == DONE
    shown = run("fit", "--config", "config.yaml", "--print_config")
    assert shown.code == DONE
    assert yaml.safe_load(shown.out)["transform"] == "Warp + LowRank(2)"


# Interrupted


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signal to another process there")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_run_that_goes_on(folder: Path, number: str) -> None:
    """Interrupted and called again, a run ends where an uninterrupted one does, bit for bit."""
    argv = ["fit", "--config", "config.yaml", "--trainer.steps", "12", "--out"]
    config = ["--input_transform", "tiny.py:slow"]
    hold = folder / "hold"  # each step takes a second while it is there, so that none of them is missed
    hold.touch()
    process = shell(*argv, "cut", *config, cwd=folder)
    try:
        state = folder / "cut" / "checkpoint" / "last.safetensors"
        deadline = time.monotonic() + 120
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(getattr(signal, number))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        hold.unlink()
    code, told = {"SIGINT": (INTERRUPTED, "interrupted; stopped after"), "SIGTERM": (TERMINATED, "terminated")}[number]
    assert process.returncode == code, (out, err)
    assert told in err
    assert "Traceback" not in err
    assert not (folder / "cut" / "model.safetensors").exists()
    assert run(*argv, "cut", *config).code == DONE
    assert run(*argv, "whole", *config).code == DONE
    cut, whole = (load_file(folder / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
