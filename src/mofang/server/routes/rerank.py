"""POST /v1/rerank: documents by how well they answer a query, as Jina, Cohere and llama.cpp shape it."""

from typing import Any

from fastapi import APIRouter, Request

from mofang.engine.base import Reranker
from mofang.errors import Invalid
from mofang.server import sse
from mofang.server.routes.here import Here
from mofang.server.visit import note_tokens
from mofang.wire import RerankRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/rerank")
async def rerank(body: RerankRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Scores, best first; `index` is the document's place in the request."""
    documents = [_text(document, place) for place, document in enumerate(body.documents)]
    async with (
        sse.until_client_leaves(request.receive),
        backend.engines.use(body.model, "reranker", keep_alive=body.keep_alive) as engine,
    ):
        assert isinstance(engine, Reranker)
        scores = await engine.rerank(body.query, documents)
        model = engine.info().model
        n_tokens = sum([len(await engine.tokenize(text)) for text in (body.query, *documents)])
        note_tokens(n_tokens)
    ranked = sorted(range(len(documents)), key=lambda place: -scores[place])
    results: list[dict[str, Any]] = [
        {"index": place, "relevance_score": scores[place]} for place in ranked[: body.top_n]
    ]
    if body.return_documents:
        results = [{**result, "document": {"text": documents[result["index"]]}} for result in results]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "model": model, "results": results, "usage": usage}


def _text(document: str | dict[str, str], place: int) -> str:
    if isinstance(document, str):
        return document
    if "text" not in document:
        raise Invalid("server.document_without_text", param=f"documents.{place}", at=place)
    return document["text"]
