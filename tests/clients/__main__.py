"""Run the pages of docs/clients and the checks of this folder with the clients themselves.

    python -m tests.clients ENVIRONMENTS              # all of them
    python -m tests.clients ENVIRONMENTS langgraph    # pages and checks whose name contains it

``make clients`` makes the environments: clients have dependencies that exclude each other's, and
none is among those of the package. Pages run against the embedded model. Checks run against a
model that answers by script, so that what it calls is known. Experiments that need a client start
their own servers, of a tiny model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.clients.scripted_answers import ANSWERS
from tests.support.doc_blocks import CLIENTS, ROOT, SERVER, blocks_of, whole
from tests.support.scripted_runner import scripted_server
from tests.support.served import embedded_server

FOLDER = Path(__file__).parent
EXPERIMENTS = (ROOT / "experiments" / "zero_hints" / "three_ways.py",)
NEED_OPENAI_2 = {"crewai", "llama-index"}  # pages


def run_page(page: Path, environments: Path, url: str) -> str:
    """Run the marked blocks of a page as one program; return what went wrong, "" if nothing did."""
    python, js = (blocks_of(page, CLIENTS, language) for language in ("python", "js"))
    folder = environments / ("openai-2" if page.stem in NEED_OPENAI_2 else "openai-3")
    command, suffix = [folder / "bin" / "python"], ".py"
    if js:
        folder, command, suffix = environments / "node", ["node"], ".mjs"
        if not (folder / "node_modules").exists():
            print(f"         not run, for want of Node.js: {page.stem}")
            return ""
    # A module of JavaScript finds packages beside itself; one of Python the project, not installed.
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=suffix) as program:
        program.write(whole(python or js).replace(SERVER, url))
        program.flush()
        return _run([*command, program.name], PYTHONPATH=str(ROOT))


def run_check(check: Path, environments: Path, url: str) -> str:
    """Run the tests of a file; return what went wrong, "" if nothing did."""
    python = environments / "openai-3" / "bin" / "python"
    # Only the conftest of this folder: that of the tests needs the project's environment.
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--confcutdir", str(FOLDER)]
    return _run([python, "-m", "pytest", *options, "--rootdir", ROOT, check], KVFLOW_URL=url)


def run_experiment(path: Path, environments: Path, url: str) -> str:
    """Run the quick form of an experiment; return what went wrong, "" if nothing did."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    python = environments / "openai-3" / "bin" / "python"
    return _run([sys.executable, "-m", module, "--quick", "--python", python])


def _run(command: list[object], **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if not done.returncode:
        return ""
    return f"exit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"


def main() -> int:
    """Run what is asked for and print the time of each; return the exit code."""
    environments, *parts = sys.argv[1:]

    def is_asked(path: Path) -> bool:
        return not parts or any(part in path.stem for part in parts)

    pages = [
        page
        for page in sorted((ROOT / "docs" / "clients").glob("*.md"))
        if any(blocks_of(page, CLIENTS, language) for language in ("python", "js"))
    ]
    wrong = []
    with scripted_server() as scripted, embedded_server() as embedded:
        scripted.runner.by_prompt |= ANSWERS
        runs = [(run_check, one, scripted.url) for one in sorted(FOLDER.glob("check_*.py"))]
        runs += [(run_page, page, embedded) for page in pages]
        runs += [(run_experiment, one, embedded) for one in EXPERIMENTS]
        for run, path, url in runs:
            if not is_asked(path):
                continue
            begin = time.monotonic()
            problem = run(path, Path(environments).absolute(), url)
            print(f"{time.monotonic() - begin:6.1f} s  {path.relative_to(ROOT)}", flush=True)
            if problem:
                wrong.append(f"{path.relative_to(ROOT)}: {problem}")
    for problem in wrong:
        print(problem)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
