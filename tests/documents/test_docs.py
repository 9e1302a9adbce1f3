import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from msgspec import inspect

from conftest import BEGIN_FIRST
from creatify_exporter import __version__
from creatify_exporter.cli import main
from creatify_exporter.config.load import load
from creatify_exporter.config.schema import Config
from creatify_exporter.creatify.reasons import LONGEST, Classifier
from creatify_exporter.creatify.task import FIELDS, STATUS_LABELS, STATUSES
from creatify_exporter.errors import CAUSES
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import DURATION_BOUNDS
from creatify_exporter.lists import LISTS, REJECTED, TaskList
from creatify_exporter.metrics import FAMILIES
from creatify_exporter.target import BALANCE
from creatify_exporter.web.app import Application, RouteSettings
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.reloader import Reloader

ROOT: Final = Path(__file__).parents[2]
CERTIFICATES: Final = ROOT / "tests/certificates"
PACKAGE: Final = ROOT / "exporter/creatify_exporter"
README: Final = (ROOT / "README.md").read_text()
CONTRIBUTING: Final = (ROOT / "CONTRIBUTING.md").read_text()
COMMAND_LINE: Final = (ROOT / "docs/command-line.md").read_text()
METRICS: Final = (ROOT / "docs/metrics.md").read_text()
CONFIGURATION: Final = (ROOT / "docs/configuration.md").read_text()
LEDGER: Final = (ROOT / "docs/ledger.md").read_text()
REFERENCE: Final = {
    "README": README,
    "command line": COMMAND_LINE,
    "configuration": CONFIGURATION,
    "metrics": METRICS,
    "ledger": LEDGER,
}
DECISIONS: Final = sorted((ROOT / "docs/decisions").glob("*.md"))
FOLDERS: Final = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in folder.rglob("*.md"))])
COMMANDS: Final = ("serve", "init", "check", "dump", "report", "ledger", "classify", "simulate")


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, subsections included."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    end = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(without_code(text), found.end())
    return text[found.end() : end.start() if end else None]


