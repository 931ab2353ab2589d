"""Who calls: the agent, the run and the conversation of each request, where it does not say so.

    prompt ──▶ continues a history? ──▶ its conversation, run and agent       (Conversations)
           ──▶ holds an answer?     ──▶ the run of that answer                (AnswerIndex)
           ──▶ neither              ──▶ the run whose order of calls it fits, else a new one
           ──▶ system prompt        ──▶ its agent                             (PromptAgents)

What a client says comes first: only what is missing is recognised. All of it is advice, and nothing
is known across tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.readers import RECOGNISED, SessionReader
from kvflow_jax.control.recognition.answer_index import Held, window_hashes
from kvflow_jax.control.recognition.conversations import Conversation
from kvflow_jax.control.recognition.tenant_calls import Call, CallingRun, Part, TenantCalls
from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request
from kvflow_jax.workflow.hints import Hints, Reuse

MAX_BYTES = 128 << 20  # of what is known of all tenants; the counts below bound that of one
MAX_KEPT_WINDOWS = 4096  # of a prompt, while its call runs: 32 KiB
MAX_HISTORY = 8  # agents of a run's last calls
RUN_TTL_S = 600.0  # a run without calls for this long is not continued
# A call without other signs continues one of the runs that called last if it fits its order: by the
# chance of its agent to call next, times a half for each time that such a call usually takes.
MAX_CANDIDATES = 16
_MIN_FIT = 0.05
_UNKNOWN_FIT, _UNEXPECTED_FIT, _BUSY_FIT = 0.5, 0.11, 0.5
_MIN_HALF_LIFE_S = 1.0
# The tenants are values of one owner, so that the least recently used go first whatever their size:
# clients of many addresses do not displace what is known of the largest tenant.
_ALL = ""


class NextCall(NamedTuple):
    """An agent that may call next: how likely, and after how long (median); None: unknown."""

    chance: float
    delay_s: float | None


# (tenant, agents of a run's last calls) -> the agents that may call next
NextCalls = Callable[[str, Sequence[str]], Mapping[str, NextCall]]


class Caller(NamedTuple):
    """Who calls.

    Attributes:
        hints: those of the request, with what was recognised.
        run: its run, with this call.
        history: agents of the run's calls before this one, the last one last.
        delay_s: seconds since a call of the run last ended; infinite: none has.
        previous: number of the call whose answer this one certainly continues or holds; None: it is
            not known.
        number: of this call.
        ended: conversations that nothing continues any more.
    """

    hints: Hints
    run: CallingRun
    history: tuple[str, ...]
    delay_s: float
    previous: int | None
    number: int
    ended: tuple[SessionReader, ...]


class _InProgress(NamedTuple):
    """A call that has not ended.

    Attributes:
        run: where it counts as running; meanwhile the run of the call may change.
        windows: u64[n], the ``window_hashes`` of its prompt; None: computed again at its end.
    """

    tenant: TenantCalls
    call: Call
    run: CallingRun
    windows: np.ndarray | None


class CallerRecognizer:
    """Recognises callers from their prompts, and from what was answered before.

    Args:
        page_size: tokens of a block.
        next_calls: what is known of the order of agents.
        max_bytes: of what is known of all tenants; those that called least recently are forgotten.
    """

    def __init__(
        self,
        page_size: int,
        next_calls: NextCalls = lambda tenant, history: {},
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._page_size, self._next_calls = page_size, next_calls
        self._tenants: TenantLru[str, TenantCalls] = TenantLru(max_bytes, max_full_tenants=1)
        self._in_progress: dict[int, _InProgress] = {}  # by id of the request
        self._num_calls = 0

    @property
    def usage(self) -> Usage:
        return self._tenants.usage

    def begin_call(self, request: Request, now: float) -> Caller:
        """Recognise the caller of a request, and record its call."""
        tenant = self._tenants.use(_ALL, request.tenant) or TenantCalls(self._page_size)
        number = self._num_calls = self._num_calls + 1
        given = Hints() if request.hints is None else request.hints
        prompt = request.tokens[: request.num_prompt]
        hashes = block_hashes(request, request.num_prompt, self._page_size)
        alike = tenant.conversations.find(given.session_id, prompt, hashes)
        # A client may name a session whose history this prompt does not have.
        has_history = bool(alike) and tenant.conversations.is_continued(alike[0], prompt, hashes)
        windows = window_hashes(prompt)
        held = tenant.answers.find(windows[alike[0].num_prompt if has_history else 0 :])
        continued = _the_continued(alike, held)
        previous = tenant.previous(continued, held)
        part = _certain_part(tenant, given, previous, number)
        if part is None and request.choice:
            part = tenant.last_part_of(prompt, hashes)
        if part is not None:
            tenant.answers.exclude(held, part)
        agent = given.agent_id
        if agent is None and continued is not None and has_history:
            agent = continued.agent
        if agent is None:
            agent = tenant.agents.find(prompt, hashes, request.num_system, part or object())
        if part is None:
            part = Part(self._likely_run(tenant, request.tenant, agent, number, now))
        run = part.run
        ended = _note_uses(tenant, request.tenant, part, held, continued)
        if agent is not None and not request.choice:
            tenant.continuations_of(agent).note_call(continued, now)
        keeps_history, ttl_s = _keeps_history(tenant, given, agent)
        history, delay_s = run.history, now - run.last_end_s
        if agent is not None and not request.choice:
            run.history = (*history, agent)[-MAX_HISTORY:]
        run.num_running += 1
        tenant.put_part(part)
        if continued is None:
            name = given.session_id or f"{RECOGNISED}{number}"
            continued = Conversation(name, agent, number)
        continued.agent = agent
        continued.last_call, continued.is_used = number, False
        continued.is_kept = given.ttl_s is not None or given.reuse is Reuse.KEEP
        tenant.conversations.put(continued, prompt, hashes)
        call = Call(number, part, run.history, continued)
        tenant.put_call(call)
        kept = windows if len(windows) <= MAX_KEPT_WINDOWS else None
        self._in_progress[request.id] = _InProgress(tenant, call, run, kept)
        self._tenants.put(_ALL, request.tenant, tenant, tenant.num_bytes)
        hints = replace(
            given,
            agent_id=agent,
            workflow_id=given.workflow_id or run.name,
            session_id=given.session_id or (continued.name if keeps_history else None),
            ttl_s=ttl_s if given.ttl_s is None and keeps_history else given.ttl_s,
        )
        number_before = None if previous is None else previous.number
        return Caller(hints, run, history, delay_s, number_before, number, ended)

    def end_call(self, request: Request, now: float, *, is_done: bool) -> CallingRun | None:
        """Record the end of a call, and its answer if there was one; return its run."""
        in_progress = self._in_progress.pop(request.id, None)
        if in_progress is None:
            return None
        tenant, call, run, windows = in_progress
        run.num_running -= 1
        run.last_end_s = now
        tenant.touch(run)
        call.conversation.ended_s = now
        if is_done:
            if windows is None:
                windows = window_hashes(request.tokens[: request.num_prompt])
            answer = request.tokens[request.num_prompt : request.num_known]
            tenant.answers.add(call.number, windows, answer)
        return run

    def _likely_run(
        self, tenant: TenantCalls, name: str, agent: str | None, number: int, now: float
    ) -> CallingRun:
        """Return the run whose order of calls a call fits best, or a new one."""
        best, best_fit = None, _MIN_FIT
        runs = (part.run for part in reversed(tenant.runs.values()))
        unnamed = (run for run in runs if run.is_recognised)
        # Of several that fit equally, the one that has waited for longest.
        for run in islice(unnamed, MAX_CANDIDATES if agent is not None else 0):
            if now - run.last_end_s > RUN_TTL_S:
                continue
            expected = self._next_calls(name, run.history)
            next_call = expected.get(agent) if agent is not None else None
            half_life_s, fit = _MIN_HALF_LIFE_S, _UNEXPECTED_FIT if expected else _UNKNOWN_FIT
            if next_call is not None:
                fit = max(fit, next_call.chance)
                half_life_s = max(half_life_s, 2.0 * (next_call.delay_s or 0.0))
            fit *= 0.5 ** ((now - run.last_end_s) / half_life_s)
            fit *= _BUSY_FIT if run.num_running else 1.0
            if fit >= best_fit:
                best, best_fit = run, fit
        if best is None:
            return CallingRun(f"{RECOGNISED}{number}")
        return best


def _keeps_history(
    tenant: TenantCalls, given: Hints, agent: str | None
) -> tuple[bool, float | None]:
    """Return whether a call's history is kept, and for how many seconds; None: the default."""
    if agent is None:
        return True, None
    continuations = tenant.continuations_of(agent)
    if given.agent_id is not None:
        # Its caller says what there is to say: only what is certain is added to it.
        return continuations.are_seen, continuations.ttl_s
    return not continuations.are_excluded, continuations.ttl_s


