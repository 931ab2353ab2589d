"""The engines and modes that are compared: one table of arms, and how a process measures each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.child import ChildError, run_child
from experiments.modes import MODES, Precision
from experiments.peers.drivers.columns import Plan
from experiments.peers.environment import Environment
from experiments.peers.weights import PeerWeights

KVFLOW = "kvflow"


# The columns are what a step takes; the peers have no drafts either.
_NO_DRAFTS = {"speculative_config": {"num_speculative_tokens": 0}}


@dataclass(frozen=True)
class Arm:
    """An engine in one mode.

    Attributes:
        engine: kvflow, or the name of a peer's environment.
        mode: the engine's own name of what it computes in.
        precision: of the weights; arms of the same one are compared. Float16 counts as bfloat16:
            both have 16 bits.
        options: arguments of ``LLM`` for this engine, ``dtype`` for those that read the folder.
        kv_itemsize: bytes of a number in its KV cache.
        has_server: whether it takes part in the agentic loads.
    """

    engine: str
    mode: str
    precision: Precision
    options: Mapping[str, Any] = field(default_factory=dict)
    kv_itemsize: int = 4
    has_server: bool = False

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.mode}"

    @property
    def is_ours(self) -> bool:
        return self.engine == KVFLOW


ARMS = (
    *(
        Arm(KVFLOW, name, mode.precision, mode.options, mode.kv_itemsize, has_server=True)
        for name, mode in MODES.items()
    ),
    Arm("transformers", "float32", "float32", {"dtype": "float32"}),
    Arm("transformers", "bfloat16", "bfloat16", {"dtype": "bfloat16"}, 2),
    Arm("llama_cpp", "F32", "float32", kv_itemsize=2),
    Arm("llama_cpp", "F16", "bfloat16", kv_itemsize=2),
    Arm("llama_cpp", "Q8_0", "int8", kv_itemsize=2, has_server=True),
    Arm("vllm", "float32", "float32", {"dtype": "float32"}, has_server=True),
    Arm("vllm", "bfloat16", "bfloat16", {"dtype": "bfloat16"}, 2, has_server=True),
)
PEERS = tuple(dict.fromkeys(arm.engine for arm in ARMS if not arm.is_ours))


@dataclass(frozen=True)
class Setup:
    """Where the engines are: their environments by peer, their weights, and this engine's model.

    Attributes:
        environments: of the peers that could be built.
        weights: None: no peer takes part.
        model: ``--model`` of this engine.
        options: further arguments of ``LLM`` in every mode.
        limits: environment variables of every process.
    """

    environments: Mapping[str, Environment]
    weights: PeerWeights | None
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)

    def python(self, arm: Arm) -> Path:
        """Return the interpreter of an arm's engine."""
        return Path(sys.executable) if arm.is_ours else self.environments[arm.engine].python

    def model_of(self, arm: Arm) -> str:
        """Return the model's name or path for an arm."""
        if arm.is_ours:
            return self.model
        assert self.weights is not None
        path = self.weights.gguf(arm.mode) if arm.engine == "llama_cpp" else self.weights.hf
        return str(path)

    def variables(self, arm: Arm) -> dict[str, str]:
        """Return the environment variables of an arm's process."""
        of_engine = ENGINE_VARIABLES.get(arm.engine, _none)(self, arm)
        return {**os.environ, **self.limits, **of_engine}


def _none(setup: Setup, arm: Arm) -> dict[str, str]:
    return {}


def _transformers_variables(setup: Setup, arm: Arm) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}


def _llama_cpp_variables(setup: Setup, arm: Arm) -> dict[str, str]:
    return {"LLAMA_CPP_LIB_PATH": str(setup.environments[arm.engine].libraries)}


def _vllm_variables(setup: Setup, arm: Arm) -> dict[str, str]:
    folder = setup.environments[arm.engine].folder
    openmp = folder / "venv" / "lib" / "libiomp5.so"
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        # All cores for the products: with its defaults vLLM leaves one of two to the host.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        # Its compiled programs are linked with Intel's OpenMP.
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


ENGINE_VARIABLES: dict[str, Callable[[Setup, Arm], dict[str, str]]] = {
    "transformers": _transformers_variables,
    "llama_cpp": _llama_cpp_variables,
    "vllm": _vllm_variables,
}


def measure_arm(arm: Arm, setup: Setup, plan: Plan, limit_s: float) -> dict[str, Any]:
    """Measure the columns of an arm in a process of its own.

    Returns:
        The figures by column, and ``failed`` with the reason if some are missing.
    """
    options = {"model": setup.model_of(arm), **arm.options}
    if arm.is_ours:
        options = {"model": setup.model, "llm": {**_NO_DRAFTS, **setup.options, **arm.options}}
    driver = f"experiments.peers.drivers.run_{arm.engine}"
    command = [str(setup.python(arm)), "-m", driver, json.dumps(options), json.dumps(asdict(plan))]
    try:
        return dict(run_child(command, limit_s, setup.variables(arm)))
    except ChildError as error:
        return {**error.figures, "failed": str(error)}
