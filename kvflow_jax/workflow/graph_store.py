"""A cache of step graphs by their JSON form: requests that carry equal graphs share one object."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence

from kvflow_jax.bounds.live_bytes import LiveBytes
from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import MAX_EDGES, MAX_ID_LEN, MAX_NODES, Workflow

MAX_BYTES = 16 << 20  # of one tenant's graphs in the store
MAX_USED_BYTES = 64 << 20  # of one tenant's graphs in the store, in requests and in runs

_NODE = ("id", "agent")
_EDGE = ("source", "target", "conditional", "probability")
_JOIN = ("target", "mode")
_INVALID = ...  # stands for what makes a form invalid


class GraphStore:
    """Freezes step graphs and keeps the most recently used ones of each tenant. Thread-safe.

    Tenants share no graphs: the time to read one would tell whether another tenant has it.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._graphs: TenantLru[bytes, Graph] = TenantLru(max_bytes)
        self._used = LiveBytes()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def usage(self) -> Usage:
        return self._graphs.usage

    def graph(self, data: Mapping[str, object], tenant: str = "") -> Graph:
        """Return the graph of a JSON form; equal forms of a tenant return the same object.

        Args:
            data: see ``Workflow.from_dict``.

        Raises:
            InvalidRequestError: ``data`` is not the form of a step graph, or the graphs that the
                tenant uses have more than ``MAX_USED_BYTES``.
        """
        if not isinstance(data, Mapping):
            raise InvalidRequestError("a step graph must be an object")
        key = _digest(data)
        with self._lock:
            graph = self._graphs.use(tenant, key)
            num_used = self._used.num_bytes(tenant)
        if graph is not None:
            return graph
        if num_used > MAX_USED_BYTES:
            raise InvalidRequestError(
                f"the graphs of your requests and runs take more than {MAX_USED_BYTES >> 20} MiB; "
                "send them again when some of these have ended"
            )
        # Without the lock: a large graph takes tenths of a second. Another thread may add it
        # meanwhile.
        built = Workflow.from_dict(data).freeze()
        with self._lock:
            graph = self._graphs.use(tenant, key)
            if graph is None:
                graph = built
                self._graphs.put(tenant, key, built, built.num_bytes)
                self._used.add(tenant, built, built.num_bytes)
        return graph


def _digest(data: Mapping[str, object]) -> bytes:
    """Return a digest of what ``Workflow.from_dict`` reads of a form.

    The form of a valid graph has none of the marks that stand for what is invalid, so that it
    shares its digest with valid graphs only. Takes no longer for a large form than for a large
    graph, whatever else is in it.
    """
    lists = _Lists()
    form = (
        _scalar(data.get("name")),
        [_scalars(node, _NODE) for node in lists.items(data.get("nodes"))],
        [_scalars(edge, _EDGE) for edge in lists.items(data.get("edges"))],
        [
            (_scalars(join, _JOIN), list(map(_scalar, lists.items(_sources(join)))))
            for join in lists.items(data.get("joins"))
        ],
        list(map(_scalar, lists.items(data.get("entries")))),
    )
    return hashlib.sha256(repr(form).encode(errors="surrogatepass")).digest()


class _Lists:
    """The items of lists, as many as those of a valid form have in all."""

    def __init__(self) -> None:
        self._num_left = 3 * MAX_NODES + 2 * MAX_EDGES

    def items(self, value: object) -> Sequence[object]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or len(value) > self._num_left:
            return (_INVALID,)
        self._num_left -= len(value)
        return value


def _sources(join: object) -> object:
    return join.get("sources") if isinstance(join, Mapping) else _INVALID


def _scalars(record: object, names: tuple[str, ...]) -> object:
    if not isinstance(record, Mapping):
        return _scalar(record)
    return tuple(_scalar(record.get(name)) for name in names)


def _scalar(value: object) -> object:
    """Return a value that a valid form may have, as it is; a mark for others."""
    if isinstance(value, str):
        return value if len(value) <= MAX_ID_LEN else _INVALID
    if value is None or isinstance(value, bool | float):
        return value
    return value if isinstance(value, int) and 0 <= value <= 1 else _INVALID
