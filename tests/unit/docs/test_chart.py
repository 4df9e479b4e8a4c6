"""k8s/chart, rendered by Helm's own engine: it makes the manifests that k8s/ has."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from obskit_gunicorn import __version__
from tests.support.helm import lint_chart, render_chart
from tests.support.manifests import (
    AUTHORISATION,
    BASE,
    CHART,
    MESH,
    ROOT,
    SERVICE_MONITOR,
    SIDECAR,
    Manifest,
    all_problems,
    containers,
    find,
    pod_spec,
    render,
    schema_problems,
)

DEMO_RELEASE = "obskit-gunicorn-demo"
OLDEST, OLDEST_WITH_SIDECARS, NEWEST = "1.25", "1.29", "1.37"
HELMS_OWN = ("app.kubernetes.io/managed-by", "helm.sh/chart")
"""The labels that say of an object that Helm has made it, and from which chart."""


def _sorted(manifests: list[Manifest]) -> list[Manifest]:
    """Return manifests in an order of their own, and so variables and volumes of their pods.

    Kustomize puts what a patch changes first. The order of variables matters only to those whose
    value names another one, and none does.
    """
    found = copy.deepcopy(manifests)
    for manifest in found:
        if manifest["kind"] == "Deployment":
            for container in containers([manifest]):
                for several in ("env", "volumeMounts"):
                    container.get(several, []).sort(key=lambda entry: entry["name"])
                assert "$(" not in json.dumps(container.get("env", []))
            pod_spec([manifest])["volumes"].sort(key=lambda entry: entry["name"])
    return sorted(found, key=lambda each: (each["kind"], each["metadata"]["name"]))


def _without_helms_labels(manifests: list[Manifest]) -> list[Manifest]:
    """Return manifests without the labels of Helm itself, which each of them must have."""
    found = copy.deepcopy(manifests)
    for manifest in found:
        labels = manifest["metadata"]["labels"]
        assert [labels.pop(name) for name in HELMS_OWN] == ["Helm", f"gunicorn-app-{__version__}"]
    return _sorted(found)


def _kustomized(place: Path, *components: Path) -> list[Manifest]:
    """Return the base with components, in an overlay beside a copy of k8s/."""
    copied = Path(shutil.copytree(BASE.parent, place / "k8s"))
    overlay = copied / "overlays" / "mine"
    overlay.mkdir()
    names = [f"../../components/{component.name}" for component in components]
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["../../base"], "components": names})
    )
    return render(overlay)


def test_default_is_the_base() -> None:
    """Without values the chart makes what k8s/base has, and nothing else."""
    found = render_chart(CHART, {}, DEMO_RELEASE)
    assert _without_helms_labels(found) == _sorted(render(BASE))


def test_sidecar_is_the_overlay() -> None:
    """With the exporter in its own container it makes what the overlay has."""
    found = render_chart(CHART, {"metrics": {"sidecar": True}}, DEMO_RELEASE)
    assert _without_helms_labels(found) == _sorted(render(SIDECAR))


def test_service_monitor_is_the_component(tmp_path: Path) -> None:
    """With a ServiceMonitor it makes what the component makes of the base."""
    found = render_chart(CHART, {"metrics": {"monitor": "serviceMonitor"}}, DEMO_RELEASE)
    assert _without_helms_labels(found) == _sorted(_kustomized(tmp_path, SERVICE_MONITOR))


@pytest.mark.parametrize("monitor", ["podMonitor", "serviceMonitor"])
def test_a_token_is_the_component(tmp_path: Path, monitor: str) -> None:
    """With a Secret's name it makes what the component makes of the base, for both monitors."""
    metrics = {"monitor": monitor, "tokenSecret": f"{DEMO_RELEASE}-metrics"}
    found = render_chart(CHART, {"metrics": metrics}, DEMO_RELEASE)
    others = [SERVICE_MONITOR] if monitor == "serviceMonitor" else []
    expected = _kustomized(tmp_path, *others, AUTHORISATION)
    assert _without_helms_labels(found) == _sorted(expected)
    assert all_problems(expected, OLDEST) == []
    assert schema_problems(expected, NEWEST) == []
    kind = "PodMonitor" if monitor == "podMonitor" else "ServiceMonitor"
    spec = find(expected, kind)["spec"]
    (end,) = spec.get("podMetricsEndpoints") or spec["endpoints"]
    (volume,) = (each for each in pod_spec(expected)["volumes"] if "secret" in each)
    assert end["authorization"]["credentials"]["name"] == volume["secret"]["secretName"]


def test_a_token_for_the_sidecar() -> None:
    """Where the exporter has its own container, only that has the token."""
    values = {"metrics": {"sidecar": True, "tokenSecret": "scrapes"}}
    found = render_chart(CHART, values, DEMO_RELEASE)
    assert all_problems(found, OLDEST_WITH_SIDECARS) == []
    assert schema_problems(found, NEWEST) == []
    has = {
        container["name"]: [
            "OBSKIT_METRICS_BEARER_TOKEN_FILE" in json.dumps(container.get("env", [])),
            "metrics-token" in json.dumps(container["volumeMounts"]),
        ]
        for container in containers(found)
    }
    assert has == {"app": [False, False], "exporter": [True, True]}


def test_annotations_for_a_mesh_are_the_component(tmp_path: Path) -> None:
    """The lines that values.yaml has for a mesh, as a comment, make what the component makes."""
    text = (CHART / "values.yaml").read_text()
    lines = re.findall(r"^#   (\S+/\S+: .*)$", text, re.MULTILINE)
    values = {"podAnnotations": yaml.safe_load("\n".join(lines))}
    found = render_chart(CHART, values, DEMO_RELEASE)
    assert _without_helms_labels(found) == _sorted(_kustomized(tmp_path, MESH))


