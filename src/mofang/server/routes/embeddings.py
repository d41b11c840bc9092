"""POST /v1/embeddings: texts to vectors, as lists of numbers or as base64 of little-endian float32."""

import base64
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mofang.engine.base import COUNTED, Embedder
from mofang.errors import Invalid
from mofang.server import sse
from mofang.server.routes.here import Here
from mofang.server.visit import note_tokens
from mofang.wire import EmbeddingRequest

router = APIRouter(tags=["openai"])


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request, backend: Here) -> Response:
    """One unit vector a text, in their order."""
    texts = as_texts(body)
    async with (
        sse.until_client_leaves(request.receive),
        backend.engines.use(body.model, "embedding", keep_alive=body.keep_alive) as engine,
    ):
        assert isinstance(engine, Embedder)
        if body.dimensions not in (None, engine.dimensions):
            raise Invalid("server.wrong_dimensions", param="dimensions", asked=body.dimensions, has=engine.dimensions)
        vectors = await engine.embed(texts, body.input_type)
        n_tokens = COUNTED.get()
        if n_tokens is None:
            n_tokens = sum([len(await engine.tokenize(text)) for text in texts])
        model = engine.info().model
        note_tokens(n_tokens)
    if body.encoding_format == "base64":
        rows: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        rows = vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def as_texts(body: EmbeddingRequest) -> list[str]:
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise Invalid("server.token_input", param="input")
    if not all(texts):
        raise Invalid("server.empty_input", param="input", at=texts.index(""))
    return texts
