"""The chart as the real helm renders it, and what Kubernetes and its Prometheus operator would say of the objects."""

import functools
import importlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from helm.binary import TOOLS, helm_binary

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/creatify-exporter"

VERSIONS: Final = ("1.29.0", "1.33.0", "1.37.0")
"""The oldest Kubernetes that the chart supports, one in the middle, and the newest."""
OPERATOR: Final = {"ServiceMonitor": "v1", "PrometheusRule": "v1", "ScrapeConfig": "v1alpha1"}
KEYS: Final = {"existingSecret": "keys"}
"""The least that the chart has to be told."""

Object = dict[str, Any]


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


def rendered(
    values: Object, version: str = VERSIONS[-1], release: str = "release", namespace: str = "here", chart: Path = CHART
) -> list[Object]:
    """Return the objects of a release; each rendering is made once in a process."""
    return _rendered(json.dumps(values, sort_keys=True), version, release, namespace, chart)


@functools.cache
def _rendered(values: str, version: str, release: str, namespace: str, chart: Path) -> list[Object]:
    place = ("--namespace", namespace, "--kube-version", version)
    done = helm("template", release, str(chart), *place, values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def scenarios() -> dict[str, Object]:
    """Return the values of each file in `ci`, by its name."""
    paths = sorted((CHART / "ci").glob("*-values.yaml"))
    return {path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text("utf-8")) for path in paths}


def scenario(name: str, version: str = VERSIONS[-1]) -> list[Object]:
    return rendered(scenarios()[name], version)


def refusal(values: Object, *arguments: str) -> str:
    """Return what helm says of values that the chart must not take."""
    done = helm("template", "release", str(CHART), *arguments, values={**KEYS, **values})
    return done.stderr if done.returncode else "it was taken"


# Objects


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
    [found] = [each for each in pod_of(objects)["spec"]["containers"] if each["name"] == "exporter"]
    exporter: Object = found
    return exporter


def helm_test_pod(objects: list[Object]) -> Object:
    """Return the pod of `helm test`."""
    return the(objects, "Pod")


def configuration(objects: list[Object]) -> str:
    [found] = [
        each["data"]["config.yml"] for each in kinds(objects, "ConfigMap") if "config.yml" in each.get("data", ())
    ]
    return str(found)


def identities(objects: list[Object]) -> set[tuple[str, str, str]]:
    """Return kind, namespace and name of each object, by which a cluster tells them apart."""
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in objects}


# What a cluster would refuse


def complaints(objects: list[Object], version: str = VERSIONS[-1]) -> list[str]:
    """Return what is wrong with the objects, by strict schemas and by the rules for names and labels."""
    named = [(f"{each['kind']} {each['metadata']['name']}", json.dumps(each)) for each in objects]
    found = [f"{name}: {words}" for name, text in named for words in _faults(text, version)]
    if len(identities(objects)) < len(objects):
        found.append("two objects share kind, namespace and name")
    return found


@functools.cache
def _faults(text: str, version: str) -> tuple[str, ...]:
    """Look at each object once: most scenarios share most of theirs."""
    return tuple(_faults_of(json.loads(text), version))


def _faults_of(each: Object, version: str) -> Iterator[str]:
    if each["kind"] in OPERATOR:
        yield from (error.message for error in operator_schema(each["kind"]).iter_errors(each))
    else:
        validation = importlib.import_module("kubernetes_validate")
        try:
            validation.validate(each, version, strict=True)
        except validation.ValidationError as error:
            yield error.message
    name = str(each["metadata"]["name"])
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        yield "no name of an object"
    if each["kind"] in ("Service", "StatefulSet", "Deployment") and not re.fullmatch(
        r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name
    ):
        yield "no name of a host"
    for label, value in _labels(each):
        if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
            yield f"the label {label} cannot be {value!r}"


def _labels(each: Object) -> Iterator[tuple[str, str]]:
    yield from each["metadata"].get("labels", {}).items()
    if each["kind"] in ("StatefulSet", "Deployment"):
        yield from each["spec"]["template"]["metadata"]["labels"].items()


@functools.cache
def operator_schema(kind: str) -> Any:
    module = importlib.import_module(f"cloudcoil.models.prometheus_operator.{OPERATOR[kind]}")
    return importlib.import_module("jsonschema").Draft202012Validator(closed(getattr(module, kind).model_json_schema()))


def closed(schema: Any) -> Any:
    """Let every object of a schema have the properties that are named in it, and no other."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    extra = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**{key: closed(each) for key, each in schema.items()}, **extra}
