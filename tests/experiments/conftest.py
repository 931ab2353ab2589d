"""Fixtures of experiments that run as commands on small workloads."""

import sys

import pytest

from experiments.compare import comparison
from experiments.workloads import catalogue
from experiments.workloads.agents import branching
from experiments.workloads.base import Sizes


def tiny(vocab_size, seed, scale):
    return branching(
        num_runs=6, num_rounds=1, sizes=Sizes(256, 16, 8), vocab_size=vocab_size, seed=seed
    )


@pytest.fixture
def small_catalogue(monkeypatch):
    """Replaces the catalogue by one small workload, ``branching``."""
    entry = catalogue.Entry("small", tiny)
    monkeypatch.setattr(catalogue, "WORKLOADS", {"branching": entry})
    monkeypatch.setattr(comparison, "WORKLOADS", {"branching": entry})


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a module's ``main`` with flags; returns its exit status, stdout and stderr."""

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
        status = module.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def run(command, small_catalogue):
    """As ``command``, over the small catalogue."""
    return command
