"""Every registered index store: finds what exact search finds, follows each commit, limits, forgets, says when it is away."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from mofang.errors import Invalid, Unreachable
from mofang.knowledge import STORES
from mofang.knowledge.stores.base import Changes, Commit, IndexStore, KeywordStore, Place, Row
from mofang.settings import Settings
from opensearch_stand_in import bm25
from store_places import PLACES, chroma_server

N, D = 400, 24
WORDS = ["年假", "报销", "打印机", "utf-8", "c++", "密码", "班车", "体检", "宿舍", "食堂", "合同", "发票"]

pytestmark = [
    # Chroma's and LangChain's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def rows(n: int = N, *, first: int = 1, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed + first)
    vectors = rng.normal(size=(n, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shares = np.arange(len(WORDS), 0, -1) / sum(range(len(WORDS) + 1))
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(3, 12), p=shares)) for _ in range(n)]
    return [Row(first + i, f"doc{(first + i) % 7}", texts[i], vectors[i]) for i in range(n)]


def changes(version: int, added: list[Row], *, whole: bool = False, removed: tuple[int, ...] = ()) -> Changes:
    batches = (added[at : at + 150] for at in range(0, len(added), 150))
    return Changes(Commit(version, f"t{version}"), whole, removed, len(added), batches)


def exact(data: list[Row], vector: Any, k: int, documents: set[str] | None = None) -> list[int]:
    inside = [row for row in data if documents is None or row.document_id in documents]
    return [row.id for row in sorted(inside, key=lambda row: -float(row.vector @ vector))[:k]]


def recall(store: IndexStore, data: list[Row], documents: set[str] | None = None, k: int = 10) -> float:
    rng, found = np.random.default_rng(9), []
    for _ in range(20):
        vector = rng.normal(size=D).astype(np.float32)
        vector /= np.linalg.norm(vector)
        right = exact(data, vector, k, documents)
        mine = store.dense(vector, k, documents)
        assert len(mine) == len(set(mine)) == len(right), "as many as there are, each once"
        found.append(len(set(mine) & set(right)) / max(1, len(right)))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Settings]]:
    """Settings for a store of that kind, whose server starts once."""
    with ExitStack() as stack:
        started: dict[str, Settings] = {}

        def settings(name: str) -> Settings:
            if name not in started:
                started[name] = stack.enter_context(PLACES[name](tmp_path_factory.mktemp(name)))
            return started[name]

        yield settings


@pytest.fixture(params=[*STORES.names(), "chroma-server"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Open = Callable[..., IndexStore]


@pytest.fixture
def opened(kind: str, reach: Callable[[str], Settings], tmp_path: Path) -> Iterator[Open]:
    """opened(uid): a store for that base, opened anew at each call."""
    held: list[IndexStore] = []
    with ExitStack() as stack:
        if kind == "chroma-server":
            name, settings = "chroma", stack.enter_context(chroma_server(tmp_path))
        else:
            name, settings = kind, reach(kind)

        def make(uid: str = "") -> IndexStore:
            uid = uid or f"{abs(hash(str(tmp_path))):016x}"[:16]
            folder = tmp_path / uid
            folder.mkdir(exist_ok=True)
            store: IndexStore = STORES.get(name)(Place(uid, folder, D), settings)
            held.append(store)
            return store

        yield make
        for store in held:
            store.close()


def test_every_name_says_how_it_is_tested() -> None:
    assert set(PLACES) == set(STORES.names())
    assert all(STORES.entry(name).summary for name in STORES)


def test_nothing_is_held_and_nothing_is_found_before_anything_came(opened: Open) -> None:
    store = opened()
    assert store.held() is None
    assert store.dense(np.ones(D, np.float32) / np.float32(D**0.5), 5, None) == []
    store.drop()
    store.sync(changes(1, [], whole=True))
    assert store.dense(np.ones(D, np.float32) / np.float32(D**0.5), 5, None) == []


def test_it_finds_the_nearest(opened: Open) -> None:
    store, data = opened(), rows()
    store.sync(changes(3, data, whole=True))
    assert store.held() == Commit(3, "t3")
    assert recall(store, data) >= 0.99
    one = data[17]
    assert store.dense(one.vector, 1, None) == [one.id]
    assert len(store.dense(one.vector, N + 50, None)) == N, "all of them, when more are asked for than there are"


def test_a_limit_holds_inside_the_search(opened: Open) -> None:
    store, data = opened(), rows()
    store.sync(changes(1, data, whole=True))
    if not store.filters:
        pytest.skip("says so: such searches are done by the built-in store")
    for documents in ({"doc3"}, {"doc0", "doc5", "doc6"}, {f"doc{i}" for i in range(7)}, {"doc2", "unknown"}):
        assert recall(store, data, documents) >= 0.99
    assert store.dense(data[0].vector, 5, {"unknown"}) == []
    assert store.dense(data[0].vector, 5, set()) == []


def test_it_follows_the_commits(opened: Open) -> None:
    store, data = opened(), rows()
    store.sync(changes(1, data, whole=True))
    gone = tuple(row.id for row in data[::3])
    fresh = rows(60, first=N + 1)
    store.sync(changes(2, fresh, removed=gone))
    now = [row for row in data if row.id not in gone] + fresh
    assert store.held() == Commit(2, "t2")
    assert recall(store, now) >= 0.99
    everything = store.dense(data[0].vector, N * 2, None)
    assert set(everything) == {row.id for row in now}
    store.sync(changes(3, [], removed=(now[0].id, 10**9)))
    assert store.held() == Commit(3, "t3")
    assert now[0].id not in store.dense(now[0].vector, 5, None)


def test_the_same_changes_may_come_twice(opened: Open) -> None:
    """As after a crash between the changes and the mark that they are done."""
    store, data = opened(), rows()
    store.sync(changes(1, data, whole=True))
    fresh = rows(40, first=N + 1)
    for _ in range(2):
        store.sync(changes(2, fresh, removed=(1, 2, 3)))
    assert set(store.dense(data[5].vector, N * 2, None)) == {row.id for row in [*data[3:], *fresh]}


def test_whole_forgets_what_was_there(opened: Open) -> None:
    store = opened()
    store.sync(changes(1, rows(), whole=True))
    small = rows(30, first=5_000)
    store.sync(changes(1, small, whole=True))
    assert set(store.dense(small[0].vector, N * 2, None)) == {row.id for row in small}


def test_opened_again_it_is_the_same_or_says_that_it_is_not(opened: Open) -> None:
    store, data = opened(), rows()
    store.sync(changes(4, data, whole=True))
    store.close()
    again = opened()
    if again.held() is None:
        again.sync(changes(4, data, whole=True))
    assert again.held() == Commit(4, "t4")
    assert recall(again, data) >= 0.99


def test_two_bases_do_not_mix(opened: Open) -> None:
    one, other = opened("0" * 15 + "1"), opened("0" * 15 + "2")
    mine, yours = rows(50), rows(50, seed=5)
    one.sync(changes(1, mine, whole=True))
    other.sync(changes(9, yours, whole=True))
    assert (one.held(), other.held()) == (Commit(1, "t1"), Commit(9, "t9"))
    assert recall(one, mine) >= 0.99 and recall(other, yours) >= 0.99
    one.drop()
    assert other.held() == Commit(9, "t9")
    other.drop()


def test_drop_forgets_and_may_be_said_twice(opened: Open) -> None:
    store, data = opened(), rows(50)
    store.sync(changes(1, data, whole=True))
    store.drop()
    store.drop()
    assert store.held() is None
    assert store.dense(data[0].vector, 5, None) == []
    assert opened().held() is None


def test_keywords_are_ranked_as_bm25_does(opened: Open) -> None:
    store, data = opened(), rows()
    if not isinstance(store, KeywordStore):
        pytest.skip("has no keyword search of its own")
    store.sync(changes(1, data, whole=True))
    gone = {row.id for row in data[::5]}
    fresh = rows(40, first=N + 1)
    store.sync(changes(2, fresh, removed=tuple(gone)))
    now = [row for row in data if row.id not in gone] + fresh
    texts = {str(row.id): row.words.split() for row in now}
    for asked in (["宿舍"], ["年假", "utf-8"], ["c++", "发票", "年假", "报销", "没有这个词"]):
        scores = {int(one): score for one, score in bm25(texts, asked).items()}
        found = store.keywords(asked, 25, None)
        assert found.n == len(now)
        assert found.frequencies == {word: sum(word in text for text in texts.values()) for word in asked}
        best = sorted(scores.values(), reverse=True)[:25]
        assert [scores[one] for one in found.ids] == pytest.approx(best, rel=1e-5), "equal scores may change places"
        inside = {"doc1", "doc4"}
        limited = store.keywords(asked, 500, inside).ids
        assert set(limited) == {row.id for row in now if row.id in scores and row.document_id in inside}
    assert store.keywords(["没有这个词"], 5, None).ids == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("chroma", {"chroma_url": "http://admin:geheim@127.0.0.1:9", "chroma_token": "geheim"}),
        ("pgvector", {"pgvector_dsn": "postgresql://admin:geheim@127.0.0.1:9/db"}),
        ("pgvector", {"pgvector_dsn": "host=127.0.0.1 port=9 password=geheim dbname=db"}),
        ("opensearch", {"opensearch_url": "http://admin:geheim@127.0.0.1:9"}),
        ("langchain", {"langchain_store": "no_such_module:make"}),
    ],
)
def test_a_store_that_is_away_says_so_without_its_secrets(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    given = {key: value if key == "langchain_store" else SecretStr(value) for key, value in settings.items()}
    with pytest.raises(Unreachable) as fault:
        store = STORES.get(name)(Place("0" * 16, tmp_path, D), Settings(**given))
        store.dense(np.ones(D, np.float32), 3, None)
    for lang in ("zh", "en"):
        assert name in fault.value.message(lang) and fault.value.hint(lang)
        assert "geheim" not in fault.value.message(lang) + fault.value.hint(lang)
    assert fault.value.__cause__ is None, "a log would print it"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("chroma", {"chroma_url": SecretStr("127.0.0.1:8000")}),
        ("pgvector", {}),
        ("opensearch", {}),
        ("opensearch", {"opensearch_url": SecretStr("host:9200")}),
        ("langchain", {}),
        ("langchain", {"langchain_store": "module"}),
    ],
)
def test_an_address_that_is_none_is_refused_with_an_example(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as fault:
        STORES.get(name)(Place("0" * 16, tmp_path, D), Settings(**settings))
    assert f"MOFANG_{name.upper()}" in fault.value.hint("zh")
