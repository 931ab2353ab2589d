"""Install the coding agents, play each against a scripted model, and say how far it came.

    python -m tests.agents ENVIRONMENTS             # all of them
    python -m tests.agents ENVIRONMENTS opencode    # those whose name contains it
    python -m tests.agents ENVIRONMENTS --record    # and keep what they sent as tests

``make agents`` does so in folders of the checkout's environment. An agent that cannot be installed
is named with the reason; one that does not edit its file, or is refused, fails the run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tests.agents.agents import AGENTS, WITH_SUBAGENTS
from tests.agents.installation import install
from tests.agents.play import Played, play
from tests.agents.recorder import Exchange, threads_of
from tests.agents.recording import write_recording


def problem_of(played: Played) -> str:
    """Return what went wrong, "" if nothing did."""
    refused = [
        f"{one.method} {one.path}: {one.status} {one.answer}"
        for one in played.exchanges
        if one.method == "POST" and one.status >= 400
    ]
    if played.is_edited and not refused:
        return ""
    return "\n".join(
        [
            "the note is corrected" if played.is_edited else f"the note says {played.note!r}",
            f"exit code {played.exit_code}",
            *refused,
            played.printed[-4000:],
        ]
    )


def cached_shares(threads: list[list[Exchange]]) -> list[float]:
    """Of the tokens of each turn's prompt, those that the next turn read from the cache."""
    return [
        after.answer["cached"] / before.answer["prompt"]
        for thread in threads
        for before, after in pairwise(thread)
        if before.answer["prompt"] and after.answer["cached"] is not None
    ]


def main() -> int:
    """Play what is asked for, a line each; return the exit code."""
    is_kept = "--record" in sys.argv
    environments, *parts = [part for part in sys.argv[1:] if part != "--record"]
    wrong = []
    for agent in (*AGENTS, *WITH_SUBAGENTS):
        if parts and not any(part in agent.name for part in parts):
            continue
        program, reason = install(agent, Path(environments).absolute())
        if program is None:
            print(f"not installed: {agent.name} {agent.version}: {reason}", flush=True)
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as space:
            played = play(agent, program, Path(space))
        problem = problem_of(played)
        threads = threads_of(played.exchanges)
        shares = [f"{share:.3f}" for share in cached_shares(threads)]
        print(
            f"{time.monotonic() - begin:6.1f} s  {agent.name} {agent.version}: "
            f"{sum(map(len, threads))} turns, {'edited' if played.is_edited else 'not edited'}; "
            f"of each turn's prompt in the next one's cache: {', '.join(shares)}",
            flush=True,
        )
        if problem:
            wrong.append(f"{agent.name}: {problem}")
        elif is_kept:
            path = write_recording(agent.name, agent.version, played.exchanges, played.replaced)
            print(f"          {path} ({path.stat().st_size} bytes)")
    for problem in wrong:
        print(problem)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