def without_code(text: str) -> str:
    """Blank out fenced blocks, whose comments look like headings; places stay as they are."""
    return re.sub(r"^```.*?^```", lambda block: re.sub(r"\S", ".", block[0]), text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in a text, without their headers."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for table in tables for line in table.splitlines()[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_names(text: str) -> list[str]:
    """Return what is quoted in the first cells of the tables in a text."""
    return [name for row in rows(text) for name in quoted(row[0])]


# Metrics


def documented_family(heading: str) -> tuple[str, str, tuple[str, ...]]:
    first = section(METRICS, f"`{heading}`").strip().splitlines()[0]
    found = re.fullmatch(r"(Gauge|Counter|Histogram)\. (?:Labels: (.*)|No labels)\.", first)
    assert found, f"{heading}: {first}"
    return heading, found[1].lower(), tuple(quoted(found[2] or ""))


def test_every_metric_is_documented_with_its_type_and_its_labels_and_no_other_is() -> None:
    documented = [documented_family(name) for name in re.findall(r"^### `(creatify_\w+)`", METRICS, re.MULTILINE)]
    assert documented == [(family.name, family.kind, family.labels) for family in FAMILIES]


def test_every_metric_has_one_example_query() -> None:
    queries = {family.name: blocks(section(METRICS, f"`{family.name}`"), "promql") for family in FAMILIES}
    assert [name for name, found in queries.items() if len(found) != 1 or name not in found[0]] == []


def test_no_document_speaks_of_a_metric_that_does_not_exist() -> None:
    suffixes = {"gauge": ("",), "counter": ("",), "histogram": ("", "_bucket", "_sum", "_count")}
    known = {family.name + suffix for family in FAMILIES for suffix in suffixes[family.kind]}
    words = {(name, word) for name, text in REFERENCE.items() for word in re.findall(r"(?<![\w/])creatify_\w+", text)}
    assert [(name, word) for name, word in sorted(words) if word not in known] == []


def test_prometheus_can_parse_every_query(promtool: str, tmp_path: Path) -> None:
    queries = [query for text in REFERENCE.values() for query in blocks(text, "promql")]
    group = {"name": "documents", "rules": [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries)]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    run(promtool, "check", "rules", str(tmp_path / "rules.yml"))
    assert len(queries) > len(FAMILIES)


LISTED = """
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'creatify_remaining_credits{workspace="a"}', values: 8640x3}
      - {series: 'creatify_plan_renewal_timestamp_seconds{workspace="a"}', values: 864000x3}
      - {series: 'creatify_list_oldest_created_timestamp_seconds{workspace="a",api="texts"}', values: -864000x3}
      - {series: 'creatify_list_newest_created_timestamp_seconds{workspace="a",api="texts"}', values: 0 0 0}
      - {series: 'creatify_tasks_credits{workspace="a",api="texts",status="done"}', values: 900x3}
      - {series: 'creatify_tasks_credits{workspace="a",api="texts",status="failed"}', values: 100x3}
      - {series: 'creatify_list_oldest_created_timestamp_seconds{workspace="a",api="videos"}', values: -86400x3}
      - {series: 'creatify_list_newest_created_timestamp_seconds{workspace="a",api="videos"}', values: 0 0 0}
      - {series: 'creatify_tasks_credits{workspace="a",api="videos",status="done"}', values: 100x3}
      - {series: 'creatify_tasks_credits{workspace="a",api="undated",status="done"}', values: 5000x3}
"""
"""A hundred credits a day of texts, as many of videos, and a list that does not say when its tasks were created."""


def test_the_readme_knows_how_long_the_credits_of_lists_of_different_lengths_last(
    promtool: str, tmp_path: Path
) -> None:
    *_, days, spare = blocks(section((ROOT / "README.md").read_text("utf-8"), "Four questions"), "promql")
    case = yaml.safe_load(LISTED)
    case["tests"][0]["promql_expr_test"] = [
        {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": '{workspace="a"}', "value": value}]}
        for query, value in ((days, 8640 / 200), (spare, 8640 - 200 * 10))
    ]
    (tmp_path / "test.yml").write_text(yaml.safe_dump(case))
    run(promtool, "test", "rules", str(tmp_path / "test.yml"))


def documented_list(task_list: TaskList) -> list[str]:
    tells = (task_list.tells_credits, task_list.tells_creation, task_list.has_previews)
    known = "documented" if task_list.is_documented else "unproven"
    model = f"`{task_list.model_field}`" if task_list.model_field else "none"
    return [f"`{task_list.api}`", f"`{task_list.path}`", model, *("yes" if each else "no" for each in tells), known]


def test_every_list_is_documented_as_it_is_read() -> None:
    text = section((ROOT / "docs/lists.md").read_text(), "What is known")
    documented = [row for row in rows(text) if len(row) > 2]
    missing = LISTS.keys() - {row[0].strip("`") for row in documented}
    assert not missing, f"add these lists to the table in docs/lists.md: {', '.join(sorted(missing))}"
    assert documented == [documented_list(each) for each in LISTS.values()]


def test_every_label_is_explained() -> None:
    labels = {label for family in FAMILIES for label in family.labels} - {"version", "revision", "python"}
    headings = re.findall(r"^### (.*)$", section(METRICS, "Labels"), re.MULTILINE)
    assert sorted(headings) == sorted(labels | {"le"})


def test_every_value_of_a_bounded_label_is_documented() -> None:
    values = {
        "api": (*LISTS, BALANCE),
        "status": STATUS_LABELS,
        "reason": (*Classifier().reasons, REJECTED),
        "cause": CAUSES,
        "field": FIELDS,
    }
    for label, names in values.items():
        documented = first_names(section(section(METRICS, "Labels"), label))
        difference = sorted(set(documented) ^ set(names))
        assert not difference, f"docs/metrics.md, label {label}, lacks these or should not have them: {difference}"
        assert len(documented) == len(names), label


def test_a_model_has_as_many_series_as_is_said() -> None:
    series = {"reason": len(Classifier().reasons), "status": len(STATUSES)}
    optional = {"creatify_oldest_task_created_timestamp_seconds"}
    least = most = 0
    for family in FAMILIES:
        if "model" in family.labels:
            count = len(DURATION_BOUNDS) + 2 if family.kind == "histogram" else series.get(family.labels[-1], 1)
            least += 0 if family.name in optional else count
            most += 2 if family.name in optional else count + (family.labels[-1] == "status")
    assert f"a model has {least} series, and {most} at most" in " ".join(METRICS.split())


def test_the_buckets_are_those_of_the_histogram() -> None:
    [said] = re.findall(r"Buckets: ([^.]*) s\.", " ".join(METRICS.split()))
    assert [f"{number}.0" for number in re.findall(r"\d+", said)] == list(DURATION_BOUNDS[:-1])


def test_three_of_a_hundred_failures_that_leave_the_list_look_like_97_new_ones(promtool: str, tmp_path: Path) -> None:
    listed = {"series": "failed_tasks_in_the_list", "values": "100x20 97x20"}
    expected = {"expr": "increase(failed_tasks_in_the_list[5m])", "eval_time": "10m", "exp_samples": [{"value": 97}]}
    test = {"interval": "15s", "input_series": [listed], "promql_expr_test": [expected]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [test]}))
    run(promtool, "test", "rules", str(tmp_path / "test.yml"))


