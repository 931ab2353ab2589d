"""The tokens of a .gguf file that end a generation."""

from __future__ import annotations

from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.loading.gguf_vocabulary import CONTROL, USER_DEFINED

# A text (EOS), a turn (EOT), a message (EOM); Ollama's files have several of the first.
_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids")
# Converters often name only the end of a text: llama.cpp ends at tokens of these texts, too.
END_TEXTS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>"),
    *("<|flush|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>"),
    *("</s>", "<eos>", "[EOS]", "[EOT]", "<EOT>", "< EOT >", "_<EOT>"),
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 (DeepSeek's bars are wide)
)
# In a vocabulary with these (gpt-oss), <|end|> ends a message that others follow.
_HARMONY = {"<|return|>", "<|call|>", "<|end|>"}


def end_token_ids(fields: HfFields) -> list[int]:
    """Return the ids of the tokens that end a text, a turn or a message, without repeats.

    Those that the file names come first; the control and user-defined tokens of ``END_TEXTS``
    follow.

    Args:
        fields: of the file, by GGUF name.
    """
    named = [i for name in _FIELDS for i in fields.token_ids(f"tokenizer.ggml.{name}")]
    tokens = fields.texts("tokenizer.ggml.tokens")
    types = fields.token_ids("tokenizer.ggml.token_type")
    found = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (CONTROL, USER_DEFINED) and token in END_TEXTS
    }
    if found.keys() >= _HARMONY:
        del found["<|end|>"]
    return [*dict.fromkeys([*named, *found.values()])]
