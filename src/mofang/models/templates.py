"""A model's chat template, rendered to the text that the model reads: as transformers and llama.cpp do it.

A template is a Jinja program that came with a model file, so it runs in Jinja's immutable sandbox: no attribute of
Python objects that leads out, no changes to what it is given. One difference to llama.cpp: llama.cpp drops a leading
BOS token from the text where the tokenizer adds one by itself, which an empty `bos` here also does.
Source: transformers utils/chat_template_utils.py (_compile_jinja_template); llama.cpp common/chat.cpp.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mofang.errors import Invalid, Unreadable
from mofang.messages import Message

_ENCODES_ARGUMENTS = re.compile(r"arguments\s*\|\s*tojson")
"""How templates that want a call's arguments as an object write them."""


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> str:
    """The prompt for `messages`. `kwargs` reach the template (tools, enable_thinking…).

    Raises Unreadable for a template that is no valid Jinja, or that breaks; Invalid when it refuses the messages.
    """
    as_objects = _ENCODES_ARGUMENTS.search(template) is not None
    shapes = [_shape(message, arguments_as_objects=as_objects) for message in messages]
    try:
        return _compiled(template).render(
            messages=shapes,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
    except _Refused as refused:
        raise Invalid("models.template_refused", param="messages", why=refused.message) from refused
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise Unreadable("models.template_broken", why=error) from error


def check(template: str) -> None:
    """Raises Unreadable when the template is no valid Jinja."""
    try:
        _compiled(template)
    except TemplateError as error:
        raise Unreadable("models.template_broken", why=error) from error


def with_default_system(template: str, text: str) -> str:
    """The template with a system message of its own for conversations that bring none: one text for training and
    serving, so that the model is asked as it was taught.
    """
    message = json.dumps(text, ensure_ascii=False)
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}"
        f"{{%- set messages = [{{'role': 'system', 'content': {message}}}] + messages %}}{{%- endif %}}{template}"
    )


class _Refused(TemplateError):
    """The template itself called raise_exception."""


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _shape(message: Message, *, arguments_as_objects: bool) -> dict[str, Any]:
    """OpenAI's shape as templates expect it: text parts joined by line breaks, as llama.cpp does where a template
    knows only text; a call's arguments decoded where the template encodes them again.
    """
    shape = message.to_openai()
    if isinstance(message.content, list) and all(part.get("type") == "text" for part in message.content):
        shape["content"] = "\n".join(str(part.get("text", "")) for part in message.content)
    if message.tool_calls and arguments_as_objects:
        shape["tool_calls"] = [_decoded(call) for call in message.tool_calls]
    return shape


def _decoded(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:  # a model's broken JSON is shown to it as the text that it was
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter: models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
