"""The pages' logic in process, with Streamlit's own AppTest, against the scripted gateway."""

import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import fake_gateway
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from mofang.client import Client
from mofang.ui import words
from mofang.ui.pages.knowledge import to_retry
from mofang.ui.places import PLACES
from mofang.ui.run import SCRIPT


@pytest.fixture
def page(gateway: str) -> AppTest:
    return AppTest.from_file(str(SCRIPT), default_timeout=20)


def text_of(page: AppTest) -> str:
    """Everything that the page says."""
    parts = [element.value for element in (*page.markdown, *page.html)]
    parts += [element.label for element in (*page.button, *page.selectbox, *page.text_input)]
    parts += [element.placeholder for element in page.chat_input]
    return "\n".join(str(part) for part in parts if "<style>" not in str(part))


def go(page: AppTest, path: str) -> None:
    """Open one of our pages, as its address does. (AppTest.switch_page knows pages that are files only.)"""
    page._page_hash = calc_hash(path)
    page.run()


def run_until(page: AppTest, wanted: Callable[[], bool], timeout_s: float = 15.0) -> AppTest:
    deadline = time.monotonic() + timeout_s
    while True:
        page.run()
        assert not page.exception
        if wanted():
            return page
        assert time.monotonic() < deadline, text_of(page)
        time.sleep(0.1)


def test_the_first_page_invites_in_chinese(page: AppTest) -> None:
    page.run()
    assert not page.exception
    said = text_of(page)
    assert "今天想聊点什么？" in said and "模坊怎样使用我已经下载好的 GGUF 模型？" in said
    assert page.chat_input[0].placeholder == "输入问题，回车发送"


def test_a_question_is_answered_and_its_conversation_stands_in_the_url(
    page: AppTest, state: fake_gateway.State
) -> None:
    page.run()
    page.chat_input[0].set_value("你好，🙂 什么是上下文窗口？").run()
    assert page.query_params["c"] == "conv_000001"
    run_until(page, lambda: "23.4 token/秒" in text_of(page))
    said = text_of(page)
    assert "**上下文窗口**" in said and "首字 0.41 秒" in said and "你好，🙂" in said
    assert state.conversations["conv_000001"]["title"] == "你好，🙂 什么是上下文窗口？"
    assert state.requests[-1]["temperature"] == 0.7 and "parent_id" not in state.requests[-1]


def test_the_next_question_follows_the_path_that_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.chat_input[0].set_value("一").run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    next(button for button in page.button if str(button.key).startswith("again_")).click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    answers = [one["id"] for one in state.conversations["conv_000001"]["messages"] if one["role"] == "assistant"]
    assert len(answers) == 2 and state.requests[-1]["messages"] == []
    assert "2/2" in text_of(page)
    page.button(key=f"previous_{answers[1]}").click().run()
    assert "1/2" in text_of(page)
    page.chat_input[0].set_value("二").run()
    assert state.requests[-1]["parent_id"] == answers[0]
    run_until(page, lambda: not page.chat_input[0].disabled)


