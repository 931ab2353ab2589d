"""Which process this is: from flags, or from the cluster."""

import pytest

from kvflow_jax.distributed.process_info import ProcessInfo, is_loopback
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.__main__ import main


@pytest.mark.parametrize(
    ("coordinator", "host"),
    [("here:8000", "here"), ("[::1]:8000", "::1"), ("10.0.0.1:8000", "10.0.0.1")],
)
def test_the_coordinator_is_a_host_and_a_port(coordinator, host):
    assert ProcessInfo.find(coordinator, 4, 3) == ProcessInfo(host, 8000, 4, 3)


@pytest.mark.parametrize("port", ["0", "65536", "http", ""])
def test_a_port_must_be_one_that_can_be_connected_to(port):
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        ProcessInfo.find(f"here:{port}", 2, 1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--process-id 1", "need --coordinator"),
        ("--coordinator here:1 --process-id 1", "needs --num-processes and --process-id"),
        ("--coordinator here --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator a..b:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        (f"--coordinator {'a' * 64}:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator []:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator here:1 --num-processes 2 --process-id 2", "must be 0 to 1"),
        ("--coordinator here:1 --num-processes 2 --process-id 1", "at least --num-processes, 2"),
        ("--coordinator auto", "no cluster"),
    ],
)
def test_flags_that_make_no_group_are_refused_in_one_line(flags, reason, capsys):
    assert main(flags.split()) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1


def test_a_cluster_knows_which_process_this_is(monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "tpu[3-4]", "NTASKS": "2", "PROCID": "1"}
    for name, value in (slurm | {"LOCALID": "0", "STEP_NUM_NODES": "2"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    info = ProcessInfo.find("auto")
    assert (info.host, info.num_processes, info.process_id) == ("tpu3", 2, 1)
    assert list(info.devices) == [0]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_hosts(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::", "0.0.0.0", "tpu3"])
def test_other_hosts(host):
    assert not is_loopback(host)
