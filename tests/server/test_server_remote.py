"""A gateway whose model stands behind another gateway: both over real HTTP."""

from pathlib import Path

import pytest
from served import Gateway, serving

from mofang.client import ApiError
from mofang.server.backend import LocalBackend
from mofang.settings import Settings


def test_a_model_of_another_gateway_answers_here(gateway: Gateway, tmp_path: Path) -> None:
    here = LocalBackend(Settings(home=tmp_path / "here", port=0))
    with serving(here) as near, near.client() as client:
        place = {"base_url": f"{gateway.url}/v1"}
        added = client.add_remote_model("far", **place, model="echo")
        assert added["id"] == "far" and added["runnable"]
        client.add_remote_model("vectors", **place, model="hash", kind="embedding")
        body = {"model": "far", "messages": [{"role": "user", "content": "你好🙂"}]}
        said = client.request("POST", "/v1/chat/completions", body)
        assert said["choices"][0]["message"]["content"] == "你好🙂" and said["usage"]["completion_tokens"] == 3
        assert client.tokenize("ab", "far") == [97, 98]
        found = client.request("POST", "/v1/embeddings", {"model": "vectors", "input": ["甲乙", "丙"]})
        assert len(found["data"]) == 2 and found["usage"]["prompt_tokens"] == 3
        with pytest.raises(ApiError) as raised:
            client.add_remote_model("far", **place, model="echo")
        assert raised.value.code == "model_exists"
        with pytest.raises(ApiError) as raised:
            client.request("POST", "/v1/chat/completions", {**body, "n": 99})
        assert raised.value.status == 400
