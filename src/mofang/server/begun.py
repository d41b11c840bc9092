"""An answer whose beginning is given: the prompt as the chat template makes it, the beginning after it, and on from there.

It stands on `render` and `complete`, so that every engine that has both continues alike; one that cannot render (OpenAI
itself) says so. What the model thinks is over where the answer has begun.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from mofang.engine.base import ChatEngine
from mofang.errors import Invalid
from mofang.messages import Delta, Message, Sampling

CHAT_ONLY = {
    "chat_template_kwargs",
    "parallel_tool_calls",
    "reasoning_budget_tokens",
    "reasoning_effort",
    "reasoning_format",
    "tool_choice",
    "tools",
}
"""Options that are in the prompt once it is rendered, or that only an answer from its first token has."""
THINKS, THOUGHT = "<think>", "\n\n</think>\n\n"


async def continued(
    engine: ChatEngine, messages: Sequence[Message], sampling: Sampling, prefix: str
) -> AsyncIterator[Delta]:
    """What follows `prefix` in the answer to these messages. Raises Invalid for images, and where there is no chat
    template to be had."""
    if any(message.has_image for message in messages):
        raise Invalid("server.prefix_with_images", param="prefix")
    prompt = await engine.render(messages, options=sampling.options)
    if prompt.rstrip().endswith(THINKS):  # a template that opens the thoughts itself
        prompt = prompt.rstrip() + THOUGHT
    plain = {name: value for name, value in sampling.options.items() if name not in CHAT_ONLY}
    return engine.complete(prompt + prefix, replace(sampling, options=plain))
