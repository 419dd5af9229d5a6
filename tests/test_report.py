"""The report: one page that holds everything and needs nothing, drawn without touching matplotlib's settings."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from weightmorph.errors import InputError, MissingDependencyError
from weightmorph.evaluation import Contender, Evaluation, Role, Row, evaluate
from weightmorph.inputs import Blur, Compose, InputTransform, Rotate
from weightmorph.model import Conditioned, condition
from weightmorph.parameters import Angle, Categorical, Interval, LogInterval, Parameter, ParameterSpace
from weightmorph.reporting import curves, report, strips, style
from weightmorph.transforms import LowRank, Scale, Warp

SOURCE = Path(__file__).resolve().parents[1] / "src"
NOTES = ["Drawn at random, <b>not</b> & never seen.", "A second paragraph."]


def network(channels: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(54, 3)
    )


def conditioned(net: nn.Module, space: Any, recipe: nn.Module, **more: Any) -> Conditioned:
    """With a transform away from its start."""
    model = condition(net, space, recipe, **more)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@dataclasses.dataclass
class Made:
    evaluation: Evaluation
    model: Conditioned
    examples: tuple[Tensor, Tensor]
    options: dict[str, Any]
    page: Path
    html: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A whole report."""
    torch.manual_seed(0)
    model = conditioned(network(), {"angle": Angle("deg")}, Warp() + LowRank(2) + Scale())
    x, y = torch.rand(12, 1, 9, 9), torch.arange(12) % 3
    found = evaluate(Contender(model, seconds=12.0), (x, y), Rotate(), grid=12, others={"One4All": network()}, rounds=1)
    options: dict[str, Any] = {
        "model": model, "examples": (x, y), "input_transform": Rotate(), "labels": ("ant", "bee", "a very long cat"),
        "title": "Turning <digits> & more", "notes": NOTES,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 60)
        page = report(found, tmp_path_factory.mktemp("report") / "deep" / "page.html", **options)
    return Made(found, model, (x, y), options, page, page.read_text("utf-8"))


class Checker(HTMLParser):
    """Refuses what is not closed or nested properly, and collects what the page refers to."""

    VOID = frozenset("meta img source br link hr input".split())

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(made: Made) -> Checker:
    checker = Checker()
    checker.feed(made.html)
    checker.close()
    return checker


def test_page_is_well_formed(made: Made, page: Checker) -> None:
    """Everything is closed in its turn, ids are unique and referred to rightly, headings do not jump."""
    assert made.html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert page.of("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]
    assert not {"h3", "h4"} & {tag for tag, _ in page.tags}
    assert any(a.get("name") == "viewport" for a in page.of("meta")), "readable on a phone"
    assert {a["scope"] for a in page.of("th")} == {"col", "row"}


def test_page_needs_nothing_else(made: Made, page: Checker) -> None:
    """No address, no script, no other file: whatever is referred to is inside."""
    references = [
        a[key] for _, a in page.tags for key in ("src", "srcset", "href", "data", "action", "poster") if key in a
    ]
    assert len(references) == 2 * len(page.of("img")) == 6
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert not re.search(r"https?://|url\(|@import|<script|javascript:", made.html)
    assert not [key for _, a in page.tags for key in a if key.startswith("on")]
    policy = next(a["content"] for a in page.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_page_holds_every_piece(made: Made, page: Checker) -> None:
    """Advice first, then the curve, the table, filters, inputs, and how it was made; what users write is escaped."""
    text = " ".join(" ".join(page.text).split()).replace("\u00a0", " ")
    pieces = [
        "Turning <digits> & more",
        made.evaluation.advice,
        "Accuracy over angle",
        "The figures",
        "Filters of 0 turn with angle",
        "What the networks see and say",
        "How it was made",
        "Drawn at random, <b>not</b> & never seen.",
        "A second paragraph.",
    ]
    places = [text.find(piece) for piece in pieces[1:]]
    assert -1 not in places and places == sorted(places)
    assert pieces[0] in text
    for cell in (cell for line in made.evaluation.cells() for cell in line):
        assert cell in text
    for name, value in made.evaluation.about.items():
        assert f"{name} {value}" in text
    assert "test images 12" in text
    assert "seed 0" in text
    assert " ".join(made.model.summary().split()) in text
    assert text.index("preferred") > text.index(made.evaluation.preferred.name)


def test_pictures_are_described(made: Made, page: Checker) -> None:
    """Each picture has a text that says what can be read off it, and both versions are of the size that is stated."""
    alts = [image["alt"] for image in page.of("img")]
    assert all(len(alt) > 30 for alt in alts)
    for row in made.evaluation.rows:
        assert f"{row.name}: mean {made.evaluation.text(row.mean)}" in alts[0]
    assert "the frozen network is right at" in alts[-1]
    for image, source in zip(page.of("img"), page.of("source"), strict=True):
        assert source["media"] == "(prefers-color-scheme: dark)"
        sizes = [
            Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))).size for a in (image["src"], source["srcset"])
        ]
        assert sizes[0] == sizes[1]
        assert sizes[0][0] / sizes[0][1] == pytest.approx(int(image["width"]) / int(image["height"]), rel=0.01)


