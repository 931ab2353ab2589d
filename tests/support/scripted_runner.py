"""A runner that emits scripted texts, and a server around it; all else is production code.

Parsers, streams, finish reasons and flows of several turns are tested whole with it: engine, KV
cache, tokenizer, chat template, HTTP and client are the real ones.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import openai

from experiments.make_folder import byte_level_tokenizer
from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.sampling_params import MAX_LOGPROBS
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.interfaces import NoTransfers, WallClock
from kvflow_jax.runtime.sampler import Logprobs
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.server import Server, bind
from tests.support.served import running
from tests.support.token_runner import TokenRunner, TokenStep

MODEL = "scripted"
PAGE, TILE = 16, 64
KVFLOW = CacheSettings(eviction="kvflow")

# ChatML without tools, as the embedded model's template.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass
class _Row:
    """A sequence that is being emitted: what it is now, and the tokens still to come."""

    sequence: list[int]
    rest: deque[int] = field(default_factory=deque)


class ScriptedStep(TokenStep):
    """Every token has logprob -0.5, and tokens 0, 1, ... are the next likely ones."""

    def logprobs(self) -> Logprobs[np.ndarray]:
        num = len(self._sampled)
        top_ids = np.tile(np.arange(MAX_LOGPROBS, dtype=np.int32), (num, 1))
        top_ids[:, 0] = self._sampled
        top = np.tile(-0.5 * np.arange(1, MAX_LOGPROBS + 1, dtype=np.float32), (num, 1))
        return Logprobs(np.full(num, -0.5, np.float32), top_ids, top)


class ScriptedRunner(TokenRunner):
    """Emits the tokens of scripted texts, then end-of-text.

    ``answer``, where it is set, returns the text for each prompt. Else a text of ``by_prompt``
    answers each prompt that has its key, the key that occurs last in the prompt. Other prompts
    take the next of ``texts``. With neither, the step fails. A text may contain special tokens,
    written as text, and a script may be a list of token ids.

    Attributes:
        prompts: the text of each prompt, special tokens included, in order of their first token.
    """

    def __init__(self, spec: PoolSpec, shapes: BatchShapes, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: deque[str | Sequence[int]] = deque()
        self.by_prompt: dict[str, str | Sequence[int]] = {}
        self.answer: Callable[[str], str] | None = None
        self.prompts: list[str] = []
        self._rows: dict[int, _Row] = {}  # by seq_slot
        super().__init__(spec, shapes)

    def submit(self, batch: Batch) -> ScriptedStep:
        step = super().submit(batch)
        return ScriptedStep(step._sampled, step._error)

    def sample(self, seq_slot: int, sequence: np.ndarray) -> int:
        row = self._row(seq_slot, sequence.tolist())
        # A step that was dispatched before the host saw the end samples beyond it.
        token = row.rest.popleft() if row.rest else self.tokenizer.eos_token_ids[0]
        row.sequence.append(token)
        return token

    def _row(self, seq_slot: int, sequence: list[int]) -> _Row:
        known = self._rows.get(seq_slot)
        if known is None or known.sequence != sequence:
            # A preempted sequence may go on in another slot.
            others = (row for row in self._rows.values() if row.sequence == sequence)
            known = next(others, None) or _Row(sequence, deque(self._script(sequence)))
            self._rows[seq_slot] = known
        return known

    def _script(self, prompt_ids: list[int]) -> Sequence[int]:
        prompt = self.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        self.prompts.append(prompt)
        keys = [key for key in self.by_prompt if key in prompt]
        script: str | Sequence[int]
        if self.answer is not None:
            script = self.answer(prompt)
        elif keys:
            script = self.by_prompt[max(keys, key=prompt.rfind)]
        else:
            assert self.texts, f"no script for the prompt {prompt!r}"
            script = self.texts.popleft()
        if isinstance(script, str):
            return self.tokenizer.encode(script, add_special_tokens=False)
        return script


@dataclass
class ScriptedServer:
    url: str
    engine: EngineThread
    runner: ScriptedRunner
    tokenizer: Tokenizer

    def client(self) -> openai.OpenAI:
        """Return a client, to be closed by its user."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def script(self, *texts: str | Sequence[int]) -> None:
        """Answer the next prompts with these texts only, and forget earlier ones."""
        self.runner.texts = deque(texts)
        self.runner.by_prompt.clear()
        self.runner.prompts.clear()


def scripted_tokenizer(
    chat_template: str | None = CHATML, special_tokens: Sequence[str] = CHATML_TOKENS
) -> Tokenizer:
    """Return a byte-level tokenizer with this template and these special tokens.

    The end of text is ``<|im_end|>`` where it is one of them, and ``</s>``.
    """
    hf = byte_level_tokenizer(chat_template)
    hf.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    eos = [hf.convert_tokens_to_ids("<|im_end|>")] if "<|im_end|>" in special_tokens else []
    return Tokenizer(hf, eos)


def scripted_engine(
    tokenizer: Tokenizer,
    *,
    max_model_len: int = 8192,
    num_pages: int = 2048,
    max_num_seqs: int = 4,
    cache: CacheSettings = KVFLOW,
) -> tuple[Engine, ScriptedRunner]:
    """Return an engine over a new ScriptedRunner, and that runner."""
    sizes = EngineSizes(
        max_model_len=max_model_len,
        max_waiting=100,
        pool=PoolSpec(1, num_pages + 1, PAGE, 1, 1),
        shapes=BatchShapes.plan(
            max_num_seqs=max_num_seqs,
            max_prefill_tokens=1024,
            tile=TILE,
            page_size=PAGE,
            pages_per_seq=-(-max_model_len // PAGE),
        ),
        cache=cache,
    )
    runner = ScriptedRunner(sizes.pool, sizes.shapes, tokenizer)
    engine = Engine(
        sizes,
        runner,
        WallClock(),
        NoTransfers(),
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids,
        model_name=MODEL,
        seed=0,
    )
    return engine, runner


@contextlib.contextmanager
def scripted_server(
    chat_template: str | None = CHATML,
    special_tokens: Sequence[str] = CHATML_TOKENS,
    *,
    max_model_len: int = 8192,
    num_pages: int = 2048,
    cache: CacheSettings = KVFLOW,
    **settings: object,
) -> Iterator[ScriptedServer]:
    """Yield a ready server of the production engine over a ScriptedRunner; stop it at the end.

    Args:
        settings: of ``ServerConfig``.
    """
    tokenizer = scripted_tokenizer(chat_template, special_tokens)
    engine, runner = scripted_engine(
        tokenizer, max_model_len=max_model_len, num_pages=num_pages, cache=cache
    )
    config = ServerConfig(port=0, load=LoadConfig(MODEL), **settings)
    thread = EngineThread(engine)
    build = (thread, tokenizer, MODEL)
    with running(Server(config, bind("127.0.0.1", 0), lambda config: build)) as url:
        yield ScriptedServer(url, thread, runner, tokenizer)
