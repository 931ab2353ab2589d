"""kvflow-jax: serve LLMs to multi-agent workflows."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvflow_jax.api.completion import Completion
    from kvflow_jax.api.llm import LLM
    from kvflow_jax.api.workflow_run import WorkflowRun
    from kvflow_jax.engine.cache_config import CacheConfig
    from kvflow_jax.engine.config import EngineConfig
    from kvflow_jax.errors import (
        CapacityError,
        ConfigError,
        EngineClosedError,
        GrammarError,
        InvalidRequestError,
        KVFlowError,
        ModelLoadError,
        PolicyError,
        QueueFullError,
        StepFailedError,
    )
    from kvflow_jax.grammar.spec import StructuredOutputsParams
    from kvflow_jax.requests.outputs import (
        EngineStats,
        FinishReason,
        Output,
        RequestStats,
        TokenLogprobs,
    )
    from kvflow_jax.requests.sampling_params import SamplingParams
    from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
    from kvflow_jax.workflow.workflow import Workflow

__version__ = "0.2.0.dev0"

_HERE = Path(__file__).parent
if not (_HERE / "cache").is_dir() and (_HERE.parent / "pyproject.toml").exists():
    # A checkout without symlinks (Windows, a zip file): ../cache and ../models are found there.
    __path__.append(str(_HERE.parent))

_HOME = {
    "LLM": "api.llm",
    "CacheConfig": "engine.cache_config",
    "Completion": "api.completion",
    "EngineConfig": "engine.config",
    "EngineStats": "requests.outputs",
    "FinishReason": "requests.outputs",
    "Hints": "workflow.hints",
    "HintStatus": "workflow.hints",
    "Reuse": "workflow.hints",
    "Output": "requests.outputs",
    "RequestStats": "requests.outputs",
    "TokenLogprobs": "requests.outputs",
    "SamplingParams": "requests.sampling_params",
    "StructuredOutputsParams": "grammar.spec",
    "Workflow": "workflow.workflow",
    "WorkflowRun": "api.workflow_run",
    "CapacityError": "errors",
    "ConfigError": "errors",
    "EngineClosedError": "errors",
    "GrammarError": "errors",
    "InvalidRequestError": "errors",
    "KVFlowError": "errors",
    "ModelLoadError": "errors",
    "PolicyError": "errors",
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
    "GrammarError",
    "HintStatus",
    "Hints",
    "InvalidRequestError",
    "KVFlowError",
    "ModelLoadError",
    "Output",
    "PolicyError",
    "QueueFullError",
    "RequestStats",
    "Reuse",
    "SamplingParams",
    "StepFailedError",
    "StructuredOutputsParams",
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
