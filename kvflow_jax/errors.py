"""Every error kvflow-jax raises on purpose. Each message says what to do about it."""


class KVFlowError(Exception):
    """Base of all errors raised on purpose."""


class ModelLoadError(KVFlowError):
    """A model cannot be found, read or built; the message lists every problem found at once."""


class InvalidRequestError(KVFlowError, ValueError):
    """A request that can never be served as it stands: the caller's fault, HTTP 400.

    Args:
        message: what is wrong and what would be right.
        param: the offending field, None where no single one is.
        code: a stable machine-readable name, None where there is none.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFullError(KVFlowError):
    """The waiting queue is at its bound: try again later, HTTP 429.

    Args:
        message: how long the queue is and which flag sets its bound.
        retry_after_s: seconds after which a retry is worthwhile.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosedError(KVFlowError):
    """The engine is draining or has stopped: it takes no new requests, HTTP 503."""


class ConfigError(KVFlowError, ValueError):
    """Settings that cannot be, alone or together; the message names them and their bounds."""


class CapacityError(KVFlowError):
    """The device has too little memory for what was asked; the message says how much is missing."""


class IntegrityError(KVFlowError):
    """An invariant of the cache does not hold: a bug. The request fails; no wrong token is sent."""


class StepFailedError(KVFlowError):
    """The step that a request was in failed, and the request with it; it may be tried again."""


class HostLostError(KVFlowError):
    """A process that shares the model is gone; those that are left end, to be started again."""
