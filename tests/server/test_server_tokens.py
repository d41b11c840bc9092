"""Below the text: probabilities before and after the samplers, tokens with their ids and bytes, neighbours of a token."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from served import Gateway

import tiny_llama
from fakes import ScriptedEngine
from mofang.client import ApiError
from mofang.engine.base import ALL_TOKENS
from mofang.engine.worker.sample import Choices
from mofang.messages import Candidate, Delta, NextToken, Sampling, Usage
from mofang.server.backend import LocalBackend
from mofang.server.routes.tokens import _sampled


class Knowing(ScriptedEngine):
    """Expects 1,500 tokens, each less than the one before; 1.6 % of the probability is beyond the first thousand."""

    odds = tuple(math.exp(-0.004 * place) for place in range(1500))

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        self.asked.append((prompt, Sampling(options={"n_top": n_top})))
        logprobs = [math.log(odd / sum(self.odds)) for odd in self.odds]
        return NextToken(None, tuple(Candidate(n, f"t{n}", one) for n, one in enumerate(logprobs))[:n_top])


@pytest.fixture
def engine() -> ScriptedEngine:
    return Knowing()


def after(odds: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """llama.cpp's chain as its documentation tells it, worked out by hand: top_k, top_p, min_p, then temperature."""
    if temperature == 0:
        return [1.0, *([0.0] * (len(odds) - 1))]
    kept = list(odds[:top_k] if top_k else odds)
    total, sum_so_far, within = sum(kept), 0.0, 0
    for odd in kept:
        within += 1
        sum_so_far += odd / total
        if sum_so_far >= top_p:
            break
    kept = [odd for odd in kept[: len(kept) if top_p >= 1 else within] if odd >= min_p * kept[0]]
    hot = [odd ** (1 / temperature) for odd in kept]
    return [one / sum(hot) for one in hot] + [0.0] * (len(odds) - len(kept))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "n_asked"),
    [
        (1.0, 0, 1.0, 0.0, ALL_TOKENS),
        (1.0, 0, 0.9905, 0.0, ALL_TOKENS),
        (1.5, 0, 0.5005, 0.0, 1000),
        (0.9, 0, 1.0, 0.0501, 1000),
        (0.9, 0, 0.9905, 0.0501, 1000),
        (0.7, 40, 0.901, 0.05, 60),
        (0.3, 200, 1.0, 0.101, 200),
        (0.0, 40, 0.9, 0.05, 60),
        (0.0, 0, 0.9, 0.0, 1000),
    ],
)
def test_the_samplers_are_worked_out_exactly(
    gateway: Gateway, engine: Knowing, temperature: float, top_k: int, top_p: float, min_p: float, n_asked: int
) -> None:
    wanted = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    with gateway.client() as client:
        found = client.next_token("x", "echo", n_top=60, sampling=wanted)
    expected = after(engine.odds, temperature, top_k, top_p, min_p)
    assert len(found["top"]) == 60 and found["sampling"] == wanted
    assert [one["sampled"] for one in found["top"]] == pytest.approx(expected[:60], abs=1e-6)
    assert found["n_kept"] == sum(one > 0 for one in expected)
    assert engine.asked[-1][1].options == {"n_top": n_asked}, "no more is asked than decides"


@given(
    odds=some.lists(some.floats(0.001, 1), min_size=2, max_size=40),
    temperature=some.floats(0.2, 3),
    top_k=some.integers(0, 50),
    top_p=some.floats(0.05, 1),
    min_p=some.floats(0, 0.9),
)
def test_what_is_kept_is_a_distribution_in_the_models_order(odds: list[float], **wanted: Any) -> None:
    odds.sort(reverse=True)
    logprobs = [math.log(odd / sum(odds)) for odd in odds]
    found = NextToken(None, tuple(Candidate(n, "", one) for n, one in enumerate(logprobs)))
    shape = _sampled([{} for _ in odds], found, Choices(**wanted))
    sampled = [one["sampled"] for one in shape["top"]]
    assert sum(sampled) == pytest.approx(1) and sampled == sorted(sampled, reverse=True)
    assert sum(one > 0 for one in sampled) == shape["n_kept"] <= (wanted["top_k"] or len(odds))


