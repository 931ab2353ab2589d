"""Folders as a user has them: made by the script, served from the command line, requested through
the OpenAI client."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file

from experiments import make_folder
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import tiny
from tests.models.families.cases import EXPECTED
from tests.models.families.expected import GREEDY_PROMPT, NUM_GREEDY, PROMPT, TOLERANCE

pytestmark = pytest.mark.slow

PAGE = 16
PATIENCE_S = 300
MESSAGES = [
    {"role": "system", "content": "You are the planner of a small team; be brief."},
    {"role": "user", "content": "Plan the day."},
]
HINTS = {
    "workflow_id": "run",
    "agent_id": "planner",
    "step_graph": {"edges": [{"source": "planner", "target": "writer"}]},
}


def start(folder: Path, cache_dir: Path) -> subprocess.Popen[str]:
    flags = f"--model {folder} --served-model-name tiny --port 0 --dtype float32 "
    flags += f"--cache-dir {cache_dir} "
    flags += "--num-pages 64 --max-num-seqs 1 --max-num-batched-tokens 16 --host-cache-gib 0"
    command = [sys.executable, "-m", "kvflow_jax.serve", *flags.split()]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


@contextmanager
def served(folder: Path, cache_dir: Path) -> Iterator[openai.OpenAI]:
    """A client of a server process that is ready; Ctrl-C drains it."""
    with start(folder, cache_dir) as process:
        try:
            assert process.stderr is not None
            url = url_of(process.stderr)
            with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
                yield client
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def url_of(stderr: IO[str]) -> str:
    lines = []
    for line in stderr:
        lines.append(line)
        if "ready after" in line:
            return line.split()[-1]
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / family
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_folder", family, str(folder), "--shards", "2"])
        assert make_folder.main() == 0
    return folder


@pytest.fixture(scope="module")
def client(folder, cache_dir):
    with served(folder, cache_dir) as client:
        yield client


def chat(client, **more):
    return client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_tokens=40,
        extra_body={"agent_hints": HINTS, "ignore_eos": True},
        **more,
    )


def test_a_chat_whole_streamed_and_again(client):
    first = chat(client)
    text, usage = first.choices[0].message.content, first.usage
    assert usage.completion_tokens == 40
    assert usage.prompt_tokens > 5 * PAGE  # and seven of Gemma's windows
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert first.kvflow["hint_status"] == "applied"

    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    whole_pages = (usage.prompt_tokens - 1) // PAGE * PAGE  # one token is computed always
    assert last.usage.prompt_tokens_details.cached_tokens == whole_pages

    again = chat(client)
    assert again.choices[0].message.content == text
    assert again.usage.prompt_tokens_details.cached_tokens == whole_pages
    assert again.kvflow["hint_status"] == "applied"


def test_probabilities_are_those_of_the_model(client, folder):
    """Of a prompt of five of Gemma's windows."""
    answer = client.completions.create(
        model="tiny", prompt=PROMPT.tolist(), max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    scores = answer.choices[0].prompt_logprobs
    logits = tiny.logits_of(folder, PROMPT)
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    for position, following in enumerate(PROMPT[1:].tolist()):
        found = scores[position + 1][str(following)]["logprob"]
        assert found == pytest.approx(expected[position, following], abs=TOLERANCE)


def test_greedy_answers_are_those_of_transformers(client, family):
    tokenizer = Tokenizer(tiny.byte_level_tokenizer())
    stream = tokenizer.detokenizer()
    expected = stream.push(EXPECTED[family].greedy) + stream.flush()
    for _ in range(2):  # cold and cached
        answer = client.completions.create(
            model="tiny",
            prompt=PROMPT[:GREEDY_PROMPT].tolist(),
            temperature=0,
            max_tokens=NUM_GREEDY,
            extra_body={"ignore_eos": True},
        )
        assert answer.choices[0].text == expected
    assert answer.usage.prompt_tokens_details.cached_tokens == GREEDY_PROMPT // PAGE * PAGE


def test_all_problems_of_a_folder_are_reported_at_once(tmp_path, cache_dir):
    folder = tiny.write_folder(
        tmp_path / "broken", make_folder.FAMILIES["gemma3"].tiny, tokenizer=False
    )
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((96, 63), np.float32)
    tensors["model.layers.4.mlp.up_proj.weight"] = np.zeros((96, 64), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with start(folder, cache_dir) as process:
        _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Traceback" not in output
    _, message = output.split(f"cannot start: cannot load {folder}:\n")
    problems = [line for line in message.splitlines() if line.startswith("- ")]
    assert len(problems) == 4
    for problem in (
        "has no tokenizer.json; download it",
        "missing tensor model.norm.weight",
        "model.layers.1.mlp.up_proj.weight: expected shape [96, 64], found [96, 63]",
        "unexpected tensor model.layers.4.mlp.up_proj.weight [96, 64]",
    ):
        assert problem in message
