"""The settings of speculative decoding, under vLLM's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from kvflow_jax.config.values import Values, integer, one_of
from kvflow_jax.speculation.matches import MIN_MATCH_LEN

Method = Literal["suffix", "ngram"]
MAX_DRAFT_TOKENS = 64
_MAX_CORPUS_TOKENS = 1 << 26


@dataclass(frozen=True)
class SpeculativeConfig:
    """Where drafts come from, and how long they may be.

    Args:
        method: ``suffix``: finished answers and the request's own tokens; ``ngram``: the latter.
        num_speculative_tokens: tokens of a draft at most; 0: no speculative decoding.
        suffix_decoding_max_tree_depth: tokens before a draft that are compared at most.
        suffix_decoding_corpus_tokens: tokens of finished answers that are kept; the oldest go.

    Raises:
        ValueError: a value is out of range.
    """

    method: Method = "suffix"
    num_speculative_tokens: int = 16
    suffix_decoding_max_tree_depth: int = 24
    suffix_decoding_corpus_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        for name, values in _VALUES.items():
            value = getattr(self, name)
            if not values.is_valid(value):
                raise ValueError(f"{name} {values.complaint(value)}")

    @property
    def num_corpus_tokens(self) -> int:
        """Tokens of finished answers that are kept; 0: none are."""
        return self.suffix_decoding_corpus_tokens if self.method == "suffix" else 0

    @classmethod
    def of(cls, value: object) -> SpeculativeConfig:
        """Return the settings that an argument or the JSON of a flag describes; None: no drafts.

        Raises:
            ValueError: it describes none.
        """
        if value is None:
            return NO_SPECULATION
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"it is a JSON object, got {value!r:.80}")
        unknown = [str(name) for name in value if name not in _VALUES]
        if unknown:
            raise ValueError(f"it has no key {unknown[0]!r:.40}; its keys are {', '.join(_VALUES)}")
        return cls(**value)


_VALUES: dict[str, Values[object]] = {
    "method": one_of(*get_args(Method)),
    "num_speculative_tokens": integer(0, MAX_DRAFT_TOKENS),
    "suffix_decoding_max_tree_depth": integer(MIN_MATCH_LEN, 1024),
    "suffix_decoding_corpus_tokens": integer(0, _MAX_CORPUS_TOKENS),
}
DEFAULT_SPECULATION = SpeculativeConfig()
NO_SPECULATION = SpeculativeConfig(num_speculative_tokens=0)


def _parse(text: str) -> SpeculativeConfig:
    return NO_SPECULATION if text == "none" else SpeculativeConfig.of(json.loads(text))


def _is_valid(value: object) -> bool:
    try:
        SpeculativeConfig.of(value)
    except (TypeError, ValueError):
        return False
    return True


SPECULATIVE_CONFIG: Values[SpeculativeConfig] = Values(
    f"none, or a JSON object with some of the keys of {json.dumps(asdict(DEFAULT_SPECULATION))}, "
    f"where method is {' or '.join(get_args(Method))} and num_speculative_tokens is at most "
    f"{MAX_DRAFT_TOKENS}",
    _parse,
    _is_valid,
    metavar="JSON",
)
