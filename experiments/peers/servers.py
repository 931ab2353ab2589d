"""The engines' own HTTP servers: their commands, and the agentic loads on them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from experiments.child import ROOT, reason_of
from experiments.peers.arms import Arm, Setup
from experiments.peers.environment import PeerUnavailableError
from experiments.peers.loads import MODEL, Client, Load

HOST = "127.0.0.1"
# The longest request of the loads fits; vLLM's KV memory must hold one of this length.
MAX_MODEL_LEN = 4608
READY_S = 600.0  # that a server may take to start; vLLM compiles at its first start
# Memory for KV beside the pool, for the engines that have such a tier: this one, and llama.cpp's
# cache of prompts.
HOST_GIB = 2


@dataclass(frozen=True)
class ServerSpec:
    """What a server is started with.

    Attributes:
        model: name or path.
        port: of the loopback interface.
        kv_bytes: memory for KV, the same for every server of a load.
        kv_tokens: tokens that fit it.
        num_seqs: prompts that fit it, and requests that run at once.
        flags: further ones of this engine's server.
    """

    model: str
    port: int
    kv_bytes: int
    kv_tokens: int
    num_seqs: int
    flags: Sequence[str] = ()


def kvflow_command(setup: Setup, arm: Arm, spec: ServerSpec) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in arm.options.items()]
    return [
        *(sys.executable, "-m", "kvflow_jax.serve", "--model", spec.model, "--host", HOST),
        *("--port", str(spec.port), "--served-model-name", MODEL),
        *("--pool-gib", str(spec.kv_bytes / 2**30), "--host-cache-gib", str(HOST_GIB)),
        *("--max-num-seqs", str(spec.num_seqs), "--log-level", "warning", *flags, *spec.flags),
    ]


def vllm_command(setup: Setup, arm: Arm, spec: ServerSpec) -> list[str]:
    return [
        *(str(setup.python(arm)), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", spec.model, "--host", HOST, "--port", str(spec.port)),
        *("--served-model-name", MODEL, "--dtype", arm.options["dtype"]),
        *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(spec.num_seqs)),
        *("--max-num-batched-tokens", "4096", "--enable-prefix-caching"),
        *("--kv-cache-memory-bytes", str(spec.kv_bytes)),
    ]


def llama_cpp_command(setup: Setup, arm: Arm, spec: ServerSpec) -> list[str]:
    return [
        str(setup.environments[arm.engine].libraries / "llama-server"),
        *("--model", spec.model, "--host", HOST, "--port", str(spec.port), "--alias", MODEL),
        # Each of its slots has an equal part of the context.
        *("--ctx-size", str(spec.kv_tokens), "--parallel", str(spec.num_seqs)),
        *("--threads", str(os.cpu_count() or 1), "--cache-ram", str(HOST_GIB * 1024)),
        "--no-webui",
    ]


COMMANDS: dict[str, Callable[[Setup, Arm, ServerSpec], list[str]]] = {
    "kvflow": kvflow_command,
    "vllm": vllm_command,
    "llama_cpp": llama_cpp_command,
}
READY_PATHS = {"kvflow": "/ready", "vllm": "/health", "llama_cpp": "/health"}


def run_load(
    arm: Arm,
    setup: Setup,
    load: Load,
    *,
    numbers_per_token: int,
    vocab: tuple[int, int],
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Start an arm's server, put a load on it and end it; return the load's figures.

    Args:
        numbers_per_token: numbers of K and V that the model has for each token.
        vocab: range of the token ids of prompts.
        flags: further ones of this engine's server.

    Returns:
        The load's figures, or ``failed`` with the reason.
    """
    kv_bytes = load.kv_bytes(numbers_per_token)
    spec = ServerSpec(
        model=setup.model_of(arm),
        port=free_port(),
        kv_bytes=kv_bytes,
        kv_tokens=kv_bytes // (numbers_per_token * arm.kv_itemsize),
        num_seqs=load.num_seqs,
        flags=flags,
    )
    url = f"http://{HOST}:{spec.port}"
    command = COMMANDS[arm.engine](setup, arm, spec)
    try:
        with _server(command, setup.variables(arm), url + READY_PATHS[arm.engine]):
            warm = Client(url, vocab)
            warm.complete(list(range(*vocab))[:16], 2)
            return {"kv_bytes": kv_bytes, **load.run(Client(url, vocab))}
    except (PeerUnavailableError, OSError) as error:
        return {"failed": str(error)}


@contextmanager
def _server(command: Sequence[str], variables: dict[str, str], ready_url: str) -> Iterator[None]:
    """Run a server within the context, from when it is ready.

    Raises:
        PeerUnavailableError: it ended, or was not ready in time.
    """
    with tempfile.TemporaryFile("w+") as log:
        # A group of its own: some servers start processes that outlive an interrupt.
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end_s = time.monotonic() + READY_S
            while not _is_ready(ready_url):
                if process.poll() is not None:
                    log.seek(0)
                    raise PeerUnavailableError(reason_of(process.returncode, log.read()))
                if time.monotonic() > end_s:
                    raise PeerUnavailableError(f"its server was not ready in {READY_S:.0f} s")
                time.sleep(0.1)
            yield
        finally:
            _end(process)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:  # not listening, or answering that it loads
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
