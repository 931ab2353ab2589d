"""The settings by which several processes find each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import COUNT, INDEX, NON_NEGATIVE, TEXT


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
        "auto: ask the cluster (TPU pod, SLURM, Open MPI, Kubernetes). The coordinator ports are "
        "unauthenticated; expose them only on a private network",
        TEXT,
        unit="HOST:PORT",
        if_unset="a single process",
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
