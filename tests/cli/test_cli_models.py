"""`mofang models`: what is shown, what is JSON, and what Ctrl-C does to a pull."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from cli_fakes import FakeClient, Run
from rich.cells import cell_len


def test_catalog_reads_at_80_columns_in_chinese(run: Run) -> None:
    shown = run("models", "catalog").stdout
    lines = shown.splitlines()
    assert max(cell_len(line.rstrip()) for line in lines) <= 80
    assert any(
        "✓" in line and "qwen2.5-0.5b-instruct" in line and "491 MB" in line and "32,768" in line for line in lines
    )
    assert any("qwen3-32b" in line and "✗ 24 GB" in line for line in lines)
    told = shown.replace(" ", "").replace("\n", "")
    assert "通义千问2.5，五亿参数；能说流利中文，普通笔记本上每秒二十多个token·Apache-2.0" in told, "nothing is cut off"


def test_list_and_its_json(run: Run, client: FakeClient) -> None:
    result = run("models", "list")
    assert [line for line in result.stdout.splitlines() if "千问-小" in line and "92 MB" in line and "对话" in line]
    result = run("models", "list", "--json")
    assert json.loads(result.stdout) == client.models_
    assert result.stderr == ""


def test_a_damaged_model_is_told_beside_the_list(run: Run, client: FakeClient) -> None:
    client.problems = [{"message": "坏.gguf 不完整", "hint": "请重新下载"}]
    result = run("models", "list", "--json")
    assert json.loads(result.stdout) == client.models_ and "坏.gguf 不完整\n请重新下载" in result.stderr


def test_an_empty_list_says_what_to_type(run: Run, client: FakeClient) -> None:
    client.models_ = []
    result = run("models", "list")
    assert result.stdout == "" and "mofang models pull auto" in result.stderr
    assert run("models", "list", "--json").stdout == "[]\n"


def test_info_with_memory_at_a_context(run: Run) -> None:
    shown = " ".join(run("models", "info", "echo", "--n-ctx", "4096").stdout.split())
    for fact in ("qwen2", "494M", "层数 24", "32,768", "151,936", "Q4_K_M", "有（8 个字符）", "每个对话 4,096 token",
                 "892 MB（权重 491 MB + 键值缓存 101 MB + 计算 300 MB）"):  # fmt: skip
        assert fact in shown
    assert json.loads(run("models", "info", "echo", "--n-ctx", "4096", "--json").stdout)["memory"]["n_ctx"] == 4096


def test_info_draws_where_a_model_comes_from(run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(name: str, role: str = "", step: str = "", *parents: dict, here: bool = True, told: bool = False) -> dict:
        return {
            "name": name, "role": role, "format": "hf", "sha256": "ab" * 32, "step": step, "run": f"{step}-1",
            "source": "" if step else "pypi", "here": here, "told": told, "parents": list(parents),
        }  # fmt: skip

    base = one("底座", "base", "import", one("文件", "quantized"))
    adapter = one("老师", "adapter", "sft", one("底座", "base", "import", told=True), here=False)
    tree = one("echo", "", "merge", base, adapter)
    plainly = client.model
    monkeypatch.setattr(client, "model", lambda *given: {**plainly(*given), "lineage": tree})
    lines = run("models", "info", "echo").stdout.splitlines()
    digest = "hf · abababababab）"
    assert lines[lines.index("来历") + 1 :] == [
        f"echo（merge，运行 merge-1 · {digest}",
        f"├─ 底座：底座（import，运行 import-1 · {digest}",
        f"│  └─ 量化的文件：文件（来自 pypi · {digest}",
        f"└─ 适配器：老师（sft，运行 sft-1 · {digest}  ✗ 已不在这里",
        f"   └─ 底座：底座（import，运行 import-1 · {digest}  （它的来历见上）",
    ]
    assert json.loads(run("models", "info", "echo", "--json").stdout)["lineage"] == tree


def test_the_gateways_error_is_message_hint_and_exit_code(run: Run) -> None:
    result = run("models", "info", "ech")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "没有名为 ech 的模型" in result.stderr and "最接近的名字：echo" in result.stderr


def test_pull_writes_progress_to_stderr_and_the_model_to_stdout(run: Run) -> None:
    result = run("models", "pull", "千问", "--json")
    assert json.loads(result.stdout) == {"id": "千问"}
    assert "huggingface 没有应答" in result.stderr
    assert "下载" in result.stderr and "12 MB/s" in result.stderr and "剩 0:30" in result.stderr


def test_ctrl_c_stops_the_pull_and_says_that_it_resumes(run: Run, client: FakeClient) -> None:
    client.delay_s, client.pull_steps = 0.1, 50

    def interrupt() -> None:
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    result = run("models", "pull", "千问")
    assert result.exit_code == 130
    assert "接着取" in result.stderr and "已就绪" not in result.output
    assert client.stopped, "the gateway was told"


def test_add_gives_the_gateway_a_whole_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: FakeClient
) -> None:
    (tmp_path / "我的 模型.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    answer = json.loads(run("models", "add", "我的 模型.gguf", "--name", "我的", "--json").stdout)
    assert answer == {"id": "我的", "size_bytes": 4, "path": str(tmp_path / "我的 模型.gguf")}


def test_rm_asks_and_a_script_must_say_yes(run: Run, client: FakeClient) -> None:
    result = run("models", "rm", "echo")
    assert result.exit_code == 2 and "--yes" in result.stderr and client.removed == []
    assert run("models", "rm", "echo", "--yes").exit_code == 0
    assert client.removed == ["echo"]


def test_ps_shows_who_is_at_work_who_waits_and_who_leaves_when(run: Run, client: FakeClient) -> None:
    result = run("models", "ps")
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["echo"][-6:] == ["640", "MB", "2/4", "3", "0:00", "–"]
    assert rows["千问-小"][-4:] == ["0/4", "0", "1:15", "13:45"] and rows["e5"][-1] == "固定"
    assert "千问-小: 内存只够 1 个对话" in result.stderr
    assert json.loads(run("models", "ps", "--json").stdout) == client.engines
    client.engines = []
    assert "mofang models load" in run("models", "ps").stderr and run("models", "ps", "--json").stdout == "[]\n"


def test_load_and_unload_pass_on_what_was_wished(run: Run, client: FakeClient) -> None:
    assert "echo" in run("models", "load", "echo", "--pin", "--keep-alive", "1h").stdout
    run("models", "load", "echo")
    run("models", "load", "echo", "--reload", "--replicas", "3")
    plain = {"pin": None, "keep_alive": None, "reload": False}
    assert client.bodies == [
        {**plain, "pin": True, "keep_alive": "1h"},
        plain,
        {**plain, "reload": True, "replicas": 3, "max_replicas": 0},
    ]
    assert "e5" in run("models", "unload", "e5").stdout
    assert [engine["model"] for engine in client.engines] == ["echo", "千问-小"]
