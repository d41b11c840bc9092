"""The files for clusters: every field is one that KubeRay, Kubernetes and Ray know, and what they promise is in them.

No Kubernetes runs here. An API server drops fields that it does not know without a word, so here they are refused: by
KubeRay's own schema (kuberay-crds.txt), which holds those of pods, services, volume claims and network rules as well.
"""

import json
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
MOFANG_PORT, RAY_PORT, DASHBOARD_PORT = 8642, 6379, 8265


def strict(schema: Any) -> Any:
    """The structural schema of a CRD as JSON Schema, unknown fields refused."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    # `properties` may itself be the name of a property; a schema's stands beside its type
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        found["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return found


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """By kind: RayCluster and RayJob whole, and of Kubernetes' own kinds what KubeRay's hold of them."""
    raw = json.loads(lzma.decompress((Path(__file__).parent / "kuberay-crds.json.xz").read_bytes()))
    found = {kind: strict(schema) for kind, schema in raw.items()}
    spec = found["RayCluster"]["properties"]["spec"]["properties"]
    pod = spec["headGroupSpec"]["properties"]["template"]["properties"]["spec"]
    rules = spec["networkPolicy"]["properties"]["head"]["properties"]
    volume = pod["properties"]["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    labels = pod["properties"]["topologySpreadConstraints"]["items"]["properties"]["labelSelector"]
    found |= {
        "Deployment": _spec({
            "replicas": {"type": "integer"}, "selector": labels, "template": _spec(pod),
            "strategy": {"properties": {"type": {"enum": ["Recreate", "RollingUpdate"]}}, "additionalProperties": False},
        }),
        "Service": _spec(spec["headGroupSpec"]["properties"]["headService"]["properties"]["spec"]),
        "PersistentVolumeClaim": _spec(volume["properties"]["spec"]),
        "NetworkPolicy": _spec({
            "podSelector": labels, "ingress": rules["ingressRules"], "egress": rules["egressRules"],
            "policyTypes": {"items": {"enum": ["Ingress", "Egress"]}},
        }),
        "Namespace": {"additionalProperties": False, "properties": {}},
    }  # fmt: skip
    return found


def _spec(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with that spec; a table of fields is one whose others are refused."""
    spec = schema if "type" in schema else {"properties": schema, "additionalProperties": False}
    return {"properties": {"spec": spec, "metadata": {}}, "additionalProperties": False, "required": ["spec"]}


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


EVERYTHING = [(path.name, one) for path in FILES for one in objects(path)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for _, one in EVERYTHING if one["kind"] == kind]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's template, and whose it is."""
    for deployment in of_kind("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]
    for one in [*of_kind("RayCluster"), *of_kind("RayJob")]:
        spec = one["spec"].get("rayClusterSpec", one["spec"])
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            yield f"{one['metadata']['name']} {group.get('groupName', 'head')}", group["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for one in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            yield f"{name} {one['name']}", one


@pytest.mark.parametrize(("file", "one"), EVERYTHING, ids=[f"{f} {o['kind']}" for f, o in EVERYTHING])
def test_every_field_is_known_and_of_its_type(file: str, one: dict[str, Any], schemas: dict[str, Any]) -> None:
    body = {key: value for key, value in one.items() if key not in ("apiVersion", "kind", "metadata")}
    if one["kind"].startswith("Ray"):
        assert one["apiVersion"] == "ray.io/v1"
        body = one
    assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "mofang"
    jsonschema.Draft202012Validator(schemas[one["kind"]]).validate(body)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "resurces")),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "replica")),
        ("RayJob", ("spec", "rayClusterSpec", "authOption")),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readynessProbe")),
        ("NetworkPolicy", ("spec", "egres")),
        ("Service", ("spec", "port")),
    ],
)
def test_a_field_that_is_misspelt_is_refused(kind: str, where: tuple[Any, ...], schemas: dict[str, Any]) -> None:
    body = json.loads(json.dumps(of_kind(kind)[0]))
    body = body if kind.startswith("Ray") else {"spec": body["spec"]}
    place: Any = body
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schemas[kind]).validate(body)


