"""The models that agents are played against, each behind a server of production code."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from experiments.make_folder import write_folder
from kvflow_jax.models.families.base import TINY_LLAMA
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.serve.command_line import parse_config
from kvflow_jax.serve.launch import build_engine
from kvflow_jax.serve.server import Server, bind
from tests.agents.agent import Agent
from tests.agents.agents import MODEL
from tests.support.scripted_runner import ScriptedRunner, scripted_server
from tests.support.served import running

# A byte is a token of the scripted model, so that the largest first prompt has 120 thousand.
SCRIPTED_CONTEXT = 1 << 19
RANDOM_CONTEXT = 1 << 15
# Of an answer of the embedded model, so that the session stays within its context.
EMBEDDED_ANSWER_TOKENS = 48
# Mean length of a random answer: one in so many tokens ends it. Some agents ask on and on for the
# rest of an answer that is cut.
RANDOM_ANSWER_TOKENS = 64
RANDOM_LLAMA = {**TINY_LLAMA, "num_hidden_layers": 2, "max_position_embeddings": RANDOM_CONTEXT}


@dataclass
class ServedModel:
    """A server, by its URL without /v1, and the runner that answers by script; None: an engine."""

    url: str
    runner: ScriptedRunner | None = None

    def cast(self, agent: Agent, folder: str) -> None:
        """Let a scripted model answer as an agent's that works in a folder."""
        if self.runner is not None:
            self.runner.answer = lambda prompt: agent.answer(prompt, folder)


@contextlib.contextmanager
def serve_scripted() -> Iterator[ServedModel]:
    num_pages = SCRIPTED_CONTEXT // 16 + 4096
    with scripted_server(max_model_len=SCRIPTED_CONTEXT, num_pages=num_pages) as server:
        yield ServedModel(server.url, server.runner)


@contextlib.contextmanager
def serve_embedded() -> Iterator[ServedModel]:
    with _serve(EMBEDDED_ANSWER_TOKENS, "--pool-gib", "1") as server:
        yield server


@contextlib.contextmanager
def serve_random() -> Iterator[ServedModel]:
    """Serve two small layers of random weights, with the tokenizer of the embedded model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "random"
        tokenizer = GgufFile(embedded.locate()).tokenizer()
        hf = {**RANDOM_LLAMA, "vocab_size": len(tokenizer)}
        ends = [*range(0, len(tokenizer), RANDOM_ANSWER_TOKENS)]
        hf |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends}
        write_folder(folder, hf, tokenizer=False)
        tokenizer.save_pretrained(folder)
        flags = ("--model", str(folder), "--num-pages", str(4 * RANDOM_CONTEXT // 16))
        with _serve(8 * RANDOM_ANSWER_TOKENS, *flags) as server:
            yield server


@contextlib.contextmanager
def _serve(max_new_tokens: int, *flags: str) -> Iterator[ServedModel]:
    with tempfile.TemporaryDirectory() as folder:
        bound = {"max_new_tokens": max_new_tokens}
        (Path(folder) / "generation_config.json").write_text(json.dumps(bound))
        own = ("--port", "0", "--max-num-seqs", "4", "--served-model-name", MODEL)
        config = parse_config([*own, "--generation-config", folder, *flags])
        with running(Server(config, bind("127.0.0.1", 0), build_engine)) as url:
            yield ServedModel(url)


SERVED_MODELS: dict[str, Callable[[], AbstractContextManager[ServedModel]]] = {
    "scripted": serve_scripted,
    "embedded": serve_embedded,
    "random": serve_random,
}
