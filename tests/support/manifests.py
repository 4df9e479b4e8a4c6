"""What is wrong with Kubernetes manifests, found without a cluster.

Each ``*_problems`` function returns what it has found, in words; an empty list is a pass. They look
at manifests as ``kubectl kustomize`` renders them.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import yaml

from obskit_gunicorn._fleet.reporter import LAST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "AUTHORISATION",
    "BASE",
    "CHART",
    "DEMO",
    "FLEET",
    "KUBERNETES",
    "MESH",
    "ROOT",
    "RULES",
    "SERVICE_MONITOR",
    "SIDECAR",
    "Manifest",
    "all_problems",
    "by_application",
    "containers",
    "find",
    "gunicorn_settings",
    "kustomization_problems",
    "parse_quantity",
    "pod_spec",
    "render",
    "schema_problems",
    "sleep_before_stop",
]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "k8s"
BASE = KUBERNETES / "base"
SIDECAR = KUBERNETES / "overlays" / "sidecar"
FLEET = KUBERNETES / "overlays" / "fleet"
SERVICE_MONITOR = KUBERNETES / "components" / "servicemonitor"
AUTHORISATION = KUBERNETES / "components" / "authorisation"
MESH = KUBERNETES / "components" / "service-mesh"
RULES = KUBERNETES / "rules"
CHART = KUBERNETES / "chart"
DEMO = ROOT / "examples" / "demo"

Manifest = dict[str, Any]

_MONITORING = "monitoring.coreos.com/v1"
_APPLICATION = "app.kubernetes.io/name"
_WORKLOADS = ("Deployment", "StatefulSet")
_LAST_TOLD_SECONDS = LAST_SECONDS + 2
"""How long an arbiter waits for what its exporter publishes or pushes last."""

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+|)")
_FACTORS = {
    **{letter + "i": 1024.0 ** (i + 1) for i, letter in enumerate("KMGTPE")},
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    **{letter: 1000.0 ** (i + 1) for i, letter in enumerate("kMGTPE")},
}


# ------------------------------------------------------------------------------------------------
# Reading them


def render(directory: Path) -> list[Manifest]:
    """Return the manifests of a kustomization.

    Raises:
        ValueError: It cannot be rendered; with what kubectl says.
    """
    # The one that is installed beside the interpreter with the tests' requirements comes first.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "kubectl is missing; it comes with the dependency group `test`"
    done = subprocess.run(
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def find(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the one manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def by_application(manifests: list[Manifest]) -> dict[str, list[Manifest]]:
    """Return manifests by the application that they are of: each has one kind of pods."""
    found: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        found.setdefault(manifest["metadata"]["labels"][_APPLICATION], []).append(manifest)
    return found


def _workload(manifests: list[Manifest]) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests if manifest["kind"] in _WORKLOADS)
    spec: dict[str, Any] = found["spec"]
    return spec


def pod_spec(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the specification of the pods of one application."""
    spec: dict[str, Any] = _workload(manifests)["template"]["spec"]
    return spec


def containers(manifests: list[Manifest]) -> list[dict[str, Any]]:
    """Return all containers of the pods of one application, sidecars first."""
    spec = pod_spec(manifests)
    return [*spec.get("initContainers", []), *spec["containers"]]


def parse_quantity(text: object) -> float:
    """Return the number that a quantity such as ``64Mi`` or ``100m`` stands for.

    Raises:
        ValueError: It is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    number, suffix = match.groups()
    if suffix in _FACTORS:
        return float(number) * _FACTORS[suffix]
    return float(number + suffix)


@functools.cache
def gunicorn_settings(arguments: str) -> Mapping[str, str]:
    """Return the settings of the demo's Gunicorn by name, as Gunicorn prints them.

    Args:
        arguments: The variable ``GUNICORN_CMD_ARGS``.
    """
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "gunicorn"),
            *("--config", "gunicorn.conf.py", "--print-config", "app:application"),
        ],
        cwd=DEMO,
        env={"PATH": os.environ.get("PATH", os.defpath), "GUNICORN_CMD_ARGS": arguments},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def sleep_before_stop(container: Mapping[str, Any]) -> float:
    """Return how many seconds a container's preStop hook takes."""
    hook = container.get("lifecycle", {}).get("preStop")
    if hook is None:
        return 0.0
    if "sleep" in hook:
        return float(hook["sleep"]["seconds"])
    command, seconds = hook["exec"]["command"]
    assert command == "sleep"
    return float(seconds)


# ------------------------------------------------------------------------------------------------
# Judging them


def all_problems(manifests: list[Manifest], version: str) -> list[str]:
    """Return everything that is wrong with the manifests of one kustomization.

    Args:
        manifests: As :func:`render` returns them.
        version: The release of Kubernetes whose schemas they must meet.
    """
    found = schema_problems(manifests, version)
    return found or [  # the others count on the schemas
        problem
        for some in by_application(manifests).values()
        for judge in (
            _quantity_problems,
            _volume_problems,
            _port_problems,
            _selector_problems,
            _probe_problems,
            _grace_problems,
            _memory_problems,
            _security_problems,
        )
        for problem in judge(some)
    ]


