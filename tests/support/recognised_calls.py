"""Calls that a recogniser sees as those of an engine."""

from __future__ import annotations

import numpy as np

from kvflow_jax.control.recognition.caller_recognizer import Caller, CallerRecognizer
from kvflow_jax.requests.request import Request
from tests.support.bare_request import bare_request

PAGE = 4
ROLE_LEN = 9
ROLES = {name: [i] * ROLE_LEN for i, name in enumerate(("plan", "code", "test", "write"))}


class RecognisedCalls:
    """Calls a recogniser; each prompt is a role, and what is given.

    Attributes:
        now: the time, seconds; the test advances it.
    """

    def __init__(self, next_calls=lambda tenant, history: {}, **bounds) -> None:
        self.recognizer = CallerRecognizer(PAGE, next_calls, **bounds)
        self.now = 0.0
        self._rng = np.random.default_rng(2)
        self._num_calls = 0
        self._requests: dict[int, Request] = {}

    def new(self, count=30) -> list[int]:
        """Return tokens that no other text has."""
        return self._rng.integers(100, 50_000, count).tolist()

    def begin(
        self, role, *given, tenant="", hints=None, num_system=ROLE_LEN, request_id=None, choice=0
    ) -> Caller:
        """Begin a call of a role, by its name or its tokens."""
        self._num_calls += 1
        head = ROLES[role] if isinstance(role, str) else role
        prompt = [*head, *(token for part in given for token in part)]
        request = bare_request(
            prompt,
            request_id=self._num_calls if request_id is None else request_id,
            tenant=tenant,
            hints=hints,
            num_system=num_system,
            choice=choice,
            max_len=len(prompt) + 1000,
        )
        caller = self.recognizer.begin_call(request, self.now)
        self._requests[caller.number] = request
        return caller

    def end(self, caller, answer=None, *, is_done=True) -> list[int]:
        """End a call; return its answer, new tokens unless it is given."""
        request = self._requests.pop(caller.number)
        answer = self.new() if answer is None else answer
        for token in answer:
            request.append(token)
        self.recognizer.end_call(request, self.now, is_done=is_done)
        return answer

    def call(self, role, *given, **fields) -> tuple[Caller, list[int]]:
        """Begin and end a call."""
        caller = self.begin(role, *given, **fields)
        return caller, self.end(caller)


def run_of(caller: Caller) -> str | None:
    return caller.hints.workflow_id
