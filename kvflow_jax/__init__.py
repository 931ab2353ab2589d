"""kvflow-jax: serve LLMs to multi-agent workflows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvflow_jax.cache_settings import CacheConfig
    from kvflow_jax.completion import Completion
    from kvflow_jax.config import EngineConfig
    from kvflow_jax.errors import (
        CapacityError,
        ConfigError,
        EngineClosedError,
        InvalidRequestError,
        KVFlowError,
        ModelLoadError,
        QueueFullError,
        StepFailedError,
    )
    from kvflow_jax.hints import Hints, HintStatus, Reuse
    from kvflow_jax.llm import LLM
    from kvflow_jax.outputs import EngineStats, FinishReason, Output, RequestStats, TokenLogprobs
    from kvflow_jax.sampling import SamplingParams
    from kvflow_jax.workflow import Workflow
    from kvflow_jax.workflow_run import WorkflowRun

__version__ = "0.1.0"

_HOME = {
    "LLM": "llm",
    "CacheConfig": "cache_settings",
    "Completion": "completion",
    "EngineConfig": "config",
    "EngineStats": "outputs",
    "FinishReason": "outputs",
    "Hints": "hints",
    "HintStatus": "hints",
    "Reuse": "hints",
    "Output": "outputs",
    "RequestStats": "outputs",
    "TokenLogprobs": "outputs",
    "SamplingParams": "sampling",
    "Workflow": "workflow",
    "WorkflowRun": "workflow_run",
    "CapacityError": "errors",
    "ConfigError": "errors",
    "EngineClosedError": "errors",
    "InvalidRequestError": "errors",
    "KVFlowError": "errors",
    "ModelLoadError": "errors",
    "QueueFullError": "errors",
    "StepFailedError": "errors",
}
__all__ = [
    "LLM",
    "CacheConfig",
    "CapacityError",
    "Completion",
    "ConfigError",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "HintStatus",
    "Hints",
    "InvalidRequestError",
    "KVFlowError",
    "ModelLoadError",
    "Output",
    "QueueFullError",
    "RequestStats",
    "Reuse",
    "SamplingParams",
    "StepFailedError",
    "TokenLogprobs",
    "Workflow",
    "WorkflowRun",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `--help` of the server and the pure rooms need no JAX.
    if name in _HOME:
        return getattr(import_module(f"kvflow_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
