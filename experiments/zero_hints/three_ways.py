"""Run an app of LangGraph three ways: on plain LRU, without hints, and with one argument.

    python -m experiments.zero_hints.three_ways --json FILE   # after make clients
    python -m experiments.zero_hints.three_ways --python PYTHON
    python -m experiments.zero_hints.three_ways --quick       # tiny random model: a check

The app (``langgraph_team``) runs as a child in an interpreter that has LangGraph. Each way has a
server of its own, without host tier, whose pool holds the prompts of four of the six agents.
Prompt tokens are *computed* where the cache did not have them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from experiments.bench.metrics_page import samples
from experiments.bench.server_process import server_process
from experiments.child import ROOT, ChildError, run_child
from experiments.make_folder import temporary_folder
from experiments.measure import arguments, positive_int, write_json

APP = "experiments.zero_hints.langgraph_team"
PYTHON_OF_CLIENTS = "clients-{}.{}/openai-3/bin/python"  # within .venv, as make clients makes it
START_LIMIT_S, RUN_LIMIT_S = 60.0, 3600.0  # of the child


@dataclass(frozen=True)
class Way:
    """How server and app are run; only this differs.

    Attributes:
        flags: of the server.
        has_hints: whether the app's model is given kvflow_jax's HTTP client.
    """

    name: str
    flags: tuple[str, ...] = ()
    has_hints: bool = False


WAYS = (
    Way("plain", ("--predictor=none",)),
    Way("zero hints"),
    Way("one argument", has_hints=True),
)


class Size(NamedTuple):
    """How much is run: flags of the server, runs of the app, rules of each system prompt."""

    flags: tuple[str, ...]
    num_runs: int
    num_rules: int


FULL = Size(
    ("--num-pages=144", "--max-model-len=2048", "--host-cache-gib=0", "--max-num-seqs=4"), 5, 28
)
# Deterministic: two batch shapes, which compile in seconds.
QUICK = Size(
    (
        "--pool-gib=0.02",
        "--host-cache-gib=0",
        "--max-num-seqs=4",
        "--max-model-len=1024",
        "--deterministic",
    ),
    1,
    2,
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--python",
        type=absolute_path,
        default=default_python(),
        help="interpreter that has langgraph and langchain-openai; default: that of make clients",
    )
    parser.add_argument("--runs", type=positive_int, help="of the app; default: 5, quick 1")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, one run"
    )
    options = parser.parse_args()
    try:
        versions = versions_of(options.python)
        with temporary_folder() if options.quick else nullcontext() as folder:
            size = QUICK if options.quick else FULL
            size = size._replace(num_runs=options.runs or size.num_runs)
            if folder is not None:
                size = size._replace(flags=(*size.flags, f"--model={folder}"))
            ways = {way.name: asyncio.run(run_way(way, options.python, size)) for way in WAYS}
    except ChildError as error:
        print(f"three_ways: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(ways)))
    write_json({"versions": versions, "num_runs": size.num_runs, "ways": ways}, options.json)
    applied, num_calls = (ways["one argument"][key] for key in ("hints_applied", "calls"))
    if applied != num_calls:
        print(f"three_ways: hints of {applied} of {num_calls} calls were applied", file=sys.stderr)
        return 1
    return 0


def absolute_path(text: str) -> Path:
    """Return a path that other folders understand; the link of an environment is not followed."""
    return Path(text).expanduser().absolute()


def default_python() -> Path:
    return ROOT / ".venv" / PYTHON_OF_CLIENTS.format(*sys.version_info)


def versions_of(python: Path) -> dict[str, str]:
    """Return the versions of the packages that the app needs.

    Raises:
        ChildError: the interpreter does not run, or lacks a package.
    """
    printed = _app(python, "--versions", limit_s=START_LIMIT_S)
    if "versions" not in printed:
        raise ChildError(f"{python} is no Python interpreter", printed)
    found: dict[str, str | None] = printed["versions"]
    missing = [package for package, version in found.items() if version is None]
    if missing:
        raise ChildError(
            f"{python} lacks {' and '.join(missing)}; "
            f"install with: {python} -m pip install {' '.join(missing)}",
            {},
        )
    return {package: version for package, version in found.items() if version is not None}


async def run_way(way: Way, python: Path, size: Size) -> dict[str, Any]:
    """Run the app on a server of its own; return its figures.

    Raises:
        ChildError: the app failed.
    """
    async with (
        server_process([*size.flags, *way.flags]) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        flags = [f"--url={server.url}", f"--model={model}", f"--runs={size.num_runs}"]
        flags += [f"--rules={size.num_rules}", *(["--hints"] if way.has_hints else [])]
        ran = await asyncio.to_thread(_app, python, *flags, limit_s=RUN_LIMIT_S)
        page = (await client.get("/metrics")).text
    applied = sum(
        value
        for labels, value in samples(page, "kvflow:hints_total")
        if labels["outcome"] == "applied"
    )
    return {**figures(ran["calls"]), "seconds": ran["seconds"], "hints_applied": int(applied)}


def figures(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return sums over calls, in tokens, of all and by run and agent."""
    computed = [call["prompt_tokens"] - call["cached_tokens"] for call in calls]
    by_run: dict[str, int] = {}
    by_agent: dict[str, int] = {}
    for call, num_tokens in zip(calls, computed, strict=True):
        for sums, key in ((by_run, str(call["run"])), (by_agent, call["agent"])):
            sums[key] = sums.get(key, 0) + num_tokens
    return {
        "calls": len(calls),
        "prompt_tokens": sum(call["prompt_tokens"] for call in calls),
        "computed_tokens": sum(computed),
        "computed_by_run": list(by_run.values()),
        "computed_by_agent": by_agent,
    }


def table(ways: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Yield the lines of a table, a way each; tokens and time also as shares of the first way's."""
    first = next(iter(ways.values()))
    yield (
        f"{'way':14}{'calls':>6}{'prompt tokens':>15}{'computed':>10}{'':7}"
        f"{'seconds':>9}{'':7}  computed by run"
    )
    for name, way in ways.items():
        tokens, seconds = way["computed_tokens"], way["seconds"]
        yield (
            f"{name:14}{way['calls']:6}{way['prompt_tokens']:15,}"
            f"{tokens:10,}{_share(tokens, first['computed_tokens'])}"
            f"{seconds:9.1f}{_share(seconds, first['seconds'])}"
            f"  {' '.join(map(str, way['computed_by_run']))}"
        )


def _share(value: float, whole: float) -> str:
    return f" ({value / whole:4.2f})"


def _app(python: Path, *flags: str, limit_s: float) -> Any:
    """Run the app in an interpreter, which finds the packages of this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return run_child([str(python), "-m", APP, *flags], limit_s, env)
    except OSError as error:
        raise ChildError(
            f"cannot start {python} ({error.strerror}); run make clients, or name an interpreter "
            "that has langgraph and langchain-openai by --python",
            {},
        ) from None
    except ChildError as error:
        raise ChildError(f"the app failed in {python}: {error}", error.figures) from None


if __name__ == "__main__":
    raise SystemExit(main())
