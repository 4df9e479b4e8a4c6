"""The manifests of k8s/ and the demo's image, judged without a cluster; and the judges, judged."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from obskit_gunicorn._fleet.address import StoreAddress
from tests.support import metrics_page
from tests.support.manifests import (
    AUTHORISATION,
    BASE,
    DEMO,
    FLEET,
    KUBERNETES,
    MESH,
    ROOT,
    RULES,
    SERVICE_MONITOR,
    SIDECAR,
    Manifest,
    all_problems,
    by_application,
    containers,
    find,
    gunicorn_settings,
    kustomization_problems,
    parse_quantity,
    pod_spec,
    render,
    schema_problems,
)
from tests.support.missing import find_program
from tests.support.promtool import run_promtool

NEWEST = "1.37"
# Each kustomization with the oldest Kubernetes that it is for. Native sidecars are on since 1.29.
OLDEST = {BASE: "1.25", SIDECAR: "1.29", FLEET: "1.25"}

Change = Callable[[list[Manifest]], object]


@pytest.fixture(scope="module", name="rendered")
def _rendered_fixture() -> dict[Path, list[Manifest]]:
    return {directory: render(directory) for directory in OLDEST}


@pytest.fixture(name="base")
def _base(rendered: dict[Path, list[Manifest]]) -> list[Manifest]:
    """The manifests of k8s/base, to be changed at will."""
    return copy.deepcopy(rendered[BASE])


@pytest.fixture(name="sidecar")
def _sidecar(rendered: dict[Path, list[Manifest]]) -> list[Manifest]:
    """The manifests of k8s/overlays/sidecar, to be changed at will."""
    return copy.deepcopy(rendered[SIDECAR])


@pytest.fixture(name="fleet")
def _fleet(rendered: dict[Path, list[Manifest]]) -> dict[str, list[Manifest]]:
    """The manifests of k8s/overlays/fleet, by what they are of, to be changed at will."""
    found = by_application(copy.deepcopy(rendered[FLEET]))
    return {name.removeprefix("obskit-gunicorn-demo").strip("-"): found[name] for name in found}


def application(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the application's container."""
    found: dict[str, Any] = pod_spec(manifests)["containers"][0]
    return found


def exporter(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the exporter's container."""
    found: dict[str, Any] = pod_spec(manifests)["initContainers"][0]
    return found


def environment(container: dict[str, Any]) -> dict[str, str]:
    """Return a container's environment."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


# ------------------------------------------------------------------------------------------------
# The manifests


@pytest.mark.parametrize("directory", OLDEST, ids=lambda path: path.name)
def test_manifests_are_sound(rendered: dict[Path, list[Manifest]], directory: Path) -> None:
    """Every manifest meets the strict schemas of the oldest and the newest Kubernetes, and fits."""
    manifests = rendered[directory]
    assert all_problems(manifests, OLDEST[directory]) == []
    assert schema_problems(manifests, NEWEST) == []
    for name, some in by_application(manifests).items():
        kinds = sorted(manifest["kind"] for manifest in some)
        if name.endswith("-valkey"):
            assert kinds == ["NetworkPolicy", "Service", "StatefulSet"]
        else:
            assert kinds == ["Deployment", "NetworkPolicy", "PodMonitor", "Service"]


@pytest.mark.parametrize(
    "directory", [*OLDEST, SERVICE_MONITOR, MESH, AUTHORISATION, RULES], ids=lambda path: path.name
)
def test_kustomizations_list_their_files(directory: Path) -> None:
    """A kustomization names every file beside it, and none that is missing."""
    assert kustomization_problems(directory) == []


def test_every_kustomization_is_tested() -> None:
    """No kustomization of k8s/ is left out of these tests."""
    found = {path.parent for path in KUBERNETES.rglob("kustomization.yaml")}
    assert found == {*OLDEST, SERVICE_MONITOR, MESH, AUTHORISATION, RULES}


def test_application_listens_where_the_service_leads(base: list[Manifest]) -> None:
    """Gunicorn, with the container's environment, listens on all addresses at the port `http`."""
    container = application(base)
    settings = gunicorn_settings(environment(container)["GUNICORN_CMD_ARGS"])
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == "http")
    assert settings["bind"] == f"['0.0.0.0:{port}']"


