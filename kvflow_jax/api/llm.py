"""The Python API: a model, its engine, and calls that return text."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from kvflow_jax.api.completion import Collector, Completion, Stream
from kvflow_jax.api.launch import build_engine, use_compilation_cache
from kvflow_jax.api.prompts import Call, Message, Prompt, PromptEncoder, is_single_prompt
from kvflow_jax.api.workflow_run import WorkflowRun
from kvflow_jax.engine.cache_config import BackupTime, CacheConfig, CacheMode
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.gpu_memory import raise_pinned_memory_limit
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow


class LLM:
    """A model that generates, on the default JAX device.

    >>> with LLM("smollm2-135m") as llm:
    ...     messages = [{"role": "user", "content": "What is the capital of France?"}]
    ...     print(llm.chat(messages, SamplingParams(temperature=0)).text)
    The capital of France is Paris.

    Args:
        model: "smollm2-135m", a Hugging Face folder, a .gguf file, or a Hub name.
        dtype: float32, bfloat16 or float16; auto: what the device computes the model best in.
        random_weights: make the weights up, from ``seed``; for measuring a shape without its
            checkpoint. Then ``model`` may also be one of ``models.shapes.SHAPES``.
        attention: the kernel for it: auto, reference, blocks, tpu-ragged, gpu-mosaic or
            gpu-paged.
        tensor_parallel: devices that share model and pool.
        cache_dir: where the converted model and compiled programs are kept.
        progress: show progress while loading and compiling.
        cache: gpu-only, hicache or kvflow; or a ``CacheConfig``, which says what these are and
            stands for what follows it too.
        eviction, prefetch, host_cache_gib, backup, link_ratio, guard, admission: see
            ``CacheConfig``.
        **sizes: fields of ``EngineConfig``: max_model_len, max_num_seqs, pool_gib and more.

    Attributes:
        tokenizer: None for random weights without one.
        config: the model's, a ``ModelConfig``.
        model, params: its definition and weights, on the device.
        sizes: what was decided for the engine, an ``EngineSizes``.
        runner: what runs the steps; for experiments to look at, not to drive.
        weights_bytes: memory of the weights.

    Raises:
        ModelLoadError, CapacityError, ConfigError: each says what to do.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        dtype: str = "auto",
        random_weights: bool = False,
        attention: str = "auto",
        tensor_parallel: int = 1,
        cache_dir: Path | None = None,
        progress: bool = True,
        cache: CacheMode | CacheConfig = "kvflow",
        eviction: str | None = None,
        prefetch: bool | None = None,
        host_cache_gib: float | None = None,
        backup: BackupTime = "early",
        link_ratio: float | None = None,
        guard: bool | None = None,
        admission: bool | None = None,
        **sizes: Any,
    ) -> None:
        if not isinstance(cache, CacheConfig):
            switches = (eviction, prefetch, host_cache_gib, backup, link_ratio, guard, admission)
            cache = CacheConfig(cache, *switches)
        config = EngineConfig(cache=cache, **sizes)
        cache_dir = cache_dir or default_cache_dir()
        raise_pinned_memory_limit()
        use_compilation_cache(cache_dir)
        loaded = load_model(
            model,
            dtype=dtype,
            cache_dir=cache_dir,
            random_weights=random_weights,
            seed=config.seed or 0,
            attention=attention,
            tensor_parallel=tensor_parallel,
            page_size=config.page_size,
            max_model_len=config.max_model_len,
            progress=progress,
        )
        engine = build_engine(loaded, config, progress=progress)
        self.tokenizer = loaded.tokenizer
        self.config = loaded.config
        self.model, self.params = loaded.model, loaded.params
        self.sizes = engine.sizes
        self.runner = engine.runner
        self.weights_bytes = sum(leaf.nbytes for leaf in loaded.params.values())
        self.engine = EngineThread(engine)
        self._prompts = PromptEncoder(loaded.tokenizer)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: str,
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[int],
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Continue one prompt, or many at once.

        Args:
            prompts: text or token ids; or a list of those.
            params: for all prompts, or one for each.
            hints: of each call; ``run`` makes them for the agents of a workflow.
            progress: show a bar where there are many.

        Returns:
            A Completion for one prompt, a list of them, in order, for many.

        Raises:
            InvalidRequestError: a prompt that can never run; nothing has run then.
        """
        if is_single_prompt(prompts):
            return self._run([self._prompts.text(prompts, hints)], params, progress=False)[0]  # type: ignore[arg-type]
        if not isinstance(prompts, Sequence):
            raise InvalidRequestError("prompts must be text, token ids, or a list of those")
        return self._run([self._prompts.text(p, hints) for p in prompts], params, progress=progress)  # type: ignore[arg-type]

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Answer one conversation, or many at once, each a list of role and content.

        Raises:
            InvalidRequestError: the model's chat template refuses the messages.
        """
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise InvalidRequestError(
                'messages must be a list like [{"role": "user", "content": "..."}]', "messages"
            )
        if not messages or isinstance(messages[0], Mapping):
            return self._run([self._prompts.chat(messages, hints)], params, progress=False)[0]  # type: ignore[arg-type]
        calls = [self._prompts.chat(m, hints) for m in messages]  # type: ignore[arg-type]
        return self._run(calls, params, progress=progress)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Continue one prompt, giving text as it comes.

        The generation begins at once, and ends when the stream is closed or let go of.

        Raises:
            InvalidRequestError: a prompt that can never run.
        """
        call = self._prompts.text(prompt, hints)
        return Stream(self.engine, call.prompt, params, call.hints)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Answer one conversation, giving text as it comes."""
        call = self._prompts.chat(messages, hints)
        return Stream(self.engine, call.prompt, params, call.hints)

    def run(self, workflow: Workflow | None = None, workflow_id: str | None = None) -> WorkflowRun:
        """Begin a run of a workflow, in which its agents are called by name.

        Args:
            workflow: None: what comes next is learned from hints alone.
            workflow_id: the run's name; None: one of its own.

        Raises:
            InvalidRequestError: it is no workflow, or the name cannot be.
        """
        return WorkflowRun(self, workflow, workflow_id)

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine as of its last step."""
        return self.engine.stats

    def flush_cache(self) -> bool:
        """Drop every cached block; False, and nothing is dropped, while requests run."""
        return self.engine.flush_cache()

    def close(self) -> None:
        """Abort what runs and free the device. Closing twice is fine."""
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

    def _run(
        self,
        calls: Sequence[Call],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        progress: bool,
    ) -> list[Completion]:
        each = _params_of_each(params, len(calls))
        for call, one in zip(calls, each, strict=True):
            self.engine.check(call.prompt, one)
        last: queue.SimpleQueue[Output] = queue.SimpleQueue()
        outputs: list[list[Output]] = [[] for _ in calls]
        request_ids: list[int] = []
        bar = _progress_bar(len(calls)) if progress and calls else None
        try:
            for i, (call, one) in enumerate(zip(calls, each, strict=True)):
                listener = Collector(outputs[i], last)
                request_ids.append(self.engine.submit(call.prompt, one, listener, hints=call.hints))
            for _ in calls:
                if (output := last.get()).error is not None:
                    raise output.error
                if bar is not None:
                    bar.update()
        except BaseException:
            # An error or Ctrl-C: of those that have finished, abort does nothing.
            for request_id in request_ids:
                self.engine.abort(request_id)
            self.engine.settle()
            raise
        finally:
            if bar is not None:
                bar.close()
        return [Completion.of(parts) for parts in outputs]


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams], num_prompts: int
) -> list[SamplingParams]:
    each = list(params) if isinstance(params, Sequence) else [params] * num_prompts
    if not all(isinstance(one, SamplingParams) for one in each):
        raise InvalidRequestError("params must be SamplingParams, or a list of one for each prompt")
    if len(each) != num_prompts:
        raise InvalidRequestError(f"{num_prompts} prompts but {len(each)} sampling params")
    return each


def _progress_bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Generating", unit="prompt")
