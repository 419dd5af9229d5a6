"""Sharing a transform: a folder with its file and a model card, and the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .errors import CheckpointError, require
from .evaluation import Evaluation
from .io import write_atomically
from .model import Conditioned, ModelSpec
from .model.load import load, peek
from .parameters import Parameter
from .storage import listed
from .transforms.registry import foreign

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

FILE, CARD, FIGURES, CURVE = "model.safetensors", "README.md", "evaluation.json", "curve.png"

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
"""The names that a repository on the Hub can have."""


def save_pretrained(
    model: Conditioned,
    folder: str | os.PathLike[str],
    *,
    report: Evaluation | None = None,
    metrics: Mapping[str, Any] | None = None,
    title: str | None = None,
    base: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    notes: str = "",
) -> Path:
    """Write a folder to share a transform: its file, and a model card with its parameters and results.

    `model.safetensors` is what [`Conditioned.save`][weightmorph.Conditioned.save] writes; the base's weights are not in
    it. `README.md` is a model card for the Hugging Face Hub: YAML at its head, the parameters, the base and its
    fingerprint, how to load it. With `report`, it holds the advice, the curve (`curve.png`) and the table, and the
    figures themselves are put beside it (`evaluation.json`).

    Args:
        model: the conditioned model.
        folder: created if it is missing; files of these names in it are replaced, each atomically, the card
            last.
        report: from [`evaluate`][weightmorph.evaluate].
        metrics: goes into the file, as for `save`.
        title: of the card.
        base: where the base network comes from, in words or as a name on the Hub (`timm/resnet18.a1_in1k`).
        license: of the transform, as the Hub names licences (`apache-2.0`).
        dataset: what the evaluation was on, for the card.
        notes: Markdown that is put under the results.

    Returns:
        the folder.

    Raises:
        CheckpointError: if something of the model cannot be stored as plain data.
        MissingDependencyError: without huggingface_hub and safetensors, `pip install 'weightmorph[hub]'`; with
            `report`, without matplotlib, `pip install 'weightmorph[report]'`.
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pretrained(model, f"{folder}/turned", license="apache-2.0")
        ...     print(*sorted(file.name for file in path.iterdir()))
        ...     again = from_pretrained(path, net)
        README.md model.safetensors
    """
    require("huggingface_hub", "hub", "writing a model card")
    # The curve is drawn before anything is written, so that a missing package leaves nothing behind.
    curve = None if report is None else _curve(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / FILE, metrics=metrics)
    if report is not None and curve is not None:
        report.save(folder / FIGURES)
        write_atomically(folder / CURVE, curve[0])
    name = title or f"Weights that follow {' and '.join(model.space)}"
    words = {"base": base, "license": license, "dataset": dataset, "notes": notes}
    card = _card(model, peek(folder / FILE), name, report, curve[1] if curve else "", folder.name, words)
    write_atomically(folder / CARD, card.encode())
    return folder


def push_to_hub(
    model: Conditioned,
    repo_id: str,
    *,
    report: Evaluation | None = None,
    metrics: Mapping[str, Any] | None = None,
    title: str | None = None,
    base: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    notes: str = "",
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a transform and its model card to the Hugging Face Hub.

    The files are those that [`save_pretrained`][weightmorph.save_pretrained] writes.

    Args:
        model: the conditioned model.
        repo_id: `"owner/name"`; created if it does not exist.
        report: as for `save_pretrained`, like the next six.
        metrics: goes into the file.
        title: of the card.
        base: where the base network comes from.
        license: of the transform.
        dataset: what the evaluation was on.
        notes: Markdown under the results.
        private: whether a repository that is created now is private; None leaves it to the account's settings.
        revision: the branch; the main one unless given.
        commit_message: of the upload.
        token: as for huggingface_hub; unless given, the one that `hf auth login` stored.

    Returns:
        the address of the commit.

    Raises:
        CheckpointError: if `repo_id` is no name of a repository, or the Hub refuses; its own words follow.
        MissingDependencyError: as `save_pretrained`.

    Example:
        ```python
        address = wm.push_to_hub(model, "owner/turned", report=evaluation, license="apache-2.0")
        ```
    """
    hub = require("huggingface_hub", "hub", "pushing to the Hugging Face Hub")
    if not REPO.fullmatch(repo_id):
        raise CheckpointError(f"repo_id: expected 'owner/name', got {repo_id!r}")
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / repo_id.rpartition("/")[2]
        save_pretrained(
            model, where, report=report, metrics=metrics, title=title, base=base, license=license, dataset=dataset,
            notes=notes,
        )  # fmt: skip
        _name(where / CARD, where.name, repo_id)
        api = hub.HfApi(token=token, library_name="weightmorph")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=where, revision=revision,
                commit_message=commit_message or "A transform of weightmorph",
            )  # fmt: skip
        except hub.errors.HfHubHTTPError as error:
            raise CheckpointError(f"{repo_id}: the Hub refuses: {error}") from error
    return str(getattr(commit, "commit_url", commit))


