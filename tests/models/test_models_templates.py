"""Chat templates: rendered as llama.cpp renders them, in a sandbox, with refusals and faults told apart."""

from datetime import datetime
from pathlib import Path

import pytest

from mofang.errors import Invalid, Unreadable
from mofang.messages import Message
from mofang.models.formats import gguf
from mofang.models.templates import check, render

USER = [Message("user", "数到5")]
TALK = [
    Message("system", "你是模坊🙂"),
    Message("user", ' 你好 <b>&"引号" '),
    Message("assistant", "在。\n"),
    Message("user", "再见"),
]
TOOL = {
    "type": "function",
    "function": {
        "name": "查天气",
        "description": "问 <城市> 的天气 & 温度",
        "parameters": {"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "查天气", "arguments": '{"城市": "北京", "天": 2}'}}

TALK_EXPECTED = (
    "<|im_start|>system\n你是模坊🙂<|im_end|>\n"
    '<|im_start|>user\n 你好 <b>&"引号" <|im_end|>\n'
    "<|im_start|>assistant\n在。\n<|im_end|>\n"
    "<|im_start|>user\n再见<|im_end|>\n"
    "<|im_start|>assistant\n"
)
TOOLS_EXPECTED = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "查天气", "description": "问 <城市> 的天气 & 温度", '
    '"parameters": {"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n北京天气？<|im_end|>\n"
)


@pytest.mark.model
class TestAsLlamaCppRenders:
    """The expected texts are what llama.cpp's /apply-template answered (xllamacpp 2026.10, 2026-11-24)."""

    def test_qwen(self, qwen: Path) -> None:
        template = gguf.facts(qwen).chat_template
        assert template
        assert render(template, USER) == (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n数到5<|im_end|>\n<|im_start|>assistant\n"
        )
        assert render(template, TALK) == TALK_EXPECTED
        assert render(template, TALK, add_generation_prompt=False) == TALK_EXPECTED.removesuffix(
            "<|im_start|>assistant\n"
        )

    def test_qwen_with_tools(self, qwen: Path) -> None:
        template = gguf.facts(qwen).chat_template
        assert template
        question = Message("user", "北京天气？")
        assert render(template, [question], tools=[TOOL]) == TOOLS_EXPECTED + "<|im_start|>assistant\n"
        talk = [
            question,
            Message("assistant", None, tool_calls=[CALL]),
            Message("tool", "晴 20℃", tool_call_id="c1"),
        ]
        assert render(template, talk, tools=[TOOL]) == TOOLS_EXPECTED + (
            '<|im_start|>assistant\n<tool_call>\n{"name": "查天气", "arguments": {"城市": "北京", "天": 2}}\n'
            "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n晴 20℃\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_smollm2(self, smollm2: Path) -> None:
        template = gguf.facts(smollm2).chat_template
        assert template
        assert render(template, USER) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\n数到5<|im_end|>\n<|im_start|>assistant\n"
        )
        assert render(template, TALK) == TALK_EXPECTED

    def test_content_parts_are_joined_by_line_breaks(self, smollm2: Path) -> None:
        template = gguf.facts(smollm2).chat_template
        assert template
        parts = [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]
        assert "<|im_start|>user\n一\n二<|im_end|>" in render(template, [Message("user", parts)])


def test_blocks_take_their_lines_with_them() -> None:
    template = "{% for message in messages %}\n    {% if true %}\n{{ message.role }}\n    {% endif %}\n{% endfor %}"
    assert render(template, USER) == "user\n"


def test_bos_eos_and_own_variables() -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ '想' if enable_thinking else '不想' }}"
    assert render(template, USER, bos="<s>", eos="</s>", enable_thinking=False) == "<s>数到5</s>不想"


def test_tojson_is_plain_json() -> None:
    assert render("{{ x | tojson }}", USER, x={"键": "<&'\">"}) == '{"键": "<&\'\\">"}'
    assert render("{{ x | tojson(indent=2) }}", USER, x=[1]) == "[\n  1\n]"


def test_arguments_stay_text_where_the_template_prints_them_as_they_are() -> None:
    template = "{{ messages[0].tool_calls[0].function.arguments }}"
    assert render(template, [Message("assistant", None, tool_calls=[CALL])]) == '{"城市": "北京", "天": 2}'


def test_strftime_now_and_loop_controls() -> None:
    template = "{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}{{ strftime_now('%Y') }}"
    assert render(template, USER) == f"01{datetime.now():%Y}"


def test_a_refusal_is_the_callers_fault() -> None:
    with pytest.raises(Invalid) as caught:
        render("{{ raise_exception('角色必须交替') }}", USER)
    assert caught.value.code == "template_refused"
    assert "角色必须交替" in caught.value.message()


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0].content.no.such }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_bad_template_is_the_models_fault(template: str) -> None:
    with pytest.raises(Unreadable) as caught:
        render(template, USER)
    assert caught.value.code == "template_broken"


def test_check() -> None:
    check("{{ messages }}")
    with pytest.raises(Unreadable):
        check("{% if %}")
