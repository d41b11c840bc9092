"""The choice of a token, on logits by hand."""

import numpy as np
import pytest

from mofang.engine.worker.generate import _beginning, likeliest
from mofang.engine.worker.sample import Choices, Sampler, choices
from mofang.errors import Invalid

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 1}


def _shares(n: int = 4000, before: tuple[int, ...] = (), **wanted: object) -> list[float]:
    sampler = Sampler(Choices(**{**ALL, **wanted}), frozenset({0}))  # type: ignore[arg-type]
    found = [sampler.choose(LOGITS, before) for _ in range(n)]
    return [found.count(token) / n for token in range(4)]


def test_plain_sampling_follows_the_probabilities() -> None:
    assert _shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [({"top_k": 2}, 2), ({"top_p": 0.5}, 1), ({"top_p": 0.79}, 2), ({"min_p": 0.2}, 3), ({"top_k": 1}, 1)],
)
def test_each_cut_keeps_the_likeliest(wanted: dict[str, object], kept: int) -> None:
    shares = _shares(**wanted)
    assert all(share > 0 for share in shares[:kept]) and not any(shares[kept:])


def test_bias_and_penalties_change_the_best() -> None:
    greedy = {"temperature": 0.0}
    assert _shares(1, **greedy)[0] == 1
    assert _shares(1, **greedy, bias=((0, -np.inf),))[1] == 1
    assert _shares(1, **greedy, ignore_eos=True)[1] == 1
    assert _shares(1, (0, 1), **greedy, presence_penalty=2.0)[2] == 1
    assert _shares(1, (0, 0, 1), **greedy, frequency_penalty=0.6)[1] == 1
    assert _shares(1, (0,), **greedy, repeat_penalty=3.0)[1] == 1
    assert _shares(1, (0, 1, 1), **greedy, presence_penalty=2.0, repeat_last_n=2)[0] == 1


def test_a_bias_is_written_as_openai_or_llama_cpp_write_it() -> None:
    def tokens(text: str) -> list[int]:
        return [ord(character) for character in text]

    assert choices({"logit_bias": {"3": -5}}, {}, tokens, "x").bias == ((3, -5.0),)
    assert choices({"logit_bias": [[3, False], ["ab", 1]]}, {}, tokens, "x").bias == (
        (3, -np.inf),
        (97, 1.0),
        (98, 1.0),
    )
    for wrong in ({"3": "much"}, [3]):
        with pytest.raises(Invalid) as raised:
            choices({"logit_bias": wrong}, {}, tokens, "x")
        assert raised.value.code == "bad_logit_bias"


@pytest.mark.parametrize("name", ["grammar", "tools", "n", "mirostat", "response_format"])
def test_what_is_not_known_is_named(name: str) -> None:
    with pytest.raises(Invalid) as raised:
        choices({name: 2}, {}, None, "transformers")
    assert raised.value.param == name and name in raised.value.message("zh")


def test_a_request_goes_over_the_publisher_goes_over_the_default() -> None:
    wanted = choices({"top_p": 0.1, "logprobs": True, "top_logprobs": 3}, {"top_p": 0.5, "top_k": 7}, None, "x")
    assert (wanted.top_p, wanted.top_k, wanted.min_p, wanted.n_top) == (0.1, 7, 0.05, 3)


def test_text_that_may_become_a_stop_word_is_held() -> None:
    assert [_beginning(text, ("停止", "end")) for text in ("停", "不停", "停了", "the e", "")] == [1, 1, 0, 1, 0]


def test_the_likeliest_come_in_order() -> None:
    assert likeliest(np.array([0.1, 3.0, 2.0], np.float32), 2) == [1, 2]
    assert likeliest(np.array([0.1, 3.0], np.float32), 0) == []
    assert likeliest(np.array([0.1, 3.0], np.float32), 9) == [1, 0]
