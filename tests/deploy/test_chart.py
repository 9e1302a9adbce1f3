"""The chart, rendered by the real helm, against the schemas of Kubernetes, of its operator and of the exporter."""

import importlib
import json
import re
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from charts import (
    CHART,
    KEYS,
    OPERATOR,
    ROOT,
    VERSIONS,
    Object,
    complaints,
    configuration,
    exporter_of,
    helm,
    helm_test_pod,
    kinds,
    pod_of,
    refusal,
    rendered,
    scenario,
    scenarios,
    the,
    workload,
)
from msgspec import inspect

from creatify_exporter import __version__
from creatify_exporter.cli import main
from creatify_exporter.config import schema as config
from creatify_exporter.config.load import load
from creatify_exporter.config.plan import Plan
from creatify_exporter.lists import LISTS, other_list
from processes import running_exporter

README: Final = (CHART / "README.md").read_text("utf-8")
SCENARIOS: Final = tuple(scenarios())


# Validity


def test_helm_lint_finds_nothing() -> None:
    for name in ("extras", "prometheus-rule", "workspaces"):
        done = helm("lint", "--strict", str(CHART), values=scenarios()[name])
        assert (done.returncode, re.findall(r".*(?:WARN|ERROR).*", done.stdout)) == (0, []), name
    assert helm("lint", "--strict", str(CHART)).returncode == 0, "without any value"


def test_kubernetes_and_the_operator_take_every_object() -> None:
    found = {
        (name, version): faults
        for name in SCENARIOS
        for version in VERSIONS
        if (faults := complaints(scenario(name), version))
    }
    assert found == {}


def test_an_object_that_kubernetes_or_the_operator_would_refuse_is_found() -> None:
    monitor = the(scenario("service-monitor"), "ServiceMonitor")
    assert complaints([{**monitor, "spec": {**monitor["spec"], "selectors": {}}}])
    service = the(scenario("minimal"), "Service")
    assert complaints([{**service, "spec": {**service["spec"], "port": 1}}])
    assert complaints([{**service, "metadata": {**service["metadata"], "name": 123}}])
    assert complaints([{**service, "metadata": {**service["metadata"], "name": "my.release"}}])
    assert complaints([service, service])


def test_the_operators_versions_are_those_of_its_schemas() -> None:
    objects = [*scenario("service-monitor"), *scenario("scrape-config"), *scenario("prometheus-rule")]
    found = {each["kind"]: each["apiVersion"] for each in objects if each["kind"] in OPERATOR}
    assert found == {kind: f"monitoring.coreos.com/{version}" for kind, version in OPERATOR.items()}


def test_the_oldest_kubernetes_is_the_one_that_the_chart_names() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}-0"
    assert rendered(KEYS, VERSIONS[0]) == rendered(KEYS)
    assert "kubeVersion" in refusal({}, "--kube-version", "1.28.0")


def test_the_chart_is_of_the_exporters_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__
    assert f"creatify-exporter:{__version__}\n" in chart["annotations"]["artifacthub.io/images"]


def test_what_artifact_hub_shows_is_there() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    hub = {name.partition("/")[2]: yaml.safe_load(text) for name, text in chart["annotations"].items()}
    assert {"category", "license", "images", "links", "screenshots", "changes"} <= hub.keys()
    assert {each["kind"] for each in hub["changes"]} <= {
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    }
    addresses = [chart["icon"], *(each["url"] for each in [*hub["links"], *hub["screenshots"]])]
    paths = [path for each in addresses for path in re.findall(r"(?:/blob)?/main/(.+)", each)]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert helm("show", "readme", str(CHART)).stdout.strip() == README.strip()


