"""kvflow-jax: serve LLMs to multi-agent workflows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from kvflow_jax.llm import LLM
    from kvflow_jax.outputs import EngineStats, FinishReason, Output, RequestStats, TokenLogprobs
    from kvflow_jax.sampling import SamplingParams

__version__ = "0.1.0"

_HOME = {
    "LLM": "llm",
    "Completion": "completion",
    "EngineConfig": "config",
    "EngineStats": "outputs",
    "FinishReason": "outputs",
    "Output": "outputs",
    "RequestStats": "outputs",
    "TokenLogprobs": "outputs",
    "SamplingParams": "sampling",
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
    "CapacityError",
    "Completion",
    "ConfigError",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "InvalidRequestError",
    "KVFlowError",
    "ModelLoadError",
    "Output",
    "QueueFullError",
    "RequestStats",
    "SamplingParams",
    "StepFailedError",
    "TokenLogprobs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `--help` of the server and the pure rooms need no JAX.
    if name in _HOME:
        return getattr(import_module(f"kvflow_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