# Commands, flags and endpoints


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_every_command_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"^    ([a-z]+)\s", help_of(capsys).partition("\ncommands:")[2], re.MULTILINE)
    documented = [
        name.removeprefix("creatify-exporter ")
        for name in first_names(section(COMMAND_LINE, "Commands"))
        if not name.startswith("-")
    ]
    assert documented == found == list(COMMANDS)


def documented_flags(command: str) -> dict[str, list[str]]:
    """Return the documented flags of a command (of none: of the root), with what is quoted as their default."""
    owners = {"all", command} if command else {"all", "serve", ""}
    return {
        quoted(flag)[0].split()[0]: quoted(default)
        for flag, owner, default, *_ in rows(section(COMMAND_LINE, "Flags"))
        if owners & set(owner.split(", "))
    }


def test_every_flag_is_documented_and_no_other_is(capsys: pytest.CaptureFixture[str]) -> None:
    helps = {command: help_of(capsys, *filter(None, (command,))) for command in ("", *COMMANDS)}
    flags = {
        command: set(re.findall(r"^  (?:-h, )?(--[a-z.-]+)", text, re.MULTILINE)) for command, text in helps.items()
    }
    assert {command: set(documented_flags(command)) for command in flags} == flags


def test_the_defaults_of_simulate_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    text, documented = help_of(capsys, "simulate"), documented_flags("simulate")
    for flag in ("--listen", "--seed", "--speed", "--tasks", "--api-id", "--api-key"):
        assert re.search(rf"{flag} [A-Z_:]+\s[^-]*: {re.escape(documented[flag][0])}", text), flag


def routes() -> Iterator[tuple[str, str]]:
    config = Config()
    with closing(Exporter(config, Ledger(SqliteStore(None), rules(config)))) as exporter:
        middleware = WebMiddleware()
        reloader = Reloader(exporter, lambda: config, middleware)
        for route in Application(exporter, middleware, reloader, RouteSettings()).app().routes:
            [method] = set(getattr(route, "methods", ())) - {"HEAD"}
            yield method, str(getattr(route, "path", ""))


def test_every_endpoint_is_documented() -> None:
    documented = [name.split() for name in first_names(section(COMMAND_LINE, "Endpoints"))]
    assert sorted((method, path.partition("?")[0]) for method, path in documented) == sorted(routes())


# Configuration


def settings(kind: inspect.StructType, prefix: str = "") -> Iterator[tuple[str, inspect.Field]]:
    """Yield each setting as it is documented, with its field; of what is always there, only what is in it."""
    for field in sorted(kind.fields, key=lambda field: not field.required):
        name, inner, lists = f"{prefix}{field.name}", field.type, ""
        while not isinstance(inner, inspect.StructType):
            if isinstance(inner, inspect.UnionType):
                inner = next(member for member in inner.types if not isinstance(member, inspect.NoneType))
            elif isinstance(inner, inspect.VarTupleType) and isinstance(inner.item_type, inspect.StructType):
                inner, lists = inner.item_type, "[]"
            else:
                break
        if field.default is None or not isinstance(inner, inspect.StructType):
            yield name, field
        if isinstance(inner, inspect.StructType):
            yield from settings(inner, f"{name}{lists}.")


def config_settings() -> list[tuple[str, inspect.Field]]:
    kind = inspect.type_info(Config)
    assert isinstance(kind, inspect.StructType)
    return list(settings(kind))


def documented_defaults() -> dict[str, str]:
    text = section(CONFIGURATION, "Settings")
    return {name: row[1] for row in rows(text) for name in quoted(row[0])}


