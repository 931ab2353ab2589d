"""Objects with the attributes of LangGraph's and LangChain's that clients read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class ToolNode:
    """By its name, as the prebuilt one."""


def node(runnable: object = None, **settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"runnable": runnable, "ends": (), "defer": False} | settings)


def branch(ends: Any = None, function: Any = None) -> SimpleNamespace:
    return SimpleNamespace(ends=ends, path=SimpleNamespace(func=function, afunc=None))


def app(
    nodes: Mapping[str, Any],
    edges: Iterable[tuple[str, str]] = (),
    waiting: Iterable[tuple[tuple[str, ...], str]] = (),
    branches: Mapping[str, Mapping[str, Any]] | None = None,
) -> SimpleNamespace:
    builder = SimpleNamespace(
        nodes=dict(nodes), edges=set(edges), waiting_edges=set(waiting), branches=branches or {}
    )
    return SimpleNamespace(builder=builder, config=None)


class Context:
    """The configuration of the moment, as ``langgraph.config`` gives it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config: dict[str, Any] | None = None
        config_module = ModuleType("langgraph.config")
        config_module.get_config = self._get_config  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "langgraph.config", config_module)
        callbacks = ModuleType("langchain_core.callbacks")
        callbacks.BaseCallbackHandler = type("BaseCallbackHandler", (), {})  # type: ignore[attr-defined]
        merging = ModuleType("langchain_core.runnables.config")
        merging.merge_configs = _merge_configs  # type: ignore[attr-defined]
        for name, module in {
            "langchain_core": ModuleType("langchain_core"),
            "langchain_core.callbacks": callbacks,
            "langchain_core.runnables": ModuleType("langchain_core.runnables"),
            "langchain_core.runnables.config": merging,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    def enter(self, part: str, namespace: str, *handlers: object, **metadata: object) -> None:
        """Be within a part of a run, in the node of a namespace."""
        callbacks = SimpleNamespace(parent_run_id=part, handlers=list(handlers))
        metadata = {"langgraph_checkpoint_ns": namespace} | metadata
        self.config = {"metadata": metadata, "callbacks": callbacks}

    def _get_config(self) -> dict[str, Any]:
        if self.config is None:
            raise RuntimeError("Called get_config outside of a runnable context")
        return self.config


def _merge_configs(*configs: Mapping[str, Any] | None) -> dict[str, Any]:
    handlers = [one for config in configs for one in (config or {}).get("callbacks", ())]
    return {"callbacks": handlers}
