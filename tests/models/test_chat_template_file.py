"""Chat templates from a file of their own."""

import os

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.models.chat_template_file import MAX_TEMPLATE_BYTES, read_chat_template
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import tiny

TEMPLATE = (
    "{% for m in messages %}{% generation %}<s>{{ m.content }}é{% endgeneration %}{% endfor %}"
)


def test_a_template_of_a_file_takes_the_place_of_the_models(tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    for own in (None, tiny.CHAT_TEMPLATE):
        tokenizer = Tokenizer(tiny.byte_level_tokenizer(chat_template=own))
        before = tokenizer.control_tokens
        tokenizer.use_chat_template(read_chat_template(tmp_path / "t.jinja"))
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "the"}])
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>theé"
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.control_tokens is not before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{% for m in messages %}\n{{ m.", r"is no Jinja template: .*, line 2"),
        (b"\xff", "is not UTF-8"),
        (b" \n", "is empty"),
        (b"x" * (MAX_TEMPLATE_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_template_says_why(content, message, tmp_path):
    path = tmp_path / "t.jinja"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_chat_template(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="is no regular file"):
        read_chat_template(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_chat_template(tmp_path / "none")
