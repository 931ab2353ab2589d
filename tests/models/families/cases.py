"""Every tiny model that is compared with transformers: one a family, and one for each option.

A family's plain model is ``tiny`` of its record. Its test file adds ``VARIANTS``, a config.json for
each option that changes the computation, and ``EXPECTED``, what transformers computes.
"""

from importlib import import_module
from types import ModuleType

from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.families.base import ModelFamily
from kvflow_jax.models.families.hf_fields import Json
from tests.models.families.expected import NUM_TOKENS, Expected


def module_of(family: ModelFamily) -> ModuleType:
    return import_module(f"tests.models.families.test_{family.name.replace('-', '_')}")


# Name -> config.json. The plain model has the name of its family.
CONFIGS: dict[str, Json] = {}
EXPECTED: dict[str, Expected] = {}
# (name, number of tokens): prompts that transformers computes otherwise than the start of PROMPT.
PROMPTS: list[tuple[str, int]] = []
for _family in FAMILIES.values():
    _file = module_of(_family)
    CONFIGS |= {_family.name: dict(_family.tiny), **_file.VARIANTS}
    EXPECTED |= _file.EXPECTED
    PROMPTS += [(name, NUM_TOKENS) for name in (_family.name, *_file.VARIANTS)]
    PROMPTS += getattr(_file, "SHORT_PROMPTS", [])


def family_of(name: str) -> ModelFamily:
    """Return the family of a case."""
    architectures = CONFIGS[name]["architectures"]
    return next(f for f in FAMILIES.values() if {*f.architectures} & {*architectures})
