"""A form for a recipe, made from the JSON schema that the gateway tells: no field is listed here.

What a field is called and what it is for, its type, bounds, choices and default stand in the schema.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import plain
from mofang.ui.session import t

Schema = Mapping[str, Any]
LIST_PX: Final = 68
"""Height of a list's widget: two lines, the least that Streamlit draws."""


@dataclass(frozen=True, slots=True)
class Field:
    """One property of a schema, as a widget needs it."""

    name: str
    kind: str
    """"enum", or JSON schema's type: integer, number, boolean, array, string."""
    label: str
    help: str
    key: str
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


def field_of(name: str, shape: Schema, key: str) -> Field:
    """Of what may be null, the other type; null is then an empty widget."""
    one = {**shape, **next((one for one in shape.get("anyOf", ()) if one.get("type") != "null"), {})}
    return Field(
        name=name,
        kind="enum" if "enum" in one else str(one.get("type", "string")),
        label=plain(str(shape["title"])),
        help=f"{plain(str(shape['help']))} `{name}`",
        key=f"{key}_{name}",
        default=shape.get("default"),
        low=one.get("minimum", one.get("exclusiveMinimum")),
        high=one.get("maximum", one.get("exclusiveMaximum")),
        choices=tuple(one.get("enum", ())),
    )


def form(schema: Schema, names: Iterable[str], *, key: str) -> dict[str, Any]:
    """Widgets for these fields; the values that somebody changed. What is left alone stays the gateway's to decide."""
    chosen = {}
    for name in names:
        field = field_of(name, schema["properties"][name], key)
        value = WIDGETS.get(field.kind, _text)(field)
        if value not in (None, "", [], field.default):
            chosen[name] = value
    return chosen


def step_of(default: float | None) -> float:
    """How far one click moves a number: the place of its first digit, at most 1; of a share that is 0, a hundredth."""
    if default is None:
        return 1.0
    return min(1.0, 10.0 ** math.floor(math.log10(default))) if default > 0 else 0.01


def _choice(field: Field) -> Any:
    at = field.choices.index(field.default) if field.default in field.choices else 0
    return st.selectbox(field.label, field.choices, index=at, key=field.key, help=field.help)


def _integer(field: Field) -> Any:
    low, high = (None if bound is None else int(bound) for bound in (field.low, field.high))
    return st.number_input(
        field.label, low, high, field.default, 1, key=field.key, help=field.help, placeholder=t("field_unset")
    )


def _number(field: Field) -> Any:
    low, high, default = (None if bound is None else float(bound) for bound in (field.low, field.high, field.default))
    return st.number_input(
        field.label, low, high, default, step_of(default), format="%g", key=field.key, help=field.help,
        placeholder=t("field_unset"),
    )  # fmt: skip


def _switch(field: Field) -> Any:
    return st.toggle(field.label, bool(field.default), key=field.key, help=field.help)


def _text(field: Field) -> Any:
    return st.text_input(
        field.label, field.default or "", key=field.key, help=field.help, placeholder=t("field_unset")
    ).strip()


def _several(field: Field) -> Any:
    """A list, one to a line: commas belong to what stands there."""
    text = st.text_area(
        field.label, "\n".join(map(str, field.default or ())), LIST_PX, key=field.key, help=field.help,
        placeholder=t("field_lines"),
    )  # fmt: skip
    return [line.strip() for line in text.splitlines() if line.strip()]


WIDGETS: Final[dict[str, Callable[[Field], Any]]] = {
    "enum": _choice,
    "integer": _integer,
    "number": _number,
    "boolean": _switch,
    "array": _several,
    "string": _text,
}
"""A field's kind → what asks for it and returns the value; None, "" and [] mean "not said"."""