def schema_problems(manifests: list[Manifest], version: str) -> list[str]:
    """Return unknown fields, wrong types and missing fields."""
    found: list[str] = []
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["apiVersion"] == _MONITORING:
            found += (f"{name}: {problem}" for problem in _custom_resource_problems(manifest))
            continue
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"{name}: {error.message}")
    return found


def _custom_resource_problems(manifest: Manifest) -> Iterator[str]:
    # Large, so only when it is needed.
    models = importlib.import_module("cloudcoil.models.prometheus_operator.v1")
    try:
        model = getattr(models, manifest["kind"]).model_validate(manifest)
    except (AttributeError, ValueError) as error:
        yield str(error)
        return
    # The model drops fields that it does not know.
    kept = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for path in _missing(manifest, kept):
        yield f"unknown field {path}"


def _missing(given: object, kept: object, path: str = "") -> Iterator[str]:
    """Yield the path of everything in ``given`` that is not in ``kept``."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from _missing(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (value, other) in enumerate(zip(given, kept, strict=True)):
            yield from _missing(value, other, f"{path}[{number}]")
    elif isinstance(given, (dict, list)):
        yield path


def _quantity_problems(manifests: list[Manifest]) -> Iterator[str]:
    quantities = [
        (f"{container['name']}.resources.{kind}.{name}", text)
        for container in containers(manifests)
        for kind, resources in container.get("resources", {}).items()
        for name, text in resources.items()
    ]
    quantities += [
        (f"volume {volume['name']}.sizeLimit", volume["emptyDir"]["sizeLimit"])
        for volume in pod_spec(manifests).get("volumes", [])
        if "sizeLimit" in volume.get("emptyDir", {})
    ]
    quantities += [
        (f"volume {claim['metadata']['name']}", claim["spec"]["resources"]["requests"]["storage"])
        for claim in _workload(manifests).get("volumeClaimTemplates", [])
    ]
    for where, text in quantities:
        if not _QUANTITY.fullmatch(str(text)):
            yield f"{where}: {text!r} is no quantity"


def _volume_problems(manifests: list[Manifest]) -> Iterator[str]:
    spec = pod_spec(manifests)
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    claims = _workload(manifests).get("volumeClaimTemplates", [])
    volumes |= {claim["metadata"]["name"]: claim for claim in claims}
    mounted = set()
    for container in containers(manifests):
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{container['name']}: there is no volume {mount['name']}"
        directory = _environment(container).get("PROMETHEUS_MULTIPROC_DIR")
        if directory and directory not in _mount_paths(container):
            yield f"{container['name']}: no volume is mounted at {directory}"
        for name, path in _environment(container).items():
            if name.endswith("_FILE") and os.path.dirname(path) not in _mount_paths(container):
                yield f"{container['name']}: no volume is mounted at the place of {name}"
    for name, volume in volumes.items():
        if name not in mounted:
            yield f"volume {name} is mounted nowhere"
        if volume.get("emptyDir", {}).get("medium") == "Memory" and not volume["emptyDir"].get(
            "sizeLimit"
        ):
            yield f"volume {name} in memory has no sizeLimit"


def _port_problems(manifests: list[Manifest]) -> Iterator[str]:
    declared: dict[object, str] = {}
    for container in containers(manifests):
        for port in container.get("ports", []):
            for key in (port["name"], port["containerPort"]):
                if key in declared:
                    yield f"port {key} is declared twice"
                declared[key] = container["name"]
    wanted = []
    for manifest in manifests:
        spec = manifest["spec"]
        if manifest["kind"] == "Service":
            wanted += [("Service", port.get("targetPort", port["port"])) for port in spec["ports"]]
        elif manifest["kind"] == "PodMonitor":
            wanted += [("PodMonitor", end["port"]) for end in spec["podMetricsEndpoints"]]
        elif manifest["kind"] == "NetworkPolicy":
            wanted += [
                ("NetworkPolicy", port["port"])
                for rule in spec["ingress"]
                for port in rule.get("ports", [])
            ]
    for kind, port in wanted:
        if port not in declared:
            yield f"{kind}: no container has a port {port}"
    for monitor in _of_kind(manifests, "ServiceMonitor"):
        names = {
            port["name"]
            for service in _of_kind(manifests, "Service")
            if _is_selected(service, monitor)
            for port in service["spec"]["ports"]
        }
        for end in monitor["spec"]["endpoints"]:
            if end["port"] not in names:
                yield f"ServiceMonitor: no Service that it selects has a port {end['port']}"


def _of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def _is_selected(service: Manifest, monitor: Manifest) -> bool:
    wanted: dict[str, str] = monitor["spec"]["selector"]["matchLabels"]
    labels: dict[str, str] = service["metadata"]["labels"]
    return wanted.items() <= labels.items()


def _selector_problems(manifests: list[Manifest]) -> Iterator[str]:
    labels = _workload(manifests)["template"]["metadata"]["labels"]
    for manifest in manifests:
        if manifest["kind"] == "ServiceMonitor":  # it selects Services
            continue
        spec = manifest["spec"]
        selector = spec.get("selector", spec.get("podSelector"))
        wanted = selector if manifest["kind"] == "Service" else selector["matchLabels"]
        if not wanted.items() <= labels.items():
            yield f"{manifest['kind']}: {wanted} selects none of the pods"


def _probe_problems(manifests: list[Manifest]) -> Iterator[str]:
    for container in containers(manifests):
        # The kubelet looks for a probe's port in the same container only.
        ports = {
            key
            for port in container.get("ports", [])
            for key in (port["name"], port["containerPort"])
        }
        for kind in _PROBES:
            given = container.get(kind, {})
            probe = given.get("httpGet") or given.get("tcpSocket")
            if probe is None:
                continue
            if probe["port"] not in ports:
                yield f"{container['name']}.{kind}: this container has no port {probe['port']}"
            if "httpGet" in given and probe["path"] not in ("/-/healthy", "/-/ready"):
                yield f"{container['name']}.{kind}: the exporter has no {probe['path']}"
        is_sidecar = container.get("restartPolicy") == "Always"
        start = container.get("startupProbe", {}).get("httpGet", {}).get("path")
        if is_sidecar and start == "/-/ready":
            yield f"{container['name']}.startupProbe: waits for the application, which waits for it"
    for kind in ("readinessProbe", "livenessProbe"):
        if not any(kind in container for container in containers(manifests)):
            yield f"no container has a {kind}"


def _grace_problems(manifests: list[Manifest]) -> Iterator[str]:
    spec = pod_spec(manifests)
    grace = spec["terminationGracePeriodSeconds"]
    for container in spec["containers"]:
        if container["command"][0] != "gunicorn":
            continue
        environment = _environment(container)
        settings = gunicorn_settings(environment.get("GUNICORN_CMD_ARGS", ""))
        needed = sleep_before_stop(container) + float(settings["graceful_timeout"])
        if "OBSKIT_METRICS_REDIS" in environment or "OBSKIT_METRICS_PUSH" in environment:
            needed += _LAST_TOLD_SECONDS
        if grace <= needed:
            yield f"{container['name']}: {grace} s of grace are not longer than {needed:g} s"


def _memory_problems(manifests: list[Manifest]) -> Iterator[str]:
    sizes = {
        volume["name"]: volume["emptyDir"].get("sizeLimit", "0")
        for volume in pod_spec(manifests).get("volumes", [])
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    }
    for container in containers(manifests):
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if limit is None:
            yield f"{container['name']} has no memory limit"
            continue
        # What is written to a volume in memory is charged to the container that writes.
        written = [
            sizes.get(mount["name"], "0")
            for mount in container.get("volumeMounts", [])
            if not mount.get("readOnly")
        ]
        try:
            if parse_quantity(limit) <= sum(map(parse_quantity, written)):
                yield f"{container['name']}: the memory limit does not hold the volumes in memory"
        except ValueError as error:
            yield f"{container['name']}: {error}"


def _security_problems(manifests: list[Manifest]) -> Iterator[str]:
    spec = pod_spec(manifests)
    pod = spec.get("securityContext", {})
    wanted: dict[str, tuple[object, object]] = {
        "runAsNonRoot": (pod.get("runAsNonRoot"), True),
        "runAsUser": (pod.get("runAsUser"), 10001),
        "runAsGroup": (pod.get("runAsGroup"), 10001),
        "fsGroup": (pod.get("fsGroup"), 10001),
        "seccompProfile": (pod.get("seccompProfile"), {"type": "RuntimeDefault"}),
        "automountServiceAccountToken": (spec.get("automountServiceAccountToken"), False),
    }
    for container in containers(manifests):
        name, context = container["name"], container.get("securityContext", {})
        wanted |= {
            f"{name}.allowPrivilegeEscalation": (context.get("allowPrivilegeEscalation"), False),
            f"{name}.readOnlyRootFilesystem": (context.get("readOnlyRootFilesystem"), True),
            f"{name}.capabilities": (context.get("capabilities"), {"drop": ["ALL"]}),
        }
    for name, (value, expected) in wanted.items():
        if value != expected:
            yield f"{name} is {value}, not {expected}"


def kustomization_problems(directory: Path) -> list[str]:
    """Return files of a kustomization that it does not list, and what it lists that is missing."""
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    listed = {
        *kustomization.get("resources", []),
        *(patch["path"] for patch in kustomization.get("patches", [])),
    }
    files = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
    return [
        *(f"{directory.name}: {name} is not listed" for name in sorted(files - listed)),
        *(
            f"{directory.name}: {name} is missing"
            for name in sorted(listed)
            if not (directory / name).exists()
        ),
    ]


def _environment(container: Mapping[str, Any]) -> dict[str, str]:
    # What comes from a field of the pod is not known here.
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def _mount_paths(container: Mapping[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in container.get("volumeMounts", [])}
