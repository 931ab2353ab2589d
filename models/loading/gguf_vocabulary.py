"""The vocabulary of a .gguf file: its tokens, their types and roles, and chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvflow_jax.models.families.hf_fields import HfFields

# Values of gguf.TokenType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The tokenizer fields of a file. ``None``: the file does not have the field.

    Attributes:
        tokens: without the unused ones at the end, which converters add where the model has more
            embeddings than its tokenizer has tokens.
        token_types: values of ``gguf.TokenType``, those of the unused tokens included.
        pre: name of the pre-tokenizer, "" if there is none.
        special: token ids by their role: bos, eos, padding, unknown.
        chat_template: one template, or several by name.
    """

    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    pre: str
    special: Mapping[str, int | None]
    adds_bos: bool | None
    adds_space_prefix: bool | None
    chat_template: str | dict[str, str] | None

    @classmethod
    def read(cls, fields: HfFields) -> GgufVocabulary:
        """Return the vocabulary of a file with these fields; report what is wrong with them."""
        roles = ("bos", "eos", "padding", "unknown")
        ids = {role: fields.token_ids(f"tokenizer.ggml.{role}_token_id")[:1] for role in roles}
        tokens = fields.texts("tokenizer.ggml.tokens")
        types = fields.token_ids("tokenizer.ggml.token_type")
        for role, found in ids.items():
            if found and not 0 <= found[0] < len(tokens):
                fields.report(f"the {role} token {found[0]} is none of the {len(tokens)} tokens")
        # Converters write 0 for roles that no token has. That token is part of texts, and would be
        # skipped in them if it were special.
        for role in ("padding", "unknown"):
            if {types[i] for i in ids[role] if 0 <= i < len(types)} & {NORMAL, BYTE}:
                ids[role] = ()
        num_used = max(
            (i + 1 for i in range(len(tokens)) if types[i : i + 1] != (UNUSED,)), default=0
        )
        flags = {
            name: fields.flag(name) if fields.has(name) else None
            for name in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix")
        }
        return cls(
            tokens=tokens[: max(num_used, *(i + 1 for found in ids.values() for i in found), 0)],
            token_types=types,
            merges=fields.texts("tokenizer.ggml.merges"),
            scores=fields.numbers("tokenizer.ggml.scores"),
            pre=fields.text("tokenizer.ggml.pre"),
            special={role: next(iter(found), None) for role, found in ids.items()},
            adds_bos=flags["tokenizer.ggml.add_bos_token"],
            adds_space_prefix=flags["tokenizer.ggml.add_space_prefix"],
            chat_template=_chat_template(fields),
        )

    def token(self, role: str) -> str | None:
        """Return the token of a role, None if there is none."""
        token_id = self.special[role]
        return None if token_id is None else self.tokens[token_id]

    def types_of(self, *kinds: int) -> dict[str, int]:
        """Return the tokens of these types, and their types."""
        pairs = zip(self.tokens, self.token_types, strict=False)
        return {token: kind for token, kind in pairs if kind in kinds}

    @property
    def has_scores(self) -> bool:
        """True if the scores order the tokens. Those of some converters are all the same."""
        types = self.token_types or (NORMAL,) * len(self.scores)
        pairs = zip(self.scores, types, strict=False)
        return len({score for score, kind in pairs if kind == NORMAL}) > 1


def _chat_template(fields: HfFields) -> str | dict[str, str] | None:
    named = {
        name: fields.text(f"{_TEMPLATE}.{name}")
        for name in fields.texts("tokenizer.chat_templates")
    }
    templates = {name: text for name, text in named.items() if text}
    default = fields.text(_TEMPLATE)
    if not templates:
        return default or None
    return ({"default": default} if default else {}) | templates
