"""Runs of several processes equal those of one; if a process dies, all others end."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kvflow_jax.errors import ConfigError, HostLostError
from kvflow_jax.minimax import DAdaST, exponential, over_axis, simplex
from kvflow_jax.minimax.processes import join, peer_errors
from tests.minimax import mesh_steps, process_steps

NUM_PROCESSES = 4
TIMEOUT_S = 240  # many times what it takes


def play(file, arguments_of):
    """Run all processes; return their exit statuses and stderr, by process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.minimax.process_steps"),
                *(coordinator, str(NUM_PROCESSES), str(i), str(file), *arguments_of(i)),
            ],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(NUM_PROCESSES)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_four_processes_step_as_one_does(tmp_path):
    statuses, errors = play(tmp_path / "final", lambda i: ())
    assert statuses == [0] * NUM_PROCESSES, errors
    run = over_axis(
        DAdaST(gamma_x=0.3, gamma_y=0.3),
        exponential(mesh_steps.NUM_NODES),
        mesh_steps.gradients,
        steps=process_steps.STEPS,
        project=simplex,
    )
    final, _ = run(*mesh_steps.inputs_of_all_nodes())
    parts = [np.load(tmp_path / f"final.{i}.npz") for i in range(NUM_PROCESSES)]
    expected = jax.tree.leaves((final.x, final.y))
    largest = max(float(np.abs(leaf).max()) for leaf in expected)
    for name, leaf in zip(parts[0].files, expected, strict=True):
        ours = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=2e-6 * largest)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    def arguments_of(i):
        return ("--runs", "3", "--dies-after", "1") if i == 2 else ("--runs", "3")

    statuses, errors = play(tmp_path / "final", arguments_of)
    assert statuses[2] == 3
    assert all(status != 0 for status in statuses), errors
    # JAX may end a process before it reports, but not all of those that were connected.
    told = "lost another one: start all of them again, from the last checkpoint"
    assert any("HostLostError" in text and told in text for text in errors), errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 2, 2), "process_id must be from 0 to num_processes - 1"),
        (("127.0.0.1:1", 0, 0), "num_processes = 0"),
        (("127.0.0.1:1", 2, -1), "process_id = -1"),
    ],
)
def test_a_process_has_a_place_among_the_others(arguments, message):
    with pytest.raises(ConfigError, match=message):
        join(*arguments)


@pytest.mark.parametrize("timeout_s", [0, float("nan"), float("inf"), 1e12])
def test_a_timeout_is_a_second_or_more_and_has_an_end(timeout_s):
    with pytest.raises(ConfigError, match=re.escape(f"at most 1000000, not {timeout_s}")):
        join("127.0.0.1:1", 2, 0, timeout_s=timeout_s)


@pytest.mark.parametrize("coordinator", ["", "host", ":1", "host:", "host:one", "host:70000"])
def test_a_coordinator_is_a_host_and_a_port(coordinator):
    with pytest.raises(ConfigError, match=f"the coordinator is HOST:PORT, not '{coordinator}'"):
        join(coordinator, 2, 0)


def test_processes_meet_before_jax_is_used(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("initialize() must be called before any JAX calls")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ConfigError, match=r"cannot join .* before any other use of JAX"):
        join("127.0.0.1:1", 2, 0)


def test_an_error_of_one_process_alone_is_its_own(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), peer_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    lost = pytest.raises(HostLostError, match=r"of 3 lost another one: .* INTERNAL: broken")
    with lost, peer_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: broken\nand more")
