"""`mofang kb`: which files are taken under which names, what is reported, and how answers name their sources."""

import json
from pathlib import Path

import pytest
from cli_fakes import FakeClient, Run

from mofang.cli import files
from mofang.cli.files import select

SUFFIXES = {".md", ".txt", ".pdf"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people have them: subfolders, hidden files, a picture, an empty file, a link to itself."""
    work = tmp_path / "工作"
    (work / "手册" / "第一章").mkdir(parents=True)
    (work / "手册" / "说明.md").write_text("模坊的说明。", encoding="utf-8")
    (work / "手册" / "第一章" / "安装.MD").write_text("安装步骤", encoding="utf-8")
    (work / "手册" / "旧文件.txt").write_bytes("国标编码".encode("gbk"))
    (work / "手册" / "图.png").write_bytes(b"\x89PNG")
    (work / "手册" / "Makefile").write_text("all:")
    (work / "手册" / ".git").mkdir()
    (work / "手册" / ".git" / "秘密.md").write_text("不该读")
    (work / "手册" / ".草稿.md").write_text("不该读")
    (work / "手册" / "回路").symlink_to(work / "手册")
    monkeypatch.chdir(work)
    return work


def test_a_folder_is_read_with_all_below_it(folder: Path) -> None:
    chosen = select([Path("手册")], SUFFIXES)
    assert [name for name, _ in chosen.files] == ["手册/旧文件.txt", "手册/说明.md", "手册/第一章/安装.MD"]
    skipped = {(Path(skip.path).name, skip.reason) for skip in chosen.skipped}
    assert skipped == {(".git", "hidden"), (".草稿.md", "hidden"), ("图.png", "suffix"), ("Makefile", "suffix"),
                       ("回路", "link")}  # fmt: skip


def test_one_document_has_one_name_however_it_is_reached(folder: Path) -> None:
    def names(*paths: str) -> set[str]:
        return {name for name, _ in select([Path(path) for path in paths], SUFFIXES).files}

    assert names("手册/说明.md") == {"手册/说明.md"} == names("手册/说明.md", "手册/../手册/说明.md")
    assert names("手册") == names(str(folder / "手册")) == names("手册", "手册/说明.md")


def test_outside_the_current_folder_a_name_begins_at_what_was_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "别处").mkdir()
    monkeypatch.chdir(folder / "别处")
    assert {name for name, _ in select([Path("../手册")], SUFFIXES).files} == {
        "手册/旧文件.txt",
        "手册/说明.md",
        "手册/第一章/安装.MD",
    }
    assert [name for name, _ in select([Path("../手册/说明.md")], SUFFIXES).files] == ["说明.md"]


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path: Path, folder: Path) -> None:
    for where in ("甲", "乙"):
        (tmp_path / where).mkdir()
        (tmp_path / where / "说明.md").write_text(where)
    names = [name for name, _ in select([tmp_path / "甲" / "说明.md", tmp_path / "乙" / "说明.md"], SUFFIXES).files]
    assert len(set(names)) == 2 and all(name.endswith("说明.md") for name in names)


def test_a_file_that_was_named_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert [name for name, _ in select([Path("手册/图.png"), Path("手册/.草稿.md")], SUFFIXES).files] == [
        "手册/图.png",
        "手册/.草稿.md",
    ]


def test_batches_are_neither_many_nor_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_BYTES", 100)
    monkeypatch.setattr(files, "BATCH_FILES", 3)
    made = []
    for number, n_bytes in enumerate([10, 10, 10, 10, 500, 60, 60]):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(b"x" * n_bytes)
        made.append((path.name, path))
    got = [[name for name, _ in batch] for batch in files.batches(made)]
    assert got == [["0.txt", "1.txt", "2.txt"], ["3.txt"], ["4.txt"], ["5.txt"], ["6.txt"]]


# ---- commands ----


def test_add_makes_the_base_reports_each_file_and_what_it_skipped(run: Run, client: FakeClient, folder: Path) -> None:
    result = run("kb", "add", "产品手册", "手册")
    assert result.exit_code == 0
    assert client.bases["产品手册"]["手册/旧文件.txt"] == "国标编码".encode("gbk"), "bytes arrive as they are"
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["+", "手册/旧文件.txt"],
        ["+", "手册/说明.md"],
        ["+", "手册/第一章/安装.MD"],
    ]
    assert "还不存在，已新建" in result.stderr
    assert "隐藏文件 2" in result.stderr and "不支持的后缀 2 (.png 无后缀)" in result.stderr
    assert "新增 3" in result.stderr


def test_add_exits_1_when_a_file_failed_and_says_what_to_do(run: Run, client: FakeClient, folder: Path) -> None:
    client.create_knowledge("手册")
    (folder / "手册" / "空.md").write_text("")
    result = run("kb", "add", "手册", "手册", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not report["created"] and len(report["files"]) == 4 and len(report["skipped"]) == 5
    assert [file["name"] for file in report["files"] if file["status"] == "failed"] == ["手册/空.md"]
    shown = run("kb", "add", "手册", "手册/空.md")
    assert "✗ 手册/空.md  文件是空的" in shown.stdout and "请检查文件" in shown.stdout


def test_a_refused_batch_costs_only_the_file_that_is_to_blame(run: Run, client: FakeClient, folder: Path) -> None:
    client.batch_refused = True
    assert run("kb", "add", "手册", "手册").exit_code == 0
    assert client.uploads == [["手册/旧文件.txt"], ["手册/说明.md"], ["手册/第一章/安装.MD"]]


def test_machines_of_a_cluster_take_in_more_at_a_time(
    run: Run, client: FakeClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BATCH_FILES", 1)
    options = ("--launcher", "ray", "--cluster", "10.0.0.1:6379", "--workers", "3")
    assert run("kb", "add", "手册", "手册", *options).exit_code == 0
    assert client.where == [{"launcher": "ray", "cluster": "10.0.0.1:6379", "workers": 3}]
    assert run("kb", "add", "手册", "手册").exit_code == 0
    assert client.where[1:] == [{"launcher": "local", "cluster": "", "workers": 0}] * 3


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--launcher", "rya"), "ray"),
        (("--workers", "2"), "--workers"),
        (("--cluster", "auto"), "--cluster"),
        (("--launcher", "ray", "--cluster", "somewhere"), "主机:端口"),
    ],
)
def test_a_wrong_cluster_is_said_before_anything_is_made(
    run: Run, client: FakeClient, folder: Path, options: tuple[str, ...], part: str
) -> None:
    result = run("kb", "add", "手册", "手册", *options)
    assert result.exit_code == 2 and part in result.stderr
    assert client.bases == {} and client.uploads == []


def test_a_slip_of_the_finger_is_pointed_at(run: Run, client: FakeClient, folder: Path) -> None:
    client.create_knowledge("产品手册")
    assert "名字相近的：产品手册" in run("kb", "add", "产品手冊", "手册").stderr


def test_nothing_is_created_for_a_wrong_path(run: Run, client: FakeClient, folder: Path) -> None:
    result = run("kb", "add", "手册", "没有这个")
    assert result.exit_code == 2 and "没有这个文件或文件夹：没有这个" in result.stderr
    (folder / "空").mkdir()
    result = run("kb", "add", "手册", "空")
    assert result.exit_code == 2 and "没有可以加入的文档" in result.stderr
    assert client.bases == {}


def test_search_json_is_a_list_of_hits_that_name_their_document(run: Run, client: FakeClient) -> None:
    hits = json.loads(run("kb", "search", "手册", "怎么重置密码", "-k", "2", "--json").stdout)
    assert [hit["title"] for hit in hits] == ["手册/重置密码.md", "常见问题.md"]
    shown = run("kb", "search", "手册", "怎么重置密码").stdout
    assert "1. 手册/重置密码.md · 第 2 页 · 帐户" in shown and "字词第 1 · 语义第 2" in shown


def test_a_search_can_be_limited_and_says_how_it_was_done(run: Run, client: FakeClient) -> None:
    client.search_notices = ["索引库 chroma 这次没有用上"]
    result = run("kb", "search", "手册", "重置", "--in", "手册/", "--in", "*.md", "--type", "pdf")
    assert client.searched == {"filter": {"names": ["手册/", "*.md"], "types": ["pdf"]}}
    assert "索引库 chroma 这次没有用上" in result.stderr
    run("kb", "search", "手册", "重置")
    assert client.searched == {}


def test_create_names_the_store_and_rebuild_fills_it(run: Run, client: FakeClient, folder: Path) -> None:
    made = json.loads(run("kb", "create", "手册", "--store", "pgvector", "--json").stdout)
    assert made["store"] == "pgvector"
    run("kb", "add", "手册", "手册")
    assert "已重建知识库 手册 的索引：3,600 段" in run("kb", "rebuild", "手册").stdout
    assert json.loads(run("kb", "rebuild", "手册", "--json").stdout) == {"knowledge": "手册", "n_chunks": 3600}


def test_ask_prints_the_answer_then_its_sources_with_the_cited_one_marked(run: Run, client: FakeClient) -> None:
    client.answer = "先打开**设置** [2]。"
    result = run("kb", "ask", "手册", "怎么安装？", "--model", "echo")
    assert client.bodies[0]["knowledge"] == ["手册"] and client.bodies[0]["model"] == "echo"
    assert result.stdout.splitlines() == [
        "先打开**设置** [2]。",
        "",
        "来源（● 表示回答引用了）",
        "○ [1] 手册/第1章.md · 第 3 页",
        "● [2] 手册/第2章.md · 安装 › Linux",
    ]
    answer = json.loads(run("kb", "ask", "手册", "怎么安装？", "--json").stdout)
    assert answer["content"] == client.answer and [source["cited"] for source in answer["sources"]] == [False, True]


def test_documents_and_removing_one_by_name(run: Run, client: FakeClient, folder: Path) -> None:
    run("kb", "add", "手册", "手册")
    assert "手册/第一章/安装.MD" in run("kb", "documents", "手册").stdout
    wrong = run("kb", "rm-doc", "手册", "手册/说明")
    assert wrong.exit_code == 1 and "手册/说明.md" in wrong.stderr
    assert run("kb", "rm-doc", "手册", "手册/说明.md").exit_code == 0
    assert "手册/说明.md" not in client.bases["手册"]


def test_rm_needs_a_yes(run: Run, client: FakeClient) -> None:
    client.create_knowledge("手册")
    assert run("kb", "rm", "手册").exit_code == 2 and "手册" in client.bases
    assert run("kb", "rm", "手", "--yes").exit_code == 1
    assert run("kb", "rm", "手册", "--yes").exit_code == 0 and client.bases == {}
