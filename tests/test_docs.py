"""The pages say what is there: programs run, paths and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "weightmorph"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]

STEP = re.compile(r"^\| \d+ \| `([\w/.]+)` \| ([^|]+) \|", re.MULTILINE)
"""A row of the table in docs/engine.md that follows a call: a file, and names in it."""


@pytest.mark.slow
def test_the_first_program_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands on the page; and it shows what the page says."""
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert program is not None
    exec(compile(program[1], "README.md", "exec"), {})
    frozen, baked = re.findall(r"(\d+)%", capsys.readouterr().out)
    assert int(frozen) < 10 and int(baked) > 90


def test_the_map_of_a_call_names_what_exists() -> None:
    """Every file of the table, and every function or class that it names there."""
    steps = STEP.findall((ROOT / "docs" / "engine.md").read_text("utf-8"))
    missing = []
    for file, names in steps:
        source = (SOURCE / file).read_text("utf-8") if (SOURCE / file).exists() else ""
        for name in re.findall(r"\w+", names):
            if not re.search(rf"\b(def|class) {name}\b|^{name}\b", source, re.MULTILINE):
                missing.append(f"{file}: {name}")
    assert not missing
    assert len(steps) > 10


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links, and the headings that they name."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = unquote(link).partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken
