"""The microscope and the concepts: what they are made of, and their pages in process against the scripted gateway."""

import math
import re
from typing import Any

import fake_gateway
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from streamlit.testing.v1 import AppTest
from test_ui_app import go, run_until, text_of

from mofang.client import Client
from mofang.ui import projection, sums, tokens, words
from mofang.ui.continuation import Continuation, Written, after_chunk
from mofang.ui.pages.concepts import CONCEPTS
from mofang.ui.run import SCRIPT

CHAT = "qwen2.5-coder-0.5b-instruct"


# ---- tokens as people read them ----


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" the", "␣the"), (b"\n\n", "⏎⏎"), ("好".encode(), "好"), ("好".encode()[:2], "⟨E5 A5⟩"), (b"\xa5\xbdab", "⟨A5 BD⟩ab"),
        (b"\t", "⇥"), ("​".encode(), "⟨U+200B⟩"), (b"\x07", "⟨U+0007⟩"), ("🙂".encode(), "🙂"), (b"", "∅"),
    ],
)  # fmt: skip
def test_nothing_of_a_token_is_invisible(data: bytes, shown: str) -> None:
    assert tokens.legible(data) == shown


@given(some.binary(max_size=12))
def test_every_token_can_be_shown_as_text_that_prints(data: bytes) -> None:
    shown = tokens.legible(data)
    assert shown and shown.encode() and not re.search(r"[\s\x00-\x1f]", shown.replace("⟨", "").replace(" ", ""))


@given(some.floats(0, 1))
def test_shades_and_percentages_follow_the_probability(p: float) -> None:
    assert tokens.shade(p) == sum(p >= step for step in (0.05, 0.2, 0.5, 0.8))
    shown = tokens.percent(p)
    if p == 0:
        assert shown == "0%"
    elif not shown.startswith("<"):
        assert float(shown.removesuffix("%")) / 100 == pytest.approx(p, rel=0.06, abs=1e-9) and float(shown[:-1]) > 0


def test_a_token_is_read_from_an_entry_and_its_text_put_together() -> None:
    one = tokens.token_of(fake_gateway._written("好"))
    assert (one.id, one.text, one.probability) == (ord("好"), "好", pytest.approx(0.62))
    assert [option.text for option in one.options] == ["好", "小", " the", "龘", None]
    half = tokens.Option(1, "好".encode()[:2], -1.0)
    rest = tokens.Option(2, "好".encode()[2:], -1.0)
    assert tokens.joined([one, half]) is None and tokens.joined([one, half, rest]) == "好好"
    assert tokens.token_of({"token": "x", "logprob": 0.0}).data == b"x", "an engine may tell no bytes and no id"


# ---- a continuation ----


def test_a_continuation_is_told_as_it_comes() -> None:
    written = Written()
    for letter in "你好":
        content = [fake_gateway._written(letter)]
        written = after_chunk(written, {"choices": [{"text": letter, "logprobs": {"content": content}}]})
    written = after_chunk(written, {"choices": [{"text": "", "logprobs": None, "finish_reason": "stop"}]})
    written = after_chunk(written, {"choices": [], "usage": {"completion_tokens": 5}})
    assert (written.text, len(written.tokens), written.finish_reason) == ("你好", 2, "stop")
    assert written.n_untold == 2, "five were written: two told, one ended the text"


def test_a_continuation_runs_beside_the_page_and_is_let_go(state: fake_gateway.State, gateway: str) -> None:
    with Client(gateway) as client:
        body = {"model": CHAT, "prompt": "从前", "max_tokens": 5, "logprobs": 4}
        written = Continuation(client, body).settle(10)
        assert written.text == fake_gateway.STORY[:5] and not written.is_running and written.per_second == 23.4
        state.token_s = 0.05
        slow = Continuation(client, {**body, "prompt": "慢", "max_tokens": 200})
        while not slow.written().tokens:
            assert slow.written().is_running
        slow.stop()
        assert not slow.written().is_running
        assert 0 < len(slow.settle(5).tokens) < 200
        broken = Continuation(client, {**body, "prompt": "错误"}).settle(10)
        assert broken.error and not broken.is_running and not broken.text


# ---- vectors ----


def test_the_map_keeps_what_two_dimensions_hold() -> None:
    rng = np.random.default_rng(1)
    flat_points = rng.normal(size=(9, 2)) * [5, 2]
    basis, _ = np.linalg.qr(rng.normal(size=(40, 2)))
    found = projection.flat((flat_points @ basis.T + rng.normal(size=40)).tolist())
    assert found.kept == pytest.approx(1)
    distance = lambda rows: np.linalg.norm(rows[:, None] - rows[None], axis=2)  # noqa: E731
    ours, theirs = distance(np.array(found.points)), distance(flat_points)
    assert ours * (theirs.max() / ours.max()) == pytest.approx(theirs, abs=1e-9), "distances are kept, to one scale"


@given(some.lists(some.lists(some.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=12))
def test_points_lie_on_the_map(vectors: list[list[float]]) -> None:
    found = projection.flat(vectors)
    assert len(found.points) == len(vectors) and -1e-9 <= found.kept <= 1 + 1e-9
    assert all(-1e-9 <= value <= 1 + 1e-9 for point in found.points for value in point)


def test_pairs_are_named_the_most_alike_first() -> None:
    likeness = projection.cosines([[1, 0], [2, 0.1], [0, 1]])
    assert likeness[0][0] == pytest.approx(1) and likeness[0][2] == pytest.approx(0)
    assert [pair[:2] for pair in projection.pairs(likeness)] == [(0, 1), (1, 2), (0, 2)]


# ---- sums ----

QWEN = {
    "architecture": "qwen2", "n_layers": 24, "n_embd": 896, "n_head": 14, "n_head_kv": 2, "parameters": 494_032_768,
    "metadata": {"qwen2.feed_forward_length": 4864},
}  # fmt: skip


def test_lora_counts_what_a_training_of_qwen_counted() -> None:
    assert sums.lora_parameters(QWEN, 8) == 4_399_104
    assert sums.lora_parameters(QWEN, 16) == 2 * 4_399_104
    as_folder = {**QWEN, "metadata": {"intermediate_size": 4864}}
    assert sums.lora_parameters(as_folder, 8) == 4_399_104
    assert sums.lora_parameters({**QWEN, "architecture": "gpt2"}, 8) is None
    assert sums.lora_parameters({**QWEN, "metadata": {}}, 8) is None


def test_lora_counts_what_peft_counts() -> None:
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24,
    )  # fmt: skip
    wanted = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained, _ = peft.get_peft_model(LlamaForCausalLM(config), wanted).get_nb_trainable_parameters()
    facts = {
        "architecture": "llama", "n_layers": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2,
        "metadata": {"intermediate_size": 96, "head_dim": 24},
    }  # fmt: skip
    assert sums.lora_parameters(facts, 4) == trained


def test_sizes_follow_the_bits() -> None:
    assert sums.size_in("f16", 1000) == 2000 and sums.size_in("q8_0", 32) == 34
    assert sums.size_in("q4_k_m", 10**9) < sums.size_in("q8_0", 10**9) < sums.size_in("f16", 10**9)


# ---- the microscope's page ----


@pytest.fixture
def page(gateway: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "lens")
    assert not page.exception and "页面出错了" not in text_of(page)
    return page


def asked(state: fake_gateway.State, path: str) -> list[dict[str, Any]]:
    return [body for where, body in state.token_requests if where.endswith(path)]


def choose(page: AppTest, number: int) -> None:
    """What the component does on a click: AppTest has no browser to click in."""
    page.session_state["writing"]["at"] = number
    page.run()


def written(page: AppTest) -> bool:
    return not any(button.key == "writing_stop" for button in page.button) and "个 token · " in text_of(page)


def test_nothing_is_asked_before_a_button_is_pressed(page: AppTest, state: fake_gateway.State) -> None:
    assert not state.token_requests
    assert {"续写", "看下一个 token", "切开看看", "画地图", "找相近的"} <= {button.label for button in page.button}


