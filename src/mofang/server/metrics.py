"""What /metrics tells Prometheus: numbers by route, model and key id, never a word of what was asked.

Every application has its own registry, so two gateways in one process (tests) do not add up.
"""

import time
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mofang.engine.base import EngineInfo
from mofang.server.rooms import Engines
from mofang.server.visit import Tally, Visit

TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 300)
"""Seconds: a warm prompt on a GPU to a long document on a laptop."""
TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
"""Seconds a token: 200 tokens a second to one in two seconds."""
REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Busy(Protocol):
    """How many requests hold a place, by `process`."""

    def __getitem__(self, process: int | str, /) -> int: ...


def process(info: EngineInfo) -> int | str:
    """What tells the places of one loaded model from another's: an adapter answers in its base's process."""
    return info.pid or info.model.partition(":")[0]


class Metrics:
    """One application's figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"mofang_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"mofang_{name}", about, labels, registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Requests answered.", "method", "route", "status")
        self.seconds = histogram(
            "request_seconds", "From a request to the end of its answer.", REQUEST_BUCKETS, "route"
        )
        self.ttft = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", TTFT_BUCKETS, "model"
        )
        self.per_token = histogram("time_per_output_token_seconds", "Between tokens.", TOKEN_BUCKETS, "model")
        self.prompt = counter("prompt_tokens", "Tokens read, reused ones included.", "model")
        self.completion = counter("completion_tokens", "Tokens written.", "model")
        self.cached = counter("cached_prompt_tokens", "Tokens of prompts that were reused, not read again.", "model")
        self.key_tokens = counter("key_tokens", "Tokens read and written on behalf of a key.", "key")
        self.crashes = counter("engine_crashes", "Model processes that died while answering.", "model")
        self.refused = counter("refused", "Requests refused by a key's limits.", "limit", "key")

    def watch(self, engines: Engines, busy: Busy) -> None:
        """Tell of the models in memory as well, as they are at the moment of asking."""
        self.registry.register(_Loaded(engines, busy))

    def answered(self, model: str, visit: Visit, tally: Tally) -> None:
        """An answer ended, whole or cut."""
        usage = tally.usage
        self.prompt.labels(model).inc(usage.prompt_tokens)
        self.completion.labels(model).inc(usage.completion_tokens)
        self.cached.labels(model).inc(usage.cached_tokens)
        if visit.key is not None:
            self.key_tokens.labels(visit.key.id).inc(usage.prompt_tokens + usage.completion_tokens)
        if tally.first_at is None or tally.last_at is None:
            return
        self.ttft.labels(model).observe(tally.first_at - visit.began)
        if usage.completion_tokens > 1 and tally.last_at > tally.first_at:
            self.per_token.labels(model).observe((tally.last_at - tally.first_at) / (usage.completion_tokens - 1))

    def request(self, visit: Visit, status: int) -> None:
        self.requests.labels(visit.method, visit.route, str(status)).inc()
        self.seconds.labels(visit.route).observe(time.perf_counter() - visit.began)

    def totals(self) -> dict[str, float]:
        """Tokens read and written and requests answered since the start, over all models and routes."""
        counted = {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "requests": self.requests}
        return {name: _total(counter) for name, counter in counted.items()}

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)


def _total(counter: Counter) -> float:
    return sum(one.value for family in counter.collect() for one in family.samples if one.name.endswith("_total"))


class _Loaded(Collector):
    def __init__(self, engines: Engines, busy: Busy) -> None:
        self._engines = engines
        self._busy = busy

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else registering would ask for everything once

    def collect(self) -> Iterator[Metric]:
        loaded = self._engines.loaded()
        families = {
            name: GaugeMetricFamily(f"mofang_{name}", about, labels=["model"])
            for name, about in (
                ("model_loaded", "1 for each model in memory."),
                ("model_memory_bytes", "Resident memory of a model's process."),
                ("slots", "Requests that a model answers at a time."),
                ("slots_busy", "Requests that it answers now."),
                ("queue_length", "Requests that wait for a model."),
            )
        }
        for info in loaded:
            families["model_loaded"].add_metric([info.model], 1)
            families["model_memory_bytes"].add_metric([info.model], info.memory_bytes)
            families["slots"].add_metric([info.model], info.n_slots)
            families["slots_busy"].add_metric([info.model], self._busy[process(info)])
        waiting = self._engines.waiting()
        for model in {info.model for info in loaded} | waiting.keys():
            families["queue_length"].add_metric([model], waiting.get(model, 0))
        yield from families.values()
