"""A batch through the real gateway: the lines hold what the routes themselves answer."""

import json
from pathlib import Path

from served import Gateway

from mofang import batches


def test_every_route_of_a_batch_answers(gateway: Gateway, tmp_path: Path) -> None:
    bodies = {
        "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 8},
        "/v1/completions": {"model": "echo", "prompt": "从前", "max_tokens": 8},
        "/v1/responses": {"model": "echo", "input": "你好", "max_output_tokens": 8},
        "/v1/embeddings": {"model": "nowhere", "input": "你好"},
    }
    assert set(bodies) == set(batches.ROUTES)
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"custom_id": url, "method": "POST", "url": url, "body": body} for url, body in bodies.items()]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with gateway.client() as client:
        found = batches.run(client, batches.read(path), out, concurrency=2)
        alone = client.request("POST", "/v1/chat/completions", bodies["/v1/chat/completions"])
    lines = {row["custom_id"]: row["response"] for row in map(json.loads, out.read_text().splitlines())}
    assert (found.answered, found.refused) == (3, 1)
    assert lines["/v1/chat/completions"]["body"]["choices"] == alone["choices"]
    assert lines["/v1/chat/completions"]["request_id"].startswith("chatcmpl")
    assert lines["/v1/embeddings"]["status_code"] == 404 and lines["/v1/embeddings"]["body"]["error"]["message"]
