"""Where and by how many processes a training is computed. It changes nothing that is learned: no method knows of it."""

from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mofang.recipes.base import Recipe


class Launcher(Recipe):
    """Its worker is called with (launcher, recipe, run) by the run's process and returns the result of the recipe's."""

    command: ClassVar[str] = "train sft"

    def named(self) -> dict[str, Any]:
        """As recipes.launcher_of reads it."""
        return {"launcher": self.kind, **self.model_dump(mode="json")}

    def as_yaml(self) -> str:
        """As it is kept beside a run, and as recipes.launcher_of reads it."""
        return f"launcher: {self.kind}\n" + (super().as_yaml() if type(self).model_fields else "")


class Local(Launcher):
    """One process: the run's own."""

    kind: ClassVar[str] = "local"
    worker: ClassVar[str] = "mofang.launch.here:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""


class Several(Launcher):
    """What the launchers of several processes share: the examples of every step are shared out among them."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What else is: nothing, each process has the whole model; or, for a model that is too large for that, every weight,
    gradient and optimizer state too, so that each keeps its part and gets the others' when a layer computes (FSDP2)."""
    hang_minutes: float = Field(default=30, gt=0)
    """Once training has begun: how long a process may keep the others waiting until it counts as hung, and is ended with
    them. The first one's saving and uploading is waiting, too."""


class Torchrun(Several):
    """Several processes on one machine or more (PyTorch's torchrun)."""

    kind: ClassVar[str] = "torchrun"
    worker: ClassVar[str] = "mofang.launch.torchrun:run"

    processes: int = Field(default=0, ge=0)
    """On each machine; 0: one for each GPU, or for each NUMA node where there is none. The cores of one node are used up
    by one process: a second one there only holds a second copy of the model."""
    nodes: int = Field(default=1, ge=1)
    """Machines; all read and write the same home."""
    rendezvous: str = Field(default="", validate_default=True)
    """host:port of one of them, where they meet."""

    @field_validator("rendezvous")
    @classmethod
    def _machines_meet(cls, value: str, info: ValidationInfo) -> str:
        host, _, port = value.rpartition(":")
        if value and not (host and port.isdigit()):
            raise PydanticCustomError("host_and_port", "must be host:port")
        if not value and info.data.get("nodes", 1) > 1:
            raise PydanticCustomError("where_nodes_meet", "needed for several machines")
        return value


STORAGE_OPTIONS = {"endpoint_override", "region", "scheme"}
"""What an address of a storage may say behind its "?". No keys: a launcher is kept beside its run, and shown."""


class Ray(Several):
    """The workers of a Ray cluster (Ray Train).

    A worker or machine that is lost ends the others; they begin anew, as many as there is room for, at the run's last
    checkpoint.
    """

    kind: ClassVar[str] = "ray"
    worker: ClassVar[str] = "mofang.launch.ray_train:run"
    extra: ClassVar[str] = "ray"
    library: ClassVar[str] = "ray"

    cluster: str = ""
    """host:port of its head, or "auto" for the one that this machine belongs to; a Ray of the run's own, on this machine
    alone, without. All machines read and write the same home."""
    workers: int = Field(default=0, ge=0)
    """0: one for each GPU of the cluster, or for each machine where there is none."""
    min_workers: int = Field(default=0, ge=0)
    """Go on with as few while machines are missing; 0: wait until all are there."""
    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are begun anew before the run is given up (it can be resumed then)."""
    storage: str = ""
    """s3://bucket/prefix?endpoint_override=host:port: where every checkpoint is kept besides, so that the same recipe
    goes on from it on other machines, in an empty home. Keys are in the environment (AWS_ACCESS_KEY_ID…)."""

    @field_validator("cluster")
    @classmethod
    def _names_a_cluster(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and value != "auto" and not (host and port.isdigit()):
            raise PydanticCustomError("ray_cluster", "must be auto or host:port")
        return value

    @field_validator("min_workers")
    @classmethod
    def _is_a_range(cls, value: int, info: ValidationInfo) -> int:
        if value and value > info.data.get("workers", 0):
            raise PydanticCustomError("fewest_of_workers", "must not be more than workers")
        return value

    @field_validator("storage")
    @classmethod
    def _is_a_bucket_without_keys(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
        asked = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        if "@" in parts.netloc or any("key" in name or "token" in name for name in asked):
            raise PydanticCustomError("no_keys_in_storage", "must not hold keys", {"shown": f"s3://…@{host}"})
        if parts.scheme != "s3" or not host or not set(asked) <= STORAGE_OPTIONS:
            raise PydanticCustomError("storage_address", "must be s3://bucket/prefix")
        return value
