"""Settings: environment over file over defaults; a wrong name or value is one clear error."""

import os
from pathlib import Path

import pytest

from mofang import settings
from mofang.errors import Invalid


def test_defaults_bind_to_this_machine_only() -> None:
    now = settings.load()
    assert (now.host, now.port, now.workbench_port) == ("127.0.0.1", 8642, 8643)


def test_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "settings.toml").write_text("n_ctx = 4096\nn_slots = 3\n", encoding="utf-8")
    monkeypatch.setenv("MOFANG_N_CTX", "1024")
    now = settings.load()
    assert (now.n_ctx, now.n_slots) == (1024, 3)


def test_what_the_command_line_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_PORT", "1")
    assert settings.load(port=2).port == 2
    assert settings.load(port=None).port == 1


def test_an_unknown_environment_name_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_PROT", "8642")
    with pytest.raises(Invalid) as caught:
        settings.load()
    assert caught.value.code == "unknown_setting"
    assert "MOFANG_PORT" in caught.value.hint()


def test_an_unknown_name_in_the_file_is_refused(home: Path) -> None:
    (home / "settings.toml").write_text("n_ctxx = 4096\n", encoding="utf-8")
    with pytest.raises(Invalid, match="n_ctxx"):
        settings.load()


@pytest.mark.parametrize("value", ["很多", "-1", "70000"])
def test_a_bad_value_names_setting_and_value(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_PORT", value)
    with pytest.raises(Invalid) as caught:
        settings.load()
    assert caught.value.code == "bad_setting"
    assert value in caught.value.message() and "port" in caught.value.message()


def test_a_file_that_is_not_toml(home: Path) -> None:
    (home / "settings.toml").write_text("n_ctx == 3", encoding="utf-8")
    with pytest.raises(Invalid) as caught:
        settings.load()
    assert caught.value.code == "bad_settings_file"


def test_a_file_in_gbk_is_named(home: Path) -> None:
    (home / "settings.toml").write_bytes("# 中文注释\nn_ctx = 4096\n".encode("gbk"))
    with pytest.raises(Invalid) as caught:
        settings.load()
    assert caught.value.code == "bad_settings_file"


def test_the_key_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_API_KEY", "sk-秘密")
    now = settings.load()
    assert "秘密" not in repr(now) and "秘密" not in str(now.api_key)


def test_model_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_MODEL_PATH", os.pathsep.join(["/a", "/b c"]))
    assert settings.load().model_folders == [Path("/a"), Path("/b c")]


def test_hf_endpoint_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert settings.load().hf_endpoint == "https://mirror.example"
