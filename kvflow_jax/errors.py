"""The errors that kvflow-jax raises on purpose. Each message says how to fix the problem."""


class KVFlowError(Exception):
    """Base class of all errors raised on purpose."""


class ModelLoadError(KVFlowError):
    """A model cannot be found, read or built. The message lists all problems at once."""


class InvalidRequestError(KVFlowError, ValueError):
    """A request is invalid and can never be served (HTTP 400).

    Args:
        message: what is wrong and what is allowed.
        param: the offending field; None if there is no single one.
        code: a stable machine-readable code; None if there is none.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """A prompt and an output token do not fit into the model's context.

    The message has OpenAI's words, by which clients such as LiteLLM know that they must shorten
    the prompt or take another model.

    Args:
        num_tokens: length of the prompt, or a lower bound of it.
        max_model_len: the model's context in tokens.
        is_exact: whether ``num_tokens`` is the length.
    """

    def __init__(self, num_tokens: int, max_model_len: int, *, is_exact: bool = True) -> None:
        bound = "" if is_exact else "at least "
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {bound}{num_tokens + 1} tokens ({num_tokens} in the prompt, at least 1 for "
            "the output). Please reduce the length of the prompt.",
            param="prompt",
            code="context_length_exceeded",
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_model_len - 1  # of a prompt


class QueueFullError(KVFlowError):
    """The queue of waiting requests is full (backpressure, HTTP 429): retry later.

    Args:
        message: the length of the queue and the flag that sets its limit.
        retry_after_s: seconds after which a retry is worthwhile.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosedError(KVFlowError):
    """The engine is draining or has stopped, and accepts no requests (HTTP 503)."""


class EngineStalledError(KVFlowError):
    """A step of the engine does not end (HTTP 503). A retry may meet the engine restarted."""


class ConfigError(KVFlowError, ValueError):
    """Settings are out of range or contradictory. The message names them and their limits."""


class PolicyError(ConfigError):
    """An eviction policy cannot be found, fails, or returns invalid keys. The message names it."""


class CapacityError(KVFlowError):
    """The device has too little memory. The message says how much is missing."""


class IntegrityError(KVFlowError):
    """An invariant of the cache is violated: a bug. The request fails instead of continuing."""


class StepFailedError(KVFlowError):
    """A step failed, and its requests with it. They can be retried."""


class GrammarError(StepFailedError):
    """No next token of a request's grammar can be found. The other requests go on."""


class HostLostError(KVFlowError):
    """A process that shares the model is gone. The others exit; start all of them again."""


class DivergenceError(KVFlowError, ArithmeticError):
    """A minimax run met gradients that are not finite. The message names the node and the step."""
