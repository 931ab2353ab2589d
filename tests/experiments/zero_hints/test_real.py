"""Sessions in real and in virtual time: the command as a whole, the order of arms, pauses."""

import json

import pytest

from experiments.workloads.readers import read_trace
from experiments.workloads.reduction import shortened
from experiments.zero_hints import real
from experiments.zero_hints.real import ARMS, QUICK_CONTEXT, engine_setting, same_order
from tests.experiments.zero_hints.session_files import BLOCK, NEW, NUM_CALLS, write_sessions


@pytest.fixture
def sessions(tmp_path):
    return write_sessions(tmp_path / "sessions")


def test_the_command_plays_every_arm_in_both_modes(sessions, tmp_path, command):
    file = tmp_path / "real.json"
    flags = ("--trace-file", sessions, "--pause-factor", 0, "--quick", "--json", file)
    status, out, _ = command(real, *flags)
    assert status == 0
    results = json.loads(file.read_text())
    assert list(results["arms_played"]) == list(ARMS)
    longest = results["pool_tokens"]
    for arm, played in results["arms_played"].items():
        for mode in ("real", "sim"):
            assert played[mode]["calls"] == 4 * NUM_CALLS, arm
            # At least what is new is computed, at most every prompt as a whole.
            computed = played[mode]["tokens_recomputed"]
            assert 4 * BLOCK * (4 + NEW * (NUM_CALLS - 1)) <= computed <= 12 * longest
        assert f"{arm} " in out
    assert set(results["same_order"]) == {"tokens_recomputed", "completion_mean_s"}


def test_a_trace_that_does_not_fit_is_refused(tmp_path, command):
    session = {
        "id": "long",
        "block_size": QUICK_CONTEXT,
        "requests": [{"t": 0, "in": QUICK_CONTEXT, "out": 1, "hash_ids": [0]}],
    }
    (tmp_path / "long.json").write_text(json.dumps(session))
    with pytest.raises(SystemExit):
        command(real, "--trace-file", tmp_path, "--quick")


def test_a_tier_holds_a_part_of_the_sessions(sessions):
    trace = read_trace(sessions, 300)
    workload = shortened(trace, 0.5)
    setting = engine_setting(workload, is_quick=True)
    ends = 4 * BLOCK * (4 + NEW * (NUM_CALLS - 1))
    assert workload.longest < setting.pool_tokens < ends
    assert setting.host_tokens < ends


def test_arms_that_hardly_differ_may_be_in_either_order():
    def arm(real_tokens, sim_tokens):
        seconds = {"completion_mean_s": 1.0}
        return {
            "real": {"tokens_recomputed": real_tokens, **seconds},
            "sim": {"tokens_recomputed": sim_tokens, **seconds},
        }

    close = same_order({"a": arm(100, 120), "b": arm(101, 110)})
    assert close == {"tokens_recomputed": True, "completion_mean_s": True}
    apart = same_order({"a": arm(100, 120), "b": arm(150, 110)})
    assert apart == {"tokens_recomputed": False, "completion_mean_s": True}
