"""`weightmorph infer` and `weightmorph compare`: θ that nobody knows, and the alternatives on the same terms."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shell import run, standing_in

import weightmorph as wm
from weightmorph.cli import DONE, UNUSABLE
from weightmorph.cli.recipes import input_transform, parameters


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with standing_in(tmp_path, monkeypatch) as here:
        yield here


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def trained(folder: Path) -> Path:
    assert run("fit", "--config", "config.yaml", "--trainer.predict_parameter", "true").code == DONE
    return folder / "run"


def test_infer(trained: Path) -> None:
    """A line for each image, and how far the estimates are from what was applied."""
    done = run("infer", "--config", "run/fit.yaml", "--apply.angle", "350", "--limit", "10", "--candidates", "12")
    assert done.code == DONE, done.err
    assert re.search(r"angle was 350.0: [\d.]+ deg away in the median", done.out)
    assert re.search(r"[\d.]+% of 10 labels are right", done.out)
    found = rows(trained / "inferred.csv")
    assert len(found) == 10
    assert list(found[0]) == ["image", "angle", "angle_spread", "confidence", "abstain", "predicted", "label"]
    away = sorted(
        min(abs(float(row["angle"]) - 350) % 360, 360 - abs(float(row["angle"]) - 350) % 360) for row in found
    )
    told = float(re.search(r": ([\d.]+) deg", done.out)[1])  # type: ignore[index]
    assert any(abs(told - value) < 0.05 * max(told, 1) for value in away), (told, away)
    again = run("infer", "--config", "run/inferred.infer.yaml", "--to", "twin.csv")
    assert again.code == DONE, again.err
    assert rows(Path("twin.csv")) == found


def test_infer_for_all_images_and_with_what_is_known(trained: Path) -> None:
    done = run("infer", "--config", "run/fit.yaml", "--pool", "batch", "--method", "search", "--candidates", "6")
    assert done.code == DONE, done.err
    assert len({row["angle"] for row in rows(trained / "inferred.csv")}) == 1
    for argv, told in (
        (["--known.angl", "3"], "infer: "),
        (["--limit", "0"], "limit: expected 1 or more, got 0"),
        (["--method", "guess"], "method: expected one of ['head', 'search', 'both'] | null, got guess"),
        (["--apply.angle", "north"], "apply: parameter 'angle'"),
    ):
        refused = run("infer", "--config", "run/fit.yaml", *argv)
        assert refused.code == UNUSABLE, refused.err
        assert told in refused.err


def test_infer_names_the_files_of_a_folder(trained: Path, folder: Path) -> None:
    (folder / "photos").mkdir()
    for name in ("b.png", "a.png"):
        Image.new("L", (6, 6), 100).save(folder / "photos" / name)
    argv = ["--test_data", "folder:photos", "--test_data_options", "{channels: 1}", "--method", "head"]
    done = run("infer", "--config", "run/fit.yaml", *argv)
    assert done.code == DONE, done.err
    assert [(row["image"], row["file"]) for row in rows(trained / "inferred.csv")] == [("0", "a.png"), ("1", "b.png")]


@pytest.mark.slow
def test_compare_a_trained_model_and_an_untrained_network(trained: Path, folder: Path) -> None:
    """With a model, that one is judged as it is; without, the transform is trained first."""
    few = ["--grid", "2", "--rounds", "0", "--trainer.steps", "2"]
    done = run("compare", "--config", "run/fit.yaml", "--out", "one", "--one4one", "2", *few)
    assert done.code == DONE, done.err
    names = [row.name for row in wm.Evaluation.load(folder / "one" / "comparison.json").rows]
    assert names == ["conditioned", "frozen", "inverse", "One4All", "One4One, nearest of 2"]
    assert not (folder / "one" / "compared.safetensors").exists()
    fresh = run("compare", "--config", "config.yaml", "--out", "two", "--one4all", "false", "--report", "true", *few)
    assert fresh.code == DONE, fresh.err
    assert "<html" in (folder / "two" / "comparison.html").read_text("utf-8")
    assert (folder / "two" / "compared.safetensors").exists()
    assert "made:" in (folder / "two" / "compare.yaml").read_text("utf-8")
    refused = run("compare", "--config", "config.yaml", "--one4one", "-1")
    assert (refused.code, refused.out) == (UNUSABLE, "")


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("Rotate", True),
        ({"type": "Rotate", "mode": "bicubic"}, True),
        ("Rotate(-10, 10)", False),
        ({"type": "Rotate", "low": -10, "high": 10}, False),
        ("Blur", False),
    ],
)
def test_a_parameter_is_declared_once(value: Any, bound: bool) -> None:
    """An input transform without parameters of its own acts on the model's, where they are named alike."""
    space = parameters({"angle": "Angle(deg, harmonics=2)", "blur": "Angle(deg)"})
    turn: Any = input_transform(value, space)
    (name,) = turn.parameters
    assert (turn.parameters[name] is space[name]) == bound
    both: Any = input_transform(
        "Translate", parameters({"dx": "Interval(-2, 2, affine=translate_x)", "dy": "Interval(0, 1)"})
    )
    assert both.parameters["dx"].bounds == (-4.0, 4.0), "one that does not fit leaves the transform as it is"
