"""Follow the events of a generation or a job, so that Ctrl-C stops that work and not the program.

Events are read in a thread of their own and handed over through a queue. The first Ctrl-C asks the gateway to stop;
the last event then comes as usual, with what was done so far. The second Ctrl-C leaves at once. Knows nothing of what
the events mean.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

Event = dict[str, Any]
TICK_S = 0.1

_INTERRUPT = object()
_END = object()


@contextmanager
def following(read: Callable[[], Iterable[Event]], stop: Callable[[], None]) -> Iterator[Iterator[Event | None]]:
    """Yield the events of `read()`, and None whenever nothing came for TICK_S. An error of `read` is raised here.

    Raises KeyboardInterrupt on the second Ctrl-C.
    """
    # SimpleQueue.put may run inside a signal handler that interrupted get() (Python docs, queue: "reentrant").
    queue: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        try:
            for event in read():
                queue.put(event)
            queue.put(_END)
        except Exception as error:
            queue.put(error)

    with _interrupts(lambda: queue.put(_INTERRUPT)):
        threading.Thread(target=work, name="follow", daemon=True).start()
        yield _events(queue, stop)


def _events(queue: "SimpleQueue[Any]", stop: Callable[[], None]) -> Iterator[Event | None]:
    interrupted = False
    while True:
        try:
            item = queue.get(timeout=TICK_S)
        except Empty:
            yield None
            continue
        if item is _END:
            return
        if item is _INTERRUPT:
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
            stop()
        elif isinstance(item, Exception):
            raise item
        else:
            yield item


@contextmanager
def _interrupts(handle: Callable[[], None]) -> Iterator[None]:
    """Send Ctrl-C to `handle` for the length of the block. Python lets only the main thread do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda _signal, _frame: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
