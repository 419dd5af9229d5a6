"""One self-contained HTML page about an evaluation, with its pictures beside it."""

from __future__ import annotations

import base64
import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError, require
from ..evaluation import Evaluation, listing
from ..inputs import InputTransform
from ..io import write_atomically
from ..model import Conditioned

if TYPE_CHECKING:
    from .style import Picture

__all__ = ["report"]

PICTURES = ("curve", "close", "filters", "inputs")
"""The names that a picture can have."""


def report(
    evaluation: Evaluation,
    path: str | os.PathLike[str],
    *,
    model: Conditioned | None = None,
    examples: tuple[Tensor, Tensor] | None = None,
    input_transform: InputTransform | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    notes: str | Sequence[str] = (),
) -> Path:
    """Write an evaluation as one HTML file that needs nothing else: no network, no script, no other file.

    It opens with the advice, and goes on with the curve over θ (round for an angle that goes all the way round, maps
    for two parameters), the table, filters that follow θ, inputs with what both networks say of them, and how it was
    made. The pictures are also put, in a light and a dark version, into a folder beside it: `report.html` comes with
    `report_files/curve.png`, `report_files/curve-dark.png` …

    Everything is drawn before anything is written, and each file is written beside its place and renamed, the page
    last: after a failure an older report is as it was.

    Args:
        evaluation: from [`evaluate`][weightmorph.evaluate].
        path: the page's file; folders on the way are made, a file of that name is replaced.
        model: the conditioned network; for the filters and the summary.
        examples: images and their targets, `(x, y)`; with `model` and `input_transform`, for the strip of inputs. The
            first four with different targets are shown, two where there are two parameters.
        input_transform: as given to `evaluate`.
        labels: names of the classes.
        title: of the page.
        notes: paragraphs to be read with the figures: where the data come from, what they were not used for.

    Returns:
        the page's path.

    Raises:
        MissingDependencyError: without matplotlib and Jinja2, `pip install 'weightmorph[report]'`.
        InputError: if `examples` come without `model` or `input_transform`.

    Example:
        >>> import tempfile
        >>> from weightmorph.evaluation import Row
        >>> from weightmorph.parameters import Interval, ParameterSpace
        >>> ours = Row("conditioned", "conditioned", (0.9, 0.7), 0.9, 0.01)
        >>> rows = ours, Row("frozen", "frozen", (0.9, 0.1), 0.9, 0.02)
        >>> space = ParameterSpace({"blur": Interval(0.0, 2.0, unit="px")})
        >>> found = Evaluation(space.config(), {"blur": (0.0, 2.0)}, rows, images=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(found, f"{folder}/report.html")
        ...     page.name, sorted(file.name for file in page.with_name("report_files").iterdir())
        ('report.html', ['curve-dark.png', 'curve.png'])
    """
    for package in ("matplotlib", "jinja2"):
        require(package, extra="report", purpose="report()")
    pictures = _pictures(evaluation, model, examples, input_transform, labels)
    heading = title or f"Weights that follow {listing(evaluation.grid)}"
    page = _page(evaluation, heading, pictures, model, [notes] if isinstance(notes, str) else list(notes))
    path = Path(path)
    folder = path.with_name(f"{path.stem}_files")
    files = {f"{p.name}.png": p.png for p in pictures} | {f"{p.name}-dark.png": p.png_dark for p in pictures}
    for file, content in files.items():
        write_atomically(folder / file, content)
    for file in (f"{name}{version}.png" for name in PICTURES for version in ("", "-dark")):
        if file not in files:  # it belongs to an older report
            (folder / file).unlink(missing_ok=True)
    return write_atomically(path, page.encode())


def _pictures(
    evaluation: Evaluation,
    model: Conditioned | None,
    examples: tuple[Tensor, Tensor] | None,
    transform: InputTransform | None,
    labels: Sequence[str] | None,
) -> list[Picture]:
    """All of them, in the page's order."""
    from . import curves, strips  # matplotlib is loaded here and not before

    if examples is not None and (model is None or transform is None):
        missing = " and ".join(n for n, v in (("model=", model), ("input_transform=", transform)) if v is None)
        raise InputError(f"report: examples are shown as the model sees them, transformed; give {missing} as well")
    thumbnails = {} if examples is None or transform is None else strips.thumbnails(transform, examples[0])
    pictures = curves.pictures(evaluation, thumbnails)
    if model is not None:
        filters = strips.filters(model)
        pictures += [filters] if filters is not None else []
        if examples is not None and transform is not None:
            pictures.append(strips.inputs(model, transform, *examples, labels=labels))
    return pictures


def _page(
    evaluation: Evaluation, title: str, pictures: Sequence[Picture], model: Conditioned | None, notes: Sequence[str]
) -> str:
    """The template filled in."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    source = importlib.resources.files(__package__).joinpath("page.html.j2").read_text("utf-8")
    settings = f"{len(evaluation.settings):,} settings of {listing(evaluation.grid)}"
    return environment.from_string(source).render(
        evaluation=evaluation,
        preferred=evaluation.preferred,
        figures=evaluation.remarks()[0][:1].upper() + evaluation.remarks()[0][1:],
        counts=f"{evaluation.images:,} test images, {settings}",
        facts={**evaluation.about, "test images": f"{evaluation.images:,}", "seed": evaluation.seed, "grid": settings},
        title=title,
        pictures={picture.name: picture for picture in pictures},
        head=evaluation.cells()[0],
        body=list(zip(evaluation.rows, evaluation.cells()[1:], strict=True)),
        summary=model.summary() if model is not None else None,
        notes=notes,
    )
