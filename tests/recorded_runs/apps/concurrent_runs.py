"""Runs a graph of LangGraph for several tasks at the same time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_all(build: Callable[[str, str], Any]) -> None:
    """Run a graph once for each task; the command line is the server's URL and the tasks.

    Args:
        build: (URL, name of the run) -> the compiled graph of that run.
    """
    url, *tasks = sys.argv[1:]
    with ThreadPoolExecutor(len(tasks)) as pool:
        runs = [
            pool.submit(build(url, f"run-{number}").invoke, {"task": task})
            for number, task in enumerate(tasks)
        ]
    for run in runs:
        run.result()
