"""Who computes: on this machine, or on several. The only lists of ways to serve, and to take documents in."""

from mofang.registry import Entry, Registry

SERVING = Registry(
    "launcher",
    {
        "local": Entry("mofang.launch.local:alone", "models are children of the gateway"),
        "ray": Entry("mofang.launch.ray_serve:spread", "models are replicas on a Ray cluster", "ray", "ray"),
    },
)
"""Each is called with the options of `mofang serve` (cluster, replicas, max_replicas, calm, cpus) and returns the gateway's
parts (launch.local.Parts). Raises Invalid for an option that it cannot use."""

INGESTING = Registry(
    "launcher",
    {
        "local": Entry("mofang.launch.local:ingest_here", "the gateway reads, its embedder embeds"),
        "ray": Entry("mofang.launch.ray_ingest:spread", "machines of a Ray cluster read and embed", "ray", "ray"),
    },
)
"""Each is called with the settings and the options of `mofang kb add` (cluster, workers) and returns who does the work
(knowledge.ingest.Ingester); None: the gateway itself. Raises as those of SERVING."""
