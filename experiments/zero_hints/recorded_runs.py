"""Replays recorded runs to the recogniser, as the engine does, and counts what it recognises.

recordings ──▶ begins and ends of calls ──▶ CallOrder ──▶ links, runs, agents ──▶ counts

Calls carry no hints. A *link* is the earlier call on which a call certainly depends: it holds that
answer, or continues that history. A recognised run is made of calls that links join.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.zero_hints.recording import FOLDER, Call, read_recording
from kvflow_jax.cache.index import RootKey
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.control.recognition.caller_recognizer import Caller
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams

PAGE_SIZE = 16  # tokens; that of a server by default
FRAMEWORKS = ("langgraph", "autogen", "adk")  # begin the names of their recordings


@dataclass(frozen=True)
class RecognisedCall:
    """A call and what was recognised of it.

    Attributes:
        previous: the call that it is linked to; None: it begins a run, as far as links tell.
        run: by name: that of its links, else of its order and time.
    """

    call: Call
    previous: RecognisedCall | None
    run: str
    agent: str | None


@dataclass(frozen=True)
class Counts:
    """How many calls of a recording were recognised, and how many rightly.

    Attributes:
        num_later: calls that began after an answer of their run.
        num_linked: calls that were linked to an earlier one.
        num_right: those of them whose recognised run was begun by a call of their own run.
        num_placed: calls that stand behind a call of their own run, with the help of order and
            time, and first ones that stand behind none.
        num_calls: all.
    """

    num_later: int
    num_linked: int
    num_right: int
    num_placed: int
    num_calls: int

    @property
    def precision(self) -> float:
        return self.num_right / self.num_linked if self.num_linked else 1.0

    @property
    def recall(self) -> float:
        return self.num_right / self.num_later

    @property
    def placed_share(self) -> float:
        return self.num_placed / self.num_calls


def interleaved(recordings: Iterable[Path]) -> list[Call]:
    """Return the calls of recordings as if all had begun at the same time."""
    calls = [call for path in recordings for call in _labelled(path)]
    return sorted(calls, key=lambda call: call.begin_s)


def recognise(calls: Sequence[Call], order: CallOrder, tenant: str = "") -> list[RecognisedCall]:
    """Give calls to the recogniser, each prompt and each answer at its time."""
    requests = [_request(number, call, tenant) for number, call in enumerate(calls)]
    recognised: dict[int, RecognisedCall] = {}  # by number of the call
    by_caller: dict[int, RecognisedCall] = {}  # by the recogniser's number
    for time_s, number, is_begin in _events(calls):
        if is_begin:
            caller = order.begin_call(requests[number], time_s)
            recognised[number] = by_caller[caller.number] = _recognised(
                calls[number], caller, by_caller
            )
        else:
            for token in calls[number].answer_ids:
                requests[number].append(token)
            order.end_call(requests[number], time_s, is_done=True)
    return [recognised[number] for number in range(len(calls))]


def count(recognised: Iterable[RecognisedCall]) -> Counts:
    """Count the calls whose run is right, by their labels."""
    answered: dict[str, float] = {}  # when the first call of a run was answered
    last_of: dict[str, str] = {}  # run of the last call, by the name that was recognised
    num_later = num_linked = num_right = num_placed = num_calls = 0
    for one in recognised:
        num_calls += 1
        run = one.call.run
        is_first = run not in answered
        num_later += not is_first and answered[run] <= one.call.begin_s
        if one.previous is not None:
            num_linked += 1
            num_right += _root(one).call.run == run
        # A new name that is linked continues the run of its link, which was parted from another.
        parted_from = None if one.previous is None else one.previous.call.run
        before = last_of.get(one.run, parted_from)
        num_placed += before == (None if is_first else run)
        last_of[one.run] = run
        answered[run] = min(answered.get(run, one.call.end_s), one.call.end_s)
    return Counts(num_later, num_linked, num_right, num_placed, num_calls)


def share_of_agents(recognised: Sequence[RecognisedCall]) -> float:
    """Return the share of calls with the agent that most calls of their role have.

    Two roles with one agent are no two agents: only the one with most calls counts.
    """
    pairs: dict[tuple[str | None, str], int] = {}
    for one in recognised:
        pair = one.agent, f"{one.call.app}/{one.call.agent}"
        pairs[pair] = pairs.get(pair, 0) + 1
    num_right = 0
    used_agents: set[str | None] = {None}
    used_roles: set[str] = set()
    for (agent, role), num_calls in sorted(pairs.items(), key=lambda item: -item[1]):
        if agent not in used_agents and role not in used_roles:
            num_right += num_calls
            used_agents.add(agent)
            used_roles.add(role)
    return num_right / len(recognised)


def recognition_figures() -> dict[str, float]:
    """Return what is recognised of all recordings at once: by framework, and over all.

    Precision and recall are those of links; ``*_placed`` is the share of calls whose run is right
    with the help of order and time; ``agents_right`` that of calls whose agent is.
    """
    recordings = sorted(FOLDER.glob("*.json"))
    recognised = recognise(interleaved(recordings), CallOrder(PAGE_SIZE, LearnedOrder()))
    figures = {}
    for framework in FRAMEWORKS:
        counts = count(one for one in recognised if one.call.app.startswith(framework))
        figures[f"{framework}_precision"] = counts.precision
        figures[f"{framework}_recall"] = counts.recall
        figures[f"{framework}_placed"] = counts.placed_share
    counts = count(recognised)
    return {
        **figures,
        "runs_precision": counts.precision,
        "runs_recall": counts.recall,
        "runs_placed": counts.placed_share,
        "agents_right": share_of_agents(recognised),
    }


def _labelled(path: Path) -> Iterator[Call]:
    for call in read_recording(path):
        yield replace(call, run=f"{path.stem}/{call.run}")


def _request(number: int, call: Call, tenant: str) -> Request:
    return Request(
        RequestSpec(call.prompt_ids, SamplingParams(), tenant=tenant, num_system=call.num_system),
        lambda output: None,
        request_id=number,
        arrival_s=call.begin_s,
        root=RootKey("recorded"),
        max_len=len(call.prompt_ids) + len(call.answer_ids),
        stop_ids=frozenset(),
        seed=(0, 0),
        detokenizer=None,
    )


def _recognised(
    call: Call, caller: Caller, by_caller: Mapping[int, RecognisedCall]
) -> RecognisedCall:
    previous = None if caller.previous is None else by_caller[caller.previous]
    return RecognisedCall(call, previous, caller.run.name, caller.hints.agent_id)


def _root(call: RecognisedCall) -> RecognisedCall:
    """Return the first call of a recognised run."""
    while call.previous is not None:
        call = call.previous
    return call


def _events(calls: Sequence[Call]) -> Iterator[tuple[float, int, bool]]:
    """Yield times, numbers of calls and whether they begin; ends come before what begins then."""
    ends = [(call.end_s, False, number) for number, call in enumerate(calls)]
    begins = [(call.begin_s, True, number) for number, call in enumerate(calls)]
    for time_s, is_begin, number in sorted(ends + begins):
        yield time_s, number, is_begin
