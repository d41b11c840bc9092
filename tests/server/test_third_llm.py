"""The `llm` command line as a client: a model of ours named in its extra-openai-models.yaml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import Gateway

from fakes import ScriptedEngine

MODELS = """\
- model_id: mofang
  model_name: echo
  api_base: "{url}/v1"
  api_key_name: mofang
"""


@pytest.mark.parametrize("options", [["--no-stream"], []], ids=["whole", "streamed"])
def test_a_question_from_the_command_line(
    gateway: Gateway, engine: ScriptedEngine, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=gateway.url), encoding="utf-8")
    (tmp_path / "keys.json").write_text('{"mofang": "none"}', encoding="utf-8")
    asked = [*options, "-m", "mofang", "-s", "请简短回答", "-o", "temperature", "0.5", "你好，模坊🙂"]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "NO_PROXY": "127.0.0.1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "llm", *asked]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "你好，模坊🙂"
    messages, sampling = engine.asked[0]
    assert [message.role for message in messages] == ["system", "user"] and sampling.temperature == 0.5
