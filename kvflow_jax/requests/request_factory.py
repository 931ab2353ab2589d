"""Checks of requests against a model and its sizes, and creation of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.errors import ContextLengthError, InvalidRequestError
from kvflow_jax.grammar.matcher import pack_mask
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.reasoning.splitter import ReasoningSplitter
from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.requests.stop_strings import StopStrings, StopStringsOutsideCalls


class RequestFactory:
    """Creates the requests of one engine.

    Args:
        max_model_len: longest sequence (prompt and output), tokens.
        vocab_size: exclusive bound of token ids.
        tokenizer: decodes outputs, which stop strings need; None: outputs carry token ids but no
            text.
        eos_token_ids: token ids that end a text, unless a request ignores them.
        model_name: part of the root key of the index.
        seed: seed of the generator that draws a seed for each request without one.
    """

    def __init__(
        self,
        max_model_len: int,
        vocab_size: int,
        *,
        tokenizer: Tokenizer | None,
        eos_token_ids: Iterable[int],
        model_name: str,
        seed: int | None,
    ) -> None:
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._model_name = model_name
        self._rng = np.random.default_rng(seed)
        # Replaced as one: ``check`` runs on any thread.
        self._last_allowed: tuple[Sequence[int], np.ndarray] = (), np.empty(0, np.int32)

    def check(self, spec: RequestSpec) -> None:
        """Raise InvalidRequestError for a request that can never run. Any thread may call this."""
        prompt_ids, params, limit = spec.prompt_ids, spec.params, self._max_model_len
        if len(prompt_ids) == 0:
            raise InvalidRequestError("the prompt is empty; it needs at least one token", "prompt")
        if len(prompt_ids) >= limit:
            raise ContextLengthError(len(prompt_ids), limit)
        if prompt_ids.max() >= self._vocab_size:
            raise InvalidRequestError(
                f"token id {prompt_ids.max()} is out of vocabulary: token ids must be between "
                f"0 and {self._vocab_size - 1}",
                param="prompt",
            )
        if params.stop_token_ids and max(params.stop_token_ids) >= self._vocab_size:
            raise InvalidRequestError(
                f"stop_token_ids must be between 0 and {self._vocab_size - 1}, "
                f"got {max(params.stop_token_ids)}",
                "stop_token_ids",
            )
        if params.logit_bias and max(params.logit_bias) >= self._vocab_size:
            raise InvalidRequestError(
                f"token ids of logit_bias must be between 0 and {self._vocab_size - 1}, "
                f"got {max(params.logit_bias)}",
                "logit_bias",
            )
        self._allowed_tokens(params)
        if (params.structured_outputs is None) != (spec.grammar is None):
            raise InvalidRequestError(
                "structured outputs need a grammar that was compiled for this model",
                "structured_outputs",
            )
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError(
                "stop strings need a tokenizer, which this model lacks: use stop_token_ids", "stop"
            )

    def create(
        self,
        spec: RequestSpec,
        on_output: Callable[[Output], None],
        *,
        request_id: int,
        arrival_s: float,
    ) -> Request:
        """Create a request that ``check`` has accepted; see ``Engine.add`` for the parameters."""
        params = spec.params
        eos = frozenset() if params.ignore_eos else self._eos_token_ids
        max_len = self._max_model_len
        if params.max_tokens is not None:
            max_len = min(max_len, len(spec.prompt_ids) + params.max_tokens)
        detokenizer = None
        stop_strings: StopStrings | None = None
        splitter = None
        markup, reasoning = spec.call_markup, spec.reasoning
        hidden_stops: dict[int, str] = {}
        if self._tokenizer is not None:
            tags = () if reasoning is None else reasoning.tags
            kept_tokens = (*tags, *(() if markup is None else markup.markers))
            detokenizer = self._tokenizer.detokenizer(
                skip_special_tokens=params.skip_special_tokens, kept_tokens=kept_tokens
            )
            if params.stop and params.skip_special_tokens:
                special = self._tokenizer.special_token_ids(params.stop)
                hidden_stops = {i: text for text, i in special.items() if text not in kept_tokens}
            if reasoning is not None:
                hides = params.skip_special_tokens
                hidden = self._tokenizer.special_token_ids(tags) if hides else ()
                splitter = ReasoningSplitter(reasoning, hidden=hidden)
        if params.stop and markup is not None:
            stop_strings = StopStringsOutsideCalls(
                params.stop, markup, include_stop=params.include_stop, hidden=hidden_stops
            )
        elif params.stop:
            stop_strings = StopStrings(
                params.stop, include_stop=params.include_stop, hidden=hidden_stops
            )
        allowed_tokens = self._allowed_tokens(params)
        if allowed_tokens is not None:
            # The mask replaces them, and there may be as many as tokens of the vocabulary.
            params = params.replace(allowed_token_ids=())
            spec = replace(spec, prompt=spec.prompt_ids, params=params)
        return Request(
            spec,
            on_output,
            request_id=request_id,
            arrival_s=arrival_s,
            root=RootKey(self._model_name, spec.salt, spec.cache_tenant),
            max_len=max_len,
            stop_ids=eos.union(params.stop_token_ids),
            seed=self._seed(params),
            detokenizer=detokenizer,
            stop_strings=stop_strings,
            splitter=splitter,
            allowed_tokens=allowed_tokens,
        )

    def _allowed_tokens(self, params: SamplingParams) -> np.ndarray | None:
        """Return the mask of the tokens that a request allows; None if it allows all."""
        token_ids = params.allowed_token_ids
        if not token_ids:
            return None
        # The choices of one prompt share their ids, of which there may be as many as tokens.
        last_ids, mask = self._last_allowed
        if last_ids is not token_ids:
            if max(token_ids) >= self._vocab_size:
                raise InvalidRequestError(
                    f"allowed_token_ids must be between 0 and {self._vocab_size - 1}, "
                    f"got {max(token_ids)}",
                    "allowed_token_ids",
                )
            mask = pack_mask(token_ids, self._vocab_size)
            mask.flags.writeable = False
            self._last_allowed = token_ids, mask
        return mask

    def _seed(self, params: SamplingParams) -> tuple[int, int]:
        """Return the request's seed as two u32 words."""
        if params.seed is None:
            words = self._rng.integers(0, 2**32, 2, np.uint32)
        else:
            words = np.random.SeedSequence(params.seed % 2**64).generate_state(2)
        return int(words[0]), int(words[1])
