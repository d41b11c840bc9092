"""What the tests of this room share: a store, and models small enough to make in a test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mofang.models import catalogue
from mofang.models.catalogue import Catalogue, CatalogueEntry
from mofang.models.store import ModelStore
from mofang.settings import Settings
from stand_in import Hub, Told


@pytest.fixture
def store(home: Path) -> ModelStore:
    return ModelStore(Settings(home=home))


@pytest.fixture
def manifest(home: Path) -> Callable[..., Path]:
    """Writes home/models/<name>/manifest.json as it is given."""

    def write(name: str, content: Any) -> Path:
        folder = home / "models" / name
        folder.mkdir(parents=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CatalogueEntry]:
    """Makes a catalogue of one more model: offer("name", sources, …) → its entry."""
    entries: list[CatalogueEntry] = []
    defaults: dict[str, list[str]] = {}
    monkeypatch.setattr(catalogue, "load", lambda: Catalogue(entries, defaults))

    def add(name: str, sources: list[dict[str, Any]], *, default: bool = False, **fields: Any) -> CatalogueEntry:
        entry = CatalogueEntry(
            **{
                "name": name,
                "title": name,
                "kind": "chat",
                "summary": {"zh": "测试", "en": "test"},
                "licence": "Apache-2.0",
                "languages": ["zh"],
                "good_for": ["tiny"],
                "sources": sources,
                "figures_from": "this test",
                **fields,
            }
        )
        entries.append(entry)
        if default:
            defaults.setdefault(entry.kind, []).append(name)
        return entry

    return add
