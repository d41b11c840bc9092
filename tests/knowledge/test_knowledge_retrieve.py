"""Search: both legs, their evidence, several bases; and what it must never do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from knowledge_bench import Bench

from mofang.errors import Invalid, NotFound
from mofang.knowledge.centre import SHARE, everyday_queries
from mofang.knowledge.retrieve import FULL_COVERAGE, KEYWORDS, fuse

PARAGRAPHS = {
    "考勤": "员工每日工作八小时，核心工作时间为上午十点至下午四点，因公外出须提前登记。",
    "年假": "员工入职满一年后享受带薪年假五天，满十年后享受十天，可顺延至次年第一季度。",
    "报销": "差旅费报销须在出差结束后十五个工作日内提交，住宿标准为一线城市每晚五百元。",
    "密码": "账号的密码长度不得少于十二位，每九十天更换一次，离开座位时必须锁定屏幕。",
    "打印机": "三楼的打印机型号为 HP LaserJet M404，驱动程序可以从内网的软件中心下载。",
    "食堂": "食堂供应早餐与午餐，刷工牌付款，每月补贴三百元，周末不开放。",
    "班车": "班车早上七点半从地铁站出发，晚上六点半从园区返回，需要提前一天预约座位。",
    "体检": "公司每年十月组织一次全员体检，费用由公司承担，结果只交给员工本人。",
    "培训": "新员工须在入职后两周内完成安全培训，考试满分一百，八十分以上为合格。",
    "采购": "单价超过五千元的设备须经部门负责人和财务共同审批，并取得三家供应商的报价。",
}


@pytest.fixture
async def filled(bench: Bench) -> Bench:
    await bench.add(*(bench.write(f"{name}.txt", text) for name, text in PARAGRAPHS.items()))
    return bench


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("年假有几天", "年假"),
        ("出差住宿标准是多少", "报销"),
        ("密码多久换一次", "密码"),
        ("ｈｐ　ＬＡＳＥＲＪＥＴ", "打印机"),
        ("laserjet m404 驱动", "打印机"),
        ("班车几点出发", "班车"),
        ("体检费用谁承担", "体检"),
        ("安全培训考试多少分合格", "培训"),
        ("五千元以上的设备怎么审批", "采购"),
        ("食堂周末开吗", "食堂"),
    ],
)
async def test_ten_paragraphs(query: str, expected: str, filled: Bench) -> None:
    hits = await filled.library.search(["库"], query, k=3)
    assert hits[0].title == f"{expected}.txt"
    assert hits[0].bm25_rank == 1
    assert len(hits) == 3


async def test_a_hit_says_where_it_stands_and_why(bench: Bench) -> None:
    await bench.put("手册.md", "# 手册\n\n## 休假\n\n年假五天。\n\n## 报销\n\n十五日内。\n")
    hit = (await bench.library.search(["库"], "年假"))[0]
    document = bench.library.documents("库")[0]
    assert (hit.knowledge, hit.document_id, hit.title) == ("库", document.id, "手册.md")
    assert hit.headings == ("手册", "休假")
    assert bench.library.text("库", document.id, hit.start, hit.end)["text"] == hit.text
    assert (hit.bm25_rank, hit.page) == (1, None)
    assert hit.dense_rank is not None and hit.cosine is not None and -1 <= hit.cosine <= 1
    other = next(h for h in await bench.library.search(["库"], "年假") if "十五日" in h.text)
    assert other.score < hit.score
    assert other.bm25_rank is None, "the keyword leg names only what holds a word of the query"


async def test_the_head_of_the_list_does_not_depend_on_k(filled: Bench) -> None:
    many = await filled.library.search(["库"], "员工入职", k=10)
    few = await filled.library.search(["库"], "员工入职", k=2)
    assert few == many[:2]


async def test_headings_titles_and_file_names_are_searched(bench: Bench) -> None:
    await bench.add(
        bench.write("甲.md", "# 离职手续\n\n提前三十日书面通知。\n"), bench.write("保密协议.txt", "双方同意下列条款。")
    )
    assert (await bench.library.search(["库"], "离职手续"))[0].title == "甲.md"
    assert (await bench.library.search(["库"], "保密协议"))[0].title == "保密协议.txt"


def near(*products: float) -> list[dict[tuple[int, int], float]]:
    return [{(0, i): product for i, product in enumerate(products)}]


def test_fusion_without_keywords_is_the_dense_order() -> None:
    fused = fuse({}, near(0.81, 0.84, 0.80, 0.90))
    assert [key for key, _ in fused] == [(0, 3), (0, 1), (0, 0), (0, 2)]
    assert fused[0][1] == pytest.approx(1.0) and fused[-1][1] == pytest.approx(0.0)


def test_fusion_without_vectors_is_the_keyword_order() -> None:
    assert fuse({(0, 1): 0.5, (0, 2): 1.0}, []) == [((0, 2), KEYWORDS), ((0, 1), 0.5 * KEYWORDS)]


def test_a_perfect_keyword_score_weighs_a_fixed_share_of_the_spread() -> None:
    fused = dict(fuse({(0, 1): 1.0}, near(0.9, 0.85, 0.8)))
    assert fused == pytest.approx({(0, 0): 1.0, (0, 1): 0.5 + KEYWORDS, (0, 2): 0.0})


def test_a_leg_without_evidence_does_not_vote() -> None:
    """A stray word of an English query in Chinese text must not move what the vectors found."""
    products = [0.9 - 0.01 * i for i in range(10)]
    weight = (0.05 / FULL_COVERAGE) ** 3
    fused = [key for key, _ in fuse({(0, 9): weight, (0, 77): weight}, near(*products))]
    assert fused[:9] == [(0, i) for i in range(9)]


@given(
    st.lists(st.floats(0.7, 0.95), min_size=1, max_size=30, unique=True),
    st.dictionaries(st.integers(0, 40), st.floats(0, 1), max_size=20),
    st.floats(0.1, 10),
    st.floats(-1, 1),
)
def test_what_an_embedder_s_scale_is_does_not_matter(
    products: list[float], words: dict[int, float], scale: float, shift: float
) -> None:
    evidence = {(0, key): weight for key, weight in words.items()}
    before = fuse(evidence, near(*products))
    after = dict(fuse(evidence, near(*(scale * one + shift for one in products))))
    if len(products) > 1 and max(products) - min(products) > 1e-3:
        assert {key for key, _ in before} == set(after)
        assert all(after[key] == pytest.approx(score, abs=1e-4) for key, score in before)


async def test_a_query_in_another_language_is_left_to_the_vectors(filled: Bench) -> None:
    query = "which printer does the third floor have"
    (vector,) = await filled.embedder.embed([query], "query")
    everyday = (await filled.embedder.embed(everyday_queries()["en"], "query")).mean(axis=0)
    hits = await filled.library.search(["库"], query, k=10)
    passages = await filled.embedder.embed([hit.text for hit in hits], "passage")
    assert np.allclose([hit.cosine or 0.0 for hit in hits], passages @ vector, atol=1e-5), "what is told is the cosine"
    sought = passages @ (vector - SHARE * everyday)
    assert list(sought) == sorted(sought, reverse=True), "the order is that without what all queries share"


async def test_several_bases_at_once(filled: Bench) -> None:
    filled.library.create("二", embedding_model="hash")
    await filled.put("停车.txt", "停车位按季度抽签，费用每月二百元。", base="二")
    hits = await filled.library.search(["库", "二"], "停车位怎么抽签", k=5)
    assert (hits[0].knowledge, hits[0].title) == ("二", "停车.txt")
    assert {hit.knowledge for hit in hits} == {"库", "二"}
    hits = await filled.library.search(["二", "库"], "年假有几天")
    assert (hits[0].knowledge, hits[0].title) == ("库", "年假.txt"), "a base that has nothing to say does not lead"


async def test_bases_of_two_embedders_at_once(filled: Bench) -> None:
    filled.library.create("三", embedding_model="hash2")
    await filled.put("停车.txt", "停车位按季度抽签。", base="三")
    hits = await filled.library.search(["库", "三"], "停车位抽签", k=20)
    assert (hits[0].knowledge, len(hits)) == ("三", 11)
    assert filled.opened[-2:] == ["hash", "hash2"], "each embedder embeds the query for its own base"


async def test_an_empty_base_answers_nothing_and_loads_nothing(bench: Bench) -> None:
    assert await bench.library.search(["库"], "任何问题") == []
    assert bench.opened == []


async def test_odd_queries(filled: Bench) -> None:
    for query in ('"', "' OR 1=1", "？？？", "NEAR(年假 报销)", "年假*", "body:年假", "-", "😀", "a" * 5000, "的"):
        assert len(await filled.library.search(["库"], query, k=3)) == 3, query
    for query in ("", "  \n"):
        with pytest.raises(Invalid) as fault:
            await filled.library.search(["库"], query)
        assert fault.value.code == "empty_query"


async def test_a_long_query_is_embedded_in_parts_not_cut(filled: Bench) -> None:
    filled.embedder.longest = 400
    filled.embedder.queries.clear()
    query = "这是一段贴进来的很长的文字。" * 60 + "请问班车几点从地铁站出发？"
    hits = await filled.library.search(["库"], query)
    parts = [one for one in filled.embedder.queries if one not in everyday_queries()["zh"]]
    assert len(parts) > 1 and "班车" in parts[-1]
    assert hits


async def test_an_unknown_base_names_the_nearest(bench: Bench) -> None:
    bench.library.create("公司制度", embedding_model="hash")
    with pytest.raises(NotFound) as fault:
        await bench.library.search(["公司制"], "问题")
    assert "公司制度" in fault.value.hint("zh") and "库" in fault.value.message("zh")
