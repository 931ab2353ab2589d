"""The settings by which several processes find each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import COUNT, FILE, INDEX, NON_NEGATIVE, TEXT


@dataclass(frozen=True)
class ProcessConfig(Config):
    """The group of processes that share a model, and this one's index.

    Raises:
        ConfigError: a value is out of range, or ``coordinator`` is missing.
    """

    title: ClassVar[str] = "several hosts"
    about: ClassVar[str] = (
        "start one process on each host, with the same flags except for --process-id"
    )

    coordinator: str | None = flag(
        None,
        "address where process 0, which serves HTTP, waits for the other processes (rendezvous). "
        "auto: ask the cluster (TPU pod, SLURM, Open MPI, Kubernetes)",
        TEXT,
        unit="HOST:PORT",
        if_unset="a single process",
    )
    coordinator_secret_file: Path | None = flag(
        None,
        "file with the secret, of at least 16 bytes, that the processes prove to each other. "
        "Needed where the coordinator is not on a loopback address",
        FILE,
        if_unset="the environment variable KVFLOW_COORDINATOR_SECRET",
        is_per_process=True,
    )
    num_processes: int | None = flag(None, "number of processes", COUNT, if_unset="ask the cluster")
    process_id: int | None = flag(
        None, "index of this process, from 0", INDEX, if_unset="ask the cluster"
    )
    join_timeout_s: float = flag(
        300.0,
        "seconds that processes wait for each other at startup",
        NON_NEGATIVE,
        unit="SECONDS",
    )
