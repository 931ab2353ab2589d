"""Compilation of grammars for one model's tokenizer, bounded in time and memory, and its cache."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cached_property
from typing import TYPE_CHECKING

from kvflow_jax.bounds.live_bytes import LiveBytes
from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.errors import GrammarError, QueueFullError
from kvflow_jax.grammar.lark import WHITESPACE, is_lark
from kvflow_jax.grammar.matcher import Matcher, error_of
from kvflow_jax.grammar.reasoning import behind_reasoning
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.reasoning.syntax import ReasoningMarkup

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

    from kvflow_jax.models.tokenizer import Tokenizer

COMPILE_TIMEOUT_S = 10.0
NUM_COMPILER_THREADS = 2
# Bytes of compiled grammars by ``num_compiled_bytes``: cached for a tenant, cached for all tenants
# as a multiple of that, and used by all requests of a tenant together with what is cached.
MAX_CACHED_BYTES, MAX_FULL_TENANTS, MAX_USED_BYTES = 128 << 20, 4, 256 << 20
# The conversion to Lark is Python, and its time grows with the square of the rules: seconds here.
MAX_GBNF_CHARS = 16 * 1024

# About 20 ms to build a grammar, and 7 ms for the mask of a step that runs into the limit.
_INITIAL_FUEL, _STEP_FUEL = 1_000_000, 100_000
_SCHEMA_ERROR = re.compile(r"at \d+\(\d+\): failed to compile JSON schema: (.*)")
_NO_TEXT = "it matches no text, or only the empty one"


class GrammarCompiler:
    """Compiles grammars over the tokens of one model. Any thread may call it.

    Tenants share no compiled grammars: the time to compile one would tell whether another has it.

    Args:
        tokenizer: the model's.
        vocab_size: token ids of the model, at least those of the tokenizer that it samples.
        eos_token_ids: tokens that end a text, allowed where the grammar may end.
        timeout_s: seconds that a grammar may take to compile. llguidance bounds the work itself;
            this bounds the wait for other grammars, too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        *,
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        self._hf_tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_token_ids, self._timeout_s = eos_token_ids, timeout_s
        self._threads = ThreadPoolExecutor(NUM_COMPILER_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()  # guards the tokenizer, which is built once
        self._cache_lock = threading.Lock()  # guards the fields below
        self._cache: TenantLru[_Key, Matcher] = TenantLru(
            MAX_CACHED_BYTES, max_full_tenants=MAX_FULL_TENANTS
        )
        self._used = LiveBytes()  # of the cache and of requests

    @property
    def usage(self) -> Usage:
        """What the cache holds."""
        return self._cache.usage

    def prepare(self) -> None:
        """Build what all grammars share. Call it before there are requests: it holds the GIL.

        It takes half a second for a vocabulary of 49,152 tokens. It does nothing where grammars
        cannot be compiled; the error is that of ``compile``.
        """
        with contextlib.suppress(ImportError, _CompileError), self._lock:
            _ = self._tokenizer

    def compile(
        self,
        spec: StructuredOutputsParams,
        reasoning: ReasoningMarkup | None = None,
        tenant: str = "",
    ) -> Matcher:
        """Return a matcher at the start of a grammar, to be cloned for each output.

        Blocks, for milliseconds as a rule: never call it on an event loop or the engine's thread.

        Args:
            reasoning: where reasoning is in the outputs: the grammar holds behind it.
            tenant: whose cache is used.

        Raises:
            QueueFullError: the grammars of the tenant's requests take too much memory.
            InvalidRequestError: the grammar is invalid, matches nothing, or takes too long; the
                message has the keyword or the place that is at fault.
        """
        future = self._threads.submit(self._compile, spec, reasoning, tenant)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise spec.error(
                f"the grammar of {spec.param} took longer than {self._timeout_s:g} s to compile; "
                "make it smaller"
            ) from None
        except _CompileError as error:
            # Grammars are cached for all fields that ask for them: the caller's own is named here.
            raise spec.error(
                f"the grammar of {spec.param} cannot be used: {_reason(str(error))}"
            ) from None

    def _compile(
        self, spec: StructuredOutputsParams, reasoning: ReasoningMarkup | None, tenant: str
    ) -> Matcher:
        key, num_bytes = (spec, reasoning), spec.num_compiled_bytes
        with self._cache_lock:
            if (cached := self._cache.use(tenant, key)) is not None:
                return cached
            if self._used.num_bytes(tenant) + num_bytes > MAX_USED_BYTES:
                raise QueueFullError(
                    f"the grammars of your requests take more than {MAX_USED_BYTES >> 20} MiB; "
                    "try again when some of them have ended"
                )
        if reasoning is not None:
            # Alone first: its errors are then of its own text, not of what is around it.
            self._compile(spec, None, tenant)
        compiled = self._compile_uncached(spec, reasoning)
        with self._cache_lock:
            self._cache.put(tenant, key, compiled, num_bytes)
            self._used.add(tenant, compiled, num_bytes)
        return compiled

    def _compile_uncached(
        self, spec: StructuredOutputsParams, reasoning: ReasoningMarkup | None
    ) -> Matcher:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise _CompileError("llguidance is not installed; install kvflow-jax[serve]") from None
        grammar = _llguidance_grammar(spec)
        if reasoning is not None:
            special_ids = self._hf_tokenizer.special_token_ids(reasoning.tags)
            grammar = behind_reasoning(grammar, reasoning, special_ids)
        with self._lock:
            tokenizer, limits = self._tokenizer, self._limits
        state = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if state.is_error():
            raise _CompileError(error_of(state))
        try:
            matcher = Matcher(state, self._vocab_size)
        except GrammarError as error:
            # A rule that only refers to itself is found out by the first mask.
            is_empty = "NoExtension" in str(error)
            raise _CompileError(_NO_TEXT if is_empty else str(error)) from None
        if matcher.is_complete:
            raise _CompileError(_NO_TEXT)
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        own = self._hf_tokenizer
        # Ids past the tokenizer's are never allowed, nor are those past the model's ever sampled.
        num_tokens = max(self._vocab_size, own.vocab_size)
        try:
            return LLTokenizer(own.serialized(), num_tokens, list(self._eos_token_ids))
        except ValueError as error:
            raise _CompileError(f"the model's tokenizer is not supported: {error}") from None

    @cached_property
    def _limits(self) -> LLParserLimits:
        from llguidance import LLParserLimits

        return LLParserLimits(
            initial_lexer_fuel=_INITIAL_FUEL, step_lexer_fuel=_STEP_FUEL, verbose_errors=False
        )


_Key = tuple[StructuredOutputsParams, ReasoningMarkup | None]


class _CompileError(Exception):
    """Why a grammar cannot be compiled, without the field that asked for it."""


def _reason(error: str) -> str:
    """Return what llguidance says of a schema, without its place in a grammar around it."""
    match = _SCHEMA_ERROR.match(error)
    return match[1] if match else error


def _llguidance_grammar(spec: StructuredOutputsParams) -> str:
    """Return a grammar in llguidance's own format."""
    from llguidance import LLMatcher

    if spec.json is not None or spec.json_object:
        schema = '{"type": "object"}' if spec.json is None else str(spec.json)
        try:
            return LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_pattern": WHITESPACE}
            )
        except ValueError as error:  # such as a number beyond the range of floats
            raise _CompileError(str(error)) from None
    if spec.regex is not None:
        return LLMatcher.grammar_from_regex(spec.regex)
    if spec.choice is not None:
        texts = [json.dumps(text) for text in spec.choice]
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
    assert spec.grammar is not None
    lark = spec.grammar if is_lark(spec.grammar) else _lark_of_gbnf(spec.grammar)
    return LLMatcher.grammar_from_lark(lark)


def _lark_of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if len(text) > MAX_GBNF_CHARS:
        raise _CompileError(
            f"it has {len(text)} characters; GBNF may have {MAX_GBNF_CHARS}, Lark more"
        )
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # of its parser, or its recursion
        raise _CompileError(f"it is neither Lark (rule start) nor GBNF: {error}") from None
