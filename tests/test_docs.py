"""Python blocks of README and docs run; what the docs take from the code is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import hooks
from tests.support.doc_blocks import ROOT, SERVER, blocks_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def needs_model(page: Path) -> bool:
    return any(word in block for block in blocks_of(page) for word in ("LLM(", SERVER))


WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


@pytest.fixture(scope="session")
def server_url():
    from tests.support.served import embedded_server

    with embedded_server() as url:
        yield url


def run_blocks(page: Path, url: str = SERVER) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        exec(compile(block.replace(SERVER, url), page.relative_to(ROOT), "exec"), namespace)


@pytest.mark.parametrize(
    "page", [page for page in WITH_BLOCKS if not needs_model(page)], ids=lambda page: page.stem
)
def test_python_blocks_run(page):
    run_blocks(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in WITH_BLOCKS if needs_model(page)], ids=lambda page: page.stem
)
def test_python_blocks_run_with_the_embedded_model(page, server_url):
    run_blocks(page, server_url)


def test_generated_pages_are_what_the_code_says():
    run = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_code_lead_to_definitions(page):
    for text, path in hooks.code_links(page):
        hooks.line_of_link(text, path)  # raises LookupError


def test_tests_that_a_page_names_exist():
    """docs/models.md says what was held against what, and by which test."""
    named = re.findall(
        r"`([\w/]*test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs/models.md").read_text()
    )
    assert len(named) > 8
    for file, test in named:
        assert f"def {test}" in (ROOT / "tests/models" / file).read_text()


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100
