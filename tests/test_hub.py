"""Sharing: a folder with a card, the Hub's cache and its API, none of which needs a network here."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_checkpoint import make, same
from torch import nn
from zoo import Bend

import weightmorph as wm
from weightmorph import errors, hub
from weightmorph.evaluation import Row
from weightmorph.model.load import peek

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever tries to reach out fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield


def found() -> wm.Evaluation:
    grid = {"angle": tuple(float(a) for a in range(0, 360, 30))}
    ours = Row("conditioned", "conditioned", (0.98, *(0.96,) * 10, 0.955), 0.99, 0.002, trainable=2916, seconds=39.0)
    frozen = Row("frozen", "frozen", (0.99, *(0.5,) * 10, 0.21), 0.99, 0.004, trainable=0)
    space = wm.ParameterSpace({"angle": wm.Angle("deg")})
    return wm.Evaluation(space.config(), grid, (ours, frozen), images=1000)


def front(card: str) -> dict[str, Any]:
    """The card's YAML, as the Hub reads it."""
    return dict(huggingface_hub.ModelCard(card, ignore_metadata_errors=False).data.to_dict())


def test_a_folder_holds_the_model_and_a_card_and_gives_the_model_back(tmp_path: Path) -> None:
    net, model, x = make("sum")
    folder = wm.save_pretrained(
        model, tmp_path / "turned", metrics={"mean": 0.96}, license="mit", base="a digit network"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.safetensors"]
    same(wm.from_pretrained(folder, net), model, x)
    same(wm.from_pretrained(str(folder / "model.safetensors"), net), model, x)
    card = (folder / "README.md").read_text()
    data = front(card)
    assert data["library_name"] == "weightmorph" and data["license"] == "mit" and "base_model" not in data
    assert {"weightmorph", "warp", "lowrank", "scale"} <= set(data["tags"])
    assert 'wm.from_pretrained("turned", net)' in card and "model(x, angle=30)" in card
    assert "| `angle` | Angle | deg | all round | 0 |" in card and model.summary() in card
    assert "Results" not in card and "a digit network" in card
    assert str(peek(folder / "model.safetensors").fingerprint) in card


def test_the_card_holds_the_report_s_table_and_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, model, _ = make("lowrank")
    report = found()
    folder = wm.save_pretrained(
        model, tmp_path / "turned", report=report, title="Turned digits", base="timm/resnet18.a1_in1k",
        dataset="MNIST", notes="Trained in 39 seconds.",
    )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "curve.png",
        "evaluation.json",
        "model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert report.markdown() in card and report.advice in card and "(curve.png)" in card
    assert "On MNIST." in card and "Trained in 39 seconds." in card and card.startswith("---\n")
    assert (folder / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert wm.Evaluation.load(folder / "evaluation.json") == report
    data = front(card)
    [entry] = data["model-index"]
    assert entry["name"] == "Turned digits" and data["base_model"] == "timm/resnet18.a1_in1k"
    values = {m["name"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    ours = report.ours
    assert values == {
        "mean over angle": pytest.approx(ours.mean), "worst over angle": ours.worst, "clean": ours.clean
    }  # fmt: skip
    assert {r["dataset"]["name"] for r in entry["results"]} == {"MNIST"}


def test_every_kind_of_parameter_is_told(tmp_path: Path) -> None:
    net, _, _ = make("scale")
    space = {
        "tilt": wm.Interval(-5.0, 20.0, unit="deg"), "iso": wm.LogInterval(100, 6400, anchor=100),
        "season": wm.Categorical(("dry", "wet")), "turn": wm.Angle("rad"),
    }  # fmt: skip
    model = wm.condition(net, space, wm.Scale())
    card = (wm.save_pretrained(model, tmp_path / "a") / "README.md").read_text()
    assert (
        "| `tilt` | Interval | deg | -5 to 20 | 0 |" in card
        and "| `season` | Categorical |  | dry, wet | dry |" in card
    )
    assert "| `iso` | LogInterval |  | 100 to 6400 | 100 |" in card
    line = next(line for line in card.splitlines() if line.startswith("y = model("))
    theta = {"tilt": -5, "iso": 6400, "season": "wet", "turn": 0.5236}
    assert line.startswith(f"y = model(x, {', '.join(f'{k}={v!r}' for k, v in theta.items())})")
    model(torch.randn(1, 1, 8, 8), **theta)


def test_a_transform_with_code_of_ones_own_says_so(tmp_path: Path) -> None:
    net, _, x = make("scale")
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, Bend(), example=x)
    folder = wm.save_pretrained(model, tmp_path / "own")
    card = (folder / "README.md").read_text()
    assert "transform=…" in card and "<Custom>(<Bend>)" in card
    with pytest.raises(errors.CheckpointError, match="transform="):
        wm.from_pretrained(folder, net)
    same(wm.from_pretrained(folder, net, transform=Bend()), model, x)


def test_the_hub_s_cache_is_read_without_a_network(tmp_path: Path) -> None:
    """As huggingface_hub lays it out: a branch names a commit, a commit has files."""
    net, model, x = make("lowrank")
    repository = tmp_path / "cache" / "models--me--turned"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for branch in ("main", "v1"):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    wm.save_pretrained(model, repository / "snapshots" / commit)
    for revision in (None, "v1", commit):
        again = wm.from_pretrained(
            "me/turned", net, cache_dir=tmp_path / "cache", local_files_only=True, revision=revision
        )
        same(again, model, x)
    with pytest.raises(errors.CheckpointError, match=r"me/other: no folder of that name here.*in the cache"):
        wm.from_pretrained("me/other", net, cache_dir=tmp_path / "cache", local_files_only=True)


class Api:
    """Takes what the real one takes, and keeps it."""

    calls: ClassVar[list[Any]] = []
    kept: ClassVar[Path]

    def __init__(self, token: object = None, library_name: str | None = None) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        self.calls.append(("upload", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.kept)
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/abc", commit_message=commit_message,
            commit_description="", oid="abc",
        )  # fmt: skip


def test_a_push_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository is made if need be; the card reads as it will on the Hub; nothing is left here."""
    net, model, x = make("lowrank")
    monkeypatch.setattr(Api, "kept", tmp_path / "pushed", raising=False)
    monkeypatch.setattr(Api, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = wm.push_to_hub(model, "me/turned", token="secret", private=True, commit_message="first", license="mit")
    assert address == "https://huggingface.co/me/turned/commit/abc"
    assert Api.calls == [
        ("token", "secret"), ("create", "me/turned", True, True), ("upload", "me/turned", None, "first")
    ]  # fmt: skip
    same(wm.from_pretrained(tmp_path / "pushed", net), model, x)
    assert 'wm.from_pretrained("me/turned", net)' in (tmp_path / "pushed" / "README.md").read_text()
    assert "secret" not in (tmp_path / "pushed" / "README.md").read_text()


def test_what_the_hub_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = make("scale")

    class Refused(huggingface_hub.errors.HfHubHTTPError):  # type: ignore[misc, name-defined]
        def __init__(self, message: str) -> None:
            Exception.__init__(self, message)

    class Refusing(Api):
        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
            raise Refused("403 Forbidden: no right to this namespace")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(errors.CheckpointError, match=r"me/turned: the Hub refuses: 403 Forbidden"):
        wm.push_to_hub(model, "me/turned")
    for wrong in ("a b/c", "/etc", "x/y/z", ""):
        with pytest.raises(errors.CheckpointError, match="expected 'owner/name'"):
            wm.push_to_hub(model, wrong)


def test_a_source_that_is_none_is_said(tmp_path: Path) -> None:
    net, _, _ = make("scale")
    (tmp_path / "letter.txt").write_text("dear model")
    with pytest.raises(errors.CheckpointError, match=r"no model\.safetensors in this folder, which holds letter\.txt"):
        wm.from_pretrained(tmp_path, net)
    with pytest.raises(errors.CheckpointError, match="no such folder or file, and no name"):
        wm.from_pretrained(tmp_path / "none" / "here", net)
    with pytest.raises(errors.BaseError, match="another base"):
        wm.from_pretrained(wm.save_pretrained(make("scale")[1], tmp_path / "a"), nn.Sequential(nn.Linear(2, 2)))


def test_a_failed_write_leaves_the_older_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model first, the card last, each whole."""
    _, model, _ = make("scale")
    folder = wm.save_pretrained(model, tmp_path / "a", title="First")
    before = (folder / "README.md").read_bytes()
    monkeypatch.setattr(hub, "_card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        wm.save_pretrained(model, folder, title="Second")
    assert (folder / "README.md").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.safetensors"]


@pytest.mark.parametrize("package", ["huggingface_hub", "matplotlib"])
def test_without_the_packages_the_message_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written."""
    net, model, _ = make("scale")
    folder = wm.save_pretrained(model, tmp_path / "there")
    monkeypatch.setitem(sys.modules, package, None)
    extra = "hub" if package == "huggingface_hub" else "report"
    with pytest.raises(errors.MissingDependencyError, match=rf"'{package}'.*weightmorph\[{extra}\]"):
        wm.save_pretrained(model, tmp_path / "new", report=found())
    assert not (tmp_path / "new").exists()
    wm.from_pretrained(folder, net)  # a folder needs none of them
    if package == "huggingface_hub":
        for act in (lambda: wm.from_pretrained("me/none", net), lambda: wm.push_to_hub(model, "me/none")):
            with pytest.raises(errors.MissingDependencyError, match=r"weightmorph\[hub\]"):
                act()


def test_the_evaluation_beside_the_card_is_plain_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, model, _ = make("scale")
    folder = wm.save_pretrained(model, tmp_path / "a", report=found())
    assert json.loads((folder / "evaluation.json").read_text())["images"] == 1000
