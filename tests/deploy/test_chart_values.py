"""The chart with values that are odd, left empty, templates, or those of a chart above it."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from charts import (
    CHART,
    KEYS,
    Object,
    complaints,
    configuration,
    exporter_of,
    helm_test_pod,
    identities,
    kinds,
    pod_of,
    rendered,
    the,
    workload,
)

EVERYTHING: Final[Object] = {
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
}
"""Every kind of object, with the ledger on a volume."""


# Names


def named(name: str) -> Object:
    """Return values in which every name that they may hold is this one."""
    where = {"namespace": name, "labels": {"team": name}, "annotations": {"team": name}}
    return {
        "nameOverride": name,
        "commonLabels": {"team": name},
        "commonAnnotations": {"team": name},
        "imagePullSecrets": [{"name": name}],
        "image": {"tag": name},
        "workspaces": [{"name": name, "existingSecret": name, "apiIdKey": name, "apiKeyKey": name}],
        "web": {"config": {"existingSecret": name, "key": name}},
        "serviceAccount": {"name": name, "annotations": {"team": name}},
        "service": {"labels": {"team": name}, "annotations": {"team": name}},
        "podLabels": {"team": name},
        "podAnnotations": {"team": name},
        "nodeSelector": {"team": name},
        "priorityClassName": name,
        "dashboards": {"enabled": True, **where},
        "prometheusRule": {"enabled": True, **where, "alertLabels": {"team": name}},
        "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
    }


def on_a_volume(name: str) -> Object:
    claim = {"storageClass": name, "labels": {"team": name}, "annotations": {"team": name}}
    monitor = {"enabled": True, "jobLabel": name, "targetLabels": [name], "namespace": name}
    return {**named(name), "persistence": claim, "serviceMonitor": monitor}


def on_a_claim(name: str) -> Object:
    return {**named(name), "persistence": {"existingClaim": name}}


def in_postgresql(name: str) -> Object:
    scrape = {"enabled": True, "jobName": name, "namespace": name}
    return {**named(name), "ledger": {"existingUrlSecret": name, "urlSecretKey": name}, "scrapeConfig": scrape}


@pytest.mark.parametrize("name", ["123", "true", "1e3"])
def test_a_name_that_looks_like_something_else_stays_a_name(name: str) -> None:
    for values in (on_a_volume(name), on_a_claim(name), in_postgresql(name)):
        objects = rendered(values, release=name, namespace="12345")
        assert complaints(objects) == []
        assert workload(objects)["metadata"]["namespace"] == "12345"
        assert pod_of(objects)["spec"]["serviceAccountName"] == name
    assert complaints(rendered({**KEYS, "fullnameOverride": name, "namespaceOverride": "12345"})) == []


LONG: Final = "a" * 44

PAIRS: Final[dict[str, list[tuple[Object, str, str]]]] = {
    "long releases": [({}, f"{LONG}-first", "here"), ({}, f"{LONG}-other", "here")],
    "long names": [
        ({"fullnameOverride": f"{LONG}-{each}"}, "release", "here") for each in ("first-name", "other-name")
    ],
    "dots": [({}, "my.release", "here"), ({}, "my-release", "here")],
    "dots in names": [({"fullnameOverride": each}, "release", "here") for each in ("my.exporter", "my-exporter")],
    "digits": [({}, "1", "here"), ({}, "release-1", "here")],
    "two namespaces": [({}, "release", "here"), ({}, "release", "there")],
    "namespaces and releases that add up": [({}, "b-c", "a"), ({}, "c", "a-b")],
    "namespaces by values": [({"namespaceOverride": each}, "release", "default") for each in ("here", "there")],
}


@pytest.mark.parametrize("case", PAIRS)
def test_two_releases_never_share_an_object(case: str) -> None:
    shared = {kind: {"enabled": True, "namespace": "monitoring"} for kind in ("dashboards", "prometheusRule")}
    monitor = {"serviceMonitor": {"enabled": True, "namespace": "monitoring"}}
    first, second = (
        rendered({**KEYS, **shared, **monitor, **values}, release=release, namespace=namespace)
        for values, release, namespace in PAIRS[case]
    )
    assert identities(first) & identities(second) == set()
    assert complaints([*first, *second]) == []


def test_a_name_that_can_be_is_as_it_was_given() -> None:
    for values, release, name in (
        ({}, "release", "release-creatify-exporter"),
        ({}, "creatify-exporter", "creatify-exporter"),
        ({}, "my-creatify-exporter-2", "my-creatify-exporter-2"),
        ({"nameOverride": "creatify"}, "creatify", "creatify"),
        ({"fullnameOverride": "b" * 52}, "release", "b" * 52),
    ):
        assert workload(rendered({**KEYS, **values}, release=release))["metadata"]["name"] == name


def test_an_object_in_the_namespace_of_the_release_has_its_name_alone() -> None:
    values = {**KEYS, **EVERYTHING, "serviceMonitor": {"enabled": True, "namespace": "here"}}
    objects = rendered(values)
    assert the(objects, "ServiceMonitor")["metadata"]["name"] == "release-creatify-exporter"
    assert the(objects, "PrometheusRule")["metadata"]["name"] == "release-creatify-exporter"


def test_the_namespace_of_values_is_that_of_all_objects_and_addresses() -> None:
    objects = rendered({**KEYS, **EVERYTHING, "namespaceOverride": "there"})
    assert {namespace for _, namespace, _ in identities(objects)} == {"there"}
    assert the(objects, "ServiceMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["there"]}
    assert "release-creatify-exporter.there.svc:10081" in json.dumps(objects)
    assert ".here.svc" not in json.dumps(objects)


# Values left empty


def emptied(values: Object, depth: int) -> Object:
    """Return the values that lie so deep, all of them null."""
    if depth == 0:
        return dict.fromkeys(values)
    below = {name: emptied(value, depth - 1) for name, value in values.items() if isinstance(value, dict)}
    return {name: value for name, value in below.items() if value}


def with_enabled(values: Object, **more: Any) -> Object:
    """Put every object of the chart back among values that are null."""
    found = {**values, **more}
    for name, value in EVERYTHING.items():
        found[name] = {**(found.get(name) or {}), **value}
    return found


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("keys", [KEYS, {"workspaces": [{"apiId": "id", "apiKey": "key", "plan": None}]}])
def test_a_value_that_is_null_is_its_default_or_empty(depth: int, keys: Object) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    if depth > 1:
        del values["podSecurityContext"]["seccompProfile"]  # without its type it is none
    nulls = emptied(values, depth)
    objects = rendered(with_enabled(nulls, **keys))
    assert complaints(objects) == []
    assert exporter_of(objects)["image"].startswith("ghcr.io/creatify-exporter/creatify-exporter:")
    assert the(objects, "Service")["spec"]["ports"][0]["port"] == 10081
    expected = rendered(with_enabled({}, **keys))
    assert identities(objects) == identities(expected)
    if depth == 0:
        assert the(objects, "Service") == the(expected, "Service")


def test_nulls_within_maps_of_the_user_remove_entries() -> None:
    values = {
        **KEYS,
        "enabled": None,
        "podSecurityContext": {"runAsUser": None, "fsGroup": None},
        "resources": {"limits": None},
        "podLabels": {"team": None},
        "probes": {"liveness": None},
        "config": {"fetch": {"timeout": None}},
        "serviceMonitor": {"enabled": True, "basicAuth": {"username": None, "password": None}},
        "prometheusRule": {"enabled": True, "alertLabels": {"team": None}, "alerts": {"CreatifyDown": None}},
    }
    objects = rendered(values)
    assert complaints(objects) == []
    assert pod_of(objects)["spec"]["securityContext"].keys().isdisjoint({"runAsUser", "fsGroup"})
    assert exporter_of(objects)["resources"].keys() == {"requests"}
    assert "livenessProbe" not in exporter_of(objects)
    assert "readinessProbe" in exporter_of(objects)
    assert "team" not in json.dumps(objects)


# Charts above, and templates


@pytest.fixture
def umbrella(tmp_path: Path) -> Path:
    """Return a chart of two exporters, the second under another name and only if it is enabled."""
    shutil.copytree(CHART, tmp_path / "umbrella/charts/creatify-exporter")
    own = yaml.safe_load((CHART / "Chart.yaml").read_text())
    dependency = {"name": own["name"], "version": own["version"]}
    other = {**dependency, "alias": "second", "condition": "second.enabled"}
    chart = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": [dependency, other]}
    (tmp_path / "umbrella/Chart.yaml").write_text(yaml.safe_dump(chart))
    return tmp_path / "umbrella"


def test_a_chart_above_turns_exporters_on_and_off_and_shares_its_values(umbrella: Path) -> None:
    values: Object = {
        "global": {
            "imageRegistry": "mirror.example",
            "imagePullSecrets": ["mirror", {"name": "other"}],
            "keys": "shared",
            "storageClass": "fast",
        },
        "creatify-exporter": {
            "enabled": True,
            "existingSecret": "{{ .Values.global.keys }}",
            "imagePullSecrets": [{"name": "other"}, {"name": "own"}],
            "podAnnotations": None,
            "probes": None,
            "image": {"pullPolicy": None},
        },
        "second": {**KEYS, "enabled": False},
    }
    objects = rendered(values, chart=umbrella)
    assert complaints(objects) == []
    assert exporter_of(objects)["image"].startswith("mirror.example/creatify-exporter/creatify-exporter:")
    assert exporter_of(objects)["image"] == helm_test_pod(objects)["spec"]["containers"][0]["image"]
    secrets = [{"name": "mirror"}, {"name": "other"}, {"name": "own"}]
    assert pod_of(objects)["spec"]["imagePullSecrets"] == helm_test_pod(objects)["spec"]["imagePullSecrets"] == secrets
    assert '"name": "shared"' in json.dumps(pod_of(objects))

    values["second"]["enabled"] = True
    both = rendered(values, release="creatify-exporter-second", chart=umbrella)
    assert complaints(both) == []
    first, second = (each["metadata"]["labels"] for each in kinds(both, "StatefulSet"))
    assert first["app.kubernetes.io/name"] != second["app.kubernetes.io/name"]


@pytest.mark.parametrize(
    "more", [EVERYTHING, {**EVERYTHING, "serviceMonitor": None, "ledger": {"existingUrlSecret": "url"}}]
)
def test_no_selector_of_an_exporter_takes_another_in_its_namespace(umbrella: Path, more: Object) -> None:
    first, second = ({**KEYS, **EVERYTHING, **more, "fullnameOverride": name} for name in ("first", "second"))
    name, namespace = {"nameOverride": "exporter"}, {"namespaceOverride": "there"}
    aliases = {"creatify-exporter": {**first, **name}, "second": {**second, **name, "enabled": True}}
    for objects in (
        rendered(aliases, chart=umbrella),
        [*rendered({**first, **namespace}), *rendered({**second, **namespace}, namespace="elsewhere")],
    ):
        assert complaints(objects) == []
        pods = [each["spec"]["template"] for kind in ("StatefulSet", "Deployment") for each in kinds(objects, kind)]
        found = [
            *((each["spec"]["selector"], pods) for each in kinds(objects, "Service")),
            *((each["spec"]["podSelector"]["matchLabels"], pods) for each in kinds(objects, "NetworkPolicy")),
            *((each["spec"]["selector"]["matchLabels"], pods) for each in kinds(objects, "PodDisruptionBudget")),
            *(
                (each["spec"]["selector"]["matchLabels"], kinds(objects, "Service"))
                for each in kinds(objects, "ServiceMonitor")
            ),
        ]
        assert len(found) == 6
        for selector, those in found:
            assert [selector.items() <= each["metadata"]["labels"].items() for each in those].count(True) == 1


CHECKED_TEXTS: Final = {
    "config.fetch.timeout": "20s",
    "config.fetch.max_body": "1GiB",
    "config.ledger.history": "skip",
    "dnsPolicy": "Default",
    "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Always",
    "log.format": "json",
    "log.level": "debug",
    "persistence.size": "2Gi",
    "service.ipFamilyPolicy": "PreferDualStack",
    "service.type": "NodePort",
    "serviceMonitor.interval": "30s",
    "serviceMonitor.scheme": "https",
    "tmp.sizeLimit": "1Gi",
}
"""Texts of which the schema knows more than that they are texts."""


def test_texts_in_values_are_templates() -> None:
    name = "{{ .Release.Name }}-{{ .Values.global.team }}"
    values: Object = {
        "global": {"team": "video"},
        **on_a_volume(name),
        "extraEnv": [{"name": "TEAM", "value": name}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": name}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": f"/ca/{name}"}],
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": [name]}],
    }
    values["workspaces"][0]["base_url"] = "https://{{ .Values.global.team }}.example"
    for place, text in CHECKED_TEXTS.items():
        *path, last = place.split(".")
        functools.reduce(lambda found, key: found.setdefault(key, {}), path, values)[last] = f'{{{{ "{text}" }}}}'
    del values["prometheusRule"]["alertLabels"]  # these are templates of Prometheus
    objects = rendered(values)
    assert complaints(objects) == []
    written_out = json.loads(json.dumps(values).replace(name, "release-video"))
    for place, text in CHECKED_TEXTS.items():
        *path, last = place.split(".")
        functools.reduce(dict.__getitem__, path, written_out)[last] = text
    assert objects == rendered(written_out)
    assert json.loads(configuration(objects))["workspaces"][0]["base_url"] == "https://video.example"


def test_what_is_prometheus_template_or_a_regular_expression_is_no_template_of_helm() -> None:
    values: Object = {
        **KEYS,
        "config": {"failure_reasons": [{"reason": "braces", "match": r"{{(\d+)}}"}]},
        "prometheusRule": {
            "enabled": True,
            "alertLabels": {"who": "{{ $labels.workspace }}"},
            "alerts": {"CreatifyDown": {"labels": {"what": "{{ $value }}"}}},
        },
    }
    objects = rendered(values)
    assert json.loads(configuration(objects))["failure_reasons"] == values["config"]["failure_reasons"]
    rules = json.dumps(the(objects, "PrometheusRule"))
    assert '"who": "{{ $labels.workspace }}"' in rules
    assert '"what": "{{ $value }}"' in rules


# Images, paths, pods


@pytest.mark.parametrize(
    ("image", "registry", "expected"),
    [
        ({}, "", "ghcr.io/creatify-exporter/creatify-exporter:{}"),
        ({"registry": "a.example"}, "", "a.example/creatify-exporter/creatify-exporter:{}"),
        ({"registry": "a.example"}, "b.example", "b.example/creatify-exporter/creatify-exporter:{}"),
        ({"registry": ""}, "", "creatify-exporter/creatify-exporter:{}"),
        ({"repository": "c.example/e"}, "b.example", "c.example/e:{}"),
        ({"repository": "localhost/e", "tag": "1"}, "", "localhost/e:1"),
        ({"repository": "c:5000/e", "digest": f"sha256:{'0' * 64}"}, "", f"c:5000/e@sha256:{'0' * 64}"),
    ],
)
def test_an_image_has_the_registry_that_is_closest(image: Object, registry: str, expected: str) -> None:
    objects = rendered({**KEYS, "image": image, "global": {"imageRegistry": registry}})
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert exporter_of(objects)["image"] == expected.format(version)


def test_the_monitor_and_the_test_ask_at_the_path_of_the_metrics() -> None:
    values: Object = {**KEYS, "web": {"telemetryPath": "/creatify/"}, "serviceMonitor": {"enabled": True}}
    objects = rendered(values)
    assert "--web.telemetry-path=/creatify/" in exporter_of(objects)["args"]
    assert [each["path"] for each in the(objects, "ServiceMonitor")["spec"]["endpoints"]] == ["/creatify/"]
    assert helm_test_pod(objects)["spec"]["containers"][0]["command"][-3] == "/creatify/"
    values["serviceMonitor"]["perWorkspace"] = True
    endpoints = the(rendered(values), "ServiceMonitor")["spec"]["endpoints"]
    assert [each["path"] for each in endpoints] == ["/creatify/exporter", "/probe"]


def test_the_pod_is_as_values_say() -> None:
    values = yaml.safe_load((CHART / "ci/extras-values.yaml").read_text("utf-8"))
    objects = rendered(values)
    pod = pod_of(objects)["spec"]
    for name in ("dnsPolicy", "dnsConfig", "hostAliases", "initContainers", "priorityClassName", "tolerations"):
        assert pod[name] == values[name], name
    assert pod["containers"][1:] == values["extraContainers"]
    assert workload(objects)["spec"]["revisionHistoryLimit"] == 2
    [spread] = pod["topologySpreadConstraints"]
    selector = workload(objects)["spec"]["selector"]
    assert spread == {**values["topologySpreadConstraints"][0], "labelSelector": selector}
    service = the(objects, "Service")["spec"]
    assert (service["ports"][0]["nodePort"], service["ipFamilies"]) == (30081, ["IPv6", "IPv4"])
    assert service["ipFamilyPolicy"] == "PreferDualStack"


def test_scrapes_have_the_limits_that_values_say() -> None:
    for name, kind in (("service-monitor", "ServiceMonitor"), ("scrape-config", "ScrapeConfig")):
        values = yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text("utf-8"))
        spec = the(rendered(values), kind)["spec"]
        assert spec["sampleLimit"] == 2_000_000
        assert [each["honorLabels"] for each in spec.get("endpoints", [spec])] == [True]


def test_a_disruption_budget_is_there_if_it_is_asked_for() -> None:
    shared = {**KEYS, "ledger": {"existingUrlSecret": "url"}}

    def budget(given: Object) -> list[Object]:
        found = kinds(rendered({**shared, "podDisruptionBudget": given}), "PodDisruptionBudget")
        return [{name: value for name, value in each["spec"].items() if name != "selector"} for each in found]

    assert budget({}) == [{"maxUnavailable": 1}]
    assert budget({"maxUnavailable": 0}) == [{"maxUnavailable": 0}]
    assert budget({"minAvailable": "50%"}) == [{"minAvailable": "50%"}]
    assert budget({"enabled": False}) == []