def test_pictures_lie_beside_the_page(made: Made) -> None:
    """Light and dark, whole pictures with their titles, and nothing else."""
    folder = made.page.with_name("page_files")
    names = {"curve", "filters", "inputs"}
    assert {file.name for file in folder.iterdir()} == {f"{n}{v}.png" for n in names for v in ("", "-dark")}
    assert {file.name for file in made.page.parent.iterdir()} == {"page.html", "page_files"}
    for name in names:
        light, dark = (Image.open(folder / f"{name}{version}.png") for version in ("", "-dark"))
        assert light.size == dark.size
        assert light.getpixel((0, 0)) == (255, 255, 255)
        assert max(dark.getpixel((0, 0))) < 40  # type: ignore[arg-type]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Pictures of few pixels; the list gets their figures, each picture's light one and its dark one."""
    figures: list[Figure] = []

    class Canvas(FigureCanvasAgg):
        def __init__(self, figure: Figure) -> None:
            figures.append(figure)
            super().__init__(figure)

    monkeypatch.setattr(style, "DPI", 30)
    monkeypatch.setattr(style, "FigureCanvasAgg", Canvas)
    return figures


def texts(figure: Figure) -> list[str]:
    """What is written on the axes' images and beside them."""
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]


def figures(space: dict[str, Parameter], grid: Any, names: tuple[str, ...] = (), **more: Any) -> Evaluation:
    """Made-up scores over a grid."""
    known = ParameterSpace(space)
    theta = known.grid(grid) if isinstance(grid, int) else {k: torch.tensor(v) for k, v in grid.items()}
    points = {name: tuple(values.tolist()) for name, values in theta.items()}
    count = len(next(iter(points.values())))
    generator = np.random.default_rng(0)
    kinds: list[tuple[str, Role, float]] = [
        ("conditioned", "conditioned", 0.92), ("frozen", "frozen", 0.2), ("inverse", "inverse", 0.93),
        *((name, "other", 0.7) for name in names),
    ]  # fmt: skip
    rows = [
        Row(name, role, tuple(generator.uniform(low, low + 0.05, count).tolist()), 0.99, 0.01, 5)
        for name, role, low in kinds
    ]
    return Evaluation(known.config(), points, tuple(rows), images=100, **more)


ANGLE, BLUR = Angle("deg"), Interval(0.0, 4.0, unit="px")

CHARTS: dict[str, tuple[Evaluation, list[str], str]] = {
    "round": (figures({"angle": ANGLE}, 12, tuple("abcdef")), ["curve", "close"], "polar"),
    "round, in radians": (figures({"angle": Angle("rad", anchor=1.0)}, 12), ["curve", "close"], "polar"),
    "part of the circle": (figures({"angle": ANGLE}, {"angle": [0.0, 10.0, 20.0]}), ["curve", "close"], "straight"),
    "a range": (figures({"blur": BLUR}, 5), ["curve", "close"], "straight"),
    "a range, shuffled": (figures({"blur": BLUR}, {"blur": [4.0, 0.0, 2.0]}), ["curve", "close"], "straight"),
    "ratios": (figures({"zoom": LogInterval(0.5, 2.0)}, 5), ["curve", "close"], "straight"),
    "one setting": (figures({"blur": BLUR}, {"blur": [1.0]}), ["curve", "close"], "straight"),
    "categories": (figures({"lens": Categorical(("a", "b", "c"))}, 3, ("d",)), ["curve"], "categories"),
    "two": (figures({"angle": ANGLE, "blur": BLUR}, 4, ("x", "y")), ["curve"], "maps"),
    "two, many values": (figures({"angle": ANGLE, "blur": BLUR}, 14), ["curve"], "maps"),
    "two, and a category": (
        figures({"blur": BLUR, "lens": Categorical(("short", "a very long name"))}, 3),
        ["curve"],
        "maps",
    ),
    "two, no grid": (
        figures({"a": BLUR, "b": BLUR}, {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 4.0]}),
        ["curve"],
        "sorted",
    ),
    "three": (figures({"angle": ANGLE, "blur": BLUR, "zoom": LogInterval(0.5, 2.0)}, 2), ["curve"], "sorted"),
    "errors": (figures({"blur": BLUR}, 5, metric="minus_error"), ["curve", "close"], "straight"),
}


