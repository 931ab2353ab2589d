"""A runner whose KV is the token ids themselves.

Its pool keeps the token id written to each KV slot, and the token it samples is a hash of the whole
sequence as read back through the page table. Any block that is lost, shared wrongly, reused too
early or never written therefore changes the next token, and nothing compiles.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.interfaces import WallClock
from kvflow_jax.sim.fast_forward import FastForwardEngine
from kvflow_jax.speculation.config import NO_SPECULATION

VOCAB = 50
EOS = 7


def next_token(sequence) -> int:
    return zlib.crc32(np.asarray(sequence, np.int32).tobytes()) % VOCAB


def cold_tokens(prompt, max_len, *, ignore_eos=False) -> list[int]:
    """Return the tokens that a request must produce, whatever is in the cache."""
    sequence = list(prompt)
    while len(sequence) < max_len:
        sequence.append(next_token(sequence))
        if sequence[-1] == EOS and not ignore_eos:
            break
    return sequence[len(prompt) :]


def prompt_without_eos(length, seed=0, max_tokens=6) -> list[int]:
    """Return a random prompt whose next ``max_tokens`` tokens are not end-of-text."""
    rng = np.random.default_rng(seed)
    while True:
        prompt = rng.integers(8, VOCAB, length).tolist()
        if EOS not in cold_tokens(prompt, length + max_tokens, ignore_eos=True):
            return prompt


class TokenStep:
    def __init__(self, sampled, error=None):
        self._sampled, self._error = sampled, error

    def result(self):
        if self._error is not None:
            raise self._error
        return self._sampled

    def logprobs(self):
        return None


class TokenRunner:
    """Set ``fail_submit`` or ``fail_result`` to an exception that the next step raises.

    Attributes:
        mask_slot: of the row that is being sampled.
    """

    def __init__(self, spec: PoolSpec, shapes: BatchShapes) -> None:
        self.spec, self.shapes = spec, shapes
        self.fail_submit: Exception | None = None
        self.fail_result: Exception | None = None
        self.is_intact = True
        self.batches: list[Batch] = []
        self.mask_slot = 0
        self.reset()

    def reset(self) -> None:
        self.pool = np.full(self.spec.num_kv_slots, -1, np.int64)
        self.last_tokens = np.full(self.shapes.num_seq_slots, -1, np.int64)
        self.is_intact = True

    def load_sequence_state(self, request) -> None:
        """Do nothing: the sampled token depends on the sequence alone."""

    def set_token_masks(self, mask_slots, masks) -> None:
        """Do nothing: the sampled token depends on the sequence alone."""

    def read_blocks(self, pages) -> np.ndarray:
        return self.pool.reshape(-1, self.spec.page_size)[pages].copy()

    def write_blocks(self, blocks, indices, pages) -> None:
        self.pool.reshape(-1, self.spec.page_size)[pages] = blocks[indices]

    def submit(self, batch: Batch) -> TokenStep:
        if self.fail_submit is not None:
            error, self.fail_submit = self.fail_submit, None
            raise error
        self.batches.append(batch)
        shape, page = batch.shape, self.spec.page_size
        start = 0
        for row in range(shape.num_rows):
            width = 1 if row < shape.num_decode else shape.tile
            tokens = batch.tokens[start : start + width].astype(np.int64)
            start += width
            if row < shape.num_decode and batch.token_source[row] >= 0:
                tokens = self.last_tokens[batch.token_source[row] : batch.token_source[row] + 1]
            count = int(batch.query_len[row])
            slots = self._kv_slots(batch, row, batch.query_start[row] + np.arange(count))
            assert (slots >= page).all(), "the null page was written"
            self.pool[slots] = tokens[:count]
        sampled = np.full(shape.num_rows, -1, np.int32)
        for row in range(shape.num_rows):
            if batch.sampling.seq_slot[row] < self.shapes.num_seq_slots:
                end = int(batch.query_start[row] + batch.query_len[row])
                sequence = self.pool[self._kv_slots(batch, row, np.arange(end))]
                assert (sequence >= 0).all(), "KV was read that no step wrote"
                self.mask_slot = int(batch.sampling.mask_slot[row])
                sampled[row] = self.sample(int(batch.sampling.seq_slot[row]), sequence)
                self.last_tokens[batch.sampling.seq_slot[row]] = sampled[row]
        error, self.fail_result = self.fail_result, None
        return TokenStep(sampled, error)

    def sample(self, seq_slot: int, sequence: np.ndarray) -> int:
        """Return the next token of a sequence (i64[n]), which is in ``seq_slot``."""
        return next_token(sequence)

    def _kv_slots(self, batch, row, positions):
        page = self.spec.page_size
        return batch.page_table[row, positions // page].astype(np.int64) * page + positions % page


class RepeatingTokenRunner(TokenRunner):
    """Runs up to five decode steps as one."""

    def num_repeats(self, batch: Batch, max_repeats: int) -> int:
        return min(max_repeats, 5)

    def submit_repeated(self, batch: Batch, num_repeats: int) -> TokenStep:
        steps = []
        for _ in range(num_repeats):
            steps.append(self.submit(batch))
            batch = replace(batch, ints=batch.ints.copy())
            batch.query_start[batch.query_len > 0] += 1
            batch.token_source[:] = batch.sampling.seq_slot[: batch.shape.num_decode]
            batch.token_source[batch.query_len[: batch.shape.num_decode] == 0] = -1
        errors = [step._error for step in steps if step._error is not None]
        return TokenStep(np.stack([step._sampled for step in steps]), *errors[:1])


class FakeTransfers:
    """Transfers that end when the engine polls or, while ``is_paused``, when the test says so."""

    bytes_per_s = dict.fromkeys(Direction, 1e9)

    def __init__(self) -> None:
        self.in_flight: list[Transfer] = []
        self.done: list[Transfer] = []
        self.is_paused = False
        self.notify = lambda: None

    def submit(self, transfer) -> None:
        self.in_flight.append(transfer)
        transfer.is_issued.set()

    def wait_issued(self, transfer, timeout_s) -> None: ...

    def poll(self) -> list[Transfer]:
        if not self.is_paused:
            self.complete(len(self.in_flight))
        done, self.done = self.done, []
        return done

    def complete(self, count=1, error=None) -> None:
        """Complete the oldest transfers, or fail them with ``error``."""
        for _ in range(min(count, len(self.in_flight))):
            transfer = self.in_flight.pop(0)
            is_void = error is not None or transfer.is_cancelled
            transfer.data = None if is_void else transfer.data.copy()
            transfer.error = error
            self.done.append(transfer)
        self.notify()

    def listen(self, notify) -> None:
        self.notify = notify

    def close(self) -> None: ...


class Client:
    """One request and its outputs, as its caller sees them."""

    def __init__(self, engine: Engine, prompt, *, max_tokens=6, ignore_eos=False, **kw) -> None:
        self.prompt = list(prompt)
        self.max_len = min(len(self.prompt) + max_tokens, engine.sizes.max_model_len)
        self.ignore_eos = ignore_eos
        self.outputs: list[Output] = []
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=ignore_eos)
        spec = RequestSpec(self.prompt, params, **kw)
        engine.check(spec)
        self.id = engine.add(spec, self.outputs.append)

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def reason(self) -> str | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def stats(self):
        return self.outputs[-1].stats

    @property
    def cold(self) -> list[int]:
        return cold_tokens(self.prompt, self.max_len, ignore_eos=self.ignore_eos)


def make_engine(
    *,
    num_pages=32,
    page_size=4,
    max_num_seqs=4,
    max_prefill_tokens=16,
    tile=8,
    max_model_len=64,
    deterministic=False,
    speculation=NO_SPECULATION,
    cache=CacheSettings(),
    clock=None,
    repeats=False,
) -> Engine:
    sizes = EngineSizes(
        max_model_len=max_model_len,
        max_waiting=100,
        pool=PoolSpec(1, num_pages + 1, page_size, 1, 1),
        shapes=BatchShapes.plan(
            max_num_seqs=max_num_seqs,
            max_prefill_tokens=max_prefill_tokens,
            tile=tile,
            page_size=page_size,
            pages_per_seq=-(-max_model_len // page_size),
            deterministic=deterministic,
            min_decode_rows=1 + speculation.num_speculative_tokens,
        ),
        cache=cache,
        speculation=speculation,
    )
    runner = (RepeatingTokenRunner if repeats else TokenRunner)(sizes.pool, sizes.shapes)
    return (FastForwardEngine if repeats else Engine)(
        sizes,
        runner,
        clock or WallClock(),
        FakeTransfers(),
        tokenizer=None,
        vocab_size=VOCAB,
        eos_token_ids=(EOS,),
        model_name="tokens",
        seed=0,
    )


def run(engine: Engine, max_steps=2000) -> None:
    """Step until idle, checking every structure after each step."""
    for _ in range(max_steps):
        if not engine.step() and engine.is_idle:
            return
        engine.check_integrity()
    raise AssertionError("the engine does not become idle")
