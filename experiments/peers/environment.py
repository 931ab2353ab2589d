"""The peers' virtual environments, each built once and kept in the cache folder.

    <cache>/peers/<peer>-<digest>/venv/     Python with the pinned packages
                                  build/    llama.cpp alone: its server and its libraries
                                  build.log
                                  .done     the environment is complete

The digest is of all that the build depends on. A changed pin, or another CPU for llama.cpp, gets
another environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.peers.cpu import Cpu
from kvflow_jax.errors import KVFlowError

REQUIREMENTS = Path(__file__).parent / "requirements"
LLAMA_CPP = "llama-cpp-python==0.3.36"
# Flag of the CPU -> option of llama.cpp's build. AMX is left out: its kernels end in an illegal
# instruction on virtual machines that have the flag.
GGML_OPTIONS = {
    "avx2": ("GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2"),
    "avx512f": ("GGML_AVX512",),
    "avx512vbmi": ("GGML_AVX512_VBMI",),
    "avx512_vnni": ("GGML_AVX512_VNNI",),
    "avx512_bf16": ("GGML_AVX512_BF16",),
}


class PeerUnavailableError(KVFlowError):
    """A peer cannot be built or run here; the message is the reason that is printed."""


@dataclass(frozen=True)
class Environment:
    """A peer's environment.

    Attributes:
        peer: name of the peer, and of its file of pinned packages.
        folder: where it is kept.
        cmake_options: of llama.cpp's build; empty for peers without one.
    """

    peer: str
    folder: Path
    cmake_options: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, peer: str, cache_dir: Path, cpu: Cpu) -> Environment:
        """Return the environment of a peer for a CPU, built or not."""
        options = cmake_options(cpu) if peer == "llama_cpp" else ()
        pins = (REQUIREMENTS / f"{peer}.txt").read_text()
        parts = (pins, *options, f"{sys.version_info[:2]}", LLAMA_CPP if options else "")
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        return cls(peer, cache_dir / "peers" / f"{peer}-{digest}", options)

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def libraries(self) -> Path:
        """Folder of llama.cpp's libraries and server."""
        return self.folder / "build" / "bin"

    def ensure(self) -> None:
        """Build the environment unless that was done before.

        Raises:
            PeerUnavailableError: a step of the build failed; its log stays in the folder.
        """
        done = self.folder / ".done"
        if done.exists():
            return
        print(f"building {self.folder}, which is done once", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a build that was interrupted
        self.folder.mkdir(parents=True)
        self._run(sys.executable, "-m", "venv", self.folder / "venv")
        # The file pins what the packages need, too: no resolver changes a version later.
        self._pip("install", "--no-deps", "-r", REQUIREMENTS / f"{self.peer}.txt")
        if self.cmake_options:
            self._build_llama_cpp()
        done.touch()

    def _build_llama_cpp(self) -> None:
        """Build llama.cpp from the source that its Python package ships, and install the latter.

        The package's own build has no server. The libraries serve both.
        """
        source = self.folder / "source"
        self._pip(
            *("download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"),
            *("--dest", source, LLAMA_CPP),
        )
        (archive,) = source.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        archive.unlink()
        (package,) = source.iterdir()
        tools = self.python.parent
        self._run(
            *(tools / "cmake", "-G", "Ninja", "-S", package / "vendor" / "llama.cpp"),
            *("-B", self.folder / "build", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"),
            *self.cmake_options,
        )
        self._run(
            *(tools / "cmake", "--build", self.folder / "build", "--target", "llama-server"),
            *("--parallel", str(os.cpu_count() or 1)),
        )
        self._pip(
            *("install", "--no-deps", "--no-build-isolation", package),
            env={"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"},
        )
        shutil.rmtree(source)

    def _pip(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
        self._run(
            *(self.python, "-m", "pip", "--disable-pip-version-check", *arguments), env=env or {}
        )

    def _run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        log = self.folder / "build.log"
        with log.open("a") as out:
            done = subprocess.run(
                [str(part) for part in command],
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, **(env or {})},
            )
        if done.returncode:
            last = log.read_text().strip().splitlines()[-1:]
            raise PeerUnavailableError(f"its environment was not built, see {log}: {''.join(last)}")


def cmake_options(cpu: Cpu) -> tuple[str, ...]:
    """Return the options of llama.cpp's build for a CPU: its instructions, and no other's."""
    options = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=ON", "GGML_NATIVE=OFF"]
    options += [f"{name}=ON" for flag in cpu.flags for name in GGML_OPTIONS.get(flag, ())]
    # The server alone, without what it would download: a web page and a client for model hubs.
    options += [
        f"LLAMA_{name}=OFF"
        for name in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "BUILD_UI", "USE_PREBUILT_UI")
    ]
    options += ["LLAMA_OPENSSL=OFF", "LLAMA_CURL=OFF"]
    return tuple(f"-D{option}" for option in options)