def kind(axes: Axes) -> str:
    """Which chart it is."""
    if axes.name == "polar" or axes.collections:
        return "polar" if axes.name == "polar" else "maps"
    if axes.get_lines()[0].get_linestyle() == "None":
        return "categories"
    return "sorted" if axes.get_xlabel() == "share of the settings" else "straight"


@pytest.mark.parametrize("case", CHARTS)
def test_charts(case: str, drawn: list[Figure]) -> None:
    """Every kind of grid has its kind of chart, in which every row is named and nothing leaves the picture."""
    evaluation, names, expected = CHARTS[case]
    assert [picture.name for picture in curves.pictures(evaluation)] == names
    assert len(drawn) == 2 * len(names)
    assert kind(drawn[0].axes[0]) == expected
    legend = [text.get_text() for legend in drawn[0].legends for text in legend.get_texts()]
    titles = [axes.get_title("left") for axes in drawn[0].axes]
    for row in evaluation.rows:
        mean = f"mean {evaluation.text(row.mean)}"
        assert row.name in titles if expected == "maps" else any(t.startswith(f"{row.name}\n{mean}") for t in legend)
    for figure in drawn:
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        slack = 2 / style.DPI
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -slack


def test_a_closer_look_needs_something_to_see(drawn: list[Figure]) -> None:
    """Rows that differ only by rounding get no picture of their own."""
    evaluation, _, _ = CHARTS["a range"]
    constant = tuple(0.9 + 1e-9 * k for k in range(5))
    ours, frozen = evaluation.rows[:2]
    rows = dataclasses.replace(ours, values=constant), frozen
    assert [p.name for p in curves.pictures(dataclasses.replace(evaluation, rows=rows))] == ["curve"]


def test_rows_differ_without_colour() -> None:
    """Up to five networks beside ours, no two rows share their dashes or marks; colours are seen on either paper."""
    rows = figures({"blur": BLUR}, 2, tuple("abcdefgh")).rows
    for palette in (style.LIGHT, style.DARK):
        styles = style.row_styles(rows, palette)
        assert len({(one["color"], one["linestyle"]) for one in styles.values()}) == len(rows)
        few = [styles[row.name] for row in rows[:8]]
        assert len({one["linestyle"] for one in few}) == len({one["marker"] for one in few}) == len(few)
        for one in styles.values():
            assert contrast(one["color"], palette.paper) > 3, "WCAG's least for graphics"
        for text in (palette.ink, palette.muted, palette.wrong):
            assert contrast(text, palette.paper) > 4.5, "WCAG's least for text"


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG defines it."""
    channels = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    return float((light + 0.05) / (dark + 0.05))


# The strips.


def test_filters_are_those_of_the_weights(made: Made, drawn: list[Figure]) -> None:
    """Row by row the taps that `weights` gives, the first column being the frozen network's own."""
    assert strips.filters(made.model) is not None
    images = [np.asarray(axes.images[0].get_array()) for axes in drawn[0].axes]
    names = [text for text in texts(drawn[0]) if text.startswith("filter ")]
    assert len(images) == 8 * len(names) == 32
    frozen = made.model.frozen()[0].weight  # type: ignore[index]
    for row, name in enumerate(names):
        number = int(name.split()[1])
        for column, angle in enumerate(range(0, 360, 45)):
            expected = made.model.weights(angle=float(angle))["0.weight"][number, 0]
            assert np.allclose(images[8 * row + column], expected.detach().numpy())
        assert np.array_equal(images[8 * row], frozen[number, 0].numpy())


@pytest.mark.parametrize(
    ("net", "shown"),
    [
        (nn.Sequential(nn.ConvTranspose2d(3, 2, 3)), "filter 1"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 25, 3)), "filter 2"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), None),
        (nn.Sequential(nn.Conv1d(1, 2, 3)), None),
    ],
    ids=["transposed", "linear after a flatten", "single taps", "one axis"],
)
def test_filters_of_other_layers(net: nn.Module, shown: str | None, drawn: list[Figure]) -> None:
    """The first layer that has a kernel on the plane, of whatever kind; nothing where there is none."""
    model = condition(net, {"angle": ANGLE, "blur": BLUR}, LowRank(1), maps={"2": (5, 5)} if len(net) > 2 else None)  # type: ignore[arg-type]
    assert (strips.filters(model) is None) == (shown is None)
    if shown is not None:
        assert {shown, "angle", "blur", "\n4 px", "315°"} <= set(texts(drawn[0]))


