"""What processes that share a model must have alike, lest their programs never end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import jax

from kvflow_jax.distributed.process_group import Group
from kvflow_jax.errors import ConfigError
from kvflow_jax.models.model import Model

_SHOWN_CHARS = 80  # of a value


def model_properties(model: Model) -> dict[str, str]:
    """What a model is before it has weights, by name."""
    config = model.config
    facts = {field.name: repr(getattr(config, field.name)) for field in fields(config)}
    return facts | {"dtype": model.dtype, "device": jax.local_devices()[0].device_kind}


def check_consistent(group: Group, facts: Mapping[str, str]) -> None:
    """Compare facts; every process calls this at the same point.

    Raises:
        ConfigError: on all of them, naming what differs in the first that does.
    """
    first, *others = group.gather(dict(facts))
    for process, its in enumerate(others, 1):
        differing = [
            f"{name} {_cut(its.get(name, 'none'))}, not {_cut(value)}"
            for name, value in sorted(first.items())
            if its.get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"process {process} has loaded another model than process 0 "
                f"({'; '.join(differing)}): give all the same files or revision for --model"
            )


def _cut(value: str) -> str:
    return value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…"
