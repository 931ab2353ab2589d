"""The model families, one file each. ``_MODULES`` is the registry: one line a family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module

from kvflow_jax.models.families.base import ModelFamily

_MODULES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma3",
    "phi3",
    "olmo2",
)


def load_families(modules: Iterable[str]) -> dict[str, ModelFamily]:
    """Return the records of modules of this package, by their names.

    Raises:
        ValueError: a module has no record, or two records have the same name, architecture, GGUF
            architecture or preset; the message has it.
    """
    families: dict[str, ModelFamily] = {}
    owners: dict[tuple[str, str], str] = {}
    for module in modules:
        try:
            family = import_module(f"{__name__}.{module}").FAMILY
        except (ModuleNotFoundError, AttributeError) as error:
            raise ValueError(f"no FAMILY in models/families/{module}.py: {error}") from error
        for kind, names in (
            ("name", [family.name]),
            ("architecture", family.architectures),
            ("GGUF architecture", [family.gguf.architecture] if family.gguf else []),
            ("preset", family.presets),
        ):
            for name in names:
                owner = owners.setdefault((kind, name), module)
                if owner != module:
                    raise ValueError(f"model families {owner} and {module} both have {kind} {name}")
        families[family.name] = family
    return families


# Name -> family.
FAMILIES: Mapping[str, ModelFamily] = load_families(_MODULES)
# Architecture in config.json -> family.
BY_ARCHITECTURE = {name: family for family in FAMILIES.values() for name in family.architectures}
# ``general.architecture`` of a .gguf file -> family.
BY_GGUF_ARCHITECTURE = {
    family.gguf.architecture: family for family in FAMILIES.values() if family.gguf is not None
}
# Name -> shape of a published model, to serve with random weights: benchmarks need no download.
PRESETS = {name: shape for family in FAMILIES.values() for name, shape in family.presets.items()}
