"""Build of the kernels with the machine's C++ compiler, and a cache of the built libraries."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import jax

from kvflow_jax.models.kernels.cpu.isa import InstructionSet, cpu_features, supported
from kvflow_jax.models.kernels.cpu.library_cache import cached_library, own_folder

log = logging.getLogger(__name__)

COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
    "-w",
)
FORMATS = ("float32", "bfloat16", "int8", "int4", "int8_few_rows", "int4_few_rows")
TARGETS = (
    "kvflow_rms_norm",
    *(f"kvflow_{kind}_{name}" for kind in ("linear", "linear_add", "gated") for name in FORMATS),
    *(
        f"kvflow_{kind}_{name}"
        for kind in ("store_kv", "decode_attention", "tile_attention")
        for name in ("float32", "bfloat16")
    ),
)
CHECK_TIMEOUT_S = 60.0
_SOURCES = Path(__file__).parent

_lock = threading.Lock()
_library: Library | None = None  # a process can register a name only once


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded build of the kernels.

    Attributes:
        lanes: floats of a vector.
    """

    isa: InstructionSet
    lanes: int


def register(cache_dir: Path) -> Library | None:
    """Register the kernels with JAX, and build them first if they are not in the cache.

    The fastest build is used that this CPU reports and that passes its check. The check runs in a
    process of its own, because a CPU may report instructions that end the process.

    Args:
        cache_dir: cache of libraries, keyed by their sources, compiler and instruction set.

    Returns:
        None if the kernels cannot be built or loaded; the reason is logged.
    """
    global _library
    with _lock:
        _library = _library or _register(cache_dir / "native")
        return _library


def _register(folder: Path) -> Library | None:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning(
            "no C++ compiler (%s) found: this CPU computes at XLA's speed, several times slower; "
            "install a compiler and restart",
            ", ".join(COMPILERS),
        )
        return None
    features = cpu_features()
    for isa in supported(features):
        try:
            folder = own_folder(folder)
            path = cached_library(folder, _key(compiler, isa), partial(_build, compiler, isa))
            if not _is_checked(path, features):
                log.warning("this CPU reports %s, but cannot compute with it", isa.name)
                continue
            library = ctypes.CDLL(str(path))
            # For the removal of the entries of the cache that were not used for longest.
            with contextlib.suppress(OSError):
                os.utime(path)
        except subprocess.CalledProcessError as error:
            log.warning("cannot build the CPU kernels for %s: %s", isa.name, error.stderr)
            continue
        except OSError as error:
            log.warning("cannot cache or load the CPU kernels, using XLA's: %s", error)
            return None
        if not library.kvflow_start():
            log.warning("the operating system does not let this process use %s", isa.name)
            continue
        for name in TARGETS:
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
        log.info("CPU kernels: %s", isa.name)
        return Library(isa, int(library.kvflow_lanes()))
    return None


def _is_checked(path: Path, features: frozenset[str]) -> bool:
    """True if the library computes correctly on this CPU; the answer is kept beside it."""
    cpu = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:12]
    passed = path.with_suffix(f".{cpu}.passed")
    if passed.exists():
        return True
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); "
        "sys.exit(not (library.kvflow_start() and library.kvflow_check()))"
    )
    command = [sys.executable, "-I", "-c", code, str(path)]
    try:
        result = subprocess.run(command, timeout=CHECK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    if result.returncode == 0:
        passed.touch()
    return result.returncode == 0


def _build(compiler: str, isa: InstructionSet, path: Path) -> None:
    """Write the library to a file.

    Raises:
        CalledProcessError: it cannot be built; has the compiler's errors.
    """
    log.info("building the CPU kernels with %s; later starts reuse the library", compiler)
    headers = ["-isystem", jax.ffi.include_dir()]
    command = [
        compiler,
        *FLAGS,
        *isa.flags,
        *headers,
        str(_SOURCES / "kernels.cc"),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _key(compiler: str, isa: InstructionSet) -> str:
    """Return the key of a library: a digest of sources, compiler, JAX's headers and flags."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    parts = [version.stdout, metadata.version("jaxlib"), *FLAGS, *isa.flags]
    if not isa.features:  # flags that stand for this CPU
        parts += sorted(cpu_features())
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(_SOURCES.glob("*.h")) + sorted(_SOURCES.glob("*.cc")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]
