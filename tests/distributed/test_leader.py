"""The leader sends each call to its followers before it makes the call itself."""

import contextlib

import numpy as np
import pytest

from kvflow_jax.distributed.leader import LeaderRunner, RemoteArrays
from kvflow_jax.distributed.messages import (
    Drop,
    Heartbeat,
    Read,
    Reset,
    Score,
    SetSequenceState,
    SetTokenMasks,
    Submit,
    Write,
)
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.sampler import SequenceState

SHAPES = BatchShapes((BatchShape(0, 2, 8), BatchShape(1, 2, 8)), 8, 8, 4, 3, 2)
STATE = SequenceState(*range(7))


class FakeLeader:
    """Records, in one log, what is sent and what the runner does."""

    def __init__(self):
        self.log = []
        self.failed = []

    def send(self, message):
        self.log.append(message)

    @contextlib.contextmanager
    def lockstep(self):
        try:
            yield
        except Exception as error:
            self.failed.append(error)
            raise

    def block_until_ready(self, array):
        self.log.append(f"wait for {array}")


class FakeStep:
    tokens = "tokens"

    def result(self):
        return [1, 2]

    def logprobs(self):
        return None


class FakeScores:
    class logprobs:  # noqa: N801
        chosen = "scores"

    def result(self):
        return [0.5]


class FakeRunner:
    """Logs the name of each call that it runs."""

    shapes, is_intact = SHAPES, True

    def __init__(self, log):
        self._log = log
        self._results = {
            "submit": FakeStep(),
            "score": [FakeScores()],
            "read_blocks": "blocks",
            "sequence_state": STATE,
        }
        self.error = None

    def __getattr__(self, name):
        def call(*args):
            if self.error is not None:
                raise self.error
            if name != "sequence_state":
                self._log.append(name)
            return self._results.get(name)

        return call


@pytest.fixture
def leader():
    return FakeLeader()


@pytest.fixture
def own(leader):
    return FakeRunner(leader.log)


@pytest.fixture
def runner(leader, own):
    return LeaderRunner(own, leader, RemoteArrays(leader))


def batch_of(shape):
    return Batch.empty(shape, SHAPES.pages_per_seq, SHAPES.num_seq_slots)


def test_a_step_is_sent_with_the_index_of_its_shape_before_it_runs(leader, runner):
    batch = batch_of(SHAPES.shapes[1])
    step = runner.submit(batch)
    sent, ran = leader.log
    assert isinstance(sent, Submit)
    assert (sent.shape_index, ran) == (1, "submit")
    assert sent.ints is batch.ints
    assert step.result() == [1, 2]
    assert step.logprobs() is None
    assert leader.log[-1] == "wait for tokens"  # so that a lost process is noticed


def test_every_call_is_sent_before_it_is_made(leader, runner):
    pages = np.arange(2)
    runner.load_sequence_state("request")
    runner.set_token_masks(pages, pages)
    (scores,) = runner.score(3, pages)
    blocks = runner.read_blocks(pages)
    runner.write_blocks(blocks, pages, pages)
    runner.reset()
    assert leader.log[0::2] == [
        SetSequenceState(vars(STATE)),
        SetTokenMasks(pages, pages),
        Score(3, pages),
        Read(0, pages),
        Write(0, pages, pages),
        Reset(),
    ]
    calls = ["set_sequence_state", "set_token_masks", "score", "read_blocks", "write_blocks"]
    calls.append("reset")
    assert leader.log[1::2] == calls
    assert scores.result() == [0.5]
    assert leader.log[-1] == "wait for scores"
    assert runner.is_intact


@pytest.mark.parametrize(
    "call",
    [
        lambda runner: runner.submit(batch_of(SHAPES.shapes[0])),
        lambda runner: runner.score(0, np.arange(2)),
        lambda runner: runner.read_blocks(np.arange(2)),
        lambda runner: runner.reset(),
    ],
    ids=["submit", "score", "read_blocks", "reset"],
)
def test_a_call_that_fails_on_the_leader_breaks_the_lockstep(leader, own, runner, call):
    own.error = MemoryError("no room")
    with pytest.raises(MemoryError):
        call(runner)
    assert leader.failed == [own.error]


def test_arrays_without_a_reference_are_dropped_with_the_next_message(leader):
    arrays = RemoteArrays(leader)
    first, second = (arrays.add(arrays.next_id(), "shards") for _ in range(2))
    arrays.send(Heartbeat())
    assert leader.log == [Heartbeat()]
    del second
    arrays.drop(7)  # failed on the leader
    arrays.send(Heartbeat())
    assert leader.log[1:] == [Drop([1, 7]), Heartbeat()]
    arrays.send(Heartbeat())
    assert leader.log[3:] == [Heartbeat()]
    assert first.array_id == 0