def is_a_secret(field: inspect.Field) -> bool:
    return isinstance(field.type, inspect.Metadata) and "parse_file" in (field.type.extra or {})


def test_every_setting_is_documented_and_no_other_is() -> None:
    names = [
        spelling
        for name, field in config_settings()
        for spelling in ([name, f"{name}_file"] if is_a_secret(field) or name == "ledger.url" else [name])
    ]
    assert list(documented_defaults()) == names


def says(text: str, field: inspect.Field) -> bool:
    """Whether the cell of a table says the default of a setting."""
    default = field.default
    if field.required or default is None:
        return text == ("required" if field.required else "none")
    [value] = quoted(text)
    if isinstance(field.type, inspect.Metadata) and isinstance(default, int | float):
        return bool((field.type.extra or {})["parse"](value) == default)
    read = yaml.safe_load(value)
    return bool((tuple(read) if isinstance(read, list) else read) == default)


def test_every_setting_is_documented_with_its_default() -> None:
    documented = documented_defaults()
    special = {"ledger.url": "see below", "ledger.history": "`count`", "failure_reasons": "built in"}
    assert special.items() <= documented.items()
    wrong = [name for name, field in config_settings() if name not in special and not says(documented[name], field)]
    assert wrong == []


def test_the_history_is_counted_by_a_durable_ledger_only() -> None:
    for url, history in (("sqlite:///ledger.db", "count"), ("memory:", "skip")):
        assert load(None, {"HOME": "/"}, ledger_url=url, keys_needed=False).ledger.effective_history == history


def configured(example: str, folder: Path) -> Config:
    """Load an example; the files and variables that it names are there."""
    pems = {"ca.pem": "ca.pem", "client.pem": "client.pem", "client-key.pem": "client.key"}
    for name in re.findall(r"/run/secrets/creatify/([\w.-]+)", example):
        pem = CERTIFICATES / pems.get(name, "")
        (folder / name).write_text(pem.read_text() if pem.is_file() else f"content of {name}\n")
    for name in re.findall(r"directory: /run/secrets/([\w-]+)", example):
        for key in ("id", "key"):
            (folder / name / "acme").mkdir(parents=True, exist_ok=True)
            (folder / name / "acme" / f"api-{key}").write_text(f"{key} in {name}\n")
    (folder / "config.yml").write_text(re.sub("/run/secrets(/creatify)?", str(folder), example))
    variables = re.findall(r"\$\{(\w+)\}", example)
    return load(folder / "config.yml", {"HOME": str(folder)} | {name: f"value of {name}" for name in variables})


def examples(key: str) -> list[str]:
    found = [block for text in REFERENCE.values() for block in blocks(text, "yaml")]
    return [block for block in found if key in yaml.safe_load(block)]


def test_every_example_in_yaml_is_of_a_kind_that_is_checked_here() -> None:
    total = sum(len(blocks(text, "yaml")) for text in REFERENCE.values())
    assert len(examples("workspaces")) + len(examples("scrape_configs")) == total


def test_every_example_of_a_configuration_loads(tmp_path: Path) -> None:
    for number, example in enumerate(examples("workspaces")):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = configured(example, folder)
        assert config.workspaces, example
        assert not config.warnings, example


def test_the_example_of_defaults_says_the_defaults(tmp_path: Path) -> None:
    explicit = configured(blocks(CONFIGURATION, "yaml")[0], tmp_path)
    keys = {f"CREATIFY_API_{part.upper()}_FILE": str(tmp_path / f"api-{part}") for part in ("id", "key")}
    assert explicit == load(None, keys | {"HOME": str(tmp_path)})


def test_the_examples_use_every_setting() -> None:
    def used(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(used, node))
        return set(node).union(*map(used, node.values())) if isinstance(node, dict) else set()

    words = used([yaml.safe_load(block) for block in blocks(CONFIGURATION, "yaml")])
    assert {re.split(r"[.\[\]]+", name)[-1] for name, _ in config_settings()} <= words


def test_every_environment_variable_is_documented() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'"(CREATIFY_[A-Z_]+|[A-Z]+_DIRECTORY|XDG_[A-Z_]+|HOME|SSL_[A-Z_]+)"', source))
    assert used <= set(first_names(section(CONFIGURATION, "Without a file")))
    assert len(used) > 4


