"""The settings of a server process, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import (
    COUNT,
    FILE,
    HOSTS,
    HTTP_TOKENS,
    KEYS,
    NAMES,
    NETWORKS,
    NON_NEGATIVE,
    ORIGINS,
    PORT,
    POSITIVE,
    SWITCH,
    TEXT,
    one_of,
)
from kvflow_jax.distributed.process_config import ProcessConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.reasoning.syntax import NONE
from kvflow_jax.reasoning.syntax import SYNTAXES as REASONING_SYNTAXES
from kvflow_jax.tools.syntaxes import AUTO, SYNTAXES

LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class ServerConfig(Config):
    """The settings of one server process.

    Attributes:
        load: which model is loaded, and how; requests may also use its name as a model name.
        engine: sizes of the engine and policy of its cache.
        processes: the other processes that share the model.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    title: ClassVar[str] = "server"

    served_model_names: tuple[str, ...] = flag(
        (),
        "names of the model that requests may use; the first one is in answers",
        NAMES,
        name="served_model_name",
        if_unset="the model's own name",
    )
    host: str = flag("127.0.0.1", "address to listen on", TEXT)
    port: int = flag(8000, "port to listen on, 0 for any free port", PORT)
    api_keys: tuple[str, ...] = flag(
        (),
        "Bearer key that requests must send; repeat it for several tenants, which share no cache",
        KEYS,
        name="api_key",
        if_unset="no key required",
        # Log lines print the config.
        is_shown=False,
    )
    api_key_file: Path | None = flag(
        None,
        "TOML file of API keys with names, classes and quotas; read again when it changes, and at "
        "SIGHUP",
        FILE,
        if_unset="no file",
    )
    admin_api_keys: tuple[str, ...] = flag(
        (),
        "Bearer key that may also drop the cache, read metrics and see the graphs of all tenants; "
        "repeatable",
        KEYS,
        name="admin_api_key",
        if_unset="a single --api-key is that, too; without keys, requests from this machine are",
        is_shown=False,
    )
    open_metrics: bool = flag(
        False,
        "let everyone read /metrics although keys are required; its counters tell of the requests "
        "of all tenants together",
        SWITCH,
    )
    allowed_origins: tuple[str, ...] = flag(
        (),
        "origins of web pages that may call the server (CORS), or *",
        ORIGINS,
        if_unset="none",
    )
    allowed_methods: tuple[str, ...] = flag(
        ("*",), "HTTP methods that these pages may use", HTTP_TOKENS, if_unset="all"
    )
    allowed_headers: tuple[str, ...] = flag(
        ("*",), "HTTP headers that these pages may send", HTTP_TOKENS, if_unset="all"
    )
    allow_credentials: bool = flag(
        False, "allow these pages to send cookies and the browser's own credentials", SWITCH
    )
    allowed_hosts: tuple[str, ...] = flag(
        (),
        "names by which clients may call the server, beside IP addresses, localhost and --host, "
        "or *",
        HOSTS,
        if_unset="any other name if --host is no loopback address, else none",
    )
    forwarded_allow_ips: tuple[str, ...] = flag(
        (),
        "addresses of proxies whose X-Forwarded-For is believed, or *",
        NETWORKS,
        if_unset="none",
    )
    max_connections: int = flag(
        1024,
        "most open connections; for one more, that of the client is closed which has been waited "
        "for longest",
        COUNT,
    )
    client_timeout_s: float = flag(
        30.0,
        "seconds that a client has to send the head of a request, or to read what is sent to it; "
        "as many and one for each 16 KiB to send the body",
        POSITIVE,
        unit="SECONDS",
    )
    tool_call_parser: str = flag(
        AUTO,
        "syntax in which the model calls tools; auto finds it in the chat template",
        one_of(AUTO, *SYNTAXES),
    )
    reasoning_parser: str = flag(
        AUTO,
        "syntax in which the model reasons before it answers; auto finds it in the chat template, "
        "none leaves reasoning in the answers",
        one_of(AUTO, NONE, *REASONING_SYNTAXES),
    )
    chat_special_tokens: bool = flag(
        False,
        "read special tokens that the texts of a chat spell as special tokens, as vLLM does; "
        "otherwise they are text, and a text cannot end its message and begin another one",
        SWITCH,
    )
    force_include_usage: bool = flag(
        False,
        "end every stream of chats and completions with its usage, as vLLM's "
        "--enable-force-include-usage",
        SWITCH,
    )
    disable_prompt_edits: bool = flag(
        False,
        "leave texts in the prompt that agents write anew into each one, such as "
        "x-anthropic-billing-header, so that nothing behind them is cached",
        SWITCH,
    )
    move_environment: bool = flag(
        False,
        "move lines with the date or the working directory from the system text to the first "
        "message of the user, so that sessions of other days and folders share system text and "
        "tools",
        SWITCH,
    )
    disable_client_identity: bool = flag(
        False,
        "do not read sessions, subagents and compactions from the headers and fields that coding "
        "agents send; only agent hints count",
        SWITCH,
    )
    max_body_mib: float = flag(
        32.0,
        "maximum size of a request body, MiB; larger bodies get HTTP 413",
        POSITIVE,
        unit="MIB",
    )
    drain_timeout_s: float = flag(
        30.0,
        "seconds that running requests have to finish after Ctrl-C or SIGTERM",
        NON_NEGATIVE,
        unit="SECONDS",
    )
    log_level: LogLevel = flag(
        "info", "debug logs one line per request", one_of(*get_args(LogLevel))
    )
    load: LoadConfig = LoadConfig()
    engine: EngineConfig = EngineConfig()
    processes: ProcessConfig = ProcessConfig()

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)