def test_what_is_left_out_is_llama_cpps_default_and_plain_requests_are_as_before(gateway: Gateway) -> None:
    with gateway.client() as client:
        plain = client.next_token("x", "echo", n_top=3)
        assert set(plain) == {"model", "forced", "top"} and set(plain["top"][0]) == {
            "token_id", "text", "logprob", "bytes"
        }  # fmt: skip
        found = client.next_token("x", "echo", sampling={})
        assert found["sampling"] == {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
        with pytest.raises(ApiError):
            client.next_token("x", "echo", sampling={"repeat_penalty": 1.1})


def test_logprobs_keep_ids_and_bytes_beside_the_old_shape(gateway: Gateway, engine: ScriptedEngine) -> None:
    half = {"id": 7, "token": "", "bytes": [0xE4, 0xBD], "logprob": -2.0}
    entry = {"id": 5, "token": "你", "bytes": [*"你".encode()], "logprob": -0.1, "top_logprobs": [half, half, half]}
    script = [Delta("你", logprobs={"content": [entry]}), Delta(finish_reason="length", usage=Usage(1, 1))]
    engine.script = script
    body = {"model": "echo", "prompt": "x", "logprobs": 2}
    with gateway.http() as http:
        whole = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
        streamed = http.post("/v1/completions", json={**body, "stream": True}).text
    assert whole["content"] == [{**entry, "top_logprobs": [half, half]}] and whole["tokens"] == ["你"]
    assert '"bytes":[228,189]' in streamed.replace(" ", "")


# ---- neighbours ----


@pytest.fixture
def tiny(backend: LocalBackend, tmp_path: Path) -> Path:
    path = tiny_llama.write_gguf(tiny_llama.make(tmp_path / "hf"), tmp_path / "tiny.gguf", "Q8_0")
    backend.models.add(path, "tiny")
    return path


def test_neighbours_are_told_with_their_bytes(gateway: Gateway, tiny: Path) -> None:
    cut = tiny_llama.tokenizer()
    with gateway.client() as client:
        found = client.neighbours("tiny", " t", 5)
        assert found["token"] == {"id": cut.encode(" t")[0], "piece": " t", "bytes": [32, 116]}
        assert (found["model"], found["dimensions"], found["type"]) == ("tiny", 64, "Q8_0")
        assert found["n_vocab"] == cut.n_vocab, "rows that only fill up the matrix are no tokens"
        cosines = [one["cosine"] for one in found["data"]]
        assert len(cosines) == 5 and cosines == sorted(cosines, reverse=True) and 1 > cosines[0] > cosines[-1] > -1
        assert found["token"]["id"] not in [one["id"] for one in found["data"]]
        by_id = client.neighbours("tiny", found["token"]["id"], 5)
        assert by_id == found
        assert client.neighbours("tiny", found["token"]["id"], 2)["data"] == found["data"][:2]
        special = client.neighbours("tiny", "<|im_end|>", 1)
        assert special["token"]["id"] == cut.eos_id
        near = client.neighbours("tiny", " t", 100)["data"]
        part = next(one for one in near if one["bytes"][0] >= 0x80)
        assert part["piece"] is None and len(part["bytes"]) == 1


def test_what_is_no_token_is_refused_in_words(gateway: Gateway, tiny: Path) -> None:
    with gateway.http() as http:

        def code(**params: Any) -> tuple[int, str]:
            answer = http.get("/v1/models/tiny/neighbours", params=params)
            return answer.status_code, answer.json()["error"]["code"]

        assert code(token="ab") == (400, "not_one_token")
        assert code(id=10_000) == (400, "no_token")
        assert code() == code(token="a", id=1) == (400, "token_or_id")
        said = http.get("/v1/models/tiny/neighbours", params={"token": "ab"}).json()["error"]["message"]
        assert "'a'" in said and "'b'" in said
        assert http.get("/v1/models/echo/neighbours", params={"token": "a"}).json()["error"]["code"] == "no_embedding"
        assert http.get("/v1/models/none/neighbours", params={"token": "a"}).status_code == 404


def test_a_file_that_changes_is_read_anew(gateway: Gateway, tiny: Path, tmp_path: Path) -> None:
    with gateway.client() as client:
        before = client.neighbours("tiny", 1, 10)
        tiny_llama.write_gguf(tiny_llama.make(tmp_path / "other", seed=5), tiny, "F32")
        after = client.neighbours("tiny", 1, 10)
    assert after["type"] == "F32" and [one["id"] for one in after["data"]] != [one["id"] for one in before["data"]]
