"""A first configuration file with comments, to be changed by hand."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import yaml

from creatify_exporter.config.document import Document
from creatify_exporter.config.load import ledger_at
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.values import Label
from creatify_exporter.config.yaml_reader import Given, Reader, Settings
from creatify_exporter.errors import ConfigError


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What a person has told; a key without a file comes from the environment, None is left to be told later."""

    workspace: str = "default"
    api_id_file: Path | None = None
    api_key_file: Path | None = None
    plan: Mapping[str, object] = {}
    ledger_url: str | None = None

    def check(self) -> None:
        """Raise ConfigError if a configuration with these answers would be refused; files of keys may come later."""
        if self.ledger_url is not None:
            ledger_at(self.ledger_url)
        reader = Reader(Document({}), "the command line", Path(), {})
        reader.build(_Told, {"workspace": Given("--workspace", self.workspace), "plan": dict(self.plan)})


class _Told(Settings, frozen=True, kw_only=True):
    workspace: Label
    plan: Plan


def write(path: Path, answers: Answers) -> None:
    """Write the file; ConfigError if there is one already, if it cannot be written, or if an answer is wrong."""
    answers.check()
    text = "\n".join((*_workspace(answers), *_ledger(answers), *_labels(), ""))
    try:
        with path.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise ConfigError([f"{path} exists already; name another file with --config.file"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}; name another with --config.file"]) from None


def _workspace(answers: Answers) -> Iterator[str]:
    yield "# A configuration of creatify-exporter; check it with: creatify-exporter check --config.file FILE"
    yield "workspaces:"
    yield "  # The label `workspace` of all metrics."
    yield f"  - name: {_text(answers.workspace)}"
    yield "    # A key in a file (api_id_file, api_key_file) is read for each request: a new key needs no restart."
    yield f"    {_key('api_id', answers.api_id_file)}"
    yield f"    {_key('api_key', answers.api_key_file)}"
    yield "    # The kinds of tasks to fetch, by the names in docs/lists.md, or `all` that Creatify documents."
    yield "    # lists: [text_generator, link_to_videos, lipsyncs]"
    yield "    # What the API does not tell: credits of a period, day of the month it starts on, price of a credit."
    yield from (f"    {line}" for line in _plan(answers.plan))


def _text(value: object) -> str:
    """Return a text in quotes, in which `${` stands for itself."""
    return _yaml(str(value)).replace("${", "$${")


def _yaml(value: object) -> str:
    """Return a value on one line, a text in quotes; JSON's 1e-05 is no number to YAML, and its emoji are no emoji."""
    style = '"' if isinstance(value, str) else None
    text: str = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)
    return text.partition("\n")[0]


def _key(name: str, file: Path | None) -> str:
    # What is relative on the command line starts somewhere else than what is relative in the file.
    return f"{name}_file: {_text(file.absolute())}" if file else f"{name}: ${{CREATIFY_{name.upper()}}}"


def _plan(plan: Mapping[str, object]) -> Iterator[str]:
    if not plan:
        yield "# plan: {credits: 2000, renews_on_day: 1, price_per_credit: 0.15, currency: USD}"
        return
    yield "plan:"
    for name, value in plan.items():
        yield f"  {name}: {_yaml(value)}"


def _ledger(answers: Answers) -> Iterator[str]:
    yield "# Where counted tasks are remembered; it must outlive the exporter, or totals begin again."
    if answers.ledger_url is None:
        yield '# ledger: {url: "sqlite:////var/lib/creatify-exporter/ledger.db"}'
    else:
        yield "ledger:"
        yield f"  url: {_text(answers.ledger_url)}"


def _labels() -> Iterator[str]:
    yield "# Models that always get series of their own; of others only the first hundred do."
    yield "# labels: {models: [gemini-2.5-pro]}"