def test_what_runs_has_no_rights_and_bounds() -> None:
    for name, pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000, name
        assert spec["automountServiceAccountToken"] is False, name
        assert not ({"hostNetwork", "hostPID", "hostIPC"} & set(spec)), name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name
    for name, one in containers():
        rights = one["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}, name
        assert set(one["resources"]) == {"requests", "limits"}, name


def test_ray_is_asked_for_its_token_everywhere_and_no_secret_is_in_a_file() -> None:
    for one in [*of_kind("RayCluster"), *of_kind("RayJob")]:
        spec = one["spec"].get("rayClusterSpec", one["spec"])
        assert spec["authOptions"] == {"mode": "token", "secretName": "mofang"}
        assert f"ray>={'.'.join(spec['rayVersion'].split('.')[:2])}" in _ray_wanted()
    for deployment in of_kind("Deployment"):
        for one in [*deployment["spec"]["template"]["spec"]["containers"],
                    *deployment["spec"]["template"]["spec"]["initContainers"]]:  # fmt: skip
            told = {each["name"]: each for each in one["env"]}
            assert told["RAY_AUTH_MODE"]["value"] == "token"
            assert told["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "mofang", "key": "auth_token"}
    for name, one in containers():
        for each in one["env"]:
            assert not re.search("KEY|TOKEN|SECRET|PASSWORD", each["name"]) or "value" not in each, name
    assert not of_kind("Secret")


def _ray_wanted() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return "".join(re.findall(r'"ray\[[^"]+"', text)).replace("[train,serve]", "")


def test_nobody_but_mofang_reaches_ray() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, "first nothing is allowed"
    ours = policies["among-themselves"]["podSelector"]["matchLabels"].items()
    assert all(ours <= pod["metadata"]["labels"].items() for _, pod in pods()), "every pod is one of ours"
    assert policies["among-themselves"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": dict(ours)}}]}]
    from_elsewhere = {
        name: [port["port"] for rule in policy.get("ingress", []) for port in rule.get("ports", ["any"])]
        for name, policy in policies.items()
        if name != "among-themselves"
    }
    assert from_elsewhere == {"nobody": [], "gateway": [MOFANG_PORT], "operator": [DASHBOARD_PORT]}
    assert of_kind("RayCluster")[0]["spec"]["headGroupSpec"]["rayStartParams"]["include-dashboard"] == "false"
    gateway = policies["gateway"]["podSelector"]["matchLabels"].items()
    assert [name for name, pod in pods() if gateway <= pod["metadata"]["labels"].items()] == ["gateway"]


def test_one_gateway_that_joins_the_cluster_without_cores() -> None:
    deployment, service = of_kind("Deployment")[0]["spec"], of_kind("Service")[0]["spec"]
    assert deployment["replicas"] == 1 and deployment["strategy"] == {"type": "Recreate"}, "one home has one owner"
    labels = deployment["template"]["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= labels and service["selector"].items() <= labels
    gateway = deployment["template"]["spec"]["containers"][0]
    cluster = of_kind("RayCluster")[0]["metadata"]["name"]
    assert f"ray start --address={cluster}-head-svc:{RAY_PORT} --num-cpus=0" in gateway["args"][0]
    assert [(port["name"], port["containerPort"]) for port in gateway["ports"]] == [("http", MOFANG_PORT)]
    assert service["ports"][0]["targetPort"] == "http"
    images = {one["image"] for _, one in containers()}
    assert images == {"mofang:ray"}, "the same versions everywhere"


def test_replicas_fit_on_the_machines() -> None:
    gateway = of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    told = {name: int(value) for name, value in re.findall(r"--([a-z-]*(?:replicas|cpus)) (\d+)", gateway)}
    group = of_kind("RayCluster")[0]["spec"]["workerGroupSpecs"][0]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert 0 < told["cpus"] <= cores, "with 0 Ray could put a replica on a machine without cores"
    assert told["max-replicas"] * told["cpus"] <= group["replicas"] * cores


def test_machines_share_what_they_must_and_sqlite_stays_off_the_network() -> None:
    claims = {one["metadata"]["name"]: one["spec"]["accessModes"] for one in of_kind("PersistentVolumeClaim")}
    assert claims == {"shared": ["ReadWriteMany"], "gateway": ["ReadWriteOnce"]}
    for name, one in containers():
        if one["name"] == "wait-for-the-cluster":
            continue
        mounts = {each["mountPath"]: each for each in one["volumeMounts"]}
        assert {each["name"]: each["value"] for each in one["env"] if "value" in each}["MOFANG_HOME"] == "/data", name
        for folder in ("models", "runs", "data"):
            assert mounts[f"/data/{folder}"] == {"name": "shared", "mountPath": f"/data/{folder}", "subPath": folder}
        home = mounts.get("/data", {}).get("name")
        assert home == ("gateway" if name == "gateway gateway" else None), name


def commands() -> Iterator[list[str]]:
    """The words behind "mofang" of every command in these files."""
    texts = [line for _, one in containers() for line in " ".join(one.get("args", [])).splitlines()]
    texts += [one["spec"]["entrypoint"] for one in of_kind("RayJob")]
    for text in texts:
        if found := re.search(r"\bmofang (.+)", text):
            yield found[1].split()


def test_the_commands_are_mofangs() -> None:
    from mofang.cli.main import build
    from mofang.cli.recipe import chosen
    from mofang.recipes import launcher_of

    program: Any = typer.main.get_command(build())
    read = []
    for words in commands():
        command, rest = program, words
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        given = dict(command.make_context(words[0], list(rest), parent=None).params)
        read.append(" ".join(words[: len(words) - len(rest)]))
        if words[0] == "train":
            workers = of_kind("RayJob")[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
            assert launcher_of(chosen(given)).named()["workers"] == workers
    assert read == ["serve", "train sft"]


# ---- machines by ssh ----


def test_the_launcher_file_is_one_that_ray_reads() -> None:
    found = find_spec("ray")
    assert found and found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations)))
    schema = json.loads((folder / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((DEPLOY / "machines.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(config)
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert command.startswith("RAY_AUTH_MODE=token ") and "\n" not in command
    assert "--include-dashboard=false" in config["head_start_ray_commands"][-1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**config, "min_wokers": 2})


@pytest.mark.slow
def test_ray_itself_makes_two_workers_of_it(tmp_path: Path) -> None:
    """Ray's own preparation, in a process of its own: importing Ray changes what a process does with signals."""
    code = (
        "import sys, json, yaml\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "config = prepare_config(yaml.safe_load(open(sys.argv[1])))\n"
        "validate_config(config)\n"
        "print(json.dumps(config['available_node_types']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DEPLOY / "machines.yaml")],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (kind,) = json.loads(done.stdout.splitlines()[-1]).values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)


# ---- the image ----


def test_the_image_brings_extras_and_no_rights() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "ARG EXTRAS" in text and "ARG PIP_INDEX_URL" in text
    line = next(line for line in text.splitlines() if "pip install" in line)
    argument = re.search(r'"([^"]+)"', line)
    assert argument
    for extras, wanted in (("", "."), ("ray", ".[ray]"), ("ray,ocr", ".[ray,ocr]")):
        said = subprocess.run(
            ["bash", "-c", f'echo "{argument[1]}"'], env={"EXTRAS": extras}, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == wanted
    assert text.index("USER mofang") > text.index("pip install") and "--uid 1000" in text
