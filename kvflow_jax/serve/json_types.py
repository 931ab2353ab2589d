"""Types of the fields of bodies, as JSON has them and as clients write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

UNLIMITED = -1  # what many clients send for an output up to the end of the context


def as_integer(value: Any) -> Any:
    """Return a number without a fraction as an int: JSON has one type of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_integers(value: Any) -> Any:
    # Without a step of Python for each number of a list that has none.
    if isinstance(value, list) and float in set(map(type, value)):
        return [as_integer(item) for item in value]
    return value


def _as_object(value: Any) -> Any:
    return {} if value == [] else value


def _as_num_logprobs(value: Any) -> Any:
    if isinstance(value, bool):
        return 1 if value else None
    return as_integer(value)


def _check_limit(value: int) -> int:
    if value < 1 and value != UNLIMITED:
        raise PydanticCustomError("token_limit", "must be at least 1, or -1 for no limit")
    return value


JsonInt = Annotated[int, BeforeValidator(as_integer)]
JsonInts = Annotated[list[int], BeforeValidator(_as_integers)]
TokenLimit = Annotated[JsonInt, AfterValidator(_check_limit)]
# Of a text completion, to which some clients send the field of a chat, which is true or false.
NumLogprobs = Annotated[int | None, BeforeValidator(_as_num_logprobs)]
# Languages with one type for lists and maps, such as PHP and Lua, write an empty object as a list.
JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_object)]
JsonNumbers = Annotated[dict[str, float], BeforeValidator(_as_object)]
