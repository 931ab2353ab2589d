"""Environments are built once, and a step that fails is a reason."""

import subprocess
from types import SimpleNamespace

import pytest

from experiments.peers import environment
from experiments.peers.cpu import Cpu
from experiments.peers.environment import Environment, PeerUnavailableError, cmake_options

AVX2 = Cpu("a", (6, 1), ("avx2",))
AMX = Cpu("b", (6, 2), ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8"))


@pytest.fixture
def steps(monkeypatch):
    """Replaces the steps of a build by ones that succeed; returns their commands."""
    commands = []

    def run(command, stdout, **_):
        commands.append(command)
        if "download" in command:
            source = environment.Path(command[command.index("--dest") + 1])
            source.mkdir()
            with environment.tarfile.open(source / "llama.tar.gz", "w:gz") as tar:
                tar.add(environment.__file__, "llama/pyproject.toml")
        stdout.write("no compiler\n")
        return SimpleNamespace(returncode=0)

    fake = SimpleNamespace(run=run, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(environment, "subprocess", fake)
    return commands


def test_llama_cpp_is_built_for_the_cpu_without_amx():
    options = cmake_options(AMX)
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_AVX512_BF16=ON"} <= {*options}
    assert "-DGGML_AVX512_VNNI=ON" not in options
    assert not [option for option in options if "AMX" in option]


def test_another_cpu_gets_another_llama_cpp_but_not_another_vllm(tmp_path):
    of = lambda peer, cpu: Environment.of(peer, tmp_path, cpu).folder  # noqa: E731
    assert of("llama_cpp", AVX2) != of("llama_cpp", AMX)
    assert of("vllm", AVX2) == of("vllm", AMX)


def test_an_environment_is_built_once(steps, tmp_path):
    built = Environment.of("llama_cpp", tmp_path, AVX2)
    built.ensure()
    num_steps = len(steps)
    built.ensure()
    assert len(steps) == num_steps
    assert any("--target" in command for command in steps)
    assert built.libraries.parent == built.folder / "build"


def test_a_failed_step_is_the_reason(steps, monkeypatch, tmp_path):
    succeed = environment.subprocess.run

    def fail(*args, **options):
        succeed(*args, **options)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(environment.subprocess, "run", fail)
    failed = Environment.of("transformers", tmp_path, AVX2)
    with pytest.raises(PeerUnavailableError, match="no compiler"):
        failed.ensure()
    assert not (failed.folder / ".done").exists()
