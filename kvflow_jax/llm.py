"""The Python API: a model, its engine, and calls that return text."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from kvflow_jax.completion import Collector, Completion, Stream
from kvflow_jax.config import EngineConfig
from kvflow_jax.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.launch import build_engine, use_compilation_cache
from kvflow_jax.models.checkpoint import default_cache_dir
from kvflow_jax.models.loading import load_model
from kvflow_jax.outputs import EngineStats, Output
from kvflow_jax.sampling import SamplingParams

Prompt = str | Sequence[int]  # text, or token ids
Message = Mapping[str, Any]  # {"role": ..., "content": ...}


class LLM:
    """A model that generates, on the default JAX device.

    >>> with LLM("smollm2-135m") as llm:
    ...     messages = [{"role": "user", "content": "What is the capital of France?"}]
    ...     print(llm.chat(messages, SamplingParams(temperature=0)).text)
    The capital of France is Paris.

    Args:
        model: "smollm2-135m", a Hugging Face folder, or a Hub name.
        dtype: float32, bfloat16 or float16.
        random_weights: make the weights up; for measuring a shape without its checkpoint.
        cache_dir: where the converted model and compiled programs are kept.
        progress: show progress while loading and compiling.
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
        dtype: str = "float32",
        random_weights: bool = False,
        cache_dir: Path | None = None,
        progress: bool = True,
        **sizes: Any,
    ) -> None:
        config = EngineConfig(**sizes)
        cache_dir = cache_dir or default_cache_dir()
        use_compilation_cache(cache_dir)
        loaded = load_model(
            model,
            dtype=dtype,
            cache_dir=cache_dir,
            random_weights=random_weights,
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

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, params: SamplingParams = ..., *, progress: bool = ...
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: Sequence[int], params: SamplingParams = ..., *, progress: bool = ...
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        *,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Continue one prompt, or many at once.

        Args:
            prompts: text or token ids; or a list of those.
            params: for all prompts, or one for each.
            progress: show a bar where there are many.

        Returns:
            A Completion for one prompt, a list of them, in order, for many.

        Raises:
            InvalidRequestError: a prompt that can never run; nothing has run then.
        """
        if _is_one(prompts):
            return self._run([self._encode(prompts)], params, progress=False)[0]  # type: ignore[arg-type]
        if not isinstance(prompts, Sequence):
            raise InvalidRequestError("prompts must be text, token ids, or a list of those")
        return self._run([self._encode(p) for p in prompts], params, progress=progress)  # type: ignore[arg-type]

    @overload
    def chat(
        self, messages: Sequence[Message], params: SamplingParams = ..., *, progress: bool = ...
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        *,
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
            return self._run([self._template(messages)], params, progress=False)[0]  # type: ignore[arg-type]
        return self._run([self._template(m) for m in messages], params, progress=progress)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, params: SamplingParams = SamplingParams()) -> Stream:
        """Continue one prompt, giving text as it comes.

        The generation begins at once, and ends when the stream is closed or let go of.

        Raises:
            InvalidRequestError: a prompt that can never run.
        """
        return Stream(self.engine, self._encode(prompt), params)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams = SamplingParams()
    ) -> Stream:
        """Answer one conversation, giving text as it comes."""
        return Stream(self.engine, self._template(messages), params)

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

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: give token ids", "prompt")
        return self.tokenizer.encode(prompt)

    def _template(self, messages: Sequence[Message]) -> Sequence[int]:
        if self.tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: give token ids", "messages")
        if not messages:
            raise InvalidRequestError("a conversation needs at least one message", "messages")
        return self.tokenizer.apply_chat_template(messages)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        progress: bool,
    ) -> list[Completion]:
        each = _params_of_each(params, len(prompts))
        for prompt, one in zip(prompts, each, strict=True):
            self.engine.check(prompt, one)
        last: queue.SimpleQueue[Output] = queue.SimpleQueue()
        outputs: list[list[Output]] = [[] for _ in prompts]
        request_ids: list[int] = []
        bar = _progress_bar(len(prompts)) if progress and prompts else None
        try:
            for i, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
                listener = Collector(outputs[i], last)
                request_ids.append(self.engine.submit(prompt, one, listener))
            for _ in prompts:
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


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    if isinstance(prompts, str | np.ndarray):
        return True
    is_list = isinstance(prompts, Sequence) and len(prompts) > 0
    return is_list and isinstance(prompts[0], int | np.integer)


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