def test_a_text_is_continued_and_branches_at_a_token(page: AppTest, state: fake_gateway.State) -> None:
    page.text_area(key="writing_text").set_value("庙里").run()
    page.number_input(key="writing_tokens").set_value(6).run()
    page.slider(key="writing_temperature").set_value(0.5).run()
    page.button(key="write").click().run()
    run_until(page, lambda: written(page))
    first = asked(state, "/completions")[-1]
    assert first["prompt"] == "庙里" and first["max_tokens"] == 6 and first["model"] == CHAT
    assert first["temperature"] == 0.5 and first["logprobs"] == 10 and first["top_k"] == 40 and "seed" not in first
    assert "6 个 token · 23.4 token/秒 · 写够了字数" in text_of(page) and "概率：" in text_of(page)
    choose(page, 2)
    said = text_of(page)
    assert "第 3 个 token：老" in said and "62.0%" in said and "␣the" in said and "⟨E9 BE⟩" in said and "写下的" in said
    half = next(button for button in page.button if button.label.startswith("⟨E9 BE⟩"))
    assert half.disabled, "half a character cannot follow a text by itself"
    next(button for button in page.button if button.label.startswith("␣the")).click().run()
    run_until(page, lambda: written(page))
    assert asked(state, "/completions")[-1]["prompt"] == "庙里有个 the"
    assert page.text_area(key="writing_text").value == "庙里有个 the"
    page.button(key="branch_back").click().run()
    assert page.text_area(key="writing_text").value == "庙里" and written(page)
    page.button(key="write_on").click().run()
    assert asked(state, "/completions")[-1]["prompt"] == "庙里" + fake_gateway.STORY[:6]


def test_what_is_being_written_is_seen_and_stopped(page: AppTest, state: fake_gateway.State) -> None:
    state.token_s = 0.05
    page.text_area(key="writing_text").set_value("慢慢写").run()
    page.number_input(key="writing_tokens").set_value(200).run()
    page.button(key="write").click().run()
    run_until(page, lambda: "mf-token" in text_of(page) and "mf-cursor" in text_of(page))
    page.button(key="writing_stop").click().run()
    run_until(page, lambda: written(page))
    assert "已停下" in text_of(page)


def test_an_error_of_the_model_is_told(page: AppTest) -> None:
    page.text_area(key="writing_text").set_value("错误").run()
    page.button(key="write").click().run()
    run_until(page, lambda: "模型进程意外退出" in text_of(page))
    assert "换一个更小的模型" in text_of(page)


def test_the_next_token_before_and_after_the_samplers(page: AppTest, state: fake_gateway.State) -> None:
    page.button(key="odds_look").click().run()
    run_until(page, lambda: "采样设置留下 5 个候选" in text_of(page))
    assert asked(state, "/next_token")[-1]["sampling"] == {
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "temperature": 0.8,
    }
    page.slider(key="odds_top_k").set_value(2).run()
    run_until(page, lambda: "采样设置留下 2 个候选" in text_of(page))
    said = text_of(page)
    assert "62.0%" in said and "75.6%" in said and said.count("去掉") >= 3, "0.62 of 0.62 + 0.20"
    n = len(asked(state, "/next_token"))
    page.run()
    assert len(asked(state, "/next_token")) == n, "the same question is not asked twice"
    assert not any("⟨" in button.label for button in page.button if str(button.key).startswith("append_"))
    next(button for button in page.button if button.label.startswith("北")).click().run()
    assert page.text_area(key="odds_text").value == words.word("zh", "next_example") + "北"
    run_until(page, lambda: asked(state, "/next_token")[-1]["prompt"].endswith("是北"))


def test_two_tokenizers_side_by_side(gateway: str, state: fake_gateway.State) -> None:
    state.models.append(fake_gateway.chat_model("small"))
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "lens")
    page.text_area(key="cut_text").set_value("你 a").run()
    page.button(key="cut_look").click().run()
    run_until(page, lambda: "⟨BD⟩" in text_of(page))
    said = text_of(page)
    assert said.count("mf-piece") == 3 + 5 and "␣" in said
    assert "<b>3</b>" in said and "<b>5</b>" in said and "<b>1.67</b>" in said, "counts, and bytes a token"
    assert {body["model"] for body in asked(state, "/tokenize")} == {CHAT, "small"}
    assert not any(body["parse_special"] for body in asked(state, "/tokenize")), "as it is written"


def test_lines_become_a_map(page: AppTest, state: fake_gateway.State) -> None:
    page.text_area(key="map_text").set_value("甲乙\n\n乙甲\n丙<b>\n甲乙").run()
    page.button(key="map_draw").click().run()
    run_until(page, lambda: "mf-map" in text_of(page))
    assert asked(state, "/embeddings")[-1]["input"] == ["甲乙", "乙甲", "丙<b>"]
    said = text_of(page)
    assert said.count('class="mf-dot') == 3 and "1.000" in said and "丙&lt;b&gt;" in said and "<b>乙" not in said
    page.text_area(key="map_text").set_value("只有一句").run()
    assert "至少要两句不同的话" in text_of(page)