def test_stop_keeps_what_was_said(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.chat_input[0].set_value("慢").run()
    run_until(page, lambda: "这是" in text_of(page))
    assert page.chat_input[0].disabled
    page.button(key="stop").click().run()
    run_until(page, lambda: "已停止" in text_of(page))
    answer = state.conversations["conv_000001"]["messages"][-1]
    assert answer["status"] == "stopped" and 0 < len(answer["content"]) < len(fake_gateway.SLOW)
    assert not page.chat_input[0].disabled


def test_an_error_is_told_with_its_hint_also_after_a_reload(page: AppTest, gateway: str) -> None:
    page.run()
    page.chat_input[0].set_value("错误").run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    assert "模型进程意外退出" in text_of(page) and "换一个更小的模型" in text_of(page)
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = "conv_000001"
    again.run()
    assert "模型进程意外退出" in text_of(again) and "错误" in text_of(again)


def test_a_refused_question_says_why_and_the_page_lives(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    state.is_full = True
    page.chat_input[0].set_value("你好").run()
    assert "排队的请求已满" in text_of(page) and "请稍后再试" in text_of(page)
    state.is_full = False
    page.button(key="send_again").click().run()
    assert state.requests[-1]["messages"] == [{"role": "user", "content": "你好"}]
    run_until(page, lambda: "**上下文窗口**" in text_of(page))


def test_sources_are_numbered_linked_and_shown_in_their_context(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.button(key="example_docs").click().run()
    assert state.requests[-1]["knowledge"] == ["handbook"]
    run_until(page, lambda: not page.chat_input[0].disabled)
    said = text_of(page)
    anchor = f"s-{state.conversations['conv_000001']['messages'][-1]['id']}-1"
    assert f"不会被复制[1](#{anchor})" in said and f'id="{anchor}"' in said
    assert f"<mark>{fake_gateway.SENTENCE}</mark>" in said and "或者只登记一个文件" in said
    assert "第 3 页" in said and "模型 › 已经下载好的模型" in said and "&lt;b&gt;不是标签&lt;/b&gt;" in said


def test_settings_are_kept_with_the_conversation(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.text_area(key="system_new").set_value("你是一位编辑").run()
    page.pills(key="preset_new_0_balanced").set_value("creative").run()
    assert page.slider(key="temperature_new_1").value == 1.1
    page.slider(key="temperature_new_1").set_value(0.3).run()
    assert page.pills(key="preset_new_1_None").value is None
    page.chat_input[0].set_value("你好").run()
    sent = state.requests[-1]
    assert (sent["system"], sent["temperature"], sent["top_k"]) == ("你是一位编辑", 0.3, 100)
    kept = state.conversations["conv_000001"]
    assert kept["system"] == "你是一位编辑" and kept["sampling"]["temperature"] == 0.3
    run_until(page, lambda: not page.chat_input[0].disabled)
    page.selectbox(key="model_conv_000001").set_value("qwen2.5-coder-0.5b-instruct").run()
    assert kept["model"] == "qwen2.5-coder-0.5b-instruct"


def test_a_question_without_an_answer_is_one_click_from_it(
    page: AppTest, state: fake_gateway.State, gateway: str
) -> None:
    with Client(gateway) as client:
        conversation = client.create_conversation(title="旧")["id"]
    state.conversations[conversation]["messages"].append(fake_gateway.message(state, "user", None, content="没人回答"))
    page.query_params["c"] = conversation
    page.run()
    page.button(key="answer_it").click().run()
    assert state.requests[-1]["messages"] == []
    run_until(page, lambda: "**上下文窗口**" in text_of(page))


def test_a_new_chat_begins_without_the_last_ones_documents(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.button(key="example_docs").click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    page.button(key="new_chat").click().run()
    page.chat_input[0].set_value("你好").run()
    assert "knowledge" not in state.requests[-1]
    run_until(page, lambda: not page.chat_input[0].disabled)


def test_the_language_switch_changes_everything_and_stands_in_the_url(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.segmented_control(key="language_switch").set_value("en").run()
    said = text_of(page)
    assert page.query_params["lang"] == "en" and "What is on your mind?" in said and "今天" not in said
    assert state.languages[-1] == "en"
    page.segmented_control(key="language_switch").set_value("zh").run()
    assert "今天想聊点什么？" in text_of(page) and "lang" not in page.query_params


@pytest.mark.parametrize("lang", words.LANGUAGES)
@pytest.mark.parametrize("path", [place.path for place in PLACES.values()])
def test_no_page_shows_a_raw_key(page: AppTest, path: str, lang: str) -> None:
    page.query_params["lang"] = lang
    go(page, path)
    assert not page.exception
    shown = set(text_of(page).replace(">", " ").replace("<", " ").split())
    assert not {key for key in words.table(lang) if "_" in key} & shown


def test_conversations_are_listed_and_opened(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.chat_input[0].set_value("第一个问题").run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    page.button(key="new_chat").click().run()
    assert "c" not in page.query_params and "今天想聊点什么？" in text_of(page)
    page.button(key="open_conv_000001").click().run()
    assert "**上下文窗口**" in text_of(page)


def test_a_conversation_that_is_gone_is_said_and_a_new_one_begins(page: AppTest) -> None:
    page.query_params["c"] = "conv_none"
    page.run()
    assert "没有对话 conv_none" in text_of(page) and "c" not in page.query_params


def test_the_gateway_away_is_waited_for(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_GATEWAY", "http://127.0.0.1:9")
    page.run()
    assert not page.exception
    assert "正在等待网关" in text_of(page) and "http://127.0.0.1:9" in text_of(page)


def test_a_key_is_asked_for_and_used(page: AppTest, state: fake_gateway.State) -> None:
    state.key = "钥匙".encode().hex()
    page.run()
    assert "这个网关需要访问密钥" in text_of(page)
    page.text_input(key="key_input").set_value("wrong")
    next(button for button in page.button if button.label == "进入").click().run()
    assert "网关不接受这个密钥" in text_of(page)
    page.text_input(key="key_input").set_value(state.key)
    next(button for button in page.button if button.label == "进入").click().run()
    assert "今天想聊点什么？" in text_of(page)


def test_the_first_run_shows_the_pull_and_then_the_chat(page: AppTest, state: fake_gateway.State) -> None:
    state.models, state.pull_s = [], 1.0
    page.run()
    assert "还没有对话模型" in text_of(page)
    go(page, "models")
    page.button(key="pull_qwen2.5-1.5b-instruct").click().run()
    go(page, "")
    assert "正在准备第一个模型" in text_of(page) and "下载 · " in text_of(page)
    run_until(page, lambda: "今天想聊点什么？" in text_of(page))
    assert not page.chat_input[0].disabled


def test_a_pull_is_paused_gone_on_with_and_dropped(page: AppTest, state: fake_gateway.State) -> None:
    state.pull_s = 30.0
    page.run()
    go(page, "models")
    page.button(key="pull_qwen2.5-1.5b-instruct").click().run()
    (job,) = state.jobs.values()
    run_until(page, lambda: "MB/s" in text_of(page))
    page.button(key=f"job_pause_{job['id']}").click().run()
    said = text_of(page)
    assert "已暂停" in said and "491 MB" in said and "MB/s" not in said and "还剩约" not in said
    assert not page.button(key="pull_qwen2.5-1.5b-instruct").disabled
    page.button(key=f"job_run_resume_{job['id']}").click().run()
    assert job["status"] == "running" and f"job_pause_{job['id']}" in [button.key for button in page.button]
    page.button(key=f"job_pause_{job['id']}").click().run()
    page.button(key=f"job_delete_sure_{job['id']}").click().run()
    assert state.dropped == [job["id"]] and "已暂停" not in text_of(page)


def test_models_are_loaded_unloaded_and_deleted(page: AppTest, state: fake_gateway.State) -> None:
    name = "qwen2.5-coder-0.5b-instruct"
    page.run()
    go(page, "models")
    page.button(key=f"unload_{name}").click().run()
    assert not state.models[0]["loaded"]
    page.button(key=f"load_{name}").click().run()
    assert "正在加载…" in text_of(page)
    run_until(page, lambda: f"unload_{name}" in [button.key for button in page.button])
    page.button(key=f"delete_sure_{name}").click().run()
    assert name not in [model["id"] for model in state.models]


def test_the_engine_shows_each_choice_with_its_figures(page: AppTest) -> None:
    page.run()
    go(page, "models")
    shown = text_of(page)
    assert "native 20b1d7d27fe5" in shown and "flash_attn=off · speculative=ngram-simple:8:24" in shown
    table = page.dataframe[0].value
    assert list(table["快多少"]) == ["+21.0 % ± 1.0", "-1.0 % ± 2.0", "+20.0 % ± 3.0"]
    assert list(table["采用"]) == ["✓", "", "✓"] and list(table["同时合计 token/s"])[-1] == "60 → 72"
    assert next(iter(table["回答 token/s"])) == "24 → 31"


def test_what_fits_comes_first_in_the_catalogue(page: AppTest) -> None:
    page.run()
    go(page, "models")
    titles = [element.value for element in page.html if "class='mf-summary'" in str(element.value)]
    assert "内存可能不够" in titles[-1] and "Qwen2.5 1.5B" in titles[0]


def test_documents_are_taken_in_and_each_failure_is_told(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    files: list[Any] = [("好.md", "正文".encode(), "text/markdown"), ("坏.txt", b"", "text/plain")]
    page.file_uploader[0].set_value(files).run()
    page.button(key="upload").click().run()
    run_until(page, lambda: "已收录" in text_of(page))
    said = text_of(page)
    assert "坏.txt：文件是空的" in said and "请换一个有内容的文件" in said
    assert [one["name"] for one in state.documents["handbook"]][-1] == "好.md"


def test_a_base_is_created_searched_and_deleted(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    page.text_input(key="base_name").set_value("我的资料")
    next(button for button in page.button if button.label == "创建").click().run()
    assert "我的资料" in state.bases
    page.text_input(key="query_我的资料").set_value("模型").run()
    said = text_of(page)
    assert "关键词第 1" in said and "向量第 3" in said and "关键词未命中" in said
    page.segmented_control(key="order_我的资料").set_value("dense").run()
    said = text_of(page)
    assert said.index("向量第 1") < said.index("向量第 2") < said.index("向量第 3"), "the leg alone, in its own order"
    page.segmented_control(key="order_我的资料").set_value("bm25").run()
    assert "关键词未命中" not in text_of(page)
    page.button(key="delete_base_sure").click().run()
    assert "我的资料" not in state.bases


def test_what_failed_is_sent_again(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    files: list[Any] = [("好.md", "正文".encode(), "text/markdown"), ("坏.txt", b"x", "text/plain")]
    page.file_uploader[0].set_value(files).run()
    page.button(key="upload").click().run()
    run_until(page, lambda: "坏.txt：文件是空的" in text_of(page))
    assert "已收录 1" in text_of(page) and "失败 1" in text_of(page)
    next(button for button in page.button if button.label == "重试 1 个文件").click().run()
    run_until(page, lambda: len(state.uploads) == 2 and "坏.txt：文件是空的" in text_of(page))
    assert state.uploads[1] == {"坏.txt": b"x"}, "its content too, from the beginning"
    next(button for button in page.button if button.label == "知道了").click().run()
    assert "坏.txt" not in text_of(page) and not any("重试" in button.label for button in page.button)


def test_an_archive_is_sent_again_for_a_file_in_it_and_all_when_the_job_failed() -> None:
    def again(job: dict[str, Any], *names: str) -> list[str]:
        return [file.name for file in to_retry([SimpleNamespace(name=name) for name in names], job)]

    def done(*failed: str) -> dict[str, Any]:
        reports = [{"name": name, "status": "failed"} for name in failed]
        return {"status": "done", "result": {"files": [*reports, {"name": "好.md", "status": "added"}]}}

    assert again(done(), "好.md") == []
    assert again(done("坏.txt"), "好.md", "坏.txt", "包.zip") == ["坏.txt"]
    assert again(done("包/坏.txt"), "好.md", "包.zip") == ["包.zip"]
    assert again({"status": "error"}, "好.md", "包.zip") == ["好.md", "包.zip"]


def test_an_index_is_rebuilt(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    assert "索引 内置" in text_of(page)
    page.button(key="rebuild_start").click().run()
    assert "正在重建索引" in text_of(page) and "建索引" in text_of(page)
    run_until(page, lambda: "索引已重建" in text_of(page))
    assert "1000 个片段" in text_of(page)
    state.jobs.clear()
    page.run()
    assert "mf-fault" in text_of(page), "a job that the gateway no longer knows is said, and can be put away"
    next(button for button in page.button if button.label == "知道了").click().run()
    assert "mf-fault" not in text_of(page)


def test_a_search_is_limited_marked_and_timed(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    page.text_input(key="query_handbook").set_value("gguf 文件夹").run()
    said = text_of(page)
    assert "<mark>gguf</mark>" in said and "<mark>文件夹</mark>" in said and re.search(r"3 条，用时 \d+ 毫秒", said)
    assert "filter" not in state.searches[-1]
    page.text_input(key="names_handbook").set_value("手册/， *.md").run()
    page.multiselect(key="types_handbook").set_value(["pdf"]).run()
    assert state.searches[-1]["filter"] == {"names": ["手册/", "*.md"], "types": ["pdf"]}
    page.segmented_control(key="order_handbook").set_value("dense").run()
    said = text_of(page)
    assert state.searches[-1]["k"] is None
    assert said.index("融合第 3（") < said.index("融合第 1（"), (
        "in the leg's order each hit keeps its place in the search"
    )
    page.text_input(key="query_handbook").set_value("重排").run()
    assert "重排 0.500" not in text_of(page) and "融合第 1（" in text_of(page), "a leg's own order, without a reranker"
    page.segmented_control(key="order_handbook").set_value("fused").run()
    assert "重排 -1.500" in text_of(page) and "融合 0.0300" in text_of(page) and "融合第" not in text_of(page)
    page.text_input(key="query_handbook").set_value("没有这回事").run()
    assert "没有找到相关内容" in text_of(page) and "索引落后了" in text_of(page)


def test_a_document_opens_at_its_span(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    go(page, "knowledge")
    page.text_input(key="query_handbook").set_value("模型").run()
    page.button(key="view_hit_1").click().run()
    start = fake_gateway.TEXT.index(fake_gateway.SENTENCE)
    end = start + len(fake_gateway.SENTENCE)
    assert page.query_params["at"] == f"{start}-{end}"
    assert f"<mark>{fake_gateway.SENTENCE}</mark>" in text_of(page)
    page.segmented_control(key="view_doc_1").set_value("chunks").run()
    shown = text_of(page)
    chunks = re.findall(r'<span class="mf-chunk( odd)?">', shown)
    assert len(chunks) == -(-4_000 // fake_gateway.CHUNK) and chunks[:3] == ["", " odd", ""]
    page.button(key=f"step_on_from_doc_1_{start}").click().run()
    assert "第 4,001–" in text_of(page)
    assert not page.exception


def test_a_pdf_opens_as_its_page(page: AppTest, state: fake_gateway.State) -> None:
    page.query_params.update({"kb": "handbook", "doc": "doc_3", "at": "60-100"})
    page.run()
    go(page, "knowledge")
    assert state.pages[-1] == ("手册/用户指南.pdf", 3, 60, 100) and "第 3 / 3 页" in text_of(page)
    assert 'src="data:image/png;base64,' in text_of(page)
    page.button(key="step_back_page_doc_3_60").click().run()
    assert state.pages[-1][1] == 2
    page.query_params.update({"doc": "doc_gone"})
    page.run()
    assert "没有编号为 doc_gone 的文档" in text_of(page)


def test_a_cited_source_leads_to_its_document(page: AppTest) -> None:
    page.run()
    page.button(key="example_docs").click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    [first, second] = [element for element in page.get("page_link") if element.proto.label in ("1", "2")]
    query = dict(parse_qsl(second.proto.query_string))
    assert (query["kb"], query["doc"], query["at"]) == ("handbook", "doc_3", "60-100")
    assert dict(parse_qsl(first.proto.query_string))["doc"] == "doc_1"
