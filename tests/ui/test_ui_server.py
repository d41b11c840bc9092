"""The pages against the real gateway in this process, with the echo model and the hash embedder."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from mofang import settings
from mofang.client import Client
from mofang.engine.echo import EchoEngine
from mofang.server import create_app
from mofang.server.backend import LocalBackend
from mofang.ui.run import SCRIPT
from tool_caller import ToolCaller

DOCUMENT = "# 安装\n\n## 离线安装\n\n没有网络的机器也能安装模坊，先在别的机器上下载安装包。\n\n## 升级\n\n运行 pip install -U mofang 即可升级。\n"


@pytest.fixture
def gateway(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    models = {
        "echo": {"kind": "chat", "engine": "echo", "echo": {"delay_s": 0.02}},
        "hash": {"kind": "embedding", "engine": "hash"},
    }
    for name, manifest in models.items():
        folder = home / "models" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"name": name, "format": "gguf", **manifest}))
    bound = socket.create_server(("127.0.0.1", 0))
    app = create_app(LocalBackend(settings.load()))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    monkeypatch.setenv("WORKBENCH_GATEWAY", url)
    yield url
    server.should_exit = True
    thread.join(10)
    bound.close()


@pytest.fixture
def page(gateway: str) -> AppTest:
    return AppTest.from_file(str(SCRIPT), default_timeout=20)


def text_of(page: AppTest) -> str:
    parts = [element.value for element in (*page.markdown, *page.html)]
    return "\n".join(str(part) for part in parts if "<style>" not in str(part))


def run_until(page: AppTest, wanted: Callable[[], bool], timeout_s: float = 20.0) -> AppTest:
    deadline = time.monotonic() + timeout_s
    while True:
        page.run()
        assert not page.exception
        if wanted():
            return page
        assert time.monotonic() < deadline, text_of(page)
        time.sleep(0.1)


def is_free(page: AppTest) -> Callable[[], bool]:
    return lambda: not page.chat_input[0].disabled


def test_a_conversation_with_regenerate_stop_and_reload(page: AppTest, gateway: str) -> None:
    page.run()
    page.chat_input[0].set_value("你好，🙂 世界").run()
    run_until(page, is_free(page))
    assert "你好，🙂 世界" in [element.value for element in page.markdown]
    assert "输出 7 token" in text_of(page)
    next(button for button in page.button if str(button.key).startswith("again_")).click().run()
    run_until(page, is_free(page))
    assert "2/2" in text_of(page)
    page.chat_input[0].set_value("很长的话" * 60).run()
    run_until(page, lambda: any("很长" in element.value for element in page.markdown))
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = page.query_params["c"]
    again.run()
    assert again.chat_input[0].disabled and any("很长" in element.value for element in again.markdown)
    again.button(key="stop").click().run()
    run_until(again, is_free(again))
    assert "已停止" in text_of(again)
    with Client(gateway) as client:
        said = client.conversation(page.query_params["c"])["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "assistant", "user", "assistant"]
    assert said[-1]["status"] == "stopped" and said[1]["parent_id"] == said[2]["parent_id"] == said[0]["id"]


def test_documents_in_a_search_and_an_answer_with_sources(page: AppTest, gateway: str) -> None:
    page._page_hash = calc_hash("knowledge")
    page.run()
    page.text_input(key="base_name").set_value("手册")
    next(button for button in page.button if button.label == "创建").click().run()
    page.file_uploader[0].set_value(
        [("安装.md", DOCUMENT.encode(), "text/markdown"), ("空.txt", b"", "text/plain")]
    ).run()
    page.button(key="upload").click().run()
    run_until(page, lambda: "已收录" in text_of(page))
    assert "空.txt 是空文件" in text_of(page) and "重试 1 个文件" in [button.label for button in page.button]
    page.text_input(key="query_手册").set_value("离线安装").run()
    assert "关键词第 1" in text_of(page) and "安装 › 离线安装" in text_of(page)
    page.button(key="view_hit_1").click().run()
    assert "没有网络的机器也能安装模坊" in re.findall("<mark>(.*?)</mark>", text_of(page), re.DOTALL)[-1]
    view = next(one for one in page.segmented_control if str(one.key).startswith("view_"))
    view.set_value("chunks").run()
    assert text_of(page).count("mf-chunk") >= 2
    page._page_hash = calc_hash("")
    page.run()
    page.pills(key="knowledge_new").set_value(["手册"]).run()
    page.chat_input[0].set_value("没有网络的机器也能安装吗？").run()
    run_until(page, is_free(page))
    assert "<mark>" in text_of(page) and "没有网络的机器也能安装模坊" in text_of(page)


def test_models_are_shown_loaded_and_unloaded(page: AppTest, gateway: str) -> None:
    page._page_hash = calc_hash("models")
    page.run()
    assert not page.exception
    page.button(key="load_echo").click().run()
    run_until(page, lambda: "unload_echo" in [button.key for button in page.button])
    page.button(key="unload_echo").click().run()
    assert "load_echo" in [button.key for button in page.button]
    assert "Qwen2.5 1.5B" in text_of(page)


def test_an_unknown_model_is_told_with_what_to_do(page: AppTest, gateway: str) -> None:
    with Client(gateway) as client:
        page.query_params["c"] = client.create_conversation(title="旧对话", model="不在的模型")["id"]
    page.run()
    page.chat_input[0].set_value("你好").run()
    run_until(page, lambda: "mf-fault" in text_of(page))
    assert "不在的模型" in text_of(page)


def test_a_tool_is_chosen_asked_about_and_its_result_gone_on_from(
    gateway: str, page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = ToolCaller("echo")
    monkeypatch.setattr(EchoEngine, "chat", lambda self, messages, sampling: caller.chat(messages, sampling))
    page.run()
    page.session_state["tools_pop_new"] = True
    run_until(page, lambda: bool(page.checkbox))
    assert [box.label for box in page.checkbox] == ["查找文档", "计算", "现在的时间"]
    page.checkbox(key="tool_new_calculate").check().run()
    page.chat_input[0].set_value("calculate '6 * 7'").run()
    run_until(page, lambda: any(str(button.key).startswith("run_msg") for button in page.button))
    assert "6 * 7" in text_of(page)
    next(button for button in page.button if str(button.key).startswith("run_msg")).click().run()
    run_until(page, is_free(page))
    assert "好的：42" in text_of(page) and any("计算 · 已执行" in one.label.replace("\\", "") for one in page.expander)
