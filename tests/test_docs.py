"""Python blocks of README and docs run; what the docs take from the code is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import hooks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- ([\w ]+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = "http://127.0.0.1:8000"


def blocks_of(page: Path) -> list[str]:
    """Return the page's blocks that run, in order, padded so that errors name the page's lines."""
    text = page.read_text()
    return [
        "\n" * (text[: match.start(2)].count("\n")) + match[2]
        for match in BLOCK.finditer(text)
        if match[1] != "not run"
    ]


def needs_model(page: Path) -> bool:
    return any(word in block for block in blocks_of(page) for word in ("LLM(", SERVER))


WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


@pytest.fixture(scope="session")
def server_url(tmp_path_factory):
    """A server of the embedded model, as `make serve` starts it, with a small pool."""
    from kvflow_jax.serve.command_line import parse_config
    from kvflow_jax.serve.launch import build_engine
    from kvflow_jax.serve.server import Server, bind
    from tests.support.served import running

    config = parse_config(["--port", "0", "--pool-gib", "0.5", "--max-num-seqs", "4"])
    with running(Server(config, bind("127.0.0.1", 0), build_engine)) as url:
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


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100