def test_neighbours_lead_on_to_their_neighbours(page: AppTest, state: fake_gateway.State) -> None:
    page.button(key="near_look").click().run()
    run_until(page, lambda: "上海" in text_of(page))
    assert "151,643 个 token 里的邻居" in text_of(page) and "0.600" in text_of(page) and "␣Beijing" in text_of(page)
    page.button(key=f"near_{ord('城')}").click().run()
    run_until(page, lambda: "城（编号" in text_of(page))
    assert asked(state, "/neighbours")[-1] == {"id": str(ord("城")), "n": "20"}
    page.text_input(key="near_text").set_value("太长的词").run()
    run_until(page, lambda: "不是一个 token" in text_of(page))


def test_without_models_each_panel_says_what_to_do(gateway: str, state: fake_gateway.State) -> None:
    state.models.clear()
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "lens")
    said = text_of(page)
    assert said.count("还没有可以对话或续写的模型") == 4 and "还没有嵌入模型" in said
    assert sum(button.label == "去选模型" for button in page.button) == 5
    go(page, "concepts")
    assert not page.exception and "还没有可以对话或续写的模型" in text_of(page)


def test_what_was_typed_is_there_after_a_walk_to_another_page(page: AppTest) -> None:
    page.text_area(key="writing_text").set_value("留住我").run()
    go(page, "models")
    go(page, "lens")
    assert page.text_area(key="writing_text").value == "留住我"


def test_an_example_follows_the_language_and_what_was_typed_stays(page: AppTest) -> None:
    page.text_area(key="odds_text").set_value("我写的").run()
    page.segmented_control(key="language_switch").set_value("en").run()
    assert page.text_area(key="writing_text").value == words.word("en", "writing_example")
    assert page.text_area(key="odds_text").value == "我写的"


def test_a_model_that_is_gone_is_no_longer_chosen(page: AppTest, state: fake_gateway.State) -> None:
    state.models.append(fake_gateway.chat_model("other"))
    page.run()
    page.selectbox(key="odds_model").set_value("other").run()
    state.models.pop()
    page.run()
    assert not page.exception and page.selectbox(key="odds_model").value == CHAT


# ---- concepts ----


def test_every_concept_is_explained_in_both_languages() -> None:
    for lang in words.LANGUAGES:
        for name in CONCEPTS:
            paragraphs = words.word(lang, f"concept_{name}").strip().splitlines()
            assert len(paragraphs) >= 2 and all(len(one) > 20 for one in paragraphs), (lang, name)
            assert words.word(lang, f"concept_{name}_title") and words.word(lang, f"concept_{name}_show")


@pytest.fixture
def concepts(gateway: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "concepts")
    assert not page.exception and "页面出错了" not in text_of(page)
    return page


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model", ["它最想写的是「北」，把握 62.0%"]),
        ("token", ["mf-piece", "每个 token 的字节"]),
        ("context", ["6 / 8,192 token", "32,768 token", "1,365"]),
        ("parameter", ["630,167,424", "151,936 × 896 = 136,134,656", "491 MB", "6.24"]),
        ("training", ["6.3 亿参数", "100 万 token", "3.8e+15", "10.5 小时"]),
        ("inference", ["有", "23.4", "毫秒一个"]),
        ("finetuning", ["2.", "→", "去训练"]),
        ("embedding", ["multilingual-e5-small 把第一句变成了 8 个数", "月色洒在窗前的地上"]),
        ("quantization", ["1.3 GB", "670 MB", "385 MB", "Q4_K_M，491 MB"]),
        ("lora", ["4,399,104", "0.70%", "8.8 MB"]),
    ],
)
def test_each_concept_is_seen_on_the_model(concepts: AppTest, name: str, wanted: list[str]) -> None:
    assert not any(one in text_of(concepts) for one in ("mf-piece", "4,399,104", "8,192"))
    concepts.session_state[f"show_{name}"] = True
    run_until(concepts, lambda: all(one in everything(concepts) for one in wanted))


def everything(page: AppTest) -> str:
    return text_of(page) + "\n".join(str(link.proto.label) for link in page.get("page_link"))


def test_the_concepts_order_is_that_of_the_issue() -> None:
    assert list(CONCEPTS) == [
        "model", "token", "context", "parameter", "training", "inference", "finetuning", "embedding", "quantization", "lora",
    ]  # fmt: skip
    assert math.isclose(sums.training_flops(10, 10), 600)
