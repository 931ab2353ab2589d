"""Install the coding agents, play each against a model, and say how far it came.

    python -m tests.agents ENVIRONMENTS                     # all, with a model that has a script
    python -m tests.agents ENVIRONMENTS opencode            # those whose name contains it
    python -m tests.agents ENVIRONMENTS --record            # and keep what they sent as tests
    python -m tests.agents ENVIRONMENTS --model embedded    # those whose prompt fits its context
    python -m tests.agents ENVIRONMENTS --model random      # a longer context, random weights

``make agents`` does so in folders of the checkout's environment. An agent that cannot be installed
is named with the reason; one that is refused fails the run. By script, an agent must edit its file.
With an engine, each is run twice, and must get whole answers, find its first prompt in the cache
and have its sessions recognised.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx

from experiments.bench.metrics_page import samples
from tests.agents.agents import AGENTS, WITH_COMPACTION, WITH_SHORT_PROMPTS, WITH_SUBAGENTS
from tests.agents.installation import install
from tests.agents.play import Played, play
from tests.agents.problems import cached_shares, problems_of_engine, problems_of_script
from tests.agents.recorder import threads_of
from tests.agents.recording import write_recording
from tests.agents.served_model import SERVED_MODELS, ServedModel


def main() -> int:
    """Play what is asked for, a line each; return the exit code."""
    options = _options()
    agents = WITH_SHORT_PROMPTS if options.model == "embedded" else AGENTS
    if options.model == "scripted":
        agents += WITH_SUBAGENTS + WITH_COMPACTION
    wrong = []
    with SERVED_MODELS[options.model]() as model:
        for agent in agents:
            if options.parts and not any(part in agent.name for part in options.parts):
                continue
            program, reason = install(agent, options.environments.absolute())
            if program is None:
                print(f"not installed: {agent.name} {agent.version}: {reason}", flush=True)
                continue
            is_scripted = model.runner is not None
            begin, before = time.monotonic(), _identified(model)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as space:
                played = play(agent, program, Path(space), model, is_wary=not is_scripted)
            if is_scripted:
                problems = problems_of_script(played)
            else:
                after = _identified(model)
                identified = {name: after[name] - before[name] for name in after}
                problems = problems_of_engine(agent, played, identified)
            print(f"{time.monotonic() - begin:6.1f} s  {agent.name} {agent.version}:", end=" ")
            print(_summary(played, is_scripted), flush=True)
            if problems:
                wrong.append("\n".join([f"{agent.name}:", *problems]))
            elif options.record:
                path = write_recording(agent.name, agent.version, played.exchanges, played.replaced)
                print(f"          {path} ({path.stat().st_size} bytes)")
    print("\n".join(wrong), end="\n" if wrong else "")
    return bool(wrong)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.agents")
    parser.add_argument("environments", type=Path, help="folder of the installed agents")
    parser.add_argument("parts", nargs="*", help="parts of agents' names")
    parser.add_argument("--model", choices=SERVED_MODELS, default="scripted")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record and options.model != "scripted":
        parser.error("what a model of an engine answers is not recorded")
    return options


def _identified(model: ServedModel) -> dict[str, float]:
    """Return how many chats of identified sessions there were, by the source of their ids."""
    page = httpx.get(f"{model.url}/metrics").text
    return {
        labels["source"]: value
        for labels, value in samples(page, "kvflow:identified_requests_total")
    }


def _summary(played: Played, is_scripted: bool) -> str:
    threads = threads_of(played.exchanges)
    shares = ", ".join(f"{share:.3f}" for share in cached_shares(threads))
    parts = [f"{sum(map(len, threads))} turns"]
    if is_scripted:
        parts.append("edited" if played.is_edited else "not edited")
    else:
        turns = [turn for thread in threads for turn in thread]
        parts.append(f"prompts of {', '.join(str(turn.answer['prompt']) for turn in turns)} tokens")
        parts.append(
            f"first bytes after {', '.join(f'{turn.first_byte_s:.2f}' for turn in turns)} s"
        )
        parts.append(f"exit codes {played.exit_codes}")
    return "; ".join([*parts, f"of each turn's prompt in the next one's cache: {shares}"])


if __name__ == "__main__":
    sys.exit(main())