def test_predictions_are_marked_right_or_wrong(made: Made, drawn: list[Figure]) -> None:
    """Under each image what both networks say, with a tick or a cross; the first images of different classes."""
    x, y = made.examples
    labels = ["ant", "bee", "a very lon…"]
    strips.inputs(made.model, Rotate(), x, y, made.options["labels"])
    said = [text for text in texts(drawn[0]) if text.endswith(("✓", "✗"))]
    frozen, expected = made.model.frozen(), []
    for i in (0, 1, 2, 3):  # three classes, and the first of the rest
        for angle in range(0, 360, 45):
            turned = Rotate()(x[i : i + 1], angle=float(angle))
            for net in (frozen, made.model.bake(angle=float(angle))):
                answer = int(net(turned).argmax())
                expected.append(f"{labels[answer]} {'✓' if answer == int(y[i]) else '✗'}")
    assert said == expected
    assert {"✓", "✗"} == {text[-1] for text in said}, "both marks are put to the test"
    assert [text for text in texts(drawn[0]) if text.startswith("this is")] == [
        f"this is {labels[i]}" for i in (0, 1, 2, 0)
    ]


def test_inputs_of_different_classes_are_shown_whatever_their_order(made: Made, drawn: list[Figure]) -> None:
    """Also where the labels are sorted and the next class comes late."""
    x, y = torch.rand(900, 1, 9, 9), torch.arange(900) // 300
    strips.inputs(made.model, Rotate(), x, y)
    targets = [text for text in texts(drawn[0]) if text.startswith("this is")]
    assert targets == [f"this is {number}" for number in (0, 0, 1, 2)]


def test_inputs_without_classes_are_shown_alone(drawn: list[Figure]) -> None:
    """Where the output is no row of logits there is nothing to say, and colour images are shown in colour."""
    space = {"angle": Angle("deg"), "blur": Interval(0.0, 2.0, unit="px")}
    model = condition(nn.Conv2d(3, 3, 3, padding=1), space, LowRank(1))
    x = torch.randn(3, 3, 8, 6)
    assert "✓" not in strips.inputs(model, Compose([Rotate(), Blur(2.0)]), x, x).subtitle
    images = [np.asarray(axes.images[0].get_array()) for axes in drawn[0].axes if axes.images]
    assert {image.shape for image in images} == {(8, 6, 3)}
    assert len(images) == 2 * (8 + 7)
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


def test_thumbnails_only_for_one_angle() -> None:
    x = torch.rand(2, 1, 5, 5)
    assert sorted(strips.thumbnails(Rotate(), x)) == [45.0 * k for k in range(8)]
    assert strips.thumbnails(Blur(), x) == {}
    assert strips.thumbnails(Compose([Rotate(), Blur()]), x) == {}


# What a failure leaves, and what must not be touched.