def from_pretrained(
    source: str | os.PathLike[str],
    net: nn.Module,
    *,
    transform: nn.Module | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Conditioned:
    """Load a shared transform onto its base, from a folder or from the Hugging Face Hub.

    One file is read, `model.safetensors`, and nothing in it is executed.

    Args:
        source: a folder that [`save_pretrained`][weightmorph.save_pretrained] wrote, a file that `save` wrote, or, if
            there is no such thing here, the name of a repository on the Hub, `"owner/name"`.
        net: the base, bit for bit the one that the transform was trained for.
        transform: as for [`load`][weightmorph.load]: the recipe, where it holds code of your own.
        revision: branch, tag or commit on the Hub.
        cache_dir: where the Hub's files are stored; huggingface_hub's own place unless given.
        local_files_only: use what is in the cache, and no network.
        token: as for huggingface_hub.

    Returns:
        the model.

    Raises:
        BaseError: if `net` is another base; both fingerprints are named, and the tensors that differ.
        CheckpointError: if there is no such folder, repository or file, or the file cannot be loaded.
        MissingDependencyError: without safetensors, or, for the Hub, huggingface_hub.

    Example:
        >>> import torch, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> x = torch.rand(2, 1, 8, 8)
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = from_pretrained(save_pretrained(model, folder), net)
        >>> torch.equal(again(x, angle=30.0), model(x, angle=30.0))
        True
    """
    path = Path(source)
    if path.is_dir():
        file = path / FILE
        if not file.exists():
            there = listed(sorted(p.name for p in path.iterdir())) or "nothing"
            raise CheckpointError(f"{path}: no {FILE} in this folder, which holds {there}")
        return load(file, net, transform=transform)
    if path.is_file():
        return load(path, net, transform=transform)
    name = os.fspath(source)
    if not REPO.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder or file, and no name that a repository on the Hub can have")
    hub = require("huggingface_hub", "hub", f"loading {name!r}, which is no folder here, from the Hugging Face Hub")
    try:
        file = hub.hf_hub_download(
            name, FILE, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token,
            library_name="weightmorph",
        )  # fmt: skip
    except (hub.errors.HfHubHTTPError, hub.errors.EntryNotFoundError, hub.errors.HFValidationError, OSError) as error:
        where = "in the cache" if local_files_only else "on the Hub"
        raise CheckpointError(
            f"{name}: no folder of that name here, and {FILE} of such a repository cannot be had {where}: {error}"
        ) from error
    return load(file, net, transform=transform)


def _curve(report: Evaluation) -> tuple[bytes, str]:
    """The evaluation's first picture as PNG, and its description in words."""
    require("matplotlib", "report", "the curve on a model card")
    from .reporting import curves

    picture = curves.pictures(report)[0]
    return picture.png, picture.alt


def _name(card: Path, folder: str, repo_id: str) -> None:
    """Let the card's example name the repository in place of the folder."""
    text = card.read_text("utf-8")
    write_atomically(card, text.replace(f'from_pretrained("{folder}"', f'from_pretrained("{repo_id}"').encode())


def _card(
    model: Conditioned,
    record: ModelSpec,
    title: str,
    report: Evaluation | None,
    alt: str,
    name: str,
    words: Mapping[str, str | None],
) -> str:
    """The model card: YAML between rules, then Markdown."""
    trained = sum(p.numel() for p in model.parameters())
    custom = foreign(record.recipe)
    call = ", ".join(f"{key}={parameter.example}" for key, parameter in model.space.items())
    recipe = ", transform=…" if custom else ""
    lines = [
        "---", _front(record, report, title, words), "---", "", f"# {title}", "",
        f"A weight transform, made with weightmorph: {trained:,} trainable numbers that make the weights of a frozen "
        f"`{record.network}` follow {' and '.join(f'`{key}`' for key in model.space)}. The network itself is not in "
        "this repository, and at the anchor it is unchanged.",
        "", "```python", "import weightmorph as wm", "",
        f"net = …  # the base: {words['base'] or record.network}, fingerprint {record.fingerprint}",
        f'model = wm.from_pretrained("{name}", net{recipe})',
        f"y = model(x, {call})  # one for the batch, or one per image",
        f"plain = model.bake({call})  # an ordinary network at that setting", "```", "",
    ]  # fmt: skip
    if custom:
        lines += [
            f"The transform holds code that is not in the file: {', '.join(custom)}. Give it as `transform=`.",
            "",
        ]
    lines += ["## Parameters", "", "| name | kind | unit | range | anchor |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(_row(key, parameter))} |" for key, parameter in model.space.items()]
    if report is not None:
        lines += ["", "## Results", "", report.advice, "", f"![{alt}]({CURVE})", "", report.markdown()]
        lines += [f"\nOn {words['dataset']}."] if words["dataset"] else []
    if words["notes"]:
        lines += ["", str(words["notes"])]
    lines += [
        "", "## The base", "",
        f"`{record.network}`{', ' + words['base'] if words['base'] else ''}: {len(record.fingerprint.tensors):,} "
        f"tensors with fingerprint `{record.fingerprint}`. Loading compares every one of them and refuses another "
        "network.",
        "", "## The transform", "", "```", model.summary(), "```", "",
        "Written with " + ", ".join(f"{key} {value}" for key, value in record.written_by.items()) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _front(record: ModelSpec, report: Evaluation | None, title: str, words: Mapping[str, str | None]) -> str:
    """The card's YAML, by which the Hub sorts repositories."""
    hub = require("huggingface_hub", "hub", "writing a model card")
    results = None
    if report is not None and report.metric == "accuracy":
        row, over = report.ours, " and ".join(report.grid)
        dataset = words["dataset"] or f"{report.images:,} held-out images"
        values = {f"mean over {over}": row.mean, f"worst over {over}": row.worst, "clean": row.clean}
        results = [
            hub.EvalResult("image-classification", "other", dataset, "accuracy", round(value, 6), metric_name=text)
            for text, value in values.items()
        ]
    name = words["base"] if words["base"] and REPO.fullmatch(words["base"]) and "/" in words["base"] else None
    data = hub.ModelCardData(
        library_name="weightmorph",
        license=words["license"],
        base_model=name,
        tags=["weightmorph", "hypernetwork", "conditioning", *sorted({p["type"].lower() for p in _parts(record)})],
        metrics=["accuracy"] if results else None,
        model_name=title if results else None,
        eval_results=results,
    )
    return str(data.to_yaml()).strip()


def _parts(record: ModelSpec) -> list[dict[str, Any]]:
    parts = record.recipe.get("parts", [record.recipe])
    return [part for part in parts if not part["type"].startswith("<")]


def _row(name: str, parameter: Parameter) -> list[str]:
    """A parameter as a row of the table."""
    anchor = parameter.format(parameter.anchor_value, 6, unit=False)
    return [f"`{name}`", type(parameter).__name__, parameter.unit or "", parameter.extent, anchor]
