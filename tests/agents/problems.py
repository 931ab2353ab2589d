"""What went wrong in a play, and how much of its prompts was in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.agents.agent import Agent
from tests.agents.play import Played
from tests.agents.recorder import Exchange, threads_of

# Of each turn's prompt, in the next one's cache. Some subagents begin anew in each session, with a
# last message that follows the history.
LEAST_CACHED = 0.9
SHOWN_CHARS = 4000  # of what an agent printed


def problems_of_script(played: Played) -> list[str]:
    """Return what went wrong where the model answered by script: the note is not corrected, ..."""
    problems = _refusals(played.exchanges)
    if not played.is_edited:
        problems.append(f"the note says {played.note!r}")
    return _with_output(played, problems)


def problems_of_engine(agent: Agent, played: Played, identified: Mapping[str, float]) -> list[str]:
    """Return what went wrong with a model that cannot be expected to do the task.

    Args:
        identified: chats that the server counted in this play, by the source of their sessions.
    """
    problems = _refusals(played.exchanges)
    threads = threads_of(played.exchanges)
    num_turns = sum(map(len, threads))
    if min(played.exit_codes) < 0:
        problems.append("it did not end by itself")
    if num_turns < 2:
        problems.append(f"{num_turns} turns were answered")
    problems += [
        f"{one.path} has no end: {one.answer}"
        for thread in threads
        for one in thread
        if not one.answer["end"]
    ]
    problems += [
        f"{share:.3f} of a prompt was in the next one's cache"
        for share in cached_shares(threads)
        if share < LEAST_CACHED
    ]
    if num_turns and agent.session_source and identified.get(agent.session_source, 0) < num_turns:
        problems.append(f"sessions were read of {dict(identified)}, not {agent.session_source}")
    return _with_output(played, problems)


def cached_shares(threads: Sequence[Sequence[Exchange]]) -> list[float]:
    """Of the tokens of each turn's prompt, those that the next turn read from the cache.

    Above 1 where the answer was, too. A shorter prompt, of a session that began anew, counts whole.
    """
    return [
        after.answer["cached"] / min(before.answer["prompt"], after.answer["prompt"])
        for thread in threads
        for before, after in pairwise(thread)
        if before.answer["prompt"] and after.answer["cached"] is not None
    ]


def _refusals(exchanges: Sequence[Exchange]) -> list[str]:
    return [
        f"{one.method} {one.path}: {one.status} {one.answer}"
        for one in exchanges
        if one.method == "POST" and one.status >= 400
    ]


def _with_output(played: Played, problems: list[str]) -> list[str]:
    if not problems:
        return []
    return [*problems, f"exit codes {played.exit_codes}", played.printed[-SHOWN_CHARS:]]
