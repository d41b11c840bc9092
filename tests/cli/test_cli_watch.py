"""`mofang kb watch`: a base follows a folder, also over times when nobody watched, and touches nothing else."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import FakeClient, Run

from fakes import install_model
from mofang import api
from mofang.cli import watch as watching
from mofang.cli.kb import ingest
from mofang.cli.watch import Mirror, watch
from mofang.errors import NotFound, Unreachable


class Watched:
    """A folder with old files, its mirror, and what the mirror told."""

    def __init__(self, folder: Path, client: FakeClient, **options: Any) -> None:
        self.folder, self.client = folder, client
        self.told: list[tuple[str, str]] = []
        self.mirror = Mirror(
            client,  # type: ignore[arg-type]
            "库",
            folder,
            "手册",
            {".md", ".txt"},
            api.document_name,
            lambda batch: ingest(client, "库", batch),  # type: ignore[arg-type]
            lambda report: self.told.append((str(report["name"]), str(report["status"]))),
            **options,
        )

    def write(self, name: str, content: str, age_s: float = 60.0) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    def sync(self) -> list[tuple[str, str]]:
        self.told.clear()
        assert self.mirror.sync()
        return list(self.told)

    @property
    def base(self) -> dict[str, str]:
        return {name: content.decode() for name, content in self.client.bases["库"].items()}


@pytest.fixture
def watched(tmp_path: Path, client: FakeClient) -> Watched:
    client.create_knowledge("库")
    (tmp_path / "手册").mkdir()
    return Watched(tmp_path / "手册", client)


def test_a_pass_brings_what_is_new_changed_and_gone(watched: Watched) -> None:
    watched.write("甲.md", "一")
    watched.write("子/乙.txt", "二")
    watched.write("图.png", "不要")
    watched.write(".藏.md", "不要")
    assert watched.sync() == [("手册/甲.md", "added"), ("手册/子/乙.txt", "added")]
    assert watched.sync() == [], "nothing changed, nothing is uploaded"
    watched.write("甲.md", "一，改过")
    (watched.folder / "子" / "乙.txt").unlink()
    assert watched.sync() == [("手册/甲.md", "replaced"), ("手册/子/乙.txt", "removed")]
    assert watched.base == {"手册/甲.md": "一，改过"}


def test_a_new_watch_catches_what_happened_in_between(watched: Watched) -> None:
    for name in "甲乙丙丁":
        watched.write(f"{name}.md", name)
    watched.sync()
    watched.write("甲.md", "改")
    (watched.folder / "乙.md").unlink()
    watched.write("戊.md", "新")
    later = Watched(watched.folder, watched.client)  # as after kill -9: nothing is remembered
    assert later.sync() == [("手册/戊.md", "added"), ("手册/甲.md", "replaced"), ("手册/乙.md", "removed")]
    assert len(watched.client.uploads[-1]) == 2, "what the base holds already is not uploaded again"


def test_a_renamed_file_comes_in_before_its_old_name_goes(watched: Watched) -> None:
    for name in "甲乙丙":
        watched.write(f"{name}.md", name)
    watched.sync()
    (watched.folder / "甲.md").rename(watched.folder / "新名.md")
    assert watched.sync() == [("手册/新名.md", "added"), ("手册/甲.md", "removed")]


def test_a_renamed_file_that_fails_keeps_its_old_document(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "甲乙丙":
        watched.write(f"{name}.md", name)
    watched.sync()
    (watched.folder / "甲.md").rename(watched.folder / "新名.md")
    working = watched.mirror.ingest
    broken = [{"name": "手册/新名.md", "status": "failed", "error": "模型停了"}]
    monkeypatch.setattr(watched.mirror, "ingest", lambda batch: (broken, False))
    assert watched.sync() == [("手册/新名.md", "failed")] and "手册/甲.md" in watched.base
    monkeypatch.setattr(watched.mirror, "ingest", working)
    assert watched.sync() == [("手册/新名.md", "added"), ("手册/甲.md", "removed")]


def test_documents_beyond_the_prefix_are_left_alone(watched: Watched) -> None:
    watched.client.bases["库"] |= {"手册2/别的.md": b"1", "别的.md": b"2", "手册.md": b"3"}
    watched.write("甲.md", "一")
    watched.sync()
    (watched.folder / "甲.md").unlink()
    watched.sync()
    assert set(watched.base) == {"手册2/别的.md", "别的.md", "手册.md"}


def test_all_files_gone_at_once_is_taken_for_a_missing_share(watched: Watched) -> None:
    paths = [watched.write(f"{name}.md", name) for name in "甲乙"]
    watched.sync()
    for path in paths:
        path.unlink()
    watched.write("别的文件夹的.md", "别的")
    assert set(watched.sync()) == {("手册/别的文件夹的.md", "added"), ("手册/甲.md", "kept"), ("手册/乙.md", "kept")}
    for name in ("手册/甲.md", "手册/乙.md"):
        assert name in watched.base
    allowed = Watched(watched.folder, watched.client, may_empty=True)
    assert set(allowed.sync()) == {("手册/甲.md", "removed"), ("手册/乙.md", "removed")}


def test_a_folder_whose_files_all_have_new_names_is_no_missing_share(watched: Watched) -> None:
    for name in "甲乙":
        watched.write(f"旧/{name}.md", name)
    watched.sync()
    (watched.folder / "旧").rename(watched.folder / "新")
    watched.sync()
    assert set(watched.base) == {"手册/新/甲.md", "手册/新/乙.md"}


def test_a_folder_that_is_gone_ends_the_watch_and_deletes_nothing(watched: Watched) -> None:
    watched.write("甲.md", "一")
    watched.sync()
    (watched.folder / "甲.md").unlink()
    watched.folder.rmdir()
    with pytest.raises(NotFound) as fault:
        watched.mirror.sync()
    assert fault.value.code == "watched_folder_gone" and list(watched.base) == ["手册/甲.md"]


def test_what_came_out_of_a_zip_in_the_folder_stays(watched: Watched) -> None:
    watched.write("甲.md", "一")
    watched.write("包.zip", "PK")
    watched.client.bases["库"] |= {"手册/包/里.md": b"1", "手册/散/外.md": b"2"}
    assert watched.sync() == [("手册/甲.md", "added"), ("手册/散/外.md", "removed")]


def test_a_file_that_is_still_written_is_waited_for(watched: Watched) -> None:
    path = watched.write("甲.md", "写到一半", age_s=0.0)
    assert not watched.mirror.sync() and watched.base == {}
    path.write_text("写完了")
    os.utime(path, (time.time() - 5,) * 2)
    assert watched.sync() == [("手册/甲.md", "added")]


def test_an_error_is_shown_once_and_tried_again_with_the_next_change(watched: Watched) -> None:
    watched.write("空.md", "")
    watched.write("好.md", "好")
    assert watched.sync() == [("手册/好.md", "added"), ("手册/空.md", "failed")]
    assert watched.sync() == []
    assert watched.client.uploads[-1] == ["手册/空.md"], "tried again, and not said again"
    watched.write("空.md", "不空了")
    assert watched.sync() == [("手册/空.md", "added")]


def test_names_are_compared_as_the_gateway_writes_them(watched: Watched) -> None:
    watched.write("e\u0301 .md", "组合字符")
    watched.sync()
    watched.client.bases["库"] = {api.document_name(name): data for name, data in watched.client.bases["库"].items()}
    assert watched.sync() == []


def test_a_gateway_that_is_away_is_tried_again_and_other_faults_end_the_watch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_S", 0.0)
    watched.write("甲.md", "一")
    documents, calls, errors = watched.client.documents, [], []

    def away(name: str) -> list[dict[str, Any]]:
        calls.append(name)
        if len(calls) < 3:
            raise Unreachable("client.gateway_unreachable", url="http://x", why="-")
        return documents(name)

    monkeypatch.setattr(watched.client, "documents", away)
    watch(watched.mirror, errors.append, iter([set()] * 5))
    assert len(errors) == 2 and len(calls) == 3, "and once it has worked, nothing is done without a change"
    assert watched.base == {"手册/甲.md": "一"}

    def refused(name: str) -> list[dict[str, Any]]:
        raise NotFound("cli.no_such_kb", name=name, near="-")

    monkeypatch.setattr(watched.client, "documents", refused)
    with pytest.raises(NotFound):
        watch(watched.mirror, errors.append, iter([{"change"}]))


def _until(wanted: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_changes_on_disk_are_heard(watched: Watched) -> None:
    watched.write("甲.md", "一")
    watched.write("留.md", "留")
    ended = threading.Event()

    def ticks() -> Iterator[object]:
        for changes in watching._changes(watched.folder):
            if ended.is_set():
                return
            yield changes

    thread = threading.Thread(target=watch, args=(watched.mirror, pytest.fail, ticks()))
    thread.start()
    try:
        _until(lambda: len(watched.base) == 2)
        (watched.folder / "乙.md").write_text("二")
        (watched.folder / "新").mkdir()
        (watched.folder / "新" / "丙.md").write_text("三")
        _until(lambda: set(watched.base) == {"手册/甲.md", "手册/乙.md", "手册/新/丙.md", "手册/留.md"})
        (watched.folder / "甲.md").unlink()
        (watched.folder / "新").rename(watched.folder / "旧")
        _until(lambda: set(watched.base) == {"手册/乙.md", "手册/旧/丙.md", "手册/留.md"})
    finally:
        ended.set()
        thread.join(10)
    assert not thread.is_alive()


def test_the_command_refuses_what_is_no_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "文件.md").write_text("x")
    result = run("kb", "watch", "库", str(tmp_path / "文件.md"))
    assert result.exit_code == 2
    assert "不是文件夹" in result.stderr and "mofang kb add" in result.stderr


@pytest.mark.slow
def test_the_whole_way_with_a_gateway_of_its_own_until_ctrl_c(home: Path, tmp_path: Path) -> None:
    install_model(home, "hash", kind="embedding", engine="hash")
    folder = tmp_path / "制度"
    folder.mkdir()
    (folder / "年假.md").write_text("# 年假\n\n年假五天。\n")
    command = [sys.executable, "-m", "mofang", "kb", "watch", "库", str(folder), "--json"]
    with (tmp_path / "err.txt").open("w") as err:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        assert child.stdout
        try:
            first = json.loads(child.stdout.readline())
            assert (first["name"], first["status"]) == ("制度/年假.md", "added")
            (folder / "报销.csv").write_text("问题,答案\n几天到账？,三天。\n")
            second = json.loads(child.stdout.readline())
            assert (second["name"], second["status"]) == ("制度/报销.csv", "added")
            (folder / "年假.md").unlink()
            assert json.loads(child.stdout.readline()) == {"name": "制度/年假.md", "status": "removed"}
            child.send_signal(signal.SIGINT)
            rest = child.communicate(timeout=60)[0]
        finally:
            child.kill()
            child.wait()
    said = (tmp_path / "err.txt").read_text()
    assert (child.returncode, rest) == (0, ""), said
    assert "Traceback" not in said
    with api.gateway() as client:
        assert [document["name"] for document in client.documents("库")] == ["制度/报销.csv"]
