"""The Python API: a model with its engine, and calls that return text."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Unpack

from kvflow_jax.api.caller import Caller
from kvflow_jax.api.launch import build_engine, cache_dir_of, cache_of_start, load
from kvflow_jax.api.options import LLMOptions, configs_of
from kvflow_jax.api.prompts import PromptEncoder
from kvflow_jax.api.sampling_defaults import sampling_defaults
from kvflow_jax.api.workflow_run import WorkflowRun
from kvflow_jax.engine.cache_config import CacheConfig, CacheMode
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.gpu_memory import raise_pinned_memory_limit
from kvflow_jax.workflow.workflow import Workflow


class LLM(Caller):
    """A language model with its engine and KV cache, on the default JAX device.

    Any thread may call its methods; concurrent calls are batched. ``generate``, ``chat``,
    ``stream`` and ``stream_chat`` are those of ``Caller``.

    >>> with LLM("smollm2-135m") as llm:
    ...     messages = [{"role": "user", "content": "What is the capital of France?"}]
    ...     print(llm.chat(messages, SamplingParams(temperature=0)).text)
    The capital of France is Paris.

    Args:
        model: ``smollm2-135m``, a Hugging Face folder, a .gguf file, or a name on the Hub.
        cache: cache mode, ``gpu-only``, ``hicache`` or ``kvflow``; or a ``CacheConfig``.
        progress: show progress bars while loading and compiling.
        **options: other fields of ``LoadConfig``, ``EngineConfig`` and ``CacheConfig``, such as
            ``dtype``, ``max_model_len`` and ``host_cache_gib``. ``docs/flags.md`` describes them
            under the names of their flags.

    Attributes:
        tokenizer: the model's tokenizer; None if it has none (some random weights).
        config: the model's ``ModelConfig``.
        model, params: the model's definition and its weights on the device.
        sizes: the ``EngineSizes`` that were chosen.
        engine: the ``EngineThread`` that serves the calls.
        runner: the runner of the steps; experiments may inspect it, but not submit steps.
        weights_bytes: memory of the weights, bytes.

    Raises:
        ModelLoadError: the model cannot be found or read.
        CapacityError: device memory is too small for the weights and one request.
        ConfigError: an argument is out of range, or two contradict each other.
        PolicyError: the eviction policy cannot be found, or returns invalid keys.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2-135m",
        *,
        cache: CacheMode | CacheConfig = "kvflow",
        progress: bool = True,
        **options: Unpack[LLMOptions],
    ) -> None:
        load_config, config = configs_of(os.fspath(model), cache, options)
        raise_pinned_memory_limit()
        self._sampling_defaults = sampling_defaults(load_config)
        with cache_of_start(load_config):
            loaded = load(load_config, config, progress=progress)
            cache_dir = cache_dir_of(load_config)
            engine = build_engine(loaded, config, progress=progress, cache_dir=cache_dir)
        self.tokenizer = loaded.tokenizer
        self.config = loaded.config
        self.model, self.params = loaded.model, loaded.params
        self.sizes = engine.sizes
        self.runner = engine.runner
        self.weights_bytes = loaded.model.weights_bytes
        encoder = PromptEncoder(loaded.tokenizer, recognises_agents=config.cache.recognises_callers)
        super().__init__(EngineThread(engine), encoder)

    def run(self, workflow: Workflow | None = None, workflow_id: str | None = None) -> WorkflowRun:
        """Begin a run, one execution of a workflow, in which agents are called by name.

        Args:
            workflow: the Agent Step Graph; None: the engine knows only the hints of each call.
            workflow_id: name of the run; None: a new unique name.

        Raises:
            InvalidRequestError: ``workflow`` is not a ``Workflow`` or has no nodes, or
                ``workflow_id`` is empty or too long.
            EngineClosedError: the engine is closed.
        """
        return WorkflowRun(self, workflow, workflow_id)

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the sampling parameters that the model's authors recommend, as in vLLM.

        They are what a server uses for requests that leave them out; see ``generation_config``.
        Calls without ``params`` use ``SamplingParams()``, whatever the model.
        """
        return SamplingParams(**self._sampling_defaults)  # type: ignore[arg-type]

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine as of its last step."""
        return self.engine.stats

    def flush_cache(self) -> bool:
        """Drop every cached block; return False and drop none while requests run."""
        return self.engine.flush_cache()

    def close(self) -> None:
        """Abort the running requests and free the device memory. Idempotent."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
