"""The driver of an ingest on Ray: `python -m mofang.launch.ray_ingest_child`. See mofang.launch.ray_ingest."""

import asyncio
import os
import pickle
import sys
from contextlib import ExitStack

from mofang.errors import MofangError
from mofang.knowledge.base import AddReport
from mofang.knowledge.ingest import Ingest, Report
from mofang.knowledge.store import Store
from mofang.launch.ray_hands import RayHands
from mofang.launch.ray_ingest import Order, Word
from mofang.platform import end_with_parent
from mofang.strings import speaking


def main() -> int:
    order: Order = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    end_with_parent()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints belongs into the log

    def say(word: Word) -> None:
        pickle.dump(word, out)
        out.flush()

    with speaking(order.lang):
        try:
            last: Word = asyncio.run(_ingested(order, say))
        except MofangError as error:
            last = error
    say(last)
    return 0


async def _ingested(order: Order, report: Report) -> AddReport:
    store = Store(order.base)
    model, _ = store.embedder()
    with ExitStack() as stack:  # Ray's, which is begun when there is something to do
        hands = RayHands(model, order.settings, order.cluster, order.workers, report, stack)
        return await Ingest(store, hands, order.cutting, report).run(order.files)


if __name__ == "__main__":
    sys.exit(main())
