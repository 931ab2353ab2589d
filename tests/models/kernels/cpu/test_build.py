"""The build of the CPU kernels, and the cache of built libraries."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvflow_jax.models.kernels.cpu import build, isa
from kvflow_jax.models.loading.builder import default_ops
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.ops import XLA_ON_CPU
from tests.models.families.cases import CONFIGS

HAS_COMPILER = any(map(shutil.which, build.COMPILERS))


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(build, "_library", None)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A compiler that writes an empty file, a loader that accepts it, and what both were given."""
    calls = {"built": [], "loaded": [], "registered": [], "passes": True}

    def compile_(compiler, isa, path):
        calls["built"].append(isa.name)
        path.touch()

    class Library:
        def __init__(self, path):
            calls["loaded"].append(Path(path))

        def __getattr__(self, name):
            return (lambda: 8) if name in ("kvflow_start", "kvflow_lanes") else name

    def register_ffi_target(name, handler, platform):
        calls["registered"].append((name, platform))

    monkeypatch.setattr(build, "COMPILERS", ("sh",))
    monkeypatch.setattr(build, "_build", compile_)
    monkeypatch.setattr(build, "_is_checked", lambda path, features: calls["passes"])
    monkeypatch.setattr(build.ctypes, "CDLL", Library)
    monkeypatch.setattr(build.jax.ffi, "pycapsule", lambda function: function)
    monkeypatch.setattr(build.jax.ffi, "register_ffi_target", register_ffi_target)
    return calls


def test_a_library_is_built_once_and_reused(library, tmp_path, monkeypatch):
    assert build.register(tmp_path)
    assert library["registered"] == [(name, "cpu") for name in build.TARGETS]
    monkeypatch.setattr(build, "_library", None)  # as in another process
    assert build.register(tmp_path)
    assert len(library["built"]) == 1
    first, second = library["loaded"]
    assert first == second
    assert first.parent == tmp_path / "native"


def test_a_process_registers_the_kernels_once(library, tmp_path):
    assert build.register(tmp_path)
    assert build.register(tmp_path)
    assert len(library["loaded"]) == 1


def test_other_flags_build_another_library(library, tmp_path, monkeypatch):
    build.register(tmp_path)
    monkeypatch.setattr(build, "_library", None)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))
    build.register(tmp_path)
    assert len(library["built"]) == len(set(library["loaded"])) == 2


def test_a_library_that_cannot_be_loaded_is_not_used(library, tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise OSError("wrong format")

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    assert not build.register(tmp_path)
    assert "cannot cache or load the CPU kernels, using XLA's: wrong format" in caplog.text


def test_without_a_compiler_xla_computes_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    config = read_config(CONFIGS["llama"] | {"head_dim": 64})
    assert default_ops(config, "float32", tmp_path) == XLA_ON_CPU
    assert "no C++ compiler" in caplog.text


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_a_failed_build_is_logged_and_leaves_no_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    assert not build.register(tmp_path)
    assert "no-such-flag" in caplog.text
    assert not list(tmp_path.rglob("*.so"))


AVX512 = isa.X86[2].features


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instructions")
def test_a_build_that_fails_its_check_gives_way_to_the_next(library, tmp_path, monkeypatch, caplog):
    passed = iter([False, True])
    monkeypatch.setattr(build, "cpu_features", lambda: AVX512)
    monkeypatch.setattr(build, "_is_checked", lambda path, features: next(passed))
    assert build.register(tmp_path).isa.name == "avx2"
    assert "this CPU reports avx512, but cannot compute with it" in caplog.text


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("body", "passes"),
    [("return 1;", True), ("return 0;", False), ("__builtin_trap();", False)],
)
def test_a_check_that_fails_or_ends_its_process_is_not_passed(tmp_path, body, passes):
    source, path = tmp_path / "library.cc", tmp_path / "library.so"
    source.write_text(
        f'extern "C" int kvflow_start() {{ return 1; }} extern "C" int kvflow_check() {{ {body} }}'
    )
    compiler = next(filter(shutil.which, build.COMPILERS))
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", path], check=True)
    for _ in range(2):
        assert build._is_checked(path, frozenset()) == passes
    assert len(list(tmp_path.glob("*.passed"))) == passes


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "found", isa.supported(isa.cpu_features())[1:], ids=lambda found: found.name
)
def test_every_build_that_this_cpu_supports_computes_products(found, tmp_path):
    path = tmp_path / "library.so"
    build._build(next(filter(shutil.which, build.COMPILERS)), found, path)
    assert build._is_checked(path, isa.cpu_features())


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in isa.cpu_features(), reason="needs AVX2")
def test_attention_of_eight_lanes_equals_the_reference():
    """In a process of its own, because a process registers one build."""
    tests = Path(__file__).with_name("test_ops.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow"]
    result = subprocess.run(
        [*command, "-k", "attention_of_ragged", str(tests)],
        env=os.environ | {isa.MAX_ISA: "avx2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:]
