"""A follower does what the leader does: after any work, both pools hold the same bits."""

import contextlib
import copy
import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.distributed import follower, process_group, transfers
from kvflow_jax.distributed.follower import Replay
from kvflow_jax.distributed.leader import LeaderRunner, RemoteArrays
from kvflow_jax.distributed.messages import Close
from kvflow_jax.distributed.transfers import LeaderTransfers
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.config import EngineSizes
from kvflow_jax.engine.engine import Engine
from kvflow_jax.errors import HostLostError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.interfaces import WallClock
from tests.distributed import pairs
from tests.runtime.test_runner import Collected
from tests.support.tiny_engine import CONFIG, EXTENTS, RUNNER_POOL, SHAPES

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PENALTY = SamplingParams(
    temperature=0.8, seed=3, max_tokens=6, repetition_penalty=1.3, prompt_logprobs=2, logprobs=2
)
HOST = CacheSettings(offloads_everything=True, num_host_blocks=200, extent_sizes=EXTENTS)


@pytest.fixture
def other(tiny):
    """The follower's runner: the same programs over a pool of its own."""
    runner = copy.copy(tiny.runner)
    runner._state = runner._fresh_state()
    return runner


class Life:
    def __init__(self, tiny, other, leader, follower):
        for runner in (tiny.runner, other):
            runner.reset()
        self.runners = tiny.runner, other
        self.replay = Replay(other, follower)
        self.thread = threading.Thread(target=self.replay.run)
        self.thread.start()
        self.leader, self.remote_arrays = leader, RemoteArrays(leader)
        rates = dict.fromkeys(Direction, 1e9)
        self.woken = threading.Event()
        lanes = LeaderTransfers(leader, self.remote_arrays, rates)
        lanes.listen(self.woken.set)
        self.engine = Engine(
            EngineSizes(
                CONFIG.max_model_len, 1000, replace(RUNNER_POOL, num_pages=41), SHAPES, HOST
            ),
            LeaderRunner(tiny.runner, leader, self.remote_arrays),
            WallClock(),
            lanes,
            tokenizer=None,
            vocab_size=CONFIG.vocab_size,
            seed=0,
        )

    def ask(self, prompt, params=GREEDY):
        asked = Collected(self.engine, prompt, params)
        while not self.engine.is_idle or self.engine.transfer_manager.has_in_flight:
            self.woken.clear()
            # What has landed by this step wakes nobody any more.
            if not self.engine.step() and self.engine.transfer_manager.has_in_flight:
                assert self.woken.wait(30)
        self.engine.check_integrity()
        return asked

    def end(self):
        """Let the follower come to its end, then hold both against each other."""
        self.engine.transfers.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        own, its = (np.asarray(runner._state.pool.data) for runner in self.runners)
        assert own.any()
        np.testing.assert_array_equal(own, its)


@contextlib.contextmanager
def life(tiny, other):
    with pairs.group() as (leader, follower):
        lived = Life(tiny, other, leader, follower)
        try:
            yield lived
        finally:
            # Where the group is broken nobody tells the follower's thread, whose process has ended.
            follower._messages.put(Close())
            lived.engine.transfers.close()
            lived.thread.join(30)


def prompts(count):
    rng = np.random.default_rng(5)
    return [rng.integers(3, CONFIG.vocab_size, 70).tolist() for _ in range(count)]


def test_blocks_go_to_the_host_and_come_back_on_every_process(tiny, other):
    with life(tiny, other) as lived:
        asked = prompts(6)
        for prompt in asked:
            tiny.assert_greedy(prompt, lived.ask(prompt).tokens)
        again = [lived.ask(prompt) for prompt in asked]
        assert sum(one.last.stats.num_cached_host_tokens for one in again) > 0
        for one in again:
            tiny.assert_greedy(one.prompt, one.tokens)
        # What both keep is what the leader's host tier holds, and nothing else.
        extents = lived.engine.cache.residency.host.extents.values()
        held = {extent.data.number for extent in extents}
        lived.ask(asked[0], PENALTY)
        lived.engine.flush_cache()
        lived.ask(asked[1])
        assert held
        lived.end()
        assert not held & lived.replay._kept.keys()


def test_a_copy_that_fails_on_a_follower_is_computed_again(tiny, other, monkeypatch):
    with life(tiny, other) as lived:
        asked = prompts(6)
        for prompt in asked:
            lived.ask(prompt)
        copy_shards = follower.copy_shards

        def fail(array, *, to_host):
            if not to_host:
                raise MemoryError("no room")
            return copy_shards(array, to_host=to_host)

        monkeypatch.setattr(follower, "copy_shards", fail)
        for prompt in asked:
            tiny.assert_greedy(prompt, lived.ask(prompt).tokens)
        assert lived.engine.transfer_manager.links[Direction.LOAD].num_failed
        lived.end()


def test_what_the_leader_could_not_copy_stays_nowhere(tiny, other, monkeypatch):
    with life(tiny, other) as lived:
        asked = prompts(6)
        for prompt in asked:
            lived.ask(prompt)
        copy_shards = transfers.copy_shards
        gc.disable()  # blocks are to go as soon as nobody refers to them
        try:
            with monkeypatch.context() as patched:

                def fail(array, *, to_host):
                    if not to_host:
                        raise MemoryError("no room")
                    return copy_shards(array, to_host=to_host)

                patched.setattr(transfers, "copy_shards", fail)
                for prompt in asked:
                    tiny.assert_greedy(prompt, lived.ask(prompt).tokens)
            assert lived.engine.transfer_manager.links[Direction.LOAD].num_failed
            lived.ask(asked[0], PENALTY)
            lived.engine.flush_cache()
            lived.ask(asked[1], PENALTY)
            held = lived.engine.cache.residency.host.extents.values()
            numbers = {extent.data.number for extent in held}
            lived.end()
            still_to_tell = set(lived.remote_arrays._dropped)
            assert lived.replay._kept.keys() <= numbers | still_to_tell
        finally:
            gc.enable()


def test_a_failure_starts_all_over_alike(tiny, other):
    with life(tiny, other) as lived:
        prompt, *_ = prompts(1)
        lived.ask(prompt)
        lived.engine.fail_all(HostLostError("as if"))
        tiny.assert_greedy(prompt, lived.ask(prompt).tokens)
        lived.end()


def test_a_follower_that_is_gone_fails_who_waits(tiny, other, monkeypatch, caplog):
    monkeypatch.setattr(process_group, "_exit_soon", lambda: None)  # or this process would end
    monkeypatch.setattr(process_group, "exit_now", lambda why: None)
    with life(tiny, other) as lived:
        asked = Collected(lived.engine, prompts(1)[0], GREEDY)
        lived.engine.step()
        lived.woken.clear()
        lived.leader._followers[1][1].close()
        assert lived.woken.wait(30)
        with pytest.raises(HostLostError, match="process 1 on there"):
            lived.engine.step()
        assert asked.last.finish_reason is FinishReason.ERROR
        assert "process 1 on there is gone" in caplog.text
