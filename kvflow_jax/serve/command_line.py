"""The flags of the server: its configuration, field by field."""

from __future__ import annotations

from collections.abc import Sequence

from kvflow_jax.config.flag import with_values
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.argument_parser import ArgumentParser
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.foreign_flags import FOREIGN_FLAGS


def parse_config(argv: Sequence[str] | None = None) -> ServerConfig:
    """Return the flags as a config; print an error and exit with code 2 if a flag is invalid."""
    parser = make_parser()
    flags = vars(parser.parse_args(argv))
    try:
        return with_values(ServerConfig(), flags)
    except ConfigError as error:
        parser.error(str(error))


def make_parser() -> ArgumentParser:
    """Return the parser of every flag; ``docs/flags.md`` is made from it."""
    parser = ArgumentParser(
        prog="kvflow-serve",
        description="Serve an LLM to multi-agent workflows over OpenAI's and Anthropic's APIs.",
    )
    parser.foreign_flags = FOREIGN_FLAGS
    for config in ServerConfig().configs():
        parser.add_config(config)
    return parser