def test_the_archive_holds_the_projects_own_rules_and_dashboards(tmp_path: Path) -> None:
    done = helm("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"creatify-exporter-{__version__}.tgz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        packed = {name: file.read() for name, file in files.items() if file}
    for folder, source in (("rules", ROOT / "prometheus/rules"), ("dashboards", ROOT / "grafana/dashboards")):
        originals = {path.name: path.read_bytes() for path in source.iterdir()}
        prefix = f"creatify-exporter/files/{folder}/"
        assert {n.removeprefix(prefix): data for n, data in packed.items() if n.startswith(prefix)} == originals
    assert not [name for name in packed if "/ci/" in name]


# What is there, and how safe it is


def test_a_secrets_name_is_enough_and_everything_else_is_off() -> None:
    objects = rendered(KEYS)
    assert sorted(each["kind"] for each in objects) == ["ConfigMap", "Pod", "Service", "ServiceAccount", "StatefulSet"]
    assert helm_test_pod(objects)["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_there_is_never_more_than_one_exporter() -> None:
    assert the(scenario("minimal"), "StatefulSet")["spec"]["replicas"] == 1


def test_every_container_of_the_chart_is_confined() -> None:
    for objects in map(scenario, SCENARIOS):
        for pod in [pod_of(objects)["spec"], helm_test_pod(objects)["spec"]]:
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == 65532
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [exporter_of(objects), helm_test_pod(objects)["spec"]["containers"][0]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
        for account in kinds(objects, "ServiceAccount"):
            assert account["automountServiceAccountToken"] is False


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    for objects in map(scenario, SCENARIOS):
        volumes = [each["name"] for each in pod_of(objects)["spec"]["volumes"]]
        claims = workload(objects)["spec"].get("volumeClaimTemplates", [])
        volumes += [each["metadata"]["name"] for each in claims]
        mounts = [each["name"] for each in exporter_of(objects)["volumeMounts"]]
        assert sorted(mounts) == sorted(volumes)
        assert not [each for each in exporter_of(objects)["volumeMounts"] if "subPath" in each], "it would never change"


def test_selectors_and_ports_agree() -> None:
    for objects in map(scenario, SCENARIOS):
        _service_leads_to_the_exporter(objects)
        _monitoring_leads_to_the_service(objects)
        _the_helm_test_asks_the_service(objects)


def _service_leads_to_the_exporter(objects: list[Object]) -> None:
    labels = pod_of(objects)["metadata"]["labels"]
    service, ports = the(objects, "Service"), {each["name"] for each in exporter_of(objects)["ports"]}
    assert service["spec"]["selector"].items() <= labels.items()
    assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    assert workload(objects)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for found in kinds(objects, "StatefulSet"):
        assert found["spec"]["serviceName"] == service["metadata"]["name"]
    for budget in kinds(objects, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for spread in pod_of(objects)["spec"].get("topologySpreadConstraints", []):
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = exporter_of(objects)[name]
        assert probe.get("httpGet", probe.get("tcpSocket"))["port"] in ports
    for policy in kinds(objects, "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert {each["port"] for rule in policy["spec"]["ingress"] for each in rule["ports"]} <= ports


def _monitoring_leads_to_the_service(objects: list[Object]) -> None:
    service = the(objects, "Service")
    for monitor in kinds(objects, "ServiceMonitor"):
        labels = service["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert monitor["spec"]["jobLabel"] in labels
        assert set(monitor["spec"].get("targetLabels", [])) <= labels.keys()
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
    for scrape in kinds(objects, "ScrapeConfig"):
        metadata, port = service["metadata"], service["spec"]["ports"][0]["port"]
        [discovery] = scrape["spec"]["httpSDConfigs"]
        assert discovery["url"].partition("://")[2] == f"{metadata['name']}.{metadata['namespace']}.svc:{port}/sd"


def _the_helm_test_asks_the_service(objects: list[Object]) -> None:
    service, tester = the(objects, "Service"), helm_test_pod(objects)
    assert not service["spec"]["selector"].items() <= tester["metadata"]["labels"].items(), "it would be scraped"
    [*_, host, port, _, _, _] = tester["spec"]["containers"][0]["command"]
    assert (host, int(port)) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])


def helm_test(port: str, path: str = "/metrics", connect_only: str = "false") -> int:
    """Run the program of `helm test` against this machine."""
    [python, flag, program, *_] = the(scenario("minimal"), "Pod")["spec"]["containers"][0]["command"]
    assert (python, flag) == ("python3", "-c")
    command = [sys.executable, flag, program, "127.0.0.1", port, path, "http", connect_only]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_helm_test_passes_with_an_exporter_and_fails_without(tmp_path: Path) -> None:
    users = "basic_auth_users: {me: $2b$04$abcdefghijklmnopqrstuu5s8MRQkTpU5FAVcYBPpL2NZfRwkLsKm}"
    put(tmp_path / "web-config.yml", users)
    for flags in (("--web.telemetry-path=/creatify",), ("--web.config.file", str(tmp_path / "web-config.yml"))):
        path = "/creatify" if "creatify" in flags[0] else "/metrics"
        with running_exporter("--demo", "--web.listen-address", "127.0.0.1:0", *flags) as exporter:
            port = exporter.url.rpartition(":")[2]
            assert helm_test(port, path) == 0
            assert (helm_test(port, "/elsewhere") == 0) == (path == "/metrics"), "users are asked for a password first"
            assert helm_test(port, connect_only="true") == 0
        assert helm_test(port, path) != 0
        assert helm_test(port, connect_only="true") != 0


def test_the_helm_test_may_pass_the_network_policy() -> None:
    objects = scenario("network-policy")
    peers = the(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = helm_test_pod(objects)["metadata"]["labels"].items()
    assert [peer for peer in peers if peer.get("podSelector", {}).get("matchLabels", {"-": "-"}).items() <= labels]


def test_the_network_policy_lets_out_questions_to_dns_and_requests_to_the_api_only() -> None:
    egress = the(scenario("network-policy-open"), "NetworkPolicy")["spec"]["egress"]
    assert [[each["port"] for each in rule["ports"]] for rule in egress] == [[53, 53], [443]]


def test_labels_of_a_site_stand_on_every_object_and_break_no_selector() -> None:
    clash = {"app.kubernetes.io/name": "other", "team": "video"}
    objects = rendered({**KEYS, "commonLabels": clash, "podLabels": clash})
    for each in objects:
        assert each["metadata"]["labels"]["team"] == "video"
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "creatify-exporter"
    assert pod_of(objects)["metadata"]["labels"]["app.kubernetes.io/name"] == "creatify-exporter"


def test_probes_ask_as_the_web_configuration_lets_them() -> None:
    def readiness(name: str) -> Any:
        return exporter_of(scenario(name))["readinessProbe"]

    assert readiness("minimal")["httpGet"]["scheme"] == "HTTP"
    assert readiness("web-config")["httpGet"]["scheme"] == "HTTPS"
    assert readiness("web-config-users")["httpGet"]["scheme"] == "HTTP"
    assert "tcpSocket" in readiness("web-config-client-certificates")
    assert "httpGet" not in readiness("web-config-client-certificates")


def test_a_replaced_pod_starts_no_new_series() -> None:
    objects = scenario("workspaces")
    endpoints = the(objects, "ServiceMonitor")["spec"]["endpoints"]
    instances = []
    for endpoint in endpoints:
        instance, pod = endpoint["relabelings"][:2]
        assert instance["targetLabel"] == "instance"
        assert pod == {"action": "labeldrop", "regex": "pod"}
        instances.append(instance["replacement"])
    address = "release-creatify-exporter.here.svc:10081"
    assert instances == [address, f"{address}/marketing", f'{address}/research $$1 "ünd" more'], "$ is Prometheus' own"
    assert [(each["path"], each.get("params")) for each in endpoints] == [
        ("/metrics/exporter", None),
        ("/probe", {"workspace": ["marketing"]}),
        ("/probe", {"workspace": ['research $1 "ünd" more']}),
    ]


def test_a_monitor_finds_the_service_though_argo_cd_puts_its_own_name_into_the_label_of_the_instance() -> None:
    objects = scenario("service-monitor")
    labels = {**the(objects, "Service")["metadata"]["labels"], "app.kubernetes.io/instance": "the-application"}
    assert the(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_series_by_a_scrape_config_have_the_namespace_that_a_monitor_would_give_them() -> None:
    def first(namespace: str, **values: Any) -> Any:
        given = {**KEYS, "scrapeConfig": {"enabled": True}, **values}
        return the(rendered(given, namespace=namespace), "ScrapeConfig")["spec"]["relabelings"][0]

    staging = {"action": "replace", "targetLabel": "namespace", "replacement": "staging"}
    assert first("staging") == staging
    assert first("prod") == {**staging, "replacement": "prod"}
    assert first("prod", namespaceOverride="staging") == staging
    own, users = the(scenario("scrape-config"), "ScrapeConfig")["spec"]["relabelings"]
    assert own == {**staging, "replacement": "here"}, "not the namespace of the ScrapeConfig"
    assert users["targetLabel"] == "team"


def test_no_stateful_set_takes_the_ledger_with_it() -> None:
    found = {name: kinds(scenario(name), "StatefulSet") for name in SCENARIOS}
    policies = {
        name: each["spec"].get("persistentVolumeClaimRetentionPolicy") for name, sets in found.items() for each in sets
    }
    assert len(policies) > 10
    retained = {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert {name: policy for name, policy in policies.items() if policy != retained} == {}
    for policy in (None, "Retain"):
        assert refusal({"persistence": {"whenDeleted": policy}}) == "it was taken", "old releases reuse their values"


def test_a_claim_with_a_name_replaces_the_template() -> None:
    objects = scenario("existing-claim")
    assert "volumeClaimTemplates" not in the(objects, "StatefulSet")["spec"]
    [volume] = [each for each in pod_of(objects)["spec"]["volumes"] if each["name"] == "ledger"]
    assert volume["persistentVolumeClaim"] == {"claimName": "creatify-ledger"}


def test_an_upgrade_of_the_chart_leaves_the_template_of_the_claim_as_it_was() -> None:
    claims = json.dumps(the(scenario("minimal"), "StatefulSet")["spec"]["volumeClaimTemplates"])
    assert "version" not in claims.replace("apiVersion", "")
    assert "helm.sh/chart" not in claims


def test_an_upgrade_leaves_what_kubernetes_does_not_let_it_change() -> None:
    labels = {
        "app.kubernetes.io/name": "creatify-exporter",
        "app.kubernetes.io/instance": "release",
        "app.kubernetes.io/component": "exporter",
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "ledger", "labels": labels},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    spec = the(scenario("minimal"), "StatefulSet")["spec"]
    assert spec["selector"] == the(scenario("postgresql"), "Deployment")["spec"]["selector"] == {"matchLabels": labels}
    assert (spec["serviceName"], spec["volumeClaimTemplates"]) == ("release-creatify-exporter", [claim])


def test_a_pod_that_never_became_ready_is_replaced_by_an_upgrade() -> None:
    assert the(scenario("minimal"), "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


def test_the_class_of_storage_is_the_clusters_a_given_one_or_none_at_all() -> None:
    def claim(storage_class: str) -> Any:
        objects = rendered({**KEYS, "persistence": {"storageClass": storage_class}})
        return the(objects, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"].get("storageClassName")

    assert [claim(""), claim("my-fast-one"), claim("-")] == [None, "my-fast-one", ""]


# The exporter's configuration


def test_the_exporter_and_helm_agree_on_every_file(tmp_path: Path) -> None:
    for name, values in scenarios().items():
        loaded = loaded_as_mounted(scenario(name), tmp_path / name)
        assert len(loaded.workspaces) == len(values.get("workspaces", [1]))


def loaded_as_mounted(objects: list[Object], folder: Path) -> config.Config:
    """Load the configuration as the exporter would in its container, whose files lie in a folder here."""
    for volume in pod_of(objects)["spec"]["volumes"]:
        for source in volume.get("projected", {"sources": []})["sources"]:
            for item in source["secret"]["items"]:
                put(folder / volume["name"] / item["path"], f"{source['secret']['name']}/{item['key']}")
    for mount in exporter_of(objects)["volumeMounts"]:
        if mount["mountPath"].endswith("/ca"):
            put(folder / "ca/ca.crt", (ROOT / "tests/certificates/ca.pem").read_text("utf-8"))
        if mount["name"] == "ledger-url":
            put(folder / "ledger/url", "postgresql://ledger:its-password@database/ledger\n")
    text = configuration(objects).replace("/etc/creatify-exporter", str(folder))
    put(folder / "config.yml", text)
    return load(folder / "config.yml", {"PROXY_PASSWORD": "its-password"})


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_workspace_has_the_keys_of_its_own_secret(tmp_path: Path) -> None:
    first, second = loaded_as_mounted(scenario("workspaces"), tmp_path).workspaces
    assert (first.name, first.api_id.read()) == ("marketing", "creatify-marketing/id")
    assert (second.name, second.api_key.read()) == (
        'research $1 "ünd" more',
        "release-creatify-exporter-keys/research-1-nd-more-ce1b962f-api-key",
    )
    assert [(name, each.path, each.min_interval) for name, each in first.task_lists().items()] == [
        ("text_generator", LISTS["text_generator"].path, LISTS["text_generator"].min_interval),
        ("lipsyncs", LISTS["lipsyncs"].path, 120),
        ("music", "/api/music/", other_list("music", "/").min_interval),
    ]
    assert first.plan == Plan(credits=2_000_000, renews_on_day=1, price_per_credit=0.15, currency="USD")


def test_a_pod_that_outlives_a_change_of_workspaces_takes_the_keys_of_no_other() -> None:
    """It sees the new secret and, if its container starts again, the new configuration, but mounts as before."""
    first, second, third = ({"name": name, "apiId": name, "apiKey": name} for name in ("1", "1.", "one"))
    before = rendered({"workspaces": [first, second]})
    [volume] = [each for each in pod_of(before)["spec"]["volumes"] if each["name"] == "keys"]
    items = [item for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
    mounted = {f"/etc/creatify-exporter/keys/{item['path']}": item["key"] for item in items}
    for workspaces in ([first, second], [second, first], [third, second], [second]):
        after = rendered({"workspaces": workspaces})
        data = the(after, "Secret")["data"]
        for each in [*json.loads(configuration(before))["workspaces"], *json.loads(configuration(after))["workspaces"]]:
            read = data.get(mounted.get(each["api_id_file"], "none"), "")
            assert b64decode(read).decode() in (each["name"], ""), workspaces
        assert len(data) == 2 * len(workspaces)


def test_settings_arrive_as_they_were_written(tmp_path: Path) -> None:
    loaded = loaded_as_mounted(scenario("config"), tmp_path)
    assert loaded.fetch == config.Fetch(
        timeout=45.0,
        min_interval=30.0,
        max_body=2**30,
        max_task=2**23,
        max_requests_per_minute=60,
    )
    assert loaded.labels == config.Labels(max_models=20, models=("gemini-2.5-pro",))
    assert loaded.failure_reasons
    assert loaded.failure_reasons[0].match.pattern == r"(?i)rate.?limit|<429>&\b"


def test_a_ledger_without_a_volume_does_not_count_the_list_again(tmp_path: Path) -> None:
    for name, history in (("minimal", "count"), ("no-persistence", "skip")):
        assert loaded_as_mounted(scenario(name), tmp_path / name).ledger.effective_history == history


def test_the_ledger_lies_on_its_volume(tmp_path: Path) -> None:
    objects = scenario("minimal")
    [mount] = [each for each in exporter_of(objects)["volumeMounts"] if each["name"] == "ledger"]
    path = loaded_as_mounted(objects, tmp_path).ledger.url.path
    assert path
    assert str(path.parent) == mount["mountPath"]


def test_exporters_that_share_a_database_are_a_deployment_without_a_volume() -> None:
    objects = scenario("postgresql")
    assert workload(objects)["kind"] == "Deployment"
    assert workload(objects)["spec"]["replicas"] == 3
    assert the(objects, "PodDisruptionBudget")["spec"]["minAvailable"] == "50%"
    [spread] = pod_of(objects)["spec"]["topologySpreadConstraints"]
    assert spread["matchLabelKeys"] == ["pod-template-hash"], "old pods would keep the new ones from spreading"
    [mount] = [each for each in exporter_of(objects)["volumeMounts"] if each["name"] == "ledger-url"]
    [volume] = [each for each in pod_of(objects)["spec"]["volumes"] if each["name"] == "ledger-url"]
    assert volume["secret"]["items"] == [{"key": "uri", "path": "url"}]
    settings = yaml.safe_load(the(objects, "ConfigMap")["data"]["config.yml"])["ledger"]
    assert settings == {"url_file": f"{mount['mountPath']}/url"}
    egress = the(objects, "NetworkPolicy")["spec"]["egress"]
    assert [rule["to"] for rule in egress if rule["ports"] == [{"port": 5432, "protocol": "TCP"}]] == [
        [{"podSelector": {"matchLabels": {"cnpg.io/cluster": "ledger"}}}]
    ]


def test_a_prometheus_stays_with_one_of_the_exporters_that_share_a_database() -> None:
    assert the(scenario("postgresql"), "Service")["spec"]["sessionAffinity"] == "ClientIP"
    assert "sessionAffinity" not in the(scenario("minimal"), "Service")["spec"]


def readme_manifests() -> dict[str, Object]:
    texts = re.findall(r"^```yaml\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    return {manifest["kind"]: manifest for manifest in map(yaml.safe_load, texts)}


def test_the_values_that_the_readme_gives_to_argo_cd_and_flux_are_values_of_the_chart() -> None:
    source, release = readme_manifests()["Application"]["spec"]["source"], readme_manifests()["HelmRelease"]["spec"]
    assert source["targetRevision"] == __version__
    for values in (source["helm"]["valuesObject"], release["values"]):
        monitor = the(rendered(values, release="creatify-exporter"), "ServiceMonitor")
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert f"oci://{source['repoURL']}/{source['chart']}" == readme_manifests()["OCIRepository"]["spec"]["url"]
    assert f"oci://{source['repoURL']}/{source['chart']} " in README


def test_the_values_for_several_workspaces_are_values_of_the_chart() -> None:
    page = (ROOT / "docs/workspaces.md").read_text("utf-8").partition("## In Kubernetes\n")[2]
    values = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    objects = rendered(values)
    assert [each["name"] for each in yaml.safe_load(configuration(objects))["workspaces"]] == ["acme", "globex"]
    assert all(kinds(objects, kind) for kind in ("Deployment", "ScrapeConfig", "PrometheusRule"))


def test_the_readme_names_the_selecting_label_of_each_kind() -> None:
    for kind in ("serviceMonitor", "scrapeConfig", "prometheusRule"):
        assert f"`{kind}.labels.release=prometheus`" in README


def notes(values: Object) -> str:
    done = helm("install", "release", str(CHART), "--dry-run=client", values={**KEYS, **values})
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def test_the_notes_name_the_address_and_the_path_to_scrape() -> None:
    assert ".svc:10081, path /creatify." in notes({"web": {"telemetryPath": "/creatify"}})


def test_the_notes_name_a_way_to_scrape_that_the_chart_takes() -> None:
    for ledger, monitor in (
        ({}, "serviceMonitor"),
        ({"existingUrlSecret": "url", "replicas": 1}, "serviceMonitor"),
        ({"existingUrlSecret": "url"}, "scrapeConfig"),
    ):
        assert f"--set {monitor}.enabled=true. Without" in notes({"ledger": ledger})
        assert rendered({**KEYS, "ledger": ledger, monitor: {"enabled": True}})


def test_a_ledger_in_a_volume_moves_to_postgresql_as_the_readme_tells() -> None:
    manifest = readme_manifests()["Pod"]
    importlib.import_module("kubernetes_validate").validate(manifest, VERSIONS[0], strict=True)
    objects = rendered({**KEYS, "fullnameOverride": "creatify-exporter"})
    [volume] = [each for each in manifest["spec"]["volumes"] if each["name"] == "ledger"]
    [claim] = the(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
    found = volume["persistentVolumeClaim"]["claimName"]
    assert found == f"{claim['metadata']['name']}-{workload(objects)['metadata']['name']}-0"
    [copy], exporter = manifest["spec"]["containers"], exporter_of(objects)
    assert (copy["image"], copy["securityContext"]) == (exporter["image"], exporter["securityContext"])
    assert manifest["spec"]["securityContext"] == pod_of(objects)["spec"]["securityContext"]
    assert copy["args"][2] == yaml.safe_load(configuration(objects))["ledger"]["url"]


def test_one_exporter_on_a_database_needs_no_budget_and_may_have_a_monitor() -> None:
    ledger = {"existingUrlSecret": "url", "replicas": 1}
    objects = rendered({**KEYS, "ledger": ledger, "serviceMonitor": {"enabled": True}})
    assert not kinds(objects, "PodDisruptionBudget")
    [endpoint] = the(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert {"action": "labeldrop", "regex": "pod"} in endpoint["relabelings"]


def test_the_keys_are_in_a_secret_and_nowhere_else() -> None:
    values = {"workspaces": [{"apiId": "canary-id", "apiKey": "canary-key"}]}
    objects = rendered(values)
    others = [each for each in objects if each["kind"] != "Secret"]
    assert "canary" not in json.dumps(others)
    assert the(objects, "Secret")["data"] == {"default-api-id": "Y2FuYXJ5LWlk", "default-api-key": "Y2FuYXJ5LWtleQ=="}


def test_a_change_of_what_is_read_at_the_start_replaces_the_pod() -> None:
    values = {"workspaces": [{"apiId": "id", "apiKey": "key"}]}

    def annotations(given: Object) -> Any:
        return pod_of(rendered(given))["metadata"]["annotations"]

    assert annotations(values) == annotations({**values, "commonLabels": {"team": "video"}})
    assert annotations(values) != annotations({**values, "config": {"fetch": {"timeout": "20s"}}})
    assert annotations(values) != annotations({"workspaces": [{"apiId": "id", "apiKey": "another"}]})


def test_the_exporter_knows_every_flag_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    given = {argument.partition("=")[0] for name in SCENARIOS for argument in exporter_of(scenario(name))["args"]}
    assert [flag for flag in given if not re.search(rf"^\s+{re.escape(flag)}\s", text, re.MULTILINE)] == []


# Values, their schema and their words


def schema() -> Object:
    found: Object = json.loads((CHART / "values.schema.json").read_text())
    return found


def test_the_schema_is_a_schema_and_strict() -> None:
    importlib.import_module("jsonschema").Draft7Validator.check_schema(schema())

    def objects(node: Any) -> Iterator[Object]:
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            yield from objects(each)
        if isinstance(node, dict) and isinstance(node.get("properties"), dict) and "object" in node.get("type", ""):
            yield node

    strict = [each.get("additionalProperties") is False for each in objects(schema())]
    assert strict.count(False) == 1, "global is for the charts above"


def test_the_schema_knows_the_same_values_as_values_yaml() -> None:
    def compare(values: Mapping[str, Any], described: Object, place: str) -> None:
        assert set(values) == set(described["properties"]), place
        for name, value in values.items():
            below = described["properties"][name]
            if isinstance(value, dict) and value and "properties" in below and name != "resources":
                compare(value, below, f"{place}.{name}")

    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    compare({"enabled": True, "global": {}, **values}, schema(), "values")


def fields(kind: type) -> set[str]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.name for field in info.fields}


def test_the_schema_knows_every_setting_of_the_exporter() -> None:
    known = schema()["properties"]
    settings = known["config"]["properties"]
    workspace = known["workspaces"]["items"]["properties"]
    assert set(settings) == fields(config.Config) - {"workspaces", "workspaces_from"}
    assert set(settings["fetch"]["properties"]) == fields(config.Fetch)
    assert set(settings["labels"]["properties"]) == fields(config.Labels)
    assert set(settings["ledger"]["properties"]) == fields(config.LedgerSettings) - {"url"}
    assert set(settings["failure_reasons"]["items"]["properties"]) == fields(config.ReasonRule)
    chart = {"existingSecret", "apiIdKey", "apiKeyKey", "apiId", "apiKey"}
    assert set(workspace) - chart == fields(config.Workspace) - {"api_id", "api_key"}
    assert set(known["workspaces_from"]["items"]["properties"]) == fields(config.WorkspacesFrom)
    assert set(workspace["plan"]["properties"]) == fields(Plan)
    assert set(workspace["tls_config"]["properties"]) == fields(config.TLS)


def test_the_readme_tells_every_value_and_its_default() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm/readme.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_used_and_every_used_value_exists() -> None:
    described = set(re.findall(r"^\| `([\w.]+)` \|", README, re.MULTILINE))
    templates = [path.read_text("utf-8") for path in (CHART / "templates").rglob("*") if path.is_file()]
    used = {name for text in templates for name in re.findall(r"\.Values\.([\w.]+)", text)} - {"global"}
    used |= {f"{each}.{name}" for each in GUESTS if each in used for name in ("namespace", "labels", "annotations")}
    used |= {f"probes.{name}" for name in ("startup", "readiness", "liveness")}
    assert used - {*GUESTS, "probes"} == described


GUESTS: Final = ("dashboards", "prometheusRule", "scrapeConfig", "serviceMonitor")
"""Objects that may lie in another namespace; their metadata is read in one place."""

SHARED_KEYS: Final[Object] = {"workspaces_from": [{"directory": "/keys"}]}
REFUSED: Final[dict[str, tuple[Object, str]]] = {
    "a monitor of exporters that share a ledger": (
        {**KEYS, "ledger": {"existingUrlSecret": "url"}, "serviceMonitor": {"enabled": True}},
        "set scrapeConfig.enabled",
    ),
    "no keys": ({"existingSecret": ""}, "no keys: set existingSecret"),
    "two ways to keys": ({"workspaces": [{"existingSecret": "a"}]}, "existingSecret and workspaces exclude each other"),
    "a workspace without keys": (
        {"existingSecret": "", "workspaces": [{"name": "a", "apiId": "1"}]},
        '"a" has no keys: give existingSecret, or apiId and apiKey',
    ),
    "a workspace with keys twice": (
        {"existingSecret": "", "workspaces": [{"name": "a", "apiId": "1", "apiKey": "2", "existingSecret": "b"}]},
        '"a" has existingSecret and keys; keep one of them',
    ),
    "two workspaces of one name": (
        {"existingSecret": "", "workspaces": [{"existingSecret": "a"}, {"existingSecret": "b"}]},
        'two of them are named "default"',
    ),
    "a setting that does not exist": (
        {"existingSecret": "", "workspaces": [{"existingSecret": "a", "baseUrl": "https://b"}]},
        "additional properties 'baseUrl' not allowed",
    ),
    "replicas": ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
    "a duration without a unit": ({"config": {"fetch": {"timeout": "30"}}}, "at '/config/fetch/timeout'"),
    "a duration as a number": ({"config": {"fetch": {"timeout": 30}}}, "at '/config/fetch/timeout': got number"),
    "a ledger elsewhere": ({"config": {"ledger": {"url": "memory:"}}}, "additional properties 'url' not allowed"),
    "an unknown level": ({"log": {"level": "trace"}}, "at '/log/level'"),
    "a label that is not text": ({"podLabels": {"a": True}}, "at '/podLabels/a'"),
    "a size that is none": ({"persistence": {"size": "1 GB"}}, "at '/persistence/size'"),
    "a digest that is none": ({"image": {"digest": "sha256:1"}}, "at '/image/digest'"),
    "a port that needs root": ({"web": {"port": 80}}, "at '/web/port'"),
    "a label that is too long": ({"podLabels": {"team": "a" * 64}}, "at '/podLabels/team'"),
    "a label that is too long once it is rendered": (
        {"commonLabels": {"team": '{{ repeat 64 "a" }}'}},
        "the label team cannot be",
    ),
    "a label that has spaces": ({"serviceMonitor": {"labels": {"team": "a b"}}}, "at '/serviceMonitor/labels/team'"),
    "a label without a name": ({"nodeSelector": {"-": "a"}}, "at '/nodeSelector'"),
    "flags that the chart sets itself": (
        {"extraArgs": ["--web.telemetry-path=/foo"]},
        "would not know of --web.telemetry-path; set web.telemetryPath",
    ),
    "such a flag and its value one after the other": (
        {"extraArgs": ["--log.level", "debug"]},
        "would not know of --log.level; set log.level",
    ),
    "a flag and its value in one text": ({"extraArgs": ["--web.max-requests 3"]}, "at '/extraArgs/0'"),
    "sockets that no pod has": ({"extraArgs": ["--web.systemd-socket"]}, "set web.port"),
    "a variable that is not text": ({"extraEnv": [{"name": "A", "value": 1}]}, "at '/extraEnv/0/value'"),
    "a toleration whose value is not text": (
        {"tolerations": [{"key": "a", "value": True}]},
        "at '/tolerations/0/value'",
    ),
    "a repository with a tag": ({"image": {"repository": "mirror.example/exporter:1"}}, "at '/image/repository'"),
    "a budget of nothing": ({"podDisruptionBudget": {"maxUnavailable": ""}}, "at '/podDisruptionBudget/maxUnavailable"),
    "endpoints of workspaces that only the exporter knows": (
        {**SHARED_KEYS, "serviceMonitor": {"enabled": True, "perWorkspace": True}},
        "set scrapeConfig.enabled, which asks the exporter",
    ),
    "a claim that dies with its StatefulSet": (
        {"persistence": {"whenDeleted": "Delete"}},
        "'no other: the claim always stays, and kubectl delete pvc deletes it'",
    ),
    "basic auth in clear": (
        {"serviceMonitor": {"basicAuth": {"username": "me"}}},
        "at '/serviceMonitor/basicAuth/username'",
    ),
    "a password in the configuration": (
        {"existingSecret": "", "workspaces": [{"existingSecret": "a", "proxy_url": "http://me:canary@proxy"}]},
        "write ${PROXY_PASSWORD}, and set that with extraEnv",
    ),
    "such a password for directories of keys": (
        {"workspaces_from": [{"directory": "/keys", "proxy_url": 'http://me:{{ "canary" }}@proxy'}]},
        "write ${PROXY_PASSWORD}, and set that with extraEnv",
    ),
    "scraping twice": (
        {"serviceMonitor": {"enabled": True}, "scrapeConfig": {"enabled": True}},
        "serviceMonitor and scrapeConfig exclude each other",
    ),
    "an unknown alert": (
        {"prometheusRule": {"enabled": True, "alerts": {"CreatifyDwon": {"enabled": False}}}},
        'there is no alert "CreatifyDwon"; there are CreatifyBalanceUnknown,',
    ),
    "an unknown threshold": (
        {"prometheusRule": {"enabled": True, "thresholds": {"tasks_stuck": 1}}},
        'there is no threshold "tasks_stuck"; there are credentials_refused_fetches,',
    ),
    "an empty threshold": (
        {"prometheusRule": {"enabled": True, "thresholds": {"gap_seconds": ""}}},
        "at '/prometheusRule/thresholds/gap_seconds'",
    ),
    "a Grafana without https": (
        {"prometheusRule": {"enabled": True, "grafanaUrl": "grafana.example"}},
        "'grafana.example' does not match pattern",
    ),
    "an unknown change of an alert": (
        {"prometheusRule": {"alerts": {"CreatifyDown": {"threshold": 1}}}},
        "additional properties 'threshold' not allowed",
    ),
}


def test_what_cannot_be_meant_is_refused_with_the_place_or_the_remedy() -> None:
    said = {case: refusal(values) for case, (values, _) in REFUSED.items()}
    assert {case: words for case, words in said.items() if REFUSED[case][1] not in words} == {}
    assert "canary" not in str(said)


# The project's rules and dashboards


def projects_groups() -> list[Object]:
    paths = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
    return [group for path in paths for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]


def rules_of(groups: list[Object]) -> list[Object]:
    return [rule for group in groups for rule in group["rules"]]


def test_the_rules_are_the_projects_own() -> None:
    objects = rendered({**KEYS, "prometheusRule": {"enabled": True}})
    assert the(objects, "PrometheusRule")["spec"]["groups"] == projects_groups()


def test_alerts_and_thresholds_can_be_changed_one_by_one() -> None:
    changed = rules_of(the(scenario("prometheus-rule"), "PrometheusRule")["spec"]["groups"])
    alerts = {rule["alert"]: rule for rule in changed if "alert" in rule}
    records = {rule["record"]: rule["expr"] for rule in changed if "record" in rule}
    assert "CreatifyTasksSlow" not in alerts
    assert alerts["CreatifyCreditsLow"]["for"] == "30m"
    assert alerts["CreatifyCreditsLow"]["labels"] == {"severity": "critical", "team": "finance", "product": "video"}
    assert records["creatify:threshold:tasks_stuck_seconds"] == "3600 * workspace:creatify_list:known"
    assert records["creatify:threshold:failure_spike_ratio_floor"] == "0.25 * workspace:creatify_list:known"
    assert records["creatify:threshold:credits_low_credits"] == "2000000 * workspace:creatify_list:known"
    original = {rule["alert"]: rule for rule in rules_of(projects_groups()) if "alert" in rule}
    assert alerts.keys() == original.keys() - {"CreatifyTasksSlow"}


@pytest.mark.parametrize("url", ["https://grafana.example/monitoring", "https://grafana.example/monitoring/"])
def test_alerts_lead_to_the_dashboards_of_the_grafana_that_is_named(url: str) -> None:
    objects = rendered({**KEYS, "prometheusRule": {"enabled": True, "grafanaUrl": url}})
    changed, original = rules_of(the(objects, "PrometheusRule")["spec"]["groups"]), rules_of(projects_groups())
    for rule in original:
        if "alert" in rule:
            notes = rule["annotations"]
            notes["dashboard_url"] = f"https://grafana.example/monitoring{notes['dashboard_url']}"
    assert changed == original


def test_prometheus_takes_the_rules_of_the_chart(promtool: str, tmp_path: Path) -> None:
    groups = the(scenario("prometheus-rule"), "PrometheusRule")["spec"]
    put(tmp_path / "rules.yml", yaml.safe_dump(groups))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_threshold_that_is_a_text_is_the_expression(promtool: str, tmp_path: Path) -> None:
    own = '420 * workspace:creatify_list:known{api="lipsyncs"} or 300 * workspace:creatify_list:known'
    objects = rendered({**KEYS, "prometheusRule": {"enabled": True, "thresholds": {"gap_seconds": own}}})
    spec = the(objects, "PrometheusRule")["spec"]
    [rule] = [rule for rule in rules_of(spec["groups"]) if rule.get("record") == "creatify:threshold:gap_seconds"]
    assert rule["expr"] == own
    put(tmp_path / "rules.yml", yaml.safe_dump(spec))
    subprocess.run([promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, check=True)


@pytest.mark.parametrize("number", [0.25, "0.25", "{{ 0.25 }}"])
def test_a_threshold_that_is_a_number_holds_for_every_list_though_set_makes_it_a_text(number: float | str) -> None:
    objects = rendered({**KEYS, "prometheusRule": {"enabled": True, "thresholds": {"gap_seconds": number}}})
    rules = rules_of(the(objects, "PrometheusRule")["spec"]["groups"])
    [expr] = [rule["expr"] for rule in rules if rule.get("record") == "creatify:threshold:gap_seconds"]
    assert expr == "0.25 * workspace:creatify_list:known"


def test_the_dashboards_are_the_projects_own() -> None:
    found = kinds(scenario("dashboards"), "ConfigMap")
    texts = {name: text for each in found for name, text in each["data"].items() if name.endswith(".json")}
    originals = {path.name: path.read_text("utf-8") for path in (ROOT / "grafana/dashboards").glob("*.json")}
    assert {name: text.strip() for name, text in texts.items()} == {n: text.strip() for n, text in originals.items()}
    for each in found:
        if "config.yml" not in each["data"]:
            assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert each["metadata"]["namespace"] == "monitoring"
