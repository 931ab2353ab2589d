"""An engine whose samples follow the token masks of grammars, as those of a model do."""

from __future__ import annotations

import zlib

import numpy as np

from experiments.make_folder import byte_level_tokenizer
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.outputs import FinishReason, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.interfaces import NoTransfers, WallClock
from kvflow_jax.speculation.config import NO_SPECULATION
from tests.support.token_runner import TokenRunner, TokenStep

TOKENIZER = Tokenizer(byte_level_tokenizer())
EOS = TOKENIZER.eos_token_ids[0]
_CLOSING = TOKENIZER.encode('"}]', add_special_tokens=False)


def tokens_of(mask: np.ndarray) -> list[int]:
    """Return the tokens whose bits are set in a mask."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


class MaskedRunner(TokenRunner):
    """Samples a token by the hash of the whole sequence, among those that the mask allows.

    A mask serves one sample: a row whose mask was not set anew has an old one, and fails.
    """

    def reset(self) -> None:
        super().reset()
        self.masks: dict[int, np.ndarray] = {}

    def set_token_masks(self, mask_slots, masks) -> None:
        self.masks |= dict(zip(mask_slots.tolist(), masks, strict=True))

    def submit(self, batch: Batch) -> TokenStep:
        has_grammar, mask_slot = batch.sampling.has_grammar, batch.sampling.mask_slot
        assert sorted(self.masks) == sorted(mask_slot[has_grammar].tolist())
        return super().submit(batch)

    def sample(self, seq_slot: int, sequence: np.ndarray) -> int:
        mask = self.masks.pop(self.mask_slot, None)
        allowed = list(range(256)) if mask is None else tokens_of(mask)
        digest = zlib.crc32(sequence.astype(np.int32).tobytes())
        closing = [token for token in _CLOSING if token in allowed]
        if mask is not None and closing and digest % 3 == 0:
            return closing[0]  # ends what a random choice would not end soon
        return allowed[digest // 3 % len(allowed)]


def make_engine(
    *,
    num_pages=64,
    max_num_seqs=4,
    max_model_len=256,
    deterministic=False,
    speculation=NO_SPECULATION,
    clock=None,
) -> Engine:
    page = 4
    sizes = EngineSizes(
        max_model_len=max_model_len,
        max_waiting=100,
        pool=PoolSpec(1, num_pages + 1, page, 1, 1),
        shapes=BatchShapes.plan(
            max_num_seqs=max_num_seqs,
            max_prefill_tokens=16,
            tile=8,
            page_size=page,
            pages_per_seq=max_model_len // page,
            deterministic=deterministic,
            min_decode_rows=1 + speculation.num_speculative_tokens,
        ),
        cache=CacheSettings(),
        speculation=speculation,
    )
    return Engine(
        sizes,
        MaskedRunner(sizes.pool, sizes.shapes),
        clock or WallClock(),
        NoTransfers(),
        tokenizer=TOKENIZER,
        vocab_size=TOKENIZER.vocab_size,
        eos_token_ids=TOKENIZER.eos_token_ids,
        model_name="masked",
        seed=0,
    )


class Client:
    """One request and its outputs, with a grammar if it has ``structured_outputs``."""

    def __init__(self, engine: Engine, prompt: str, **params) -> None:
        self.params = SamplingParams(**{"temperature": 0.0, "max_tokens": 100} | params)
        self.grammar: Matcher | None = None
        if self.params.structured_outputs is not None:
            self.grammar = engine.compile_grammar(self.params.structured_outputs)
        self.outputs: list[Output] = []
        spec = RequestSpec(TOKENIZER.encode(prompt), self.params, grammar=self.grammar)
        engine.check(spec)
        self.id = engine.add(spec, self.outputs.append)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason


def json_schema(**schema) -> StructuredOutputsParams:
    return StructuredOutputsParams(json=schema)
