"""A follower replays the leader's calls: after any work, both pools hold the same bits."""

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
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
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


class PairOfProcesses:
    """A leader's engine and a follower's replay, each with its own runner."""

    def __init__(self, tiny, other, leader, follower):
        for runner in (tiny.runner, other):
            runner.reset()
        self.runners = tiny.runner, other
        self.replay = Replay(other, follower)
        self.thread = threading.Thread(target=self.replay.run)
        self.thread.start()
        self.leader, self.remote_arrays = leader, RemoteArrays(leader)
        rates = dict.fromkeys(Direction, 1e9)
        self.is_notified = threading.Event()
        leader_transfers = LeaderTransfers(leader, self.remote_arrays, rates)
        leader_transfers.listen(self.is_notified.set)
        self.engine = Engine(
            EngineSizes(
                CONFIG.max_model_len, 1000, replace(RUNNER_POOL, num_pages=41), SHAPES, HOST
            ),
            LeaderRunner(tiny.runner, leader, self.remote_arrays),
            WallClock(),
            leader_transfers,
            tokenizer=None,
            vocab_size=CONFIG.vocab_size,
            seed=0,
        )

    def ask(self, prompt, params=GREEDY):
        asked = Collected(self.engine, prompt, params)
        while not self.engine.is_idle or self.engine.transfer_manager.has_in_flight:
            self.is_notified.clear()
            # A transfer that was done before this step sends no notification.
            if not self.engine.step() and self.engine.transfer_manager.has_in_flight:
                assert self.is_notified.wait(30)
        self.engine.check_integrity()
        return asked

    def end(self):
        """Close the group, then compare the two pools."""
        self.engine.transfers.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        leaders, followers = (np.asarray(runner._state.pool.data) for runner in self.runners)
        assert leaders.any()
        np.testing.assert_array_equal(leaders, followers)


@contextlib.contextmanager
def pair_of_processes(tiny, other):
    with pairs.group() as (leader, follower):
        pair = PairOfProcesses(tiny, other, leader, follower)
        try:
            yield pair
        finally:
            # In a broken group no message ends the follower's thread: its process has exited.
            follower._messages.put(Close())
            pair.engine.transfers.close()
            pair.thread.join(30)


def prompts(count):
    rng = np.random.default_rng(5)
    return [rng.integers(3, CONFIG.vocab_size, 70).tolist() for _ in range(count)]


def test_blocks_are_offloaded_and_loaded_on_every_process(tiny, other):
    with pair_of_processes(tiny, other) as pair:
        asked = prompts(6)
        for prompt in asked:
            tiny.assert_greedy(prompt, pair.ask(prompt).tokens)
        again = [pair.ask(prompt) for prompt in asked]
        assert sum(one.last.stats.num_cached_host_tokens for one in again) > 0
        for one in again:
            tiny.assert_greedy(one.prompt, one.tokens)
        # Followers keep the arrays of the leader's host tier, and no others.
        extents = pair.engine.cache._residency.host.extents.values()
        host_ids = {extent.data.array_id for extent in extents}
        pair.ask(asked[0], PENALTY)
        pair.engine.flush_cache()
        pair.ask(asked[1])
        assert host_ids
        pair.end()
        assert not host_ids & pair.replay._arrays.keys()


def test_blocks_whose_copy_fails_on_a_follower_are_recomputed(tiny, other, monkeypatch):
    with pair_of_processes(tiny, other) as pair:
        asked = prompts(6)
        for prompt in asked:
            pair.ask(prompt)
        copy_shards = follower.copy_shards

        def fail(array, *, to_host):
            if not to_host:
                raise MemoryError("no room")
            return copy_shards(array, to_host=to_host)

        monkeypatch.setattr(follower, "copy_shards", fail)
        for prompt in asked:
            tiny.assert_greedy(prompt, pair.ask(prompt).tokens)
        assert pair.engine.transfer_manager.links[Direction.LOAD].num_failed
        pair.end()


def test_blocks_that_the_leader_could_not_copy_are_dropped_by_followers(tiny, other, monkeypatch):
    with pair_of_processes(tiny, other) as pair:
        asked = prompts(6)
        for prompt in asked:
            pair.ask(prompt)
        copy_shards = transfers.copy_shards
        gc.disable()  # arrays must be dropped by reference counting alone
        try:
            with monkeypatch.context() as patched:

                def fail(array, *, to_host):
                    if not to_host:
                        raise MemoryError("no room")
                    return copy_shards(array, to_host=to_host)

                patched.setattr(transfers, "copy_shards", fail)
                for prompt in asked:
                    tiny.assert_greedy(prompt, pair.ask(prompt).tokens)
            assert pair.engine.transfer_manager.links[Direction.LOAD].num_failed
            pair.ask(asked[0], PENALTY)
            pair.engine.flush_cache()
            pair.ask(asked[1], PENALTY)
            extents = pair.engine.cache._residency.host.extents.values()
            host_ids = {extent.data.array_id for extent in extents}
            pair.end()
            not_yet_sent = set(pair.remote_arrays._dropped)
            assert pair.replay._arrays.keys() <= host_ids | not_yet_sent
        finally:
            gc.enable()


def test_a_failed_step_resets_the_pools_of_all_processes(tiny, other):
    with pair_of_processes(tiny, other) as pair:
        prompt, *_ = prompts(1)
        pair.ask(prompt)
        pair.engine.fail_all(HostLostError("simulated"))
        tiny.assert_greedy(prompt, pair.ask(prompt).tokens)
        pair.end()


def test_a_follower_that_is_gone_fails_the_waiting_requests(tiny, other, monkeypatch, caplog):
    monkeypatch.setattr(process_group, "_exit_soon", lambda: None)  # would end this process
    monkeypatch.setattr(process_group, "exit_now", lambda why: None)
    with pair_of_processes(tiny, other) as pair:
        asked = Collected(pair.engine, prompts(1)[0], GREEDY)
        pair.engine.step()
        pair.is_notified.clear()
        pair.leader._followers[1][1].close()
        assert pair.is_notified.wait(30)
        with pytest.raises(HostLostError, match="process 1 on there"):
            pair.engine.step()
        assert asked.last.finish_reason is FinishReason.ERROR
        assert "process 1 on there is gone" in caplog.text