def _the_continued(alike: Sequence[Conversation], held: Sequence[Held]) -> Conversation | None:
    """Return which of the conversations that had a prompt goes on: that whose answer is held."""
    if len(alike) > 1:
        calls = {one.call for one in held}
        alike = [one for one in alike if one.last_call in calls]
    return alike[0] if len(alike) == 1 else None


def _certain_part(
    tenant: TenantCalls, given: Hints, previous: Call | None, number: int
) -> Part | None:
    """Return the run that a client names, else what a call is a part of by its dependence."""
    if given.workflow_id is not None:
        known = tenant.runs.get(given.workflow_id)
        return known or Part(CallingRun(given.workflow_id))
    if previous is None:
        return None
    part = previous.part
    if tenant.runs.get(part.run.name, part) is not part:
        # Meanwhile that run took a call only by its order: it seems to be another one.
        part.run = CallingRun(f"{RECOGNISED}{number}", part.run.last_end_s, previous.history)
    return part


def _note_uses(
    tenant: TenantCalls, name: str, part: Part, held: Sequence[Held], continued: Conversation | None
) -> tuple[SessionReader, ...]:
    """Record the conversations whose answers a prompt holds; return those that end with that.

    An answer of another run is only quoted.
    """
    ended = []
    for number, _ in held:
        call = tenant.calls.get(number)
        if call is None or call.part is not part:
            continue
        conversation = call.conversation
        is_last = conversation.last_call == call.number
        if conversation is continued or conversation.is_used or not is_last:
            continue
        conversation.is_used = True
        if conversation.agent is None:
            continue
        continuations = tenant.continuations_of(conversation.agent)
        continuations.note_use()
        if continuations.end_with_use and not conversation.is_kept:
            ended.append(SessionReader(name, conversation.name))
    return tuple(ended)
