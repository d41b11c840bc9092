"""One home, one owner."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mofang.errors import Conflict, Invalid, MissingSystem
from mofang.launch import home as homes


def test_a_new_home_is_made_and_marked(tmp_path: Path) -> None:
    homes.prepare(tmp_path / "新 家")
    assert json.loads((tmp_path / "新 家" / "layout.json").read_text()) == {"version": homes.LAYOUT}
    homes.prepare(tmp_path / "新 家")


def test_a_home_of_a_newer_version_is_refused_and_left_alone(home: Path) -> None:
    (home / "layout.json").write_text(json.dumps({"version": homes.LAYOUT + 1}))
    with pytest.raises(Conflict) as caught:
        homes.prepare(home)
    assert caught.value.code == "newer_home"
    assert "pip install -U mofang" in caught.value.hint()
    assert [path.name for path in home.iterdir()] == ["layout.json"]


def test_a_mark_that_cannot_be_read(home: Path) -> None:
    (home / "layout.json").write_text("乱码")
    with pytest.raises(Invalid) as caught:
        homes.prepare(home)
    assert caught.value.code == "layout_unreadable"


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingSystem) as caught:
        homes.prepare(tmp_path / "file")
    assert caught.value.code == "home_unusable"


def test_a_second_owner_is_told_where_the_first_one_is(home: Path) -> None:
    with homes.own(home):
        homes.announce(home, homes.Owner(pid=os.getpid(), url="http://127.0.0.1:8642", key="k"))
        assert stat.S_IMODE((home / "gateway.json").stat().st_mode) == 0o600
        with pytest.raises(Conflict) as caught, homes.own(home):
            pass
        assert "http://127.0.0.1:8642" in caught.value.message()
    assert not (home / "gateway.json").exists()
    with homes.own(home):
        pass


def test_the_lock_dies_with_its_owner(home: Path) -> None:
    code = f"""
from pathlib import Path
import os
from mofang.launch import home as homes
with homes.own(Path({str(home)!r})):
    homes.announce(Path({str(home)!r}), homes.Owner(pid=os.getpid(), url="http://127.0.0.1:1", key=None))
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert homes.read(home) is not None, "it was killed before it could clean up"
    assert homes.find(home) is None
    with homes.own(home):
        pass


def test_a_file_that_is_not_an_owner_is_no_owner(home: Path) -> None:
    (home / "gateway.json").write_text('{"pid": 1, "未知": 2}')
    assert homes.read(home) is None
    assert homes.find(home) is None
