"""Who computes: on this machine, or on several. This table is the only list of ways to serve."""

from mofang.registry import Entry, Registry

SERVING = Registry(
    "serving",
    {
        "local": Entry("mofang.launch.local:alone", "models are children of the gateway"),
        "ray": Entry("mofang.launch.ray_serve:spread", "models are replicas on a Ray cluster", "ray", "ray"),
    },
)
"""Each is called with the options of `mofang serve` (cluster, replicas, max_replicas, calm, cpus) and returns the gateway's
parts (launch.local.Parts). Raises Invalid for an option that it cannot use."""
