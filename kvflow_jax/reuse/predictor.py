"""What a predictor of the next call is: facts about calls in, distributions of steps out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kvflow_jax.reuse.delay import Delay

HORIZON = 16  # calls that a forecast looks ahead
MAX_HISTORY = 3  # last calls of a run that a predictor reads
MIN_CHANCE = 0.02  # an agent that is less likely to call within the horizon is left out


class Forecast(NamedTuple):
    """When an agent of a run calls next, if it does within the horizon.

    Attributes:
        steps: ``steps[k]`` is the probability that its next call is the (k+1)-th call of the run
            from now; ``HORIZON`` entries, which sum to 1 at most.
        delay: from the end of the run's last call to this one, if it is the very next; None if it
            has not been seen there.
    """

    steps: tuple[float, ...]
    delay: Delay | None

    @property
    def chance(self) -> float:
        """The probability that the agent calls within the horizon."""
        return sum(self.steps)

    @property
    def mean_steps(self) -> float:
        """The expected number of calls until its own, given that it calls within the horizon."""
        chance = self.chance
        return sum(k * p for k, p in enumerate(self.steps, 1)) / chance if chance > 0 else 0.0


class NextCall(NamedTuple):
    """An agent that may make the very next call of a run.

    Attributes:
        chance: that it does.
        delay: from the end of the run's last call to this one; None if it has not been seen there.
    """

    chance: float
    delay: Delay | None


class Transition(NamedTuple):
    """A learned fact, to be shown.

    Attributes:
        context: the agents of the last calls, the last one last; three are in any order, and none
            are the beginning of a run.
        agent: the agent that calls next.
        chance: how likely it is.
        num_seen: how often it was seen, older observations with less weight.
        delay: between the calls; None if it is not known for this context.
    """

    context: tuple[str, ...]
    agent: str
    chance: float
    num_seen: float
    delay: Delay | None


class Predictor(Protocol):
    """Learns the order in which the agents of one tenant call. Not thread-safe."""

    def observe(self, history: Sequence[str], agent: str, delay_s: float) -> None:
        """Learn one call.

        Args:
            history: agents of the earlier calls of its run, the last one last; of these
                ``MAX_HISTORY`` are read. Empty if the run begins with this call.
            agent: the agent that calls.
            delay_s: seconds since the run's last call ended; NaN if unknown.
        """

    def forecast(self, history: Sequence[str]) -> Mapping[str, Forecast]:
        """Return what follows in a run, by agent; empty if that is not known well enough."""

    def next_calls(self, history: Sequence[str]) -> Mapping[str, NextCall]:
        """Return the first step of a forecast, by agent: less than a tenth of its work."""

    def expects(self, history: Sequence[str]) -> str | None:
        """Return the agent that is most likely to call next; None if ``forecast`` is empty."""

    def transitions(self, max_rows: int) -> list[Transition]:
        """Return what was learned, the most frequent first: of the contexts visited last."""

    def forget(self, agent: str) -> None:
        """Forget an agent, and all contexts that it is part of."""

    @property
    def num_agents(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory in bytes."""

    def rows(self) -> Iterator[list[Any]]:
        """Return its state as JSON values, row by row, each in the same short time.

        The predictor may learn between two rows.
        """

    @classmethod
    def from_rows(cls, rows: Iterable[Any]) -> Predictor:
        """Return a predictor of this state. Raises ValueError if it is not one."""
