"""What fields of several recipes need checked."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError


def refused(why: str) -> PydanticCustomError:
    """A value that does not go with another field; the sentence is `recipes.why_<why>`."""
    return PydanticCustomError(why, "does not go with another field")


def one_or_many(value: object) -> object:
    """A text where several may be given: a list of it."""
    return [value] if isinstance(value, str) else value


def columns(value: object) -> object:
    """ "a=b", ["a=b"] and {"a": "b"} are the same."""
    if isinstance(value, dict):
        return [f"{field}={column}" for field, column in value.items()]
    return one_or_many(value)


def named(value: list[str]) -> list[str]:
    for each in value:
        field, mark, column = each.partition("=")
        if not (field and mark and column):
            raise PydanticCustomError("columns", "must be field=column")
    return value


def as_many_as_data(value: list[float], info: ValidationInfo) -> list[float]:
    data: Any = info.data.get("data")
    if value and data is not None and len(value) != len(data):
        raise PydanticCustomError("weights", "must be {n} numbers, one for each of data", {"n": len(data)})
    if not all(weight > 0 for weight in value):
        raise PydanticCustomError("greater_than", "must be greater than {gt}", {"gt": 0})
    return value


def one_of(*allowed: int) -> Callable[[int], int]:
    """A validator: what Literal is for words, for numbers, which the command line gives as text."""

    def check(value: int) -> int:
        if value not in allowed:
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": ", ".join(map(str, allowed))})
        return value

    return check