@pytest.mark.usefixtures("drawn")
def test_nothing_is_written_if_drawing_fails(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is drawn first."""

    class Broken(InputTransform):
        def apply(self, x: Tensor, theta: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        report(
            made.evaluation,
            tmp_path / "new" / "page.html",
            **made.options | {"input_transform": Broken(made.model.space)},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("drawn")
def test_an_older_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is written last, beside its place."""
    path = report(figures({"blur": BLUR}, 3), tmp_path / "page.html")
    before = path.read_bytes()
    real = os.fsync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:  # four pictures, then the page
            raise OSError("disk full")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        report(figures({"blur": BLUR}, 4), path)
    assert path.read_bytes() == before
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")]


@pytest.mark.usefixtures("drawn")
def test_pictures_of_an_older_report_go(tmp_path: Path) -> None:
    """What the new page does not have is not left beside it; a file of the user's is."""
    folder = tmp_path / "page_files"
    folder.mkdir()
    for name in ("inputs.png", "filters-dark.png", "mine.png"):
        (folder / name).write_bytes(b"old")
    report(figures({"lens": Categorical(("a", "b"))}, 2), tmp_path / "page.html")
    assert sorted(file.name for file in folder.iterdir()) == ["curve-dark.png", "curve.png", "mine.png"]


@pytest.mark.usefixtures("drawn")
def test_a_report_is_repeatable_whatever_the_users_style(tmp_path: Path) -> None:
    """The user's settings of matplotlib neither show nor change."""
    found = figures({"angle": ANGLE}, 12)
    first = report(found, tmp_path / "first.html").read_bytes()
    with matplotlib.rc_context(
        {"font.size": 31.0, "axes.grid": True, "figure.facecolor": "red", "lines.linewidth": 9.0}
    ):
        before = dict(matplotlib.rcParams)
        assert report(found, tmp_path / "second.html").read_bytes() == first
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_loaded(tmp_path: Path) -> None:
    """Importing loads neither matplotlib nor Jinja2; a report loads no pyplot and picks no backend."""
    code = f"""
import sys, warnings
warnings.simplefilter("error")
from weightmorph.reporting import report
from weightmorph.evaluation import Evaluation, Row
from weightmorph.parameters import Interval, ParameterSpace
assert not {{"matplotlib", "jinja2", "PIL"}} & set(sys.modules)
rows = (Row("conditioned", "conditioned", (0.9, 0.8), 0.9, 0.01),)
space = ParameterSpace({{"b": Interval(0, 1)}})
report(Evaluation(space.config(), {{"b": (0.0, 1.0)}}, rows), {str(tmp_path / "p.html")!r})
import matplotlib
assert "matplotlib.pyplot" not in sys.modules
assert dict.__getitem__(matplotlib.rcParams, "backend") == dict.__getitem__(matplotlib.rcParamsOrig, "backend")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert (tmp_path / "p.html").is_file()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*pip install 'weightmorph\[report\]'"):
        report(figures({"blur": BLUR}, 2), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_examples_need_the_model_and_the_transform(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give model= and input_transform= as well"):
        report(made.evaluation, tmp_path / "page.html", examples=made.examples)
    with pytest.raises(InputError, match="give input_transform= as well"):
        report(made.evaluation, tmp_path / "page.html", examples=made.examples, model=made.model)


def test_range_of_an_axis() -> None:
    """From zero unless all is well above it; never beyond what an accuracy can be."""
    found = figures({"blur": BLUR}, 5)
    assert style.axis_range(found, found.rows) == (0.0, 1.0)
    low, high = style.axis_range(found, found.rows[:1])
    assert low == pytest.approx(0.8) and high == 1.0
    low, high = style.axis_range(dataclasses.replace(found, metric="psnr"), found.rows)
    assert low < min(row.worst for row in found.rows) and high > max(map(max, (row.values for row in found.rows)))
    flat = Row("conditioned", "conditioned", (2.0, 2.0), 2.0, 0.0)
    assert math.isclose(sum(style.axis_range(dataclasses.replace(found, metric="psnr"), [flat])), 4.0)


def test_rows_without_theta_are_drawn_and_rows_with_a_wrong_one_are_not(tmp_path: Path) -> None:
    """Both are in the table; the page says what to prefer where nobody knows θ."""
    model = conditioned(network(), {"angle": Angle("deg")}, Warp())
    data = torch.rand(12, 1, 9, 9), torch.arange(12) % 3
    options: dict[str, Any] = {"offsets": {"angle": 20}, "inferred": ["image", 4], "infer_options": {"candidates": 4}}
    found = evaluate(model, data, Rotate(), grid=6, rounds=0, **options)
    page = report(found, tmp_path / "page.html").read_text("utf-8")
    for row in found.rows:
        assert row.name in page
    assert "Where nobody knows" in page and "abstained from" in page
    (picture, *_) = curves.pictures(found)
    assert "θ inferred per image: mean" in picture.alt and "off by 20°: mean" not in picture.alt
    styles = style.row_styles(found.rows, style.LIGHT)
    assert len({(one["color"], str(one["linestyle"])) for one in styles.values()}) == len(found.rows)


@pytest.mark.usefixtures("drawn")
def test_a_metric_without_a_name_is_called_metric(tmp_path: Path) -> None:
    """A lambda's name tells a reader nothing."""
    model, data = conditioned(network(), {"angle": Angle("deg")}, Warp()), (torch.rand(4, 1, 9, 9), torch.arange(4) % 3)
    evaluation = evaluate(model, data, Rotate(), grid=3, rounds=0, metric=lambda output, target: output[:, 0])
    page = report(evaluation, tmp_path / "page.html").read_text("utf-8")
    assert "Metric over angle" in page and "lambda" not in page
