"""examples/langchain_app.py, as it stands, against a gateway: the right document reaches the prompt."""

import importlib.util
from pathlib import Path

import pytest
from served import serving

from fakes import FakeLibrary, FakePool, ScriptedEngine, install_model
from mofang.engine.hashed import HashEmbedder
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "langchain_app.py"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_it_loads_splits_embeds_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")
    folder = tmp_path / "制度"
    folder.mkdir()
    for name, text in {
        "年假.txt": "员工入职满一年后享受带薪年假五天。" * 3,
        "食堂.md": "食堂供应早餐与午餐，刷工牌付款。" * 3,
        "班车.txt": "班车早上七点半从地铁站出发。" * 3,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    for each, kind in (("echo", "chat"), ("hash", "embedding")):
        install_model(tmp_path, each, kind=kind)
    engine = ScriptedEngine("echo")
    spec = importlib.util.spec_from_file_location("langchain_app", EXAMPLE)
    assert spec is not None and spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    pool = FakePool(engine, HashEmbedder())
    with serving(LocalBackend(Settings(home=tmp_path, port=0), engines=pool, library=FakeLibrary())) as gateway:
        answer = app.main(str(folder), "带薪年假有几天？", f"{gateway.url}/v1")
    ((messages, _),) = engine.asked
    prompt = messages[-1].text
    assert prompt.index("【年假.txt】员工入职满一年后享受带薪年假五天。") < prompt.index("问题：带薪年假有几天？")
    assert prompt.index("【年假.txt】") < prompt.index("【食堂.md】"), "the nearest comes first"
    assert answer == prompt, "the scripted model repeats what it was asked"
    lines = [
        line for line in EXAMPLE.read_text("utf-8").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    assert len(lines) <= 40
