"""The command line when something is wrong or missing, or it is interrupted; its help and its completion."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shell import run, shell, standing_in

from weightmorph.cli import DONE, FAILED, INTERRUPTED, TERMINATED, UNUSABLE
from weightmorph.cli.options import COMMANDS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with standing_in(tmp_path, monkeypatch) as here:
        yield here


# Errors and exit codes


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["ft"], UNUSABLE, "no command is named 'ft'; did you mean 'fit'?"),
        (["fit", "--trainer.stps", "3"], UNUSABLE, "no option is named --trainer.stps; did you mean '--trainer.steps'"),
        (["fit", "--trainer.lr", "fast"], UNUSABLE, "trainer.lr: expected float, got fast"),
        (["fit", "--trainer.steps", "few"], UNUSABLE, "trainer.steps: expected int | null, got few"),
        (["fit", "--trainer.lr", "-1"], UNUSABLE, "trainer.lr: expected a number above 0, got -1.0"),
        (["fit", "--trainer.steps", "1", "--trainer.epochs", "1"], UNUSABLE, "give steps or epochs, not both"),
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
