"""Run every command that README and docs name, in its quick form.

    python -m tests.commands                 # all of them
    python -m tests.commands engine_bench    # those whose name contains it

As many run side by side as there are cores. A command that the documentation names and that no
stage of CI runs fails the run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from experiments.make_folder import temporary_folder
from tests.experiments.zero_hints.session_files import write_sessions

TIMEOUT_S = 900  # many times what a command takes
ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
NAMED = re.compile(r"python -m ((?:kvflow_jax|experiments|tests|docs)[\w.]*\w)")

# JSON, FOLDER and RESULTS become paths in a temporary folder; what writes JSON must write it. MODEL
# is a tiny model: compiling the embedded one takes minutes. SESSIONS is a folder of small sessions.
QUICK: dict[str, list[str]] = {
    "experiments": [""],
    "experiments.paper": [
        "--mode sim --quick --arms hicache,kvflow --json JSON",
        "--mode real --quick --model MODEL --arms kvflow --json JSON",
    ],
    "experiments.compare": [
        "--workload cycle --quick --arms all --json JSON",
        "--workload dag-4 --quick --runs 4 --rate 1 --machine 'tpu-v5e x4' --arms kvflow",
    ],
    "experiments.zero_hints": ["--quick --only cycle team recorded identity --json JSON"],
    "experiments.zero_hints.real": ["--quick --trace-file SESSIONS --pause-factor 0 --json JSON"],
    "experiments.zero_hints.traces": ["--quick --trace-file SESSIONS --json JSON"],
    "experiments.cycle": ["--quick --json JSON"],
    "experiments.terms": ["--quick --json JSON"],
    "experiments.report": ["--results RESULTS"],
    # Tests run the quick form of its other parts.
    "experiments.minimax": ["--quick --only rate digits --json JSON --figures FOLDER"],
    "experiments.engine_bench": ["--quick --json JSON"],
    "experiments.cache_bench": ["--quick --json JSON"],
    "experiments.kernel_bench": ["--quick --json JSON"],
    "experiments.peers": ["--quick --json JSON"],
    "experiments.quality": ["--quick --json JSON"],
    "experiments.load": ["--quick --json JSON"],
    "experiments.load_bench": ["--quick --json JSON"],
    "experiments.grammar_bench": ["--quick --json JSON"],
    "experiments.speculation": ["--quick --json JSON"],
    "experiments.serve_bench": ["--quick --json JSON"],
    "experiments.soak": ["--quick --json JSON"],
    "experiments.memory_soak": ["--quick --json JSON"],
    "experiments.device_check": ["--quick --json JSON"],
    "experiments.make_folder": ["gemma3 FOLDER"],
    "kvflow_jax": ["", "serve --help"],
    "kvflow_jax.serve": ["--help"],
}
# Run by another stage of CI, or by a maintainer (reference values need torch).
ELSEWHERE = {
    "docs.generate": "make docs",
    "experiments.zero_hints.three_ways": "make clients",
    "experiments.portability": "make portability",
    "tests.own_coverage": "make own-coverage",
    "tests.models.make_reference": "make parity",
}


def named_commands() -> dict[str, str]:
    """Return the modules that the documentation runs, each with a page that names it."""
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    return {
        name: page.relative_to(ROOT).as_posix()
        for page in pages
        for name in NAMED.findall(page.read_text())
    }


@dataclass(frozen=True)
class Command:
    """A module and its flags."""

    module: str
    flags: str

    def __str__(self) -> str:
        return f"{self.module} {self.flags}"

    def run(self) -> tuple[float, str]:
        """Return the seconds that it took, and what went wrong, "" if nothing did."""
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, temporary_folder() as model:
            problem = self._run_in(Path(folder), model)
        return time.monotonic() - begin, problem

    def _run_in(self, folder: Path, model: Path) -> str:
        paths = {"JSON": folder / "out.json", "FOLDER": folder / "out", "MODEL": model}
        paths["RESULTS"] = folder / "results"
        if "RESULTS" in self.flags:
            shutil.copytree(ROOT / "experiments" / "results", paths["RESULTS"])
        paths["SESSIONS"] = write_sessions(folder / "sessions")
        arguments = [sys.executable, "-m", self.module]
        for quoted, plain in re.findall(r"'([^']*)'|(\S+)", self.flags):
            arguments.append(str(paths.get(plain, plain)) if plain else quoted)
        # A command that hangs is aborted, and Python prints where each of its threads is.
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        with subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            abort = threading.Timer(TIMEOUT_S, process.send_signal, [signal.SIGABRT])
            abort.start()
            stdout, stderr = process.communicate()
            abort.cancel()
        if process.returncode:
            return f"exit code {process.returncode}\n{stdout[-2000:]}\n{stderr[-4000:]}"
        if "JSON" in self.flags:
            json.loads(paths["JSON"].read_text())
        return ""


def main() -> int:
    """Run the commands and print the time of each; return the exit code."""
    if sys.argv[1:] and not any(part in module for part in sys.argv[1:] for module in QUICK):
        print(f"no command contains {' or '.join(sys.argv[1:])}; there are: {', '.join(QUICK)}")
        return 2
    named = named_commands()
    wrong = [
        f"{page} names python -m {name}, which no stage of CI runs"
        for name, page in named.items()
        if name not in QUICK and name not in ELSEWHERE
    ]
    commands = [
        Command(module, flags)
        for module, forms in QUICK.items()
        for flags in forms
        if not sys.argv[1:] or any(part in module for part in sys.argv[1:])
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for command, (seconds, problem) in zip(
            commands, threads.map(Command.run, commands), strict=True
        ):
            print(f"{seconds:6.1f} s  {command}", flush=True)
            if problem:
                wrong.append(f"python -m {command}: {problem}")
    for problem in wrong:
        print(problem)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
