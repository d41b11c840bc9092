"""Answers from Mofang's own documents: how many are right, carry a mark, and carry the right one (a running gateway)."""

import argparse

from mofang import api

QUESTIONS = [
    # question, a text that a right answer holds, the document that it stands in; None: no document answers it
    ("端口 8642 被占用了怎么办？", "MOFANG_PORT", "faq.md"),
    ("没有显卡能用吗？", "能", "faq.md"),
    ("怎样备份数据？", "MOFANG_HOME", "faq.md"),
    ("提示缺少 libgomp.so.1 怎么办？", "apt-get install libgomp1", "faq.md"),
    ("模坊的许可证是什么？", "Apache", "faq.md"),
    ("怎样让同事也能访问？", "MOFANG_API_KEY", "faq.md"),
    ("需要哪个版本的 Python？", "3.11", "start.md"),
    ("MOFANG_QUEUE_LIMIT 的默认值是多少？", "32", "settings.md"),
    ("支持哪些格式的文档？", "PDF", "knowledge.md"),
    ("默认的向量模型是哪个？", "e5", "models.md"),
    ("今天北京天气怎么样？", None, None),
    ("珠穆朗玛峰有多高？", None, None),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knowledge", default="handbook")
    parser.add_argument("--model", default="auto")
    options = parser.parse_args()
    right = marked = rightly = 0
    answerable = sum(text is not None for _, text, _ in QUESTIONS)
    with api.gateway() as client:
        for question, expected, document in QUESTIONS:
            body = {"model": options.model, "temperature": 0, "max_tokens": 200, "knowledge": [options.knowledge]}
            body["messages"] = [{"role": "user", "content": question}]
            answer = client.request("POST", "/v1/chat/completions", body)
            said = answer["choices"][0]["message"]["content"]
            cited = {source["title"] for source in answer["sources"] if source["cited"]}
            good = (expected in said) if expected else "没有找到" in said
            right += good
            marked += bool(expected and cited)
            rightly += bool(expected and document in cited)
            print(f"{'✓' if good else '✗'} {question} → {said!r} {sorted(cited)}", flush=True)
    print(f"\nright {right} of {len(QUESTIONS)}; marked {marked}, with the right document {rightly}, of {answerable}")


if __name__ == "__main__":
    main()
