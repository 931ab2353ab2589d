"""The table of arms, and the process that measures one."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import child
from experiments.peers.arms import ARMS, Arm, Setup, measure_arm
from experiments.peers.drivers.columns import Plan
from experiments.peers.environment import Environment
from experiments.peers.weights import PeerWeights

OURS = ARMS[0]


@pytest.fixture
def setup(tmp_path):
    environments = {
        name: Environment(name, tmp_path / name) for name in ("vllm", "llama_cpp", "transformers")
    }
    return Setup(environments, PeerWeights(tmp_path / "weights"), "tiny", {"pool_gib": 1.0})


def test_names_are_unique_and_every_precision_has_a_peer():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for precision in ("float32", "bfloat16", "int8"):
        assert {arm.is_ours for arm in ARMS if arm.precision == precision} == {True, False}


def test_each_engine_gets_its_form_of_the_weights(setup):
    models = {arm.name: Path(setup.model_of(arm)).name for arm in ARMS}
    assert models["llama_cpp-Q8_0"] == "Q8_0.gguf"
    assert models["vllm-bfloat16"] == models["transformers-float32"] == "hf"
    assert models["kvflow-int8"] == "tiny"


def test_each_engine_gets_its_variables(setup):
    of = {arm.engine: setup.variables(arm) for arm in ARMS}
    assert of["llama_cpp"]["LLAMA_CPP_LIB_PATH"].endswith("llama_cpp/build/bin")
    assert of["vllm"]["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    openmp = setup.environments["vllm"].folder / "venv" / "lib" / "libiomp5.so"
    openmp.parent.mkdir(parents=True)
    openmp.touch()
    assert setup.variables(Arm("vllm", "a", "float32"))["LD_PRELOAD"] == str(openmp)


def test_every_engine_gets_the_limits(setup):
    limited = replace(setup, limits={"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"})
    for arm in ARMS:
        assert limited.variables(arm)["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Replaces the drivers by a program; the fixture writes it."""

    def write(program):
        package = tmp_path / "experiments" / "peers" / "drivers"
        package.mkdir(parents=True)
        (package / "run_kvflow.py").write_text(program)
        monkeypatch.setattr(child, "ROOT", tmp_path)

    return write


def test_an_arm_is_measured_line_by_line(driver, setup):
    driver("import sys; print('a log'); print('{\"a\": 1}'); print(sys.argv[1])")
    figures = measure_arm(OURS, setup, Plan(), limit_s=60)
    no_drafts = {"num_speculative_tokens": 0}
    llm = {"speculative_config": no_drafts, "pool_gib": 1.0, "dtype": "float32"}
    assert figures == {"a": 1, "model": "tiny", "llm": llm}


def test_an_arm_that_fails_keeps_what_it_measured_and_the_reason(driver, setup):
    driver("print('{\"a\": 1}'); raise TypeError('no argument quantize')")
    figures = measure_arm(OURS, setup, Plan(), limit_s=60)
    assert figures == {"a": 1, "failed": "TypeError: no argument quantize"}
