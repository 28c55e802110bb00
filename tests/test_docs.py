"""The documentation: links and anchors exist, the README is short, and shell blocks marked as runnable work."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.environment import ROOT, environment

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MAX_README_WORDS, MAX_README_LINES = 1500, 250
FENCE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(r"\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(?:a|img)\b[^>]*\b(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
RUNNABLE = re.compile(r"^<!-- runnable(?P<slow>: slow)? -->\n```sh\n(?P<script>.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^\s*<!-- runnable.*", re.MULTILINE)
SECONDS = 3000
"""Time limit of a slow page, in seconds."""

page_ids = {"ids": lambda page: page.relative_to(ROOT).as_posix()}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, punctuation dropped, spaces as hyphens."""
    text = re.sub(r"!?\[([^]]*)]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All anchors of a page; a repeated heading gets -1, -2, …"""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        base = name = slug(heading)
        count = 0
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def links(text: str) -> list[str]:
    """Targets of links and images outside of code."""
    return [one or other for one, other in LINK.findall(CODE.sub("", FENCE.sub("", text)))]


def problem(page: Path, target: str) -> str | None:
    """The error of a relative link, or None; links to other sites are not checked."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.parent / unquote(path)).resolve() if path else page
    if not file.exists():
        return f"{target}: no such file"
    if not file.is_relative_to(ROOT):
        return f"{target}: outside of the repository"
    if anchor and file.suffix == ".md" and unquote(anchor) not in anchors(file.read_text(encoding="utf-8")):
        return f"{target}: no such heading"
    return None


def scripts(text: str, slow: bool) -> list[str]:
    """The runnable `sh` blocks of a page, in order."""
    return [found["script"] for found in RUNNABLE.finditer(text) if bool(found["slow"]) == slow]


def pages_with_scripts(slow: bool) -> list[Path]:
    return [page for page in PAGES if scripts(page.read_text(encoding="utf-8"), slow)]


def run_scripts(page: Path, folder: Path, slow: bool) -> None:
    """Runs a page's blocks in a folder that holds a photograph, `cat.jpg`, with this environment's commands."""
    import skimage.data
    from PIL import Image

    Image.fromarray(skimage.data.chelsea()).save(folder / "cat.jpg")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for script in scripts(page.read_text(encoding="utf-8"), slow):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment(PATH=path),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS if slow else None,
        )
        assert done.returncode == 0, f"{page.relative_to(ROOT)}:\n{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("The paper's tables in miniature", "the-papers-tables-in-miniature"),
        ("Memory: int8 and CPU offload", "memory-int8-and-cpu-offload"),
        ("`data.cache`, [packs](data.md) & more", "datacache-packs--more"),
        ("Naïve_names 1.0", "naïve_names-10"),
    ],
)
def test_slug_github(heading, anchor):
    assert slug(heading) == anchor


def test_anchors_repeated_heading():
    assert anchors("# A\n## A\n```\n# not one\n```\n## A\n") == {"a", "a-1", "a-2"}


def test_links_outside_code():
    text = '[a](x.md#y) ![b](c.png "d")\n`[no](no.md)`\n```\n[no](no.md)\n```\n<img src="e.png">'
    assert links(text) == ["x.md#y", "c.png", "e.png"]


def test_problem_missing_target(tmp_path):
    assert problem(ROOT / "README.md", "https://example.org/missing") is None
    assert problem(ROOT / "README.md", "docs/missing.md") == "docs/missing.md: no such file"
    assert problem(ROOT / "README.md", "#no-such-heading") == "#no-such-heading: no such heading"


@pytest.mark.parametrize("page", PAGES, **page_ids)
def test_page_links(page):
    found = [problem(page, target) for target in links(page.read_text(encoding="utf-8"))]
    assert [each for each in found if each is not None] == []


def test_pages_reached_from_readme():
    """Each page of docs/ has a link in the README."""
    readme = ROOT / "README.md"
    reached = {(ROOT / target.partition("#")[0]).resolve() for target in links(readme.read_text(encoding="utf-8"))}
    assert [page.name for page in PAGES if page.parent.name == "docs" and page not in reached] == []


def test_readme_length():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= MAX_README_WORDS
    assert len(text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, **page_ids)
def test_scripts_marks(page):
    """Every mark is followed directly by a block of `sh`; a misspelled mark would not run."""
    text = page.read_text(encoding="utf-8")
    assert len(MARK.findall(FENCE.sub("", text))) == len(RUNNABLE.findall(text))


@pytest.mark.parametrize("page", pages_with_scripts(slow=False), **page_ids)
def test_scripts_run(page, tmp_path):
    run_scripts(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("page", pages_with_scripts(slow=True), **page_ids)
def test_scripts_run_slow(page, tmp_path):
    run_scripts(page, tmp_path, slow=True)
