from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvflow_jax.errors
from kvflow_jax.config.flag import with_values
from kvflow_jax.distributed.process_config import ProcessConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve import __main__ as serve_main
from kvflow_jax.serve.__main__ import find_process_info, main
from kvflow_jax.serve.config import ServerConfig


def test_missing_packages_are_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "fastapi" else found(name)
    )
    assert main([]) == 1
    message = capsys.readouterr().err
    assert "fastapi not installed" in message
    assert "pip install" in message
    assert "[serve]" in message


def test_a_python_without_the_core_is_told_the_remedy_in_one_line() -> None:
    # Isolated and without site-packages, as the system's Python is.
    checkout = Path(kvflow_jax.errors.__file__).parents[1]
    program = (
        f"import sys; sys.path.insert(0, {str(checkout)!r}); "
        "from kvflow_jax.serve.__main__ import main; sys.exit(main(['--port', '0']))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 1
    (line,) = child.stderr.splitlines()
    assert "numpy, jax, flax" in line
    assert "make serve" in line
    assert f"{sys.executable} -m pip install" in line


def test_without_a_checkout_the_packages_of_the_extra_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kvflow_jax.errors, "__file__", str(tmp_path / "kvflow_jax" / "errors.py"))
    command = serve_main._install_command()
    assert all(f"'{name}>=" in command for name in ("fastapi", "uvicorn", "prometheus-client"))
    assert "pytest" not in command
    assert "extra ==" not in command


def test_a_process_is_single_without_a_coordinator() -> None:
    assert find_process_info(ServerConfig()) is None
    single = ServerConfig(processes=ProcessConfig("127.0.0.1:1", num_processes=1, process_id=0))
    assert find_process_info(single) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"process_id": 1}, "need --coordinator"),
        (
            {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 0},
            "--tensor-parallel 1 leaves processes without a device",
        ),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 0, "tensor_parallel": 2},
            "need a secret: set KVFLOW_COORDINATOR_SECRET or --coordinator-secret-file on each",
        ),
    ],
)
def test_a_group_that_cannot_work_is_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_process_info(with_values(ServerConfig(), settings))


def test_the_secret_of_a_group_is_read_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"coordinator": "h:1", "num_processes": 2, "process_id": 0, "tensor_parallel": 2}
    monkeypatch.setenv("KVFLOW_COORDINATOR_SECRET", "a secret of 24 characters")
    process_info = find_process_info(with_values(ServerConfig(), settings))
    assert process_info is not None
    assert process_info.secret == b"a secret of 24 characters"
    assert "secret of" not in repr(process_info)


@pytest.mark.parametrize(("process_id", "exit_code"), [(0, 10), (1, 11)])
def test_process_0_serves_and_every_other_process_is_a_worker(
    process_id: int, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvflow_jax.serve.server.run", lambda config, build: 10)
    monkeypatch.setattr("kvflow_jax.serve.worker.run_worker", lambda config, process_info: 11)
    flags = "--coordinator 127.0.0.1:1 --num-processes 2 --tensor-parallel 2 --process-id"
    assert main([*flags.split(), str(process_id)]) == exit_code
