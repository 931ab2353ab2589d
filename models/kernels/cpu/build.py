"""Build of the kernels with the machine's C++ compiler, and a cache of the built libraries."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from importlib import metadata
from pathlib import Path

import jax

log = logging.getLogger(__name__)

COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
    "-w",
)
TARGETS = ("kvflow_linear", "kvflow_decode_attention", "kvflow_tile_attention")
_SOURCES = Path(__file__).parent

_lock = threading.Lock()
_is_registered = False  # a process can register a name only once


def register(cache_dir: Path) -> bool:
    """Register the kernels with JAX, and build them first if they are not in the cache.

    Args:
        cache_dir: cache of libraries, keyed by their sources, compiler and CPU.

    Returns:
        False if the kernels cannot be built or loaded; the reason is logged.
    """
    global _is_registered
    with _lock:
        _is_registered = _is_registered or _register(cache_dir)
        return _is_registered


def _register(cache_dir: Path) -> bool:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning(
            "no C++ compiler (%s) found: this CPU decodes at XLA's speed, up to 2 times slower; "
            "install a compiler and restart",
            ", ".join(COMPILERS),
        )
        return False
    path = cache_dir / "native" / f"{_key(compiler)}.so"
    try:
        if not path.exists():
            _build(compiler, path)
        library = ctypes.CDLL(str(path))
        # For the removal of the entries of the cache that were not used for longest.
        with contextlib.suppress(OSError):
            os.utime(path)
    except subprocess.CalledProcessError as error:
        log.warning("cannot build the CPU kernels, using XLA's: %s", error.stderr)
        return False
    except OSError as error:
        log.warning("cannot cache or load the CPU kernels, using XLA's: %s", error)
        return False
    for name in TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True


def _build(compiler: str, path: Path) -> None:
    log.info("building the CPU kernels with %s; later starts reuse the library", compiler)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Build a temporary file and rename it: another process may build the same library.
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [
                compiler,
                *FLAGS,
                "-isystem",
                jax.ffi.include_dir(),
                str(_SOURCES / "kernels.cc"),
                "-o",
                scratch,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _key(compiler: str) -> str:
    """Return the name of a library: a digest of sources, compiler, JAX's headers and CPU kind."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Feat"))})
    parts = [version.stdout, metadata.version("jaxlib"), platform.machine(), *features, *FLAGS]
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(_SOURCES.glob("*.h")) + sorted(_SOURCES.glob("*.cc")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]
