"""Check that all processes have loaded the same model; otherwise their collectives would hang."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import jax

from kvflow_jax.distributed.process_group import Group
from kvflow_jax.errors import ConfigError
from kvflow_jax.models.model import Model

_MAX_SHOWN_CHARS = 80  # of one property, in an error message


def model_properties(model: Model) -> dict[str, str]:
    """Return what is known of a model before its weights are loaded, by name."""
    config = model.config
    properties = {field.name: repr(getattr(config, field.name)) for field in fields(config)}
    return properties | {"dtype": model.dtype, "device": jax.local_devices()[0].device_kind}


def check_consistent(group: Group, properties: Mapping[str, str]) -> None:
    """Compare ``properties`` over all processes. A collective: every process must call it.

    Raises:
        ConfigError: on every process; names the differences of the first process that differs
            from process 0.
    """
    leaders, *others = group.gather(dict(properties))
    for process, followers in enumerate(others, 1):
        differences = [
            f"{name} {_shorten(followers.get(name, 'none'))}, not {_shorten(value)}"
            for name, value in sorted(leaders.items())
            if followers.get(name) != value
        ]
        if differences:
            raise ConfigError(
                f"process {process} has loaded another model than process 0 "
                f"({'; '.join(differences)}): give all the same files or revision for --model"
            )


def _shorten(value: str) -> str:
    return value if len(value) <= _MAX_SHOWN_CHARS else value[:_MAX_SHOWN_CHARS] + "…"