def test_so_much_of_a_failure_is_searched_as_is_said() -> None:
    assert f"first {LONGEST:,} characters" in CONFIGURATION


# Prometheus


def test_prometheus_takes_every_example_of_a_scrape(promtool: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.yml" for number, _ in enumerate(examples("scrape_configs"))]
    for path, example in zip(files, examples("scrape_configs"), strict=True):
        path.write_text(example)
    run(promtool, "check", "config", *map(str, files))


def test_the_readme_shows_both_ways_to_scrape() -> None:
    scrapes = [block for block in blocks(README, "yaml") if "scrape_configs" in block]
    kinds = [set(yaml.safe_load(block)["scrape_configs"][0]) for block in scrapes]
    assert ["static_configs" in kind for kind in kinds] == [True, False]
    assert ["http_sd_configs" in kind for kind in kinds] == [False, True]


# All documents


def slugs(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(link: str, path: Path) -> bool:
    """Whether a link in a document leads to a file and a heading that exist; those to other sites are not followed."""
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    return bool(re.match(r"[a-z]+:", link)) or (target.exists() and (not anchor or anchor in slugs(target.read_text())))


def test_every_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    texts = {path: without_code(path.read_text()) for path in DOCUMENTS}
    links = [(path, link) for path, text in texts.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(links) > len(DOCUMENTS)
    assert [f"{path.relative_to(ROOT)}: {link}" for path, link in links if not leads_somewhere(link, path)] == []


def test_no_document_knows_a_registry_or_a_machine() -> None:
    registry = r"https?://[^\s)>]*(?:pypi|pythonhosted|npmjs|registry|docker|ghcr|quay)"
    machine = r"(?<![\w.~}])/(?:work|root|home|Users|tmp)/"
    found = {str(path.relative_to(ROOT)): re.findall(f"{registry}|{machine}", path.read_text()) for path in DOCUMENTS}
    assert {path: words for path, words in found.items() if words} == {}


def test_decisions_are_numbered_without_gaps_and_have_one_shape() -> None:
    for number, path in enumerate(DECISIONS, start=1):
        assert re.fullmatch(rf"{number:04}-[a-z0-9-]+\.md", path.name), path.name
        headings = re.findall(r"^#+ .*$", without_code(path.read_text()), re.MULTILINE)
        assert headings[0].startswith(f"# {number}. ")
        assert headings[1:] == ["## Context", "## Options", "## Decision", "## Consequences"]
        assert len(path.read_text().splitlines()) <= 60, "a decision is one short page"


def test_a_decision_that_is_replaced_says_by_which() -> None:
    heads = {path.name: path.read_text().partition("## Context")[0] for path in DECISIONS}
    replaced = {
        (old, new)
        for new, head in heads.items()
        for old in re.findall(r"\]\((\d+-[\w-]+\.md)\)", head.partition("Replaces")[2])
    }
    assert len(replaced) > 5
    assert [pair for pair in sorted(replaced) if pair[0] < pair[1] and f"({pair[1]})" not in heads[pair[0]]] == []


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_two_commands_are_enough_and_ci_runs_the_second_one() -> None:
    commands, _with_docker_alone = blocks(section(README, "Try it"), "sh")
    start, test = commands.splitlines()
    assert (start, test) == ("make run", "make test")
    assert {"run", "test"} <= makefile_targets()
    assert test in (ROOT / ".ci/run").read_text().splitlines()


def test_the_tests_that_begin_first_are_there() -> None:
    named = [name.partition("::") for name in BEGIN_FIRST]
    assert not [(path, test) for path, _, test in named if f"def {test}" not in (ROOT / "tests" / path).read_text()]


def test_every_target_of_make_is_documented_and_no_other_is() -> None:
    assert set(first_names(section(CONTRIBUTING, "Commands"))) == {f"make {target}" for target in makefile_targets()}
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE)) == makefile_targets()


def test_the_walk_through_a_scrape_names_modules_that_are_there_and_every_room() -> None:
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    named = {name for name in quoted(CONTRIBUTING) if re.fullmatch(r"([a-z_]+/)?[a-z_]+\.py", name)}
    assert named <= modules
    assert {name.rpartition("/")[0] for name in modules} - {""} <= {name.rpartition("/")[0] for name in named} | {
        "simulator"
    }


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


def run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