def test_exporter_listens_where_the_pod_monitor_leads(
    base: list[Manifest], sidecar: list[Manifest]
) -> None:
    """The exporter is bound to all addresses at the port `metrics`, in the one way or the other."""
    (port,) = (
        port["containerPort"] for port in application(base)["ports"] if port["name"] == "metrics"
    )
    assert environment(application(base))["OBSKIT_METRICS_BIND"] == f"0.0.0.0:{port}"
    command = exporter(sidecar)["command"]
    assert command[command.index("--bind") + 1] == f"0.0.0.0:{port}"
    assert exporter(sidecar)["ports"] == [{"name": "metrics", "containerPort": port}]


def test_sidecar_has_the_exporter_instead_of_the_application(sidecar: list[Manifest]) -> None:
    """The overlay's application has no exporter, no port and no probes of one."""
    container = application(sidecar)
    assert environment(container)["OBSKIT_METRICS_BIND"] == ""
    assert [port["name"] for port in container["ports"]] == ["http"]
    assert not {"startupProbe", "readinessProbe", "livenessProbe"} & set(container)
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "5"]}}}


def test_sidecar_reads_the_directory_that_the_application_writes(sidecar: list[Manifest]) -> None:
    """The exporter is told the application's directory, has its volume there, and cannot write."""
    directory = environment(application(sidecar))["PROMETHEUS_MULTIPROC_DIR"]
    command = exporter(sidecar)["command"]
    assert command[command.index("--directory") + 1] == directory
    (written,) = (m for m in application(sidecar)["volumeMounts"] if m["mountPath"] == directory)
    assert exporter(sidecar)["volumeMounts"] == [{**written, "readOnly": True}]
    assert exporter(sidecar)["restartPolicy"] == "Always"
    assert exporter(sidecar)["image"] == application(sidecar)["image"]


def test_metrics_are_for_the_monitoring_namespace_only(base: list[Manifest]) -> None:
    """The network policy names who may come to the metrics port, and lets all come to the other."""
    http, metrics = find(base, "NetworkPolicy")["spec"]["ingress"]
    assert "from" not in http
    assert metrics["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    assert "metrics" not in {port["name"] for port in find(base, "Service")["spec"]["ports"]}


def test_probes_do_not_see_an_exporter_that_is_started_anew(base: list[Manifest]) -> None:
    """A killed exporter is back within five seconds, which no probe takes for the end."""
    for kind in ("readinessProbe", "livenessProbe"):
        probe = application(base)[kind]
        assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) > 5


# ------------------------------------------------------------------------------------------------
# What is added to them


