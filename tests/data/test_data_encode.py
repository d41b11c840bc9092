"""What is learned: the answer and its end, for every template, exactly; rows that do not fit are said, never hidden."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_llama
from mofang.data.encode import encode
from mofang.data.pack import pack
from mofang.data.preview import histogram, preview, segments, shape, survey
from mofang.data.rows import Conversation, Pair
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.models.templates import render, with_default_system

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
FORGETFUL = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TEMPLATES = {
    "chatml": (tiny_llama.CHATML, "<|im_end|>", "{}<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>", "{}<|eot_id|>"),
    "llama2": (LLAMA2, "</s>", " {} </s>"),
    "gemma": (GEMMA, "<end_of_turn>", "{}<end_of_turn>"),
    "forgetful": (FORGETFUL, "<|endoftext|>", "{}\n<|endoftext|>"),
}
"""Name → template, the token that ends an answer, and what must be learned for an answer {}."""
TALK = [Message("user", "你好"), Message("assistant", "您好！")]
TWO = [*TALK, Message("user", "再见 bye"), Message("assistant", "Good bye 再会")]


def conversation(messages: list[Message]) -> Conversation:
    return Conversation(messages, Path("set.jsonl"), 7)


def learned(example, tokenizer) -> str:
    return tokenizer.decode(example.ids[example.mask].tolist())


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("talk", [TALK, TWO])
def test_exactly_the_answers_are_learned(name: str, talk: list[Message]) -> None:
    template, end, form = TEMPLATES[name]
    tokenizer = tiny_llama.tokenizer(template, end=end)
    (example,) = encode([conversation(talk)], tokenizer, max_length=1000).examples
    answers = [message.text for message in talk if message.role == "assistant"]
    assert learned(example, tokenizer) == "".join(form.format(answer) for answer in answers)
    if name == "forgetful":  # its turns have no end, so that ours stands between them
        return
    # The whole is what serving would read: the prompt of the last turn is a beginning of it, id by id.
    prompt = tokenizer.encode(tokenizer.render(talk[:-1], add_generation_prompt=True))
    assert example.ids[: len(prompt)].tolist() == prompt
    assert not example.mask[: example.mask.argmax()].any()


def test_bos_stands_first_and_once() -> None:
    tokenizer = tiny_llama.tokenizer(LLAMA3, end="<|eot_id|>", add_bos=True)
    (example,) = encode([conversation(TALK)], tokenizer, max_length=1000).examples
    ids = example.ids.tolist()
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1 and not example.mask[0]


REWRITES = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}{% set text = "
    "message['content'].split('</think>')[-1] %}{% else %}{% set text = message['content'] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_template_that_drops_earlier_reasoning_makes_one_example_an_answer() -> None:
    tokenizer = tiny_llama.tokenizer(REWRITES)
    talk = [
        Message("user", "1+1"), Message("assistant", "<think>算</think>2"),
        Message("user", "2+2"), Message("assistant", "<think>再算</think>4"),
    ]  # fmt: skip
    first, second = encode([conversation(talk)], tokenizer, max_length=1000).examples
    assert learned(first, tokenizer) == "<think>算</think>2<|im_end|>"
    assert learned(second, tokenizer) == "<think>再算</think>4<|im_end|>"
    assert "<think>算" not in tokenizer.decode(second.ids.tolist())


@given(
    answers=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=20),
        min_size=1,
        max_size=3,
    )
)
def test_learned_and_not_learned_together_are_the_rendered_text(answers: list[str]) -> None:
    tokenizer = tiny_llama.tokenizer()
    talk = [message for answer in answers for message in (Message("user", "问"), Message("assistant", answer))]
    (example,) = encode([conversation(talk)], tokenizer, max_length=10_000).examples
    assert tokenizer.decode(example.ids.tolist()) == tokenizer.render(talk, add_generation_prompt=False)
    assert learned(example, tokenizer) == "".join(f"{answer}<|im_end|>" for answer in answers)
    assert "".join(text for text, _, _ in segments(example, tokenizer)) == tokenizer.render(
        talk, add_generation_prompt=False
    )


def test_what_is_cut_is_counted_and_what_has_no_answer_left_is_left_out() -> None:
    tokenizer = tiny_llama.tokenizer()
    whole = encode([conversation(TALK)], tokenizer, max_length=1000).examples[0]
    n_prompt = int(whole.mask.argmax())
    cut = encode([conversation(TALK)], tokenizer, max_length=n_prompt + 2)
    assert cut.n_cut == 1 and cut.examples[0].n_supervised == 2 and not cut.dropped
    none = encode([conversation(TALK)], tokenizer, max_length=n_prompt)
    assert none.examples == [] and [example.row for example in none.dropped] == [7]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_cut_answer_still_ends(name: str) -> None:
    template, end, _ = TEMPLATES[name]
    tokenizer = tiny_llama.tokenizer(template, end=end)
    whole = encode([conversation(TALK)], tokenizer, max_length=1000).examples[0]
    n_prompt, n_learned = int(whole.mask.argmax()), int(whole.mask.sum())
    end_id = whole.ids[whole.mask][-1]
    for room in range(2, n_learned + 1):
        (cut,) = encode([conversation(TALK)], tokenizer, max_length=n_prompt + room).examples
        assert len(cut.ids) == n_prompt + room and cut.mask[-1] and cut.ids[-1] == end_id
        assert cut.ids[:-1].tolist() == whole.ids[: n_prompt + room - 1].tolist()
        assert cut.cut is (len(cut.ids) < len(whole.ids))
    assert encode([conversation(TALK)], tokenizer, max_length=n_prompt + 1).examples == [], "an end alone is no answer"


def test_only_the_last_answer_of_a_pair_is_learned_and_tools_are_rendered() -> None:
    with_tools = tiny_llama.CHATML.replace("{% for", "{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1)
    tokenizer = tiny_llama.tokenizer(with_tools)
    tool = {"type": "function", "function": {"name": "f"}}
    pair = Pair(
        [*TALK, Message("user", "再")], [Message("assistant", "好")], [Message("assistant", "坏")], tools=[tool]
    )
    chosen, rejected = encode([pair], tokenizer, max_length=1000).examples
    assert learned(chosen, tokenizer) == "好<|im_end|>" and learned(rejected, tokenizer) == "坏<|im_end|>"
    assert tokenizer.decode(chosen.ids.tolist()).startswith('[{"type": "function"')


def test_without_a_template_nothing_is_guessed() -> None:
    with pytest.raises(Invalid) as raised:
        encode([conversation(TALK)], tiny_llama.tokenizer(None), max_length=100)
    assert raised.value.code == "no_template"


def test_preview_marks_what_is_learned() -> None:
    tokenizer = tiny_llama.tokenizer()
    (example,) = encode([conversation(TALK)], tokenizer, max_length=1000).examples
    assert "<|im_start|>assistant\n【您好！<|im_end|>】\n" in preview(example, tokenizer)
    found = shape(example, tokenizer)
    assert sum(part["n_tokens"] for part in found["segments"]) == found["n_tokens"] == len(found["ids"])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "llama2"])
def test_a_default_system_message_is_there_only_when_none_is_given(name: str) -> None:
    template, text = TEMPLATES[name][0], '你是"助手"。\n第二行 {{ x }}'
    ours = with_default_system(template, text)
    assert render(ours, TALK) == render(template, [Message("system", text), *TALK])
    talk = [Message("system", "别的"), *TALK]
    assert render(ours, talk) == render(template, talk)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(10, 60))
def test_packing_loses_nothing_and_fills_no_row_beyond_its_room(lengths: list[int], room: int) -> None:
    rows = pack(lengths, room)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[number] for number in row) <= room or len(row) == 1
    if lengths:
        assert len(rows) <= 2 * -(-sum(lengths) // room) + sum(length > room for length in lengths) + 1


@given(st.dictionaries(st.integers(1, 300), st.integers(1, 9)), st.integers(16, 300))
def test_every_length_is_in_one_bar(lengths: dict[int, int], longest: int) -> None:
    lengths = {length: n for length, n in lengths.items() if length <= longest}
    bars = histogram(lengths, longest)
    assert sum(bar["n"] for bar in bars) == sum(lengths.values())
    for one, other in pairwise(bars):
        assert other["from"] == one["to"] + 1
    if bars:
        assert bars[0]["n"] and bars[-1]["n"] and bars[-1]["to"] <= longest


def test_a_survey_counts_what_training_will_see(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "问", "output": "答"}')
    (tmp_path / "b.txt").write_text("abc")
    (tmp_path / "c.bin").write_bytes(b"x")
    tokenizer = tiny_llama.tokenizer()
    counts, first = survey([tmp_path], tokenizer, max_length=100, n=5)
    assert (counts["n_rows"], counts["n_examples"], counts["n_supervised"]) == (2, 2, 4 + 3)
    assert counts["n_tokens"] == sum(len(one.ids) for one in first)
    assert counts["share_supervised"] == 7 / counts["n_tokens"] and counts["skipped"] == [str(tmp_path / "c.bin")]
    assert preview(first[1], tokenizer).endswith("a【bc<|im_end|>】"), "nothing stands before a document's first token"
