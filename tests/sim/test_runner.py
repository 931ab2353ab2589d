"""The simulated runner takes the time of the profile, one step after the other."""

import numpy as np
import pytest

from kvflow_jax.runtime.batch import Batch, BatchShape, _Int
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.runner import SimRunner

BLOCK_BYTES = 1 << 21


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def runner(clock):
    return SimRunner(clock, A10G, LLAMA_3_1_8B, BLOCK_BYTES)


def decode_batch(position=100):
    batch = Batch.empty(BatchShape(0, 2, 128), 64, 4)
    batch.query_start[:], batch.query_len[:] = position, 1
    batch.sampling.seq_slot[:] = [0, 1]
    batch.ints[:, _Int.SEED] = [0, 1]
    return batch


def test_a_step_ends_after_host_and_device_time(clock, runner):
    batch = decode_batch()
    step = runner.submit(batch)
    assert clock.now() == A10G.host_s
    tokens = step.result()
    assert clock.now() == pytest.approx(A10G.host_s + A10G.step_s(LLAMA_3_1_8B, batch))
    assert runner.busy_s == pytest.approx(A10G.step_s(LLAMA_3_1_8B, batch))
    assert tokens.shape == (2,)
    assert step.logprobs() is None


def test_host_time_overlaps_with_the_step_before(clock, runner):
    batch = decode_batch()
    steps = [runner.submit(batch) for _ in range(3)]
    steps[-1].result()
    assert clock.now() == pytest.approx(A10G.host_s + 3 * A10G.step_s(LLAMA_3_1_8B, batch))


def test_tokens_depend_on_the_seed_of_the_request_and_the_position_alone(runner):
    first, again, later = (
        runner.submit(decode_batch(position)).result() for position in (100, 100, 101)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != later).all()
    assert first[0] != first[1]
    assert ((first >= 0) & (first < LLAMA_3_1_8B.vocab_size)).all()


def test_repeated_steps_give_the_tokens_of_single_ones(clock, runner):
    repeated = runner.submit_repeated(decode_batch(100), 3).result()
    single = [runner.submit(decode_batch(100 + i)).result() for i in range(3)]
    np.testing.assert_array_equal(repeated, single)


def test_steps_repeat_only_until_the_next_event(clock, runner):
    batch = decode_batch()
    assert runner.num_repeats(batch, 50) == 50
    clock.schedule(10.5 * A10G.step_s(LLAMA_3_1_8B, batch), lambda: None)
    assert 8 <= runner.num_repeats(batch, 50) <= 10
    assert runner.num_repeats(batch, 4) == 4
    clock.schedule(0.0, lambda: None)
    assert runner.num_repeats(batch, 50) == 1


def test_block_copies_occupy_the_device(clock, runner):
    blocks = runner.read_blocks(np.arange(4))
    assert blocks.ready_s == pytest.approx(A10G.copy_s(4 * BLOCK_BYTES))
    runner.write_blocks(blocks, np.arange(2), np.arange(2))
    assert runner.busy_s == pytest.approx(A10G.copy_s(6 * BLOCK_BYTES))


def test_scores_come_in_chunks_for_every_target(runner):
    handles = runner.score(0, np.arange(SCORE_CHUNK_LEN + 3))
    assert [len(handle.result().chosen) for handle in handles] == [SCORE_CHUNK_LEN, 3]
