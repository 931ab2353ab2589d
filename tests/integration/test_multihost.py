"""Two processes on loopback serve one model as one process does, and end as one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from kvflow_jax import LLM, SamplingParams
from tests.integration.sharded_llm import HF
from tests.models import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
OPTIONS = {"num_pages": 10, "max_num_seqs": 2, "max_model_len": 64, "page_size": 8}
OPTIONS["max_num_batched_tokens"] = 16  # cache hits are whole tiles; a prompt has two
OPTIONS["dtype"] = "float32"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.write_folder(tmp_path_factory.mktemp("multihost") / "model", HF))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Pair:
    """Process 0, which serves, and process 1, each with one device and a working directory."""

    def __init__(self, folder, logs, *flags, cwds=(ROOT, ROOT)):
        self.port = free_port()
        coordinator = f"127.0.0.1:{free_port()}"
        self.logs = [logs / f"process-{i}.log" for i in range(2)]
        self.processes = []
        options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        for i, log in enumerate(self.logs):
            command = [sys.executable, "-m", "kvflow_jax.serve", "--model", folder]
            command += ["--tensor-parallel=2", f"--coordinator={coordinator}", "--num-processes=2"]
            command += [f"--process-id={i}", f"--port={self.port}", "--deterministic"]
            env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
            env["PYTHONPATH"] = str(ROOT)
            env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles sooner
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *options, *flags], cwd=cwds[i], env=env, stdout=file, stderr=file
                    )
                )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def wait_ready(self):
        while not self.answers():
            assert self.processes[0].poll() is None, self.log(0)

    def answers(self):
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/ready").status_code == 200
        return False

    def ask(self, prompt):
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "logprobs": 1}
        return self.http.post("/v1/completions", json=body | {"ignore_eos": True})

    def log(self, i):
        return self.logs[i].read_text()

    def codes(self):
        return [process.wait(PATIENCE_S) for process in self.processes]

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.http.close()


@contextlib.contextmanager
def serving(*args):
    with contextlib.closing(Pair(*args)) as pair:
        pair.wait_ready()
        yield pair


def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 250, 40).tolist() for _ in range(4)] * 2


def test_tokens_are_those_of_one_process_and_sigterm_to_a_follower_stops_all(folder, tmp_path):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=1)
    with LLM(folder, cache="gpu-only", deterministic=True, progress=False, **OPTIONS) as alone:
        expected = [alone.generate(prompt, params) for prompt in prompts()]
    flags = ("--cache=hicache", "--host-cache-gib=0.01")
    with serving(folder, tmp_path, *flags) as pair:
        num_host = 0
        for prompt, wanted in zip(prompts(), expected, strict=True):
            answer = pair.ask(prompt).json()
            choice = answer["choices"][0]
            assert choice["text"] == wanted.text
            logprobs = [one.logprob for one in wanted.logprobs]
            np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], logprobs, atol=1e-3)
            num_host += answer["kvflow"]["cached_tokens_details"]["host"]
        assert num_host, "nothing was loaded from the host"
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.codes() == [0, 0], pair.log(0) + pair.log(1)
        assert "draining" in pair.log(0)


def test_models_of_other_shapes_are_refused_before_they_are_made(tmp_path):
    """Two hosts have different models of the same name; serving them as one would hang."""
    hosts = [tmp_path / f"host-{i}" for i in range(2)]
    for i, host in enumerate(hosts):
        hf = HF | {"intermediate_size": HF["intermediate_size"] + 32 * i}
        tiny.write_folder(host / "model", hf)
    with contextlib.closing(Pair("model", tmp_path, "--random-weights", cwds=hosts)) as pair:
        assert pair.codes() == [1, 1], pair.log(0) + pair.log(1)
        for i in range(2):
            assert "process 1 has loaded another model than process 0 (interm" in pair.log(i)


def test_a_follower_that_is_stopped_is_waited_for(folder, tmp_path):
    with serving(folder, tmp_path, "--cache=gpu-only") as pair:
        expected = pair.ask(prompts()[0]).json()["choices"]
        _, follower = pair.processes
        follower.send_signal(signal.SIGSTOP)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(pair.ask(prompts()[0])))
        asking.start()
        with httpx.Client(base_url=pair.http.base_url, timeout=PATIENCE_S) as other:
            while (ready := other.get("/ready")).status_code == 200:
                assert not answers
            assert "process 1 on" in ready.json()["error"]["message"]
            assert other.get("/health").status_code == 200
            follower.send_signal(signal.SIGCONT)
            asking.join(PATIENCE_S)
            assert answers[0].json()["choices"] == expected
            while other.get("/ready").status_code != 200:
                assert follower.poll() is None, pair.log(1)


def test_killing_a_follower_fails_pending_requests_and_ends_the_leader(folder, tmp_path):
    with serving(folder, tmp_path, "--cache=gpu-only") as pair:
        leader, follower = pair.processes
        follower.send_signal(signal.SIGSTOP)  # so that the step stays in flight
        answers = []
        asking = threading.Thread(target=lambda: answers.append(pair.ask(prompts()[0])))
        asking.start()
        with httpx.Client(base_url=pair.http.base_url, timeout=PATIENCE_S) as other:
            while "vllm:num_requests_running{" not in (text := other.get("/metrics").text) or (
                float(text.split("vllm:num_requests_running{")[1].split()[1]) == 0
            ):
                assert leader.poll() is None, pair.log(0)
        follower.kill()
        asking.join(PATIENCE_S)
        assert answers[0].status_code == 500
        assert "process 1" in answers[0].json()["error"]["message"]
        assert leader.wait(PATIENCE_S) == 1
        assert "process 1 on" in pair.log(0)
