"""`weightmorph bake`."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ...deploy.baking import SUFFIX, bake_many
from ...deploy.delta import Delta
from ...errors import ConfigError
from ...model import Conditioned
from ..files import read_settings
from ..options import Bake, Job
from ..recipes import configuring
from ..results import destination, example_input, loaded, quiet_export, write_config
from ..show import say

__all__ = ["run"]


def run(job: Job[Bake]) -> int:
    """Bake one setting to a file, or many to a folder."""
    options = job.options
    given = [name for name in ("at", "settings", "each") if getattr(options, name)]
    if len(given) != 1:
        raise ConfigError(f"bake: expected one of at, settings and each, got {' and '.join(given) or 'none'}")
    model, about = loaded(options)
    example = example_input(options.input_shape, about, 1, model.device) if options.form == "onnx" else None
    if options.at:
        with configuring("at"):
            model.space.prepare(options.at)
        file = destination(options.to, options, f"baked{SUFFIX[options.form]}")
        file.parent.mkdir(parents=True, exist_ok=True)
        told = _one(model, options, file, example)
        write_config(job, file)
        say(f"{file}: {', '.join(f'{name}={value}' for name, value in options.at.items())}{told}")
        return 0
    folder = destination(options.to, options, "baked")
    settings = _many(model, options)
    with quiet_export():
        done = bake_many(model, settings, folder, form=options.form, example=example, overwrite=options.overwrite)
    write_config(job, folder)
    say(f"{done.index}: {len(done.files)} settings, {len(done.written)} written now")
    return 0


def _one(model: Conditioned, options: Bake, file: Path, example: Any) -> str:
    """One setting in a file of its own; what has to be said about it."""
    if options.form == "delta":
        Delta.of(model, **options.at).save(file)
        return ""
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as beside, quiet_export():
        done = bake_many(model, {"baked": options.at}, beside, form=options.form, example=example)
        entry = json.loads(done.index.read_text("utf-8"))["settings"]["baked"]
        os.replace(done.files["baked"], file)
    wider = entry.get("widened", {})
    return f"; kernels have grown, tell the layers: {json.dumps(wider)}" if wider else ""


def _many(model: Conditioned, options: Bake) -> dict[str, Any]:
    """Names to settings, or parameters to columns, each checked."""
    if options.each:
        if options.each < 1:
            raise ConfigError(f"each: expected 1 or more values, got {options.each}")
        return {name: values.tolist() for name, values in model.space.grid(options.each).items()}
    found = read_settings(Path(str(options.settings)))
    rows = found.items() if isinstance(found, dict) else enumerate(found, 1)
    for name, row in rows:
        with configuring(f"settings: {name}"):
            model.space.prepare(row)
    return found if isinstance(found, dict) else {name: [row[name] for row in found] for name in model.space}