def with_components(place: Path, resource: Path, *components: Path) -> list[Manifest]:
    """Return the manifests of a kustomization with components, as a user's overlay has them.

    Args:
        place: Where the overlay may be written.
        resource: The kustomization.
        components: What is added to it.
    """
    overlay = {
        "resources": [os.path.relpath(resource, place)],
        "components": [os.path.relpath(component, place) for component in components],
    }
    (place / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return render(place)


@pytest.mark.parametrize("directory", [BASE, SIDECAR], ids=lambda path: path.name)
def test_a_service_monitor_takes_the_pod_monitors_place(tmp_path: Path, directory: Path) -> None:
    """With the component one monitor is left, which finds the pods through a headless Service."""
    manifests = with_components(tmp_path, directory, SERVICE_MONITOR)
    assert all_problems(manifests, OLDEST[directory]) == []
    assert schema_problems(manifests, NEWEST) == []
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert kinds == ["Deployment", "NetworkPolicy", "Service", "Service", "ServiceMonitor"]
    (clients, scraped) = sorted(
        (manifest for manifest in manifests if manifest["kind"] == "Service"),
        key=lambda service: len(service["metadata"]["name"]),
    )
    monitor = find(manifests, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= scraped["metadata"]["labels"].items()
    assert not wanted <= clients["metadata"]["labels"].items()
    assert scraped["spec"]["clusterIP"] == "None"
    assert monitor["spec"]["jobLabel"] in scraped["metadata"]["labels"]


def test_both_monitors_scrape_alike(base: list[Manifest], tmp_path: Path) -> None:
    """Port, path and times are those of the PodMonitor."""
    (endpoint,) = find(base, "PodMonitor")["spec"]["podMetricsEndpoints"]
    other = with_components(tmp_path, BASE, SERVICE_MONITOR)
    assert find(other, "ServiceMonitor")["spec"]["endpoints"] == [endpoint]


def test_a_service_monitor_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    """A port that no Service has, and a selector that no Service meets, are found."""
    manifests = with_components(tmp_path, BASE, SERVICE_MONITOR)
    spec = find(manifests, "ServiceMonitor")["spec"]
    spec["endpoints"][0]["port"] = "metric"
    problem = "ServiceMonitor: no Service that it selects has a port "
    assert all_problems(manifests, OLDEST[BASE]) == [f"{problem}metric"]
    spec["endpoints"][0]["port"] = "metrics"
    spec["selector"]["matchLabels"]["app.kubernetes.io/component"] = "metric"
    assert all_problems(manifests, OLDEST[BASE]) == [f"{problem}metrics"]


@pytest.mark.parametrize("directory", [BASE, SIDECAR], ids=lambda path: path.name)
def test_meshes_leave_the_metrics_port_alone(tmp_path: Path, directory: Path) -> None:
    """With the component the proxies pass on the port `metrics`, and no other."""
    manifests = with_components(tmp_path, directory, MESH)
    assert all_problems(manifests, OLDEST[directory]) == []
    ports = [
        str(port["containerPort"])
        for container in containers(manifests)
        for port in container["ports"]
        if port["name"] == "metrics"
    ]
    template = find(manifests, "Deployment")["spec"]["template"]
    assert list(template["metadata"]["annotations"].values()) == ports * 2


@pytest.mark.parametrize("directory", [*OLDEST, RULES], ids=lambda path: path.name)
def test_kube_prometheus_stack_finds_what_is_for_prometheus(directory: Path) -> None:
    """Everything that the operator reads has the label that this chart's Prometheus selects."""
    found = [
        manifest["metadata"]["labels"].get("release")
        for manifest in render(directory)
        if manifest["apiVersion"].startswith("monitoring.coreos.com/")
    ]
    assert found
    assert set(found) == {"kube-prometheus-stack"}


def test_the_operator_has_the_rules_of_prometheus(tmp_path: Path) -> None:
    """The PrometheusRule is made of docs/prometheus/rules.yml, is current, and is one."""
    program = ROOT / "docs" / "generate_rules.py"
    done = subprocess.run(
        [sys.executable, str(program), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (manifest,) = render(RULES)
    assert schema_problems([manifest], NEWEST) == []
    rules = yaml.safe_load((ROOT / "docs" / "prometheus" / "rules.yml").read_text())
    assert manifest["spec"] == rules
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(manifest["spec"]))
    assert run_promtool("check", "rules", path)[0] == 0


def test_an_overlay_on_a_pinned_base(tmp_path: Path) -> None:
    """The page's overlay makes another application of the base, as it was at the tag."""
    repository = tmp_path / "repository"
    repository.mkdir()
    manifests = Path(shutil.copytree(KUBERNETES, repository / "k8s"))
    git = [find_program("git", "git"), "-C", str(repository)]
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, *identity, "commit", "--quiet", "--message=x"], check=True)
    subprocess.run([*git, "tag", "v0.1.0"], check=True)
    (manifests / "base" / "kustomization.yaml").write_text("kind: later\n")
    subprocess.run([*git, *identity, "commit", "--quiet", "--all", "--message=y"], check=True)

    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (code,) = re.findall(r"^```yaml\n(# kustomization.yaml\n[^`]*\?ref=[^`]*)^```", page, re.M)
    assert code.count("https://git.example.com/obskit_gunicorn.git//k8s/base") == 1
    place = tmp_path / "overlay"
    place.mkdir()
    (place / "kustomization.yaml").write_text(
        code.replace("https://git.example.com/obskit_gunicorn.git", repository.as_uri())
    )

    rendered = render(place)
    assert all_problems(rendered, OLDEST[BASE]) == []
    assert {manifest["metadata"]["name"] for manifest in rendered} == {"shop"}
    assert set(by_application(rendered)) == {"shop"}
    assert "obskit-gunicorn-demo" not in json.dumps(rendered)
    container = application(rendered)
    assert container["image"] == "registry.example.com/shop:1.4.2"
    assert container["command"][-1] == "shop.wsgi"
    assert container["startupProbe"]["failureThreshold"] == 300


def test_the_page_names_its_values(base: list[Manifest]) -> None:
    """What the page explains of values is said of the values that the manifests have."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    _, _, rest = page.partition("\n## Why each value is as it is\n")
    reasons, _, _ = rest.partition("\n## ")
    spec, pod, container = find(base, "Deployment")["spec"], pod_spec(base), application(base)
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]]
    probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    (endpoint,) = find(base, "PodMonitor")["spec"]["podMetricsEndpoints"]
    update = spec["strategy"]["rollingUpdate"]
    resources = container["resources"]
    assert set(resources["limits"]) == {"memory"}
    for said in (
        f"`replicas: {spec['replicas']}`",
        f"`maxSurge: {update['maxSurge']}`, `maxUnavailable: {update['maxUnavailable']}`",
        f"`requests.cpu: {resources['requests']['cpu']}`",
        f"`requests.memory: {resources['requests']['memory']}`",
        f"`limits.memory: {resources['limits']['memory']}`",
        f"`sizeLimit` {' and '.join(sizes)}",
        f"probe every {', '.join(str(probe['periodSeconds']) for probe in probes)} s",
        *(f"`timeoutSeconds: {probe['timeoutSeconds']}`" for probe in probes),
        f"`terminationGracePeriodSeconds: {pod['terminationGracePeriodSeconds']}`",
        f"`seccompProfile: {pod['securityContext']['seccompProfile']['type']}`",
        f"`runAsUser: {pod['securityContext']['runAsUser']}`",
        f"`imagePullPolicy: {container['imagePullPolicy']}`",
        f"`interval: {endpoint['interval']}`, `scrapeTimeout: {endpoint['scrapeTimeout']}`",
    ):
        assert said in reasons, said
    start = probes[0]["periodSeconds"] * probes[0]["failureThreshold"]
    assert f"gives up after {start} failures" in page
    assert probes[0]["periodSeconds"] == 1


# ------------------------------------------------------------------------------------------------
# The fleet


def test_the_fleet_is_the_base_a_store_and_one_page(fleet: dict[str, list[Manifest]]) -> None:
    """Three applications; only one pod shows the fleet, and there is never a second one beside."""
    assert set(fleet) == {"", "fleet", "valkey"}
    page = find(fleet["fleet"], "Deployment")["spec"]
    assert page["replicas"] == 1
    assert page["strategy"] == {"type": "Recreate"}
    assert application(fleet["fleet"])["image"] == application(fleet[""])["image"]
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment(application(fleet["fleet"]))


def test_pods_and_page_use_the_same_store(fleet: dict[str, list[Manifest]]) -> None:
    """The address leads to the store's Service, as its user, whose password is in a file."""
    store = find(fleet["valkey"], "Service")
    url = environment(application(fleet[""]))["OBSKIT_METRICS_REDIS"]
    address = StoreAddress.parse(url)
    assert not address.has_password
    (port,) = (port["port"] for port in store["spec"]["ports"])
    assert url == f"redis://obskit@{store['metadata']['name']}:{port}/0"
    command = application(fleet["fleet"])["command"]
    assert command == ["obskit-gunicorn", "serve", f"--redis={url}", "--bind=0.0.0.0:9764"]
    for name in ("", "fleet"):
        volumes = pod_spec(fleet[name])["volumes"]
        (secret,) = (volume["secret"] for volume in volumes if "secret" in volume)
        assert [item["key"] for item in secret["items"]] == ["password"]
        assert secret["secretName"] == store["metadata"]["name"]
        file = environment(application(fleet[name]))["OBSKIT_METRICS_REDIS_PASSWORD_FILE"]
        assert file == "/run/secrets/valkey/password"


def test_each_pod_has_a_name_of_its_own(fleet: dict[str, list[Manifest]]) -> None:
    """The label `host` is the pod's name."""
    (entry,) = (e for e in application(fleet[""])["env"] if e["name"] == "OBSKIT_METRICS_HOST")
    assert entry["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_only_the_fleet_reaches_the_store(fleet: dict[str, list[Manifest]]) -> None:
    """The store's policy lets in the pods that publish and the one that reads, and none out."""
    policy = find(fleet["valkey"], "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    (expression,) = peer["podSelector"]["matchExpressions"]
    labels = [
        find(fleet[name], "Deployment")["spec"]["template"]["metadata"]["labels"]
        for name in ("", "fleet")
    ]
    assert [{expression["key"]: value} for value in expression["values"]] == labels


def test_the_store_writes_a_file_and_evicts_nothing(fleet: dict[str, list[Manifest]]) -> None:
    """It keeps what it has over a restart, on its volume, and its memory has a bound."""
    container = application(fleet["valkey"])
    arguments = container["args"]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given["--appendonly"] == "yes"
    assert given["--maxmemory-policy"] == "noeviction"
    limit = parse_quantity(container["resources"]["limits"]["memory"])
    assert limit >= 2 * 64 * 1024**2
    assert given["--maxmemory"] == "64mb"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert given["--dir"] in mounts
    assert str(Path(given["--aclfile"]).parent) in mounts


def _shown(manifests: list[Manifest], labels: dict[str, str], name: str) -> bool:
    """Return whether a sample is kept by what a PodMonitor says of its metrics."""
    (endpoint,) = find(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    sample = {**labels, "__name__": name}
    for rule in endpoint["metricRelabelings"]:
        value = ";".join(sample.get(label, "") for label in rule["sourceLabels"])
        matches = re.fullmatch(rule["regex"], value) is not None
        if matches == (rule["action"] == "drop"):
            return False
    return True


def test_each_metric_is_scraped_once(fleet: dict[str, list[Manifest]]) -> None:
    """Counts come from the fleet's page, what describes a pod from the pod; nothing is left out."""
    either = {
        # A pod's, and the sum.
        *("gunicorn_connections", "gunicorn_requests_in_progress"),
        "gunicorn_websockets_in_progress",
        "obskit_gunicorn_info",  # by which alerts know a target
    }
    for row in metrics_page.rows():
        is_counted = row.writer != "read by the exporter" and row.name not in PER_HOST
        by_pod = _shown(fleet[""], {}, row.name)
        labels = {} if is_counted or "fleet" in row.name else {"host": "web-1"}
        by_page = _shown(fleet["fleet"], labels, row.name)
        if row.name in either or row.name.startswith("obskit_gunicorn_fleet_"):
            assert by_pod, row.name
            assert by_page, row.name
        else:
            assert (by_pod, by_page) == (not is_counted, is_counted), row.name
    for name in ("shop_orders_total", "demo_requests_total"):
        assert (_shown(fleet[""], {}, name), _shown(fleet["fleet"], {}, name)) == (False, True)
    # Gauges of mode `all`, and what metrics_collectors yield.
    assert _shown(fleet["fleet"], {"host": "web-1"}, "shop_queue_depth")


PER_HOST = {
    "gunicorn_workers",
    "gunicorn_info",
    "obskit_gunicorn_certificate_expiry_time_seconds",
    "obskit_gunicorn_collector_failures_total",
    "obskit_gunicorn_push_series_held_back",
    "obskit_gunicorn_push_up",
}
"""What the exporter shows of its host, though others have written it."""


def test_grace_leaves_room_for_the_last_publication(fleet: dict[str, list[Manifest]]) -> None:
    """A period that was enough without a store is refused."""
    pod_spec(fleet[""])["terminationGracePeriodSeconds"] = 41
    assert "app: 41 s of grace are not longer than 41 s" in all_problems(fleet[""], OLDEST[FLEET])


def test_a_file_that_no_volume_has_is_found(fleet: dict[str, list[Manifest]]) -> None:
    """A password's file that nothing mounts is refused."""
    mounts = application(fleet["fleet"])["volumeMounts"]
    mounts[0]["mountPath"] = "/elsewhere"
    assert (
        "exposition: no volume is mounted at the place of OBSKIT_METRICS_REDIS_PASSWORD_FILE"
        in all_problems(fleet["fleet"], OLDEST[FLEET])
    )


# ------------------------------------------------------------------------------------------------
# The image


def test_image_runs_what_the_deployment_runs(base: list[Manifest]) -> None:
    """Command, user and ports of the Dockerfile are the Deployment's; there is no shell."""
    text = (DEMO / "Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
    assert json.loads(command) == application(base)["command"]
    security = pod_spec(base)["securityContext"]
    assert f"\nUSER {security['runAsUser']}:{security['runAsGroup']}\n" in text
    ports = [str(port["containerPort"]) for port in application(base)["ports"]]
    assert f"\nEXPOSE {' '.join(ports)}\n" in text
    assert "ENTRYPOINT" not in text
    for name in ("GUNICORN_CMD_ARGS", "OBSKIT_METRICS_BIND", "HOME"):
        assert f"{name}={environment(application(base))[name]}" in text


def test_image_is_built_from_files_that_the_context_has() -> None:
    """What the Dockerfile copies exists, and .dockerignore lets it through."""
    text = (DEMO / "Dockerfile").read_text()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = tuple(line[1:] for line in ignore if line.startswith("!"))
    assert "*" in ignore
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"{source}/".startswith(let_in) or source in let_in


# ------------------------------------------------------------------------------------------------
# The judges: each must refuse what it is there to refuse


def put(*path: str | int, value: object) -> Change:
    """Return a change that puts a value into the Deployment's pods."""

    def change(manifests: list[Manifest]) -> None:
        place: Any = pod_spec(manifests)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def take(*path: str | int) -> Change:
    """Return a change that takes something out of the Deployment's pods."""

    def change(manifests: list[Manifest]) -> None:
        place: Any = pod_spec(manifests)
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def put_in(kind: str, *path: str | int, value: object) -> Change:
    """Return a change that puts a value into a manifest."""

    def change(manifests: list[Manifest]) -> None:
        place: Any = find(manifests, kind)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


APP = ("containers", 0)
ENDPOINT = ("spec", "podMetricsEndpoints", 0)
FLAWS: dict[str, tuple[Change, str]] = {
    "unknown field": (put("restartPolice", value="Always"), "'restartPolice' was unexpected"),
    "unknown field of a probe": (
        put(*APP, "livenessProbe", "periodSecond", value=3),
        "'periodSecond' was unexpected",
    ),
    "wrong type": (put("terminationGracePeriodSeconds", value="45s"), "'45s' is not of type"),
    "unknown kind": (put_in("Service", "kind", value="Servcie"), "Couldn't find schema"),
    "unknown custom kind": (put_in("PodMonitor", "kind", value="PodMonitr"), "PodMonitr"),
    "unknown field of a custom resource": (
        put_in("PodMonitor", *ENDPOINT, "intervall", value="15s"),
        "unknown field .spec.podMetricsEndpoints[0].intervall",
    ),
    "wrong type in a custom resource": (
        put_in("PodMonitor", *ENDPOINT, "honorLabels", value="maybe"),
        "honorLabels",
    ),
    "bad quantity of a container": (
        put(*APP, "resources", "limits", "memory", value="256Zonk"),
        "'256Zonk' is no quantity",
    ),
    "bad quantity of a volume": (
        put("volumes", 0, "emptyDir", "sizeLimit", value="64 Mi"),
        "'64 Mi' is no quantity",
    ),
    "missing volume": (put("volumes", 0, "name", value="other"), "there is no volume metrics"),
    "unused volume": (put("volumes", 0, "name", value="other"), "volume other is mounted nowhere"),
    "directory that is no volume": (
        put(*APP, "volumeMounts", 0, "mountPath", value="/elsewhere"),
        "no volume is mounted at /metrics",
    ),
    "memory without a limit": (take("volumes", 0, "emptyDir", "sizeLimit"), "has no sizeLimit"),
    "port of the service": (
        put_in("Service", "spec", "ports", 0, "targetPort", value="web"),
        "Service: no container has a port web",
    ),
    "port of the pod monitor": (
        put_in("PodMonitor", *ENDPOINT, "port", value="metric"),
        "PodMonitor: no container has a port metric",
    ),
    "port of the network policy": (
        put_in("NetworkPolicy", "spec", "ingress", 1, "ports", 0, "port", value=9465),
        "NetworkPolicy: no container has a port 9465",
    ),
    "port of a probe": (
        put(*APP, "readinessProbe", "httpGet", "port", value="metric"),
        "readinessProbe: this container has no port metric",
    ),
    "path of a probe": (
        put(*APP, "readinessProbe", "httpGet", "path", value="/ready"),
        "the exporter has no /ready",
    ),
    "unknown field of a rule": (
        put_in("PodMonitor", "kind", value="PrometheusRule"),
        "unknown field .spec.podMetricsEndpoints",
    ),
    "no probe": (take(*APP, "livenessProbe"), "no container has a livenessProbe"),
    "selector": (
        put_in("Service", "spec", "selector", value={"app": "demo"}),
        "selects none of the pods",
    ),
    "short grace period": (
        put("terminationGracePeriodSeconds", value=35),
        "35 s of grace are not longer than 35 s",
    ),
    "long graceful timeout": (
        put(*APP, "env", 0, "value", value="--graceful-timeout=60"),
        "45 s of grace are not longer than 65 s",
    ),
    "no memory limit": (take(*APP, "resources", "limits"), "app has no memory limit"),
    "small memory limit": (
        put(*APP, "resources", "limits", "memory", value="80Mi"),
        "does not hold the volumes",
    ),
    "root": (put("securityContext", "runAsNonRoot", value=False), "runAsNonRoot is False"),
    "no group": (take("securityContext", "fsGroup"), "fsGroup is None"),
    "no seccomp": (take("securityContext", "seccompProfile"), "seccompProfile is None"),
    "token": (take("automountServiceAccountToken"), "automountServiceAccountToken is None"),
    "writable root": (take(*APP, "securityContext", "readOnlyRootFilesystem"), "readOnlyRoot"),
    "capabilities": (take(*APP, "securityContext", "capabilities"), "app.capabilities is None"),
    "escalation": (
        put(*APP, "securityContext", "allowPrivilegeEscalation", value=True),
        "allowPrivilegeEscalation is True",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_found(base: list[Manifest], flaw: str) -> None:
    """A manifest with this flaw is refused."""
    change, problem = FLAWS[flaw]
    change(base)
    found = all_problems(base, OLDEST[BASE])
    assert any(problem in text for text in found), found


def test_flaws_of_a_sidecar_are_found(sidecar: list[Manifest]) -> None:
    """A sidecar that waits for the application that waits for it is refused, and all its flaws."""
    container = exporter(sidecar)
    container["startupProbe"]["httpGet"]["path"] = "/-/ready"
    container["securityContext"] = {}
    container["resources"]["limits"]["memory"] = "x"
    application(sidecar)["livenessProbe"] = container["livenessProbe"]
    found = all_problems(sidecar, OLDEST[SIDECAR])
    assert "exporter.startupProbe: waits for the application, which waits for it" in found
    assert "exporter.readOnlyRootFilesystem is None, not True" in found
    assert "exporter: 'x' is no quantity" in found
    assert "app.livenessProbe: this container has no port metrics" in found


def test_native_sidecars_are_unknown_to_older_releases(sidecar: list[Manifest]) -> None:
    """The schemas of a Kubernetes that knows no native sidecars refuse the overlay."""
    assert any(
        "'restartPolicy' was unexpected" in text for text in schema_problems(sidecar, "1.27")
    )


@pytest.fixture(name="copied")
def _copied(tmp_path: Path) -> Path:
    """A copy of k8s/ to break."""
    return Path(shutil.copytree(KUBERNETES, tmp_path / "k8s"))


def test_unlisted_and_missing_files_are_found(copied: Path) -> None:
    """A file that no kustomization lists, and a listed one that is missing, are refused."""
    (copied / "base" / "service.yaml").rename(copied / "base" / "services.yaml")
    assert kustomization_problems(copied / "base") == [
        "base: services.yaml is not listed",
        "base: service.yaml is missing",
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("kustomization.yaml", "patches:", "patchs:", "unknown field"),
        ("kustomization.yaml", "- path: deployment.yaml", "- path: none.yaml", "none.yaml"),
        ("deployment.yaml", "name: obskit-gunicorn-demo", "name: other", "no matches"),
    ],
)
def test_patches_that_do_not_apply_are_refused(
    copied: Path, file: str, old: str, new: str, problem: str
) -> None:
    """A misspelt kustomization, a missing patch and one for no object at all do not render."""
    path = copied / "overlays" / "sidecar" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=problem):
        render(path.parent)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64Mi", 64 * 1024**2),
        ("100m", 0.1),
        ("1.5Gi", 1.5 * 1024**3),
        ("2k", 2000),
        ("1e3", 1000),
        ("12E", 12e18),
        (2, 2),
    ],
)
def test_quantities_are_read(text: object, number: float) -> None:
    """Quantities mean what they mean to Kubernetes."""
    assert parse_quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "Mi", "64MB", "64 Mi", "64mi", "1e", "-", "0x10", "1.2.3"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    """Text that Kubernetes takes for no quantity is refused."""
    with pytest.raises(ValueError, match="is no quantity"):
        parse_quantity(text)


def test_every_container_is_judged(sidecar: list[Manifest]) -> None:
    """The judges look at init containers too."""
    assert [container["name"] for container in containers(sidecar)] == ["exporter", "app"]
