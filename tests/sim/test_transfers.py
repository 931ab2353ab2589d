"""Simulated transfers run beside steps, one at a time in each direction."""

import numpy as np
import pytest

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.runtime.batch import Batch, BatchShape
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.runner import SimBlocks, SimRunner
from kvflow_jax.sim.transfers import SimTransfers


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def transfers(clock):
    return SimTransfers(clock, A10G)


@pytest.fixture
def runner(clock):
    return SimRunner(clock, A10G, LLAMA_3_1_8B, block_bytes=1 << 21)


def prefill_batch():
    batch = Batch.empty(BatchShape(16, 0, 128), 64, 4)
    batch.query_start[:], batch.query_len[:] = np.arange(0, 2048, 128), 128
    return batch


def load(num_bytes=1 << 27):
    return Transfer(Direction.LOAD, None, SimBlocks(64, 0.0), num_bytes, 0.0)


def test_transfers_run_beside_steps_and_one_after_the_other(clock, transfers, runner):
    step = runner.submit(prefill_batch())
    both = [load(), load()]
    for transfer in both:
        transfers.submit(transfer)
    step.result()
    assert transfers.poll() == both
    took_s = both[0].finished_s - both[0].started_s
    assert took_s == pytest.approx(A10G.transfer_s(1 << 27))
    assert both[1].started_s == both[0].finished_s
    step_s = A10G.step_s(LLAMA_3_1_8B, prefill_batch())
    assert clock.now() == pytest.approx(A10G.host_s + step_s)


def test_directions_do_not_wait_for_each_other(clock, transfers):
    offload = Transfer(Direction.OFFLOAD, None, SimBlocks(64, 0.0), 1 << 27, 0.0)
    for transfer in (load(), offload):
        transfers.submit(transfer)
    assert offload.started_s == 0.0


def test_an_offload_waits_for_the_step_that_writes_its_blocks(clock, transfers, runner):
    step = runner.submit(prefill_batch())
    blocks = runner.read_blocks(np.arange(4))
    offload = Transfer(Direction.OFFLOAD, None, blocks, 1 << 23, clock.now())
    transfers.submit(offload)
    step.result()
    assert transfers.poll() == []
    assert clock.advance_to_next_event()
    assert transfers.poll() == [offload]
    assert offload.data is not None
    assert offload.finished_s == pytest.approx(blocks.ready_s + A10G.transfer_s(1 << 23))


def test_the_engine_is_notified_of_every_transfer(clock, transfers):
    times = []
    transfers.listen(lambda: times.append(clock.now()))
    submitted = [load(), load()]
    for transfer in submitted:
        transfers.submit(transfer)
        assert transfer.is_issued.is_set()
    while clock.advance_to_next_event():
        pass
    assert times == [transfer.finished_s for transfer in submitted]
    assert transfers.poll() == submitted
    assert transfers.poll() == []
