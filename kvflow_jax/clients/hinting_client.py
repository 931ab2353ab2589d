"""HTTP clients for OpenAI's client that send hints with each request."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from kvflow_jax.clients.callers import Callers
from kvflow_jax.clients.hinter import Hinter
from kvflow_jax.clients.run_ends import RunEnds

END_TIMEOUT_S = 2.0  # to tell a server that a run is over
_CLOSE_TIMEOUT_S = 1.0


def http_client(graph: object = None, **options: Any) -> Any:
    """Return an ``httpx`` client, as OpenAI's takes one, whose requests have ``agent_hints``.

        llm = ChatOpenAI(base_url=..., http_client=kvflow_jax.clients.http_client(graph=app))

    Args:
        graph: a compiled LangGraph app, an ``Agent`` of OpenAI's SDK, a team or ``DiGraph`` of
            AutoGen, a ``Workflow`` or its JSON form. It can be given later, with
            ``client.bind(graph)``; so can others, and the same one when it has changed: a run keeps
            the one it began with. Without one, requests name their agent and run all the same.
        options: of ``openai.DefaultHttpxClient``, or of ``httpx.Client`` where openai is not
            installed.

    Raises:
        ImportError: neither openai nor httpx2 nor httpx is installed.
        TypeError: ``graph`` is none of these.
    """
    return _sync_class()(graph, options)


def async_http_client(graph: object = None, **options: Any) -> Any:
    """Return the same for asynchronous clients: ``AsyncOpenAI``, ``http_async_client``."""
    return _async_class()(graph, options)


class _Hinting:
    """What both clients have: whose calls they make, and the hints of their requests."""

    def _begin(self, graph: object, options: Mapping[str, Any]) -> None:
        # Of other transports nothing is known; a proxy or a certificate works for both clients.
        is_plain = "transport" not in options and "mounts" not in options
        kept = {name: value for name, value in options.items() if name in _SHARED}
        self._kvflow_ends = RunEnds(functools.partial(_post_end, kept if is_plain else None))
        self._kvflow_callers = Callers()
        self._kvflow_hinter = Hinter(self._kvflow_callers, self._kvflow_ends)
        if graph is not None:
            self.bind(graph)

    def bind(self, graph: object) -> Any:
        """Take a graph, beside others of other apps, agents and teams. Returns the client."""
        self._kvflow_callers.bind(graph)
        return self

    @property
    def gaps(self) -> list[str]:
        """What the graphs do not say of themselves, one sentence each."""
        return self._kvflow_callers.gaps


_SHARED = ("verify", "cert", "trust_env", "proxy", "headers")


def _post_end(
    options: Mapping[str, Any] | None,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, object],
) -> None:
    if options is None:
        return
    if url.startswith("http:"):
        options = {**options, "verify": False}  # no certificates: reading them takes 70 ms
    with _base("Client")(**options, timeout=END_TIMEOUT_S) as client:
        answer = client.post(url, headers=dict(headers), json=dict(body))
        if answer.status_code not in (200, 404):  # 404: the run is over already
            answer.raise_for_status()


def _base(name: str) -> Any:
    """Return a class of the HTTP library of the installed openai, else of the one there is."""
    for library in ("openai", "httpx2", "httpx"):
        try:
            module = importlib.import_module(library)
        except ImportError:
            continue
        if library != "openai":
            return getattr(module, name)
        return getattr(module, f"Default{name.replace('Client', 'HttpxClient')}")
    raise ImportError(
        "kvflow_jax.clients needs an HTTP client: pip install openai (or httpx)", name="openai"
    )


@functools.cache
def _sync_class() -> Any:
    base = _base("Client")

    class KVFlowClient(_Hinting, base):  # type: ignore[valid-type, misc]
        """A client whose requests have hints."""

        def __init__(self, graph: object, options: dict[str, Any]) -> None:
            base.__init__(self, **options)
            self._begin(graph, options)

        def send(self, request: Any, **options: Any) -> Any:
            hinted = self._kvflow_hinter.prepare(request)
            if hinted is None:
                return super().send(request, **options)
            response = super().send(hinted.request, **options)
            if self._kvflow_hinter.is_refusal(response):
                if self._kvflow_hinter.refuses(hinted, response.read()):
                    response.close()
                    return super().send(request, **options)
            else:
                self._kvflow_hinter.note_answer(hinted, response)
            return response

        def close(self) -> None:
            self._kvflow_ends.wait(_CLOSE_TIMEOUT_S)
            super().close()

    return KVFlowClient


@functools.cache
def _async_class() -> Any:
    base = _base("AsyncClient")

    class KVFlowAsyncClient(_Hinting, base):  # type: ignore[valid-type, misc]
        """An asynchronous client whose requests have hints."""

        def __init__(self, graph: object, options: dict[str, Any]) -> None:
            base.__init__(self, **options)
            self._begin(graph, options)

        async def send(self, request: Any, **options: Any) -> Any:
            hinted = self._kvflow_hinter.prepare(request)
            if hinted is None:
                return await super().send(request, **options)
            response = await super().send(hinted.request, **options)
            if self._kvflow_hinter.is_refusal(response):
                if self._kvflow_hinter.refuses(hinted, await response.aread()):
                    await response.aclose()
                    return await super().send(request, **options)
            else:
                self._kvflow_hinter.note_answer(hinted, response)
            return response

    return KVFlowAsyncClient
