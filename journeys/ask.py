"""Ask a model over the gateway's OpenAI-compatible API with nothing but the standard library.

python journeys/ask.py MODEL QUESTION
python journeys/ask.py --show FILE        what `mofang kb ask --json` wrote
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

URL = f"http://127.0.0.1:{os.environ.get('MOFANG_PORT', '8642')}"


def post(path: str, body: dict) -> dict:
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def wait(seconds: float = 60) -> None:
    """Until the gateway answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(URL + "/healthz", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def show(path: str) -> None:
    answer = json.loads(Path(path).read_text(encoding="utf-8"))
    print(answer["content"])
    for source in answer["sources"]:
        print(f"  [{source['number']}] {source['title']}")


def main() -> None:
    model, question = sys.argv[1:]
    if model == "--show":
        show(question)
        return
    wait()
    messages = [{"role": "user", "content": question}]
    answer = post("/v1/chat/completions", {"model": model, "messages": messages, "temperature": 0})
    print("问 / Q:", question)
    print("答 / A:", answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
