"""One run of all arms: their columns, one process after the other, and their servers' loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.peers.arms import Arm, Setup, measure_arm
from experiments.peers.cpu import AVX2_VARIABLES, Cpu
from experiments.peers.drivers.columns import GREEDY, Plan
from experiments.peers.environment import Environment, PeerUnavailableError
from experiments.peers.loads import Load
from experiments.peers.ratios import agreement
from experiments.peers.servers import run_load
from experiments.peers.tables import print_columns, print_load
from experiments.peers.weights import PeerWeights
from kvflow_jax.models.config import ModelConfig

LIMIT_S = 1200.0  # of an arm's columns
POOL_GIB = 2.0  # of this engine in the columns, as much as vLLM gets
FAILED = "failed"


@dataclass
class Comparison:
    """The arms of a run and what was measured of them so far.

    Attributes:
        skipped: reasons why arms do not run, by name.
        server_flags: further flags of this engine's server.
        columns: figures by arm; with ``failed`` where not all could be measured.
        loads: figures by arm and load; likewise.
    """

    arms: Sequence[Arm]
    setup: Setup
    plan: Plan
    config: ModelConfig
    skipped: Mapping[str, str] = field(default_factory=dict)
    server_flags: Sequence[str] = ()
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def measure_columns(self) -> None:
        """Measure the columns of every arm; print them as they come."""
        for arm in self.arms:
            reason = self.skipped.get(arm.name)
            figures = (
                {FAILED: reason} if reason else measure_arm(arm, self.setup, self.plan, LIMIT_S)
            )
            self.columns[arm.name] = {"precision": arm.precision, **figures}
            print_columns(arm, self.columns[arm.name])
        self._compare_tokens()

    def run_loads(self, loads: Mapping[str, Load]) -> None:
        """Put the agentic loads on the servers of the arms that have one; print their figures."""
        config = self.config
        numbers_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        for arm in self.arms:
            if not arm.has_server:
                continue
            measured = self.loads[arm.name] = {}
            for name, load in loads.items():
                # Peers ignore hints; they get the load without them once.
                if not arm.is_ours and load.peers_load != name:
                    continue
                reason = self.skipped.get(arm.name)
                measured[name] = (
                    {FAILED: reason}
                    if reason
                    else run_load(
                        arm,
                        self.setup,
                        load,
                        numbers_per_token=numbers_per_token,
                        vocab=self.plan.vocab,
                        flags=self.server_flags,
                    )
                )
                print_load(arm, name, measured[name])

    def makespans(self) -> dict[str, dict[str, float]]:
        """Return the makespan of each load by arm, of those that were measured."""
        return {
            arm: {
                name: figures["makespan_s"]
                for name, figures in loads.items()
                if "makespan_s" in figures
            }
            for arm, loads in self.loads.items()
        }

    @property
    def is_complete(self) -> bool:
        """True unless the first arm, this engine in float32, failed where it should have run."""
        first = self.arms[0].name
        figures = [self.columns.get(first, {}), *self.loads.get(first, {}).values()]
        return not any(FAILED in one for one in figures)

    def _compare_tokens(self) -> None:
        """Replace the greedy tokens of each arm by how many agree with the first arm's.

        The first arm computes in float32. An engine that computes other weights, or computes them
        wrongly, agrees in none; rounding makes a difference after some.
        """
        found: list[list[int]] = [
            figures[GREEDY] for figures in self.columns.values() if GREEDY in figures
        ]
        for figures in self.columns.values():
            if GREEDY in figures:
                figures["greedy_agreement"] = agreement(figures.pop(GREEDY), found[0])


def build_environments(
    peers: Sequence[str], cache_dir: Path, cpu: Cpu
) -> tuple[dict[str, Environment], dict[str, str]]:
    """Build the peers' environments that are not built yet.

    Returns:
        The environments, and the reasons of those that could not be built, by peer.
    """
    environments, reasons = {}, {}
    for peer in peers:
        environment = Environment.of(peer, cache_dir, cpu)
        try:
            environment.ensure()
            environments[peer] = environment
        except (PeerUnavailableError, OSError) as error:
            reasons[peer] = str(error)
    return environments, reasons


def peer_setup(
    peers: Sequence[str], model: str, cache_dir: Path, cpu: Cpu
) -> tuple[Setup, dict[str, str]]:
    """Build the peers and write their weights; return where they are, and what failed by peer."""
    environments, reasons = build_environments(peers, cache_dir, cpu)
    weights = PeerWeights.of(cache_dir) if environments else None
    if weights:
        weights.ensure()
    limits = AVX2_VARIABLES if cpu.is_limited else {}
    return Setup(environments, weights, model, {"pool_gib": POOL_GIB}, limits), reasons