def test_another_application() -> None:
    """The values of the page make sound manifests of an application with another name."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (code,) = re.findall(r"^```yaml\n(# shop\.yaml\n[^`]*)^```", page, re.MULTILINE)
    found = render_chart(CHART, yaml.safe_load(code), "shop")
    assert all_problems(found, OLDEST) == []
    assert schema_problems(found, NEWEST) == []
    assert {manifest["metadata"]["name"] for manifest in found} == {"shop"}
    assert DEMO_RELEASE not in json.dumps(found)
    (container,) = pod_spec(found)["containers"]
    assert container["image"] == "registry.example.com/shop:1.4.2"
    assert container["startupProbe"]["failureThreshold"] == 900
    assert find(found, "Deployment")["spec"]["progressDeadlineSeconds"] > 900
    assert find(found, "PodMonitor")["metadata"]["labels"]["release"] == "monitoring"
    assert container["env"][-1]["name"] == "DJANGO_SETTINGS_MODULE"


def test_what_can_be_added_and_left_out() -> None:
    """Lists of a Deployment are passed on as they are; what is null or off is not there."""
    values = {
        "name": "other",
        "image": {"digest": "sha256:" + "a" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "replicas": None,
        "user": None,
        "gunicornArguments": "",
        "port": 8080,
        "service": {"port": 8081},
        "envFrom": [{"secretRef": {"name": "database"}}],
        "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
        "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
        "podLabels": {"team": "shop"},
        "metrics": {"monitor": "none", "networkPolicy": False, "sidecar": True},
    }
    found = render_chart(CHART, values, "x")
    assert schema_problems(found, OLDEST_WITH_SIDECARS) == []
    assert [manifest["kind"] for manifest in _sorted(found)] == ["Deployment", "Service"]
    assert {manifest["metadata"]["name"] for manifest in found} == {"other"}
    spec, pod = find(found, "Deployment")["spec"], pod_spec(found)
    assert "replicas" not in spec
    assert spec["template"]["metadata"]["labels"]["team"] == "shop"
    assert "team" not in spec["selector"]["matchLabels"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["imagePullSecrets"] == values["imagePullSecrets"]
    assert pod["volumes"][-1:] == values["extraVolumes"]
    (container,) = pod["containers"]
    assert container["image"] == "obskit-gunicorn-demo@sha256:" + "a" * 64
    assert container["envFrom"] == values["envFrom"]
    assert container["volumeMounts"][-1:] == values["extraVolumeMounts"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert "GUNICORN_CMD_ARGS" not in {entry["name"] for entry in container["env"]}
    (port,) = find(found, "Service")["spec"]["ports"]
    assert port == {"name": "http", "port": 8081, "targetPort": "http"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"image": {"tags": "1"}}, "additional properties 'tags' not allowed"),
        ({"metrics": {"podMonitor": True}}, "additional properties 'podMonitor' not allowed"),
        ({"metrics": {"monitor": "both"}}, "/metrics/monitor"),
        ({"command": "gunicorn app"}, "/command"),
        ({"port": 9764}, "/port"),
        ({"volumes": {"metrics": "64 MB"}}, "/volumes/metrics"),
        ({"startupSeconds": "60s"}, "/startupSeconds"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"name": "My Shop"}, "/name"),
        ({"user": 0}, "/user"),
        ({"metrics": {"tokenSecret": "My Token"}}, "/metrics/tokenSecret"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    """Helm refuses values that the chart does not know or cannot use, and names them."""
    with pytest.raises(ValueError, match=re.escape(said)):
        render_chart(CHART, values, "x")


def test_helms_linter_has_nothing_to_say(tmp_path: Path) -> None:
    """`helm lint --strict` passes; and finds a broken template."""
    assert lint_chart(CHART) == []
    broken = Path(shutil.copytree(CHART, tmp_path / "chart"))
    template = broken / "templates" / "service.yaml"
    template.write_text(template.read_text().replace("kind: Service", "kind: Service: x"))
    assert lint_chart(broken)


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [("v1.28.15", True), ("v1.29.0", False), ("v1.29.3-gke.1282001", False), ("v1.37.1", False)],
)
def test_older_releases_have_no_sidecars(tmp_path: Path, version: str, is_refused: bool) -> None:
    """A Kubernetes without native sidecars is refused, because its pods would never start."""
    # Nothing here lets the engine render for another release, so the template is told it.
    copied = Path(shutil.copytree(CHART, tmp_path / "chart"))
    template = copied / "templates" / "deployment.yaml"
    text = template.read_text()
    assert text.count(".Capabilities.KubeVersion.Version") == 1
    template.write_text(text.replace(".Capabilities.KubeVersion.Version", f'"{version}"'))
    assert render_chart(copied, {}, "x")
    if is_refused:
        with pytest.raises(ValueError, match=r"needs Kubernetes 1\.29 or newer"):
            render_chart(copied, {"metrics": {"sidecar": True}}, "x")
    else:
        assert render_chart(copied, {"metrics": {"sidecar": True}}, "x")


def _paths(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yield the path of each value; what users fill with keys of their own is one value."""
    for name, value in values.items():
        path = f"{above}.{name}"
        is_group = isinstance(value, dict) and value and name not in WHOLE
        yield from _paths(value, path) if is_group else (path,)


WHOLE = {"resources", "sidecarResources", "monitorLabels"}


def test_each_value_is_used() -> None:
    """Each value of values.yaml is in a template, and each in a template is in values.yaml."""
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values((?:\.\w+)+)", templates))
    assert used == set(_paths(yaml.safe_load((CHART / "values.yaml").read_text())))


def test_chart_has_our_version() -> None:
    """The chart is released with the package."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] == __version__
