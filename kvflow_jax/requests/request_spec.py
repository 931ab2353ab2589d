"""What a caller asks for: one prompt, how to continue it, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.workflow.hints import Hints

MAX_VOCAB_SIZE = 2**31  # of any model: token ids are i32


@dataclass(frozen=True, slots=True, eq=False)
class RequestSpec:
    """One prompt to continue. Immutable; its types are checked once, where it is made.

    HTTP routes, Python API and simulation each make one, and every function from there to the
    ``Request`` passes it on. What belongs to a submission is beside it: callback, id, arrival.

    Args:
        prompt: token ids, a flat sequence of integers.
        params: sampling parameters and stop conditions.
        salt: requests share cached prefixes only if their salts are equal.
        cache_tenant: whose room in the cache it takes; tenants with rooms share no blocks.
        tenant: tenants share the engine fairly, whatever each has queued (see ``FairQueue``).
        user: users of a tenant share what it gets, those of equal priority fairly; requests of one
            user run in order of arrival.
        priority: higher priorities of a tenant run first.
        rank: among tenants, requests of a higher rank run first. Callers do not choose it.
        num_system: tokens at the start of the prompt that are its system messages and tools, from
            which the agent is recognised if it is not named; None: unknown.
        choice: its number among the choices of one prompt, for all of which its agent calls once.
        hints: workflow hints. Hints that cannot be used never fail the request.
        call_markup: where tool calls are in the output. Stop strings do not end a call, and the
            text has the markers of calls that are special tokens. None: there are no calls.
        reasoning: where reasoning is in the output. It is split off the text, and stop strings do
            not end it. None: there is none.
        grammar: ``params.structured_outputs`` compiled behind ``reasoning``, at its start; never
            advanced.

    Attributes:
        prompt_ids: the prompt, i32[num_prompt], read-only.

    Raises:
        InvalidRequestError: a field has the wrong type; the error names the field.
    """

    prompt: InitVar[Sequence[int] | np.ndarray]
    params: SamplingParams = SamplingParams()
    salt: str = ""
    cache_tenant: str = ""
    tenant: str = ""
    user: str = ""
    priority: int = 0
    rank: int = 0
    num_system: int | None = None
    choice: int = 0
    hints: Hints | None = None
    call_markup: CallMarkup | None = None
    reasoning: ReasoningMarkup | None = None
    grammar: Matcher | None = None
    prompt_ids: np.ndarray = field(init=False)

    def __post_init__(self, prompt: Sequence[int] | np.ndarray) -> None:
        object.__setattr__(self, "prompt_ids", as_token_ids(prompt))
        if not isinstance(self.params, SamplingParams):
            raise InvalidRequestError(
                f"params must be SamplingParams, got {self.params!r:.80}", "params"
            )
        for name in ("salt", "cache_tenant", "tenant", "user"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidRequestError(f"{name} must be a string, got {value!r:.80}", name)
        for name in ("priority", "rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidRequestError(f"{name} must be an integer, got {value!r:.80}", name)
        check_hints(self.hints)

    @property
    def agents_tenant(self) -> str:
        """The tenant whose agents, runs and sessions the hints name."""
        of_hints = None if self.hints is None else self.hints.tenant
        return self.tenant if of_hints is None else of_hints


def check_hints(hints: object) -> None:
    """Raise InvalidRequestError unless ``hints`` are Hints with fields of their types, or None."""
    if hints is None:
        return
    if not isinstance(hints, Hints):
        raise InvalidRequestError(f"hints must be Hints, got {hints!r:.80}", "hints")
    hints.check_types()


def as_token_ids(
    prompt: Sequence[int] | np.ndarray, vocab_size: int = MAX_VOCAB_SIZE
) -> np.ndarray:
    """Return token ids as a read-only array of their own, i32[num_tokens].

    Args:
        vocab_size: exclusive bound of the ids, where it is known.

    Raises:
        InvalidRequestError: the ids are not a flat sequence of integers within the bound.
    """
    try:
        ids = np.asarray(prompt)
    except ValueError:
        ids = np.empty((0, 0))
    # NumPy has another type for integers of more than 64 bits.
    is_vast = ids.ndim == 1 and ids.dtype.kind in "Of" and all(type(i) is int for i in prompt)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu" and not is_vast):
        raise InvalidRequestError("a prompt is a flat list of integer token ids", param="prompt")
    if len(ids) and (is_vast or ids.min() < 0 or ids.max() >= vocab_size):
        whose = "any model" if vocab_size == MAX_VOCAB_SIZE else "this model"
        raise InvalidRequestError(
            f"token ids must be between 0 and {vocab_size - 1}, the vocabulary of {whose}",
            param="prompt",
        )
    if ids.dtype == np.int32 and ids.flags.owndata and not ids.flags.writeable:
        return ids
    ids = ids.astype(np.int32)
    ids.flags.writeable = False
    return ids
