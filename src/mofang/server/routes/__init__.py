"""One router each, thin: wire model in → backend → wire shape out.

A route that blocks (files, SQLite) is a plain `def`, which FastAPI runs in a worker thread; the event loop carries
only what waits.
"""

from mofang.server.routes import (
    chat,
    completions,
    conversations,
    embeddings,
    engine,
    files,
    generations,
    jobs,
    keys,
    knowledge,
    messages,
    models,
    questions,
    rerank,
    responses,
    runs,
    shelf,
    system,
    tokens,
    tools,
    vector_stores,
)

ROUTERS = tuple(
    module.router
    for module in (
        chat,
        completions,
        responses,
        messages,
        embeddings,
        rerank,
        models,
        generations,
        conversations,
        tools,
        shelf,
        jobs,
        knowledge,
        questions,
        files,
        vector_stores,
        keys,
        engine,
        runs,
        tokens,
        system,
    )
)
