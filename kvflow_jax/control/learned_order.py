"""What is learned about the order of agents, of all tenants; kept over restarts in a file."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.learned_order_file import LearnedOrderFile
from kvflow_jax.reuse.no_predictor import NoPredictor
from kvflow_jax.reuse.predictor import Forecast, NextCall, Predictor, Transition
from kvflow_jax.reuse.predictors import CONTEXT_TREE, PREDICTORS

log = logging.getLogger(__name__)

MAX_BYTES = 128 << 20  # of all tenants; a predictor bounds itself to less than half of it
SAVE_EVERY_S = 60.0
ROWS_A_STEP = 64  # that are prepared for the file in one step of the engine: less than 1 ms
_TENANT = "tenant"  # kind of a row that begins another tenant
# The predictors are values of one owner, so that the least recently used go first whatever their
# size: clients of many addresses do not displace what the largest tenant has learned.
_ALL = ""


class Prediction(StrEnum):
    """What was predicted of a call before it came: the agent that called, another, or none."""

    RIGHT = "right"
    WRONG = "wrong"
    WITHHELD = "withheld"


class LearnedOrder:
    """The predictor of each tenant, within bounds: the tenants seen least recently are dropped.

    All methods are called by one thread; the file is written by another.

    Args:
        predictor: its name in ``PREDICTORS``.
        file: where the state is kept between restarts; None: nowhere.
    """

    def __init__(
        self,
        predictor: str = CONTEXT_TREE,
        *,
        file: LearnedOrderFile | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.predictor = predictor
        self._type = PREDICTORS[predictor]
        self._num_agents = 0
        self._predictors: TenantLru[str, Predictor] = TenantLru(
            max_bytes, self._on_evict, max_full_tenants=1
        )
        self._num_predictions: Counter[Prediction] = Counter()
        self._file = file
        self._is_changed = False  # since the last snapshot
        self._saved_s = 0.0  # when the last snapshot was begun
        self._snapshot: Iterator[str] | None = None  # lines that are not prepared yet
        self._lines: list[str] = []  # that are
        if file is not None:
            self._load(file)

    @classmethod
    def open(cls, predictor: str, path: Path | None) -> LearnedOrder:
        """Return what a file holds, or an empty order if there is none of this predictor."""
        return cls(predictor, file=None if path is None else LearnedOrderFile(path, predictor))

    @property
    def learns(self) -> bool:
        """False for the predictor that learns nothing."""
        return self._type is not NoPredictor

    @property
    def usage(self) -> Usage:
        return self._predictors.usage

    @property
    def num_agents(self) -> int:
        """Agents that are known, of all tenants."""
        return self._num_agents

    @property
    def num_predictions(self) -> dict[str, int]:
        """Calls so far, by ``Prediction``: what was predicted of them before they came."""
        return {outcome.value: self._num_predictions[outcome] for outcome in Prediction}

    def observe(self, tenant: str, history: Sequence[str], agent: str, delay_s: float) -> None:
        """Learn a call of a tenant's run, and count whether it was predicted.

        Args:
            history: agents of the earlier calls of the run, the last one last.
            delay_s: seconds since the run's last call ended; NaN if unknown.
        """
        if not self.learns:
            return
        predictor = self._predictors.use(_ALL, tenant)
        if predictor is None:
            predictor = self._type()
            self._put(tenant, predictor)
        expected = predictor.expects(history)
        outcome = Prediction.RIGHT if expected == agent else Prediction.WRONG
        self._num_predictions[Prediction.WITHHELD if expected is None else outcome] += 1
        num_agents = predictor.num_agents
        predictor.observe(history, agent, delay_s)
        self._num_agents += predictor.num_agents - num_agents
        self._predictors.resize(_ALL, tenant, predictor.num_bytes)
        self._is_changed = True

    def forecast(self, tenant: str, history: Sequence[str]) -> Mapping[str, Forecast]:
        """Return what follows in a run, by agent; empty if that is not known well enough."""
        predictor = self._predictors.get(_ALL, tenant)
        return {} if predictor is None else predictor.forecast(history)

    def next_calls(self, tenant: str, history: Sequence[str]) -> Mapping[str, NextCall]:
        """Return who may make the very next call of a run: much cheaper than a forecast."""
        predictor = self._predictors.get(_ALL, tenant)
        return {} if predictor is None else predictor.next_calls(history)

    def show(self, tenant: str, max_rows: int) -> list[Transition]:
        """Return what was learned of a tenant's agents, the most frequent first."""
        predictor = self._predictors.get(_ALL, tenant)
        return [] if predictor is None else predictor.transitions(max_rows)

    def erase(self, tenant: str) -> bool:
        """Forget a tenant, in the file, too; return False if nothing is known of it."""
        predictor = self._predictors.pop(_ALL, tenant)
        if predictor is None:
            return False
        self._num_agents -= predictor.num_agents
        self._snapshot = None  # it may contain the tenant
        self._is_changed = True
        self._saved_s = -math.inf  # at once
        return True

    @property
    def has_unsaved(self) -> bool:
        """Whether the file is to be written: now, or once it is due."""
        return self._file is not None and (self._is_changed or self._snapshot is not None)

    def save_if_due(self, now: float) -> None:
        """Write the file if it is time to, without blocking. Called in each step of the engine."""
        file = self._file
        if file is None:
            return
        if self._snapshot is None:
            is_due = self._is_changed and now - self._saved_s >= SAVE_EVERY_S
            if not is_due or file.is_writing:
                return
            self._begin_snapshot(now)
        assert self._snapshot is not None
        lines = list(islice(self._snapshot, ROWS_A_STEP))
        self._lines += lines
        if len(lines) < ROWS_A_STEP:
            self._snapshot, lines = None, self._lines
            self._lines = []
            file.write_later(lines)

    def close(self) -> None:
        """Write what has changed, and wait until the file is complete."""
        if self._file is None:
            return
        if self.has_unsaved:
            self._begin_snapshot(self._saved_s)
            assert self._snapshot is not None
            lines, self._snapshot = list(self._snapshot), None
            self._file.write_later(lines)
        self._file.close()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the counts are those of the predictors."""
        self._predictors.check_integrity()

    def _put(self, tenant: str, predictor: Predictor) -> None:
        self._num_agents += predictor.num_agents
        self._predictors.put(_ALL, tenant, predictor, predictor.num_bytes)

    def _on_evict(self, key: str, predictor: Predictor) -> None:
        self._num_agents -= predictor.num_agents

    def _begin_snapshot(self, now: float) -> None:
        self._saved_s, self._is_changed = now, False
        self._snapshot, self._lines = self._to_lines(), []

    def _to_lines(self) -> Iterator[str]:
        """Yield the rows of all tenants as lines of JSON, of those used last first, until full."""
        assert self._file is not None
        room = self._file.max_bytes
        for tenant in reversed(self._predictors.keys(_ALL)):
            predictor = self._predictors.get(_ALL, tenant)
            if predictor is None:
                continue  # dropped meanwhile
            for row in chain(([_TENANT, tenant],), predictor.rows()):
                line = json.dumps(row, separators=(",", ":"))
                room -= len(line) + 1
                if room < 0:
                    return
                yield line

    def _load(self, file: LearnedOrderFile) -> None:
        try:
            tenants = list(_by_tenant(file.read()))
            predictors = [(tenant, self._type.from_rows(rows)) for tenant, rows in tenants]
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            file.set_aside(error)
            return
        for tenant, predictor in reversed(predictors):
            self._put(tenant, predictor)
        log.info("read the learned order of %d agents from %s", self._num_agents, file.path)


def _by_tenant(rows: Iterator[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Group the rows of a file by tenant. Raises ValueError for rows of another form."""
    tenant: str | None = None
    group: list[Any] = []
    for row in rows:
        if isinstance(row, list) and len(row) == 2 and row[0] == _TENANT:
            if tenant is not None:
                yield tenant, group
            tenant, group = row[1], []
            if not isinstance(tenant, str):
                raise ValueError("a tenant has a name")
        else:
            group.append(row)
    if tenant is not None:
        yield tenant, group
    elif group:
        raise ValueError("rows belong to tenants")
