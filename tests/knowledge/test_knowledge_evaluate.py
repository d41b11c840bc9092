"""The measures against pytrec_eval; sets read, matched and refused by file and line; legs; citations and refusals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from knowledge_bench import Bench

from mofang.errors import Invalid
from mofang.knowledge import evalset
from mofang.knowledge.base import DocumentInfo, Hit
from mofang.knowledge.evalset import Judged
from mofang.knowledge.evaluate import (
    MEASURES,
    Answered,
    by_leg,
    documents_of,
    f1,
    is_refusal,
    ndcg,
    percentile,
    recall,
    reciprocal_rank,
    score_answers,
    score_search,
)
from mofang.messages import Progress, Source

IDS = [f"d{n}" for n in range(30)]


def _nobody(_: Progress) -> None: ...


# ---- measures ----


@settings(max_examples=300, deadline=None)
@given(
    ranking=st.lists(st.sampled_from(IDS), unique=True, min_size=1, max_size=30),
    graded=st.dictionaries(st.sampled_from(IDS), st.integers(min_value=-1, max_value=3), min_size=1, max_size=12),
)
def test_the_measures_are_trec_evals(ranking: list[str], graded: dict[str, int]) -> None:
    scores = {document: float(len(ranking) - place) for place, document in enumerate(ranking)}
    trec = pytrec_eval.RelevanceEvaluator({"q": graded}, {"recall.1,5,10,50", "ndcg_cut.10"}).evaluate({"q": scores})
    head = {document: scores[document] for document in ranking[:10]}
    rr = pytrec_eval.RelevanceEvaluator({"q": graded}, {"recip_rank"}).evaluate({"q": head})["q"]["recip_rank"]
    for k in (1, 5, 10, 50):
        assert recall(ranking, graded, k) == pytest.approx(trec["q"][f"recall_{k}"])
    assert ndcg(ranking, graded, 10) == pytest.approx(trec["q"]["ndcg_cut_10"])
    assert reciprocal_rank(ranking, graded, 10) == pytest.approx(rr)


def test_f1_and_percentiles() -> None:
    assert f1([(True, True), (True, False), (False, True), (False, False)]) == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
    }
    assert f1([(False, False)])["f1"] == 0.0
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0 and percentile([5.0, 1.0, 3.0], 0.99) == 5.0


# ---- sets ----


def _file(folder: Path, name: str, *rows: Any) -> tuple[str, Path]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return name, path


def test_a_beir_folder(tmp_path: Path) -> None:
    _file(
        tmp_path,
        "queries.jsonl",
        {"_id": "q1", "text": "怎么装"},
        {"_id": 2, "text": "怎么卸"},
        {"_id": "q3", "text": "没判"},
    )
    _file(tmp_path, "qrels/dev.tsv", "query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0", "", "2\td2\t1")
    _file(tmp_path, "corpus.jsonl", {"_id": "d1", "title": "安装", "text": "先下载。"}, {"_id": "d2", "text": "删掉。"})
    files = evalset.files_of(tmp_path)
    assert [name for name, _ in files] == ["queries.jsonl", "qrels/dev.tsv"]
    first, second = evalset.load(files)
    assert (first.id, first.text, dict(first.documents)) == ("q1", "怎么装", {"d1": 2, "d2": 0})
    assert second.id == "2" and dict(second.documents) == {"d2": 1}
    assert list(evalset.corpus(tmp_path)) == [("d1", "安装\n\n先下载。"), ("d2", "删掉。")]
    _file(tmp_path, "qrels/train.tsv", "2\td1\t1")
    with pytest.raises(Invalid, match=r"'test'.*dev, train"):
        evalset.load(evalset.files_of(tmp_path))
    assert [one.id for one in evalset.load(evalset.files_of(tmp_path), "train")] == ["2"]


def test_question_and_answer_rows(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        "题.jsonl",
        {
            "question": "几年？",
            "answer": "两年",
            "document": "手册.md",
            "spans": ["保修期 两年", [3, 9]],
            "checked": False,
        },
        {"id": "x", "question": "多少钱？", "unanswerable": True},
        {
            "question": "哪里？",
            "spans": [{"document": "b.md", "quote": "北京"}, {"document": "b.md", "start": 0, "end": 2}],
        },
    )
    one, two, three = evalset.load([file])
    assert one.spans[0].quote == "保修期 两年" and (one.spans[1].document, one.spans[1].end) == ("手册.md", 9)
    assert two.unanswerable and two.id == "x" and not two.documents
    assert dict(three.documents) == {"b.md": 1} and three.where == "题.jsonl:3"


@pytest.mark.parametrize(
    ("rows", "code", "where"),
    [
        (['{"question": "好"}', "{oops"], "not_json", "题.jsonl:2"),
        (["[1]"], "not_json", "题.jsonl:1"),
        (['{"question": " "}'], "bad_field", "question"),
        (['{"question": "好", "spans": "x"}'], "bad_field", "spans"),
        (['{"question": "好", "document": "a", "spans": [[4, 2]]}'], "bad_field", "题.jsonl:1"),
        (['{"question": "好", "spans": [[1, 2]]}'], "span_without_document", "题.jsonl:1"),
        (['{"question": "好", "unanswerable": "yes"}'], "bad_field", "unanswerable"),
        (['{"question": "好", "document": "a", "unanswerable": true}'], "contradiction", "题.jsonl:1"),
        (['{"id": "a", "question": "好"}', "", '{"id": "a", "question": "坏"}'], "same_id", "题.jsonl:3"),
        ([""], "empty_set", "题.jsonl"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, rows: list[str], code: str, where: str) -> None:
    with pytest.raises(Invalid) as caught:
        evalset.load([_file(tmp_path, "题.jsonl", *rows)])
    assert caught.value.code == code and where in caught.value.message()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["h\th\th", "q1 d1 1"], "bad_columns"),
        (["h\th\th", "q1\td1\tviel"], "bad_score"),
        (["h\th\th", "q9\td1\t1"], "unknown_query"),
    ],
)
def test_bad_qrels_are_named_by_file_and_line(tmp_path: Path, lines: list[str], code: str) -> None:
    queries = _file(tmp_path, "queries.jsonl", {"_id": "q1", "text": "甲"})
    with pytest.raises(Invalid) as caught:
        evalset.load([queries, _file(tmp_path, "qrels/test.tsv", *lines)])
    assert caught.value.code == code and "qrels/test.tsv:2" in caught.value.message()


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        evalset.files_of(tmp_path)
    assert caught.value.code == "no_such_set"
    with pytest.raises(Invalid) as caught:
        evalset.load([_file(tmp_path, "qrels/test.tsv", "a\tb\t1")])
    assert caught.value.code == "no_queries"
    bad = tmp_path / "gbk.jsonl"
    bad.write_bytes('{"question": "国标"}'.encode("gbk"))
    with pytest.raises(Invalid) as caught:
        evalset.load([("gbk.jsonl", bad)])
    assert caught.value.code == "not_utf8" and "gbk.jsonl:1" in caught.value.message()


def _document(key: str, name: str) -> DocumentInfo:
    return DocumentInfo(key, name, name, "", 1, 1, None, 1, "2026-11-25T00:00:00Z")


def test_names_of_a_set_find_documents_of_a_base() -> None:
    names = evalset.Names(
        [_document("1f", "手册/安装.md"), _document("2f", "手册/卸载.md"), _document("3f", "旧/卸载.md")]
    )
    assert names.get("手册/安装.md") == names.get("安装") == names.get("手册/安装") == names.get("1f") == "1f"
    assert names.get("卸载") is None and names.get("旧/卸载") == "3f", "what two documents are called names neither"
    surest = evalset.Names([_document("a", "x/b.md"), _document("b", "c.md"), _document("d", "b")])
    assert surest.get("b") == "d" and surest.get("c") == "b"


def test_matching_finds_quotes_and_says_what_is_missing(tmp_path: Path) -> None:
    texts = {"1f": "第一章\n保修期为\n  两年。", "2f": "删除主目录即可。"}
    documents = [_document("1f", "保修.md"), _document("2f", "卸载.md")]
    file = _file(
        tmp_path,
        "t.jsonl",
        {"question": "几年", "document": "保修.md", "spans": ["保修期为两年。"]},
        {"question": "怎么卸", "spans": ["主目录"]},
        {"question": "缺", "document": "没有.md"},
    )
    judged, missing = evalset.match(evalset.load([file]), documents, texts.__getitem__)
    (span,) = judged[0].spans
    assert texts[span[0]][span[1] : span[2]] == "保修期为\n  两年。"
    assert judged[1].spans[0][0] == "2f" and dict(judged[1].documents) == {"2f": 1}
    assert missing == ["没有.md"] and dict(judged[2].documents) == {"没有.md": 1}
    other = _file(tmp_path, "o.jsonl", {"question": "缺", "document": "没有.md"})
    with pytest.raises(Invalid) as caught:
        evalset.match(evalset.load([other]), documents, texts.__getitem__)
    assert caught.value.code == "other_documents"
    wrong = _file(tmp_path, "w.jsonl", {"question": "几年", "document": "保修", "spans": ["三年"]})
    with pytest.raises(Invalid, match=r"w\.jsonl:1"):
        evalset.match(evalset.load([wrong]), documents, texts.__getitem__)
    beyond = _file(tmp_path, "b.jsonl", {"question": "几年", "document": "保修", "spans": [[0, 99]]})
    with pytest.raises(Invalid, match=r"b\.jsonl:1"):
        evalset.match(evalset.load([beyond]), documents, texts.__getitem__)


@given(st.text(alphabet="甲乙 \n丙", max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_every_piece_of_a_text_is_found_whatever_its_white_space(text: str, start: int, end: int) -> None:
    quote = text[start:end]
    found = evalset.find_quote(" ".join(quote), text)
    if quote.strip():
        assert found and "".join(text[found[0] : found[1]].split()) == "".join(quote.split())
    else:
        assert found is None


# ---- legs ----


def _hit(document: str, bm25: int | None, dense: int | None, text: str = "x") -> Hit:
    return Hit("库", document, document, text, 0, 1, None, (), 0.0, bm25, dense, None)


def test_legs_are_read_off_the_hits() -> None:
    hits = [_hit("a", 2, 1), _hit("b", None, 2), _hit("a", 1, None), _hit("c", 3, 3)]
    assert documents_of(by_leg(hits, "bm25")) == ["a", "c"] and documents_of(by_leg(hits, "dense")) == ["a", "b", "c"]
    assert documents_of(hits) == ["a", "b", "c"]


async def test_search_gives_whole_legs_and_they_are_the_ones_that_are_fused(bench: Bench) -> None:
    texts = {f"文{n}.txt": f"第{n}号设备的安装步骤：拧紧螺丝，接通电源，等待{n}分钟。" for n in range(30)}
    await bench.add(*(bench.write(name, text) for name, text in texts.items()))
    few = await bench.library.search(["库"], "7号设备怎样安装", k=5)
    every = await bench.library.search(["库"], "7号设备怎样安装", k=None)
    assert every[:5] == few and len(every) == 30, "all that a leg found, and the head does not depend on k"
    for leg in ("bm25", "dense"):
        ranks = [hit.bm25_rank if leg == "bm25" else hit.dense_rank for hit in by_leg(every, leg)]
        assert ranks == list(range(1, len(ranks) + 1)), "no rank of a leg is missing"


async def test_each_leg_is_scored_by_its_own_ranking() -> None:
    lists = {"甲": [_hit("x", 1, 2), _hit("y", None, 1)], "乙": [_hit("y", 1, 1), _hit("x", 2, None)]}
    asked: list[int | None] = []

    async def search(query: str, k: int | None) -> Sequence[Hit]:
        asked.append(k)
        return lists[query]

    async def rerank(query: str, texts: Sequence[str]) -> list[float]:
        return [float(place) for place, _ in enumerate(texts)]  # the last is the best

    questions = [
        Judged("1", "甲", {"y": 1}),
        Judged("2", "乙", {"y": 1, "z": 1}),
        Judged("3", "丙", {}, unanswerable=True),
    ]
    steps: list[Progress] = []
    score = await score_search(questions, search, rerank=rerank, report=steps.append)
    assert score.n_judged == 2 and list(score.legs) == ["bm25", "dense", "fused", "reranked"]
    assert {leg: score.legs[leg]["mrr@10"] for leg in score.legs} == {
        "bm25": 0.5, "dense": 1.0, "fused": 0.75, "reranked": 0.75,
    }  # fmt: skip
    assert score.legs["dense"]["recall@10"] == 0.75 and set(score.legs["bm25"]) == set(MEASURES)
    assert score.ranks == {
        "1": {"bm25": None, "dense": 1, "fused": 2, "reranked": 1},
        "2": {"bm25": 1, "dense": 1, "fused": 1, "reranked": 2},
    }
    assert (
        asked.count(None) == 2
        and score.latency_ms["n"] == 2
        and score.latency_ms["p99"] >= score.latency_ms["p50"] >= 0
    )
    assert [(step.done, step.total) for step in steps] == [(1, 2), (2, 2)] and steps[-1].rate > 0


async def test_a_set_without_documents_is_not_searched() -> None:
    async def search(query: str, k: int | None) -> Sequence[Hit]:
        raise AssertionError

    score = await score_search([Judged("1", "甲", {})], search, report=_nobody)
    assert score.n_judged == 0 and score.legs == {} and score.latency_ms == {"n": 0}


# ---- answers ----


def _source(number: int, document: str, start: int, end: int, cited: bool) -> Source:
    return Source(number, "库", document, document, "x", start, end, cited=cited)


async def test_citations_and_refusals() -> None:
    answers = {
        "段": Answered("两年[1][2]。", [_source(1, "a", 0, 10, True), _source(2, "a", 50, 60, True)]),
        "篇": Answered("北京[1]。", [_source(1, "b", 0, 10, True), _source(2, "c", 0, 10, False)]),
        "没": Answered("资料中没有找到。", [_source(1, "a", 0, 10, False)]),
        "编": Answered("一百元[1]。", [_source(1, "a", 0, 10, True)]),
    }

    async def answer(question: str) -> Answered:
        return answers[question]

    questions = [
        Judged("1", "段", {"a": 1}, (("a", 5, 8), ("a", 20, 30))),
        Judged("2", "篇", {"b": 1, "d": 0}),
        Judged("3", "没", {}, unanswerable=True),
        Judged("4", "编", {}, unanswerable=True),
    ]
    score = await score_answers(questions, answer, report=_nobody)
    assert score.citation_precision == pytest.approx(2 / 3), "marks 1 of 段 and of 篇, of three"
    assert score.citation_recall == pytest.approx((1 / 2 + 1) / 2)
    assert score.refusal == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert [row["refused"] for row in score.rows] == [False, False, True, False]
    assert score.rows[0]["cited"][1] == {"document": "a", "start": 50, "end": 60, "page": None}
    plain = await score_answers(questions[:2], answer, report=_nobody)
    assert plain.refusal is None, "nothing to refuse: no figure is made up"


@pytest.mark.parametrize(
    ("text", "cited", "refused"),
    [
        ("资料中没有找到", False, True),
        ("Not found in the sources.", False, True),
        ("资料里没有提到价格。", False, True),
        ("保修两年[1]。资料中没有找到价格。", True, False),
        ("保修两年。", False, False),
    ],
)
def test_what_counts_as_a_refusal(text: str, cited: bool, refused: bool) -> None:
    assert is_refusal(Answered(text, [_source(1, "a", 0, 9, cited)])) is refused
    assert is_refusal(Answered("两年。", []))
