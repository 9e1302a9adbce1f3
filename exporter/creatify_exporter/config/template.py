"""Writes a first configuration file, with comments, to be edited by hand."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import yaml

from creatify_exporter.config.document import Document
from creatify_exporter.config.load import ledger_at
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.reader import Given, Reader, Settings, is_like_content
from creatify_exporter.config.values import Label
from creatify_exporter.errors import ConfigError

_TEMPLATE: Final = """\
# Configuration of creatify-exporter; check it with: creatify-exporter check --config.file FILE
workspaces:
  # The label `workspace` of all metrics.
  - name: {name}
    # Files (api_id_file, api_key_file) are read for each request, so a new key needs no restart.
    {api_id}
    {api_key}
    # The lists of tasks to fetch, by the names in docs/lists.md; `all` means those that Creatify documents.
    # lists: [text_generator, link_to_videos, lipsyncs]
    # Facts that the API does not report: credits per period, the day of the month it starts, the price of a credit.
    {plan}
# Where counted tasks are stored; it must outlive the exporter, or totals start again.
{ledger}
# Models that always get their own series; of all others, only the first hundred do.
# labels: {{models: [gemini-2.5-pro]}}
"""
_SOME_PLAN: Final = "# plan: {credits: 2000, renews_on_day: 1, price_per_credit: 0.15, currency: USD}"
_SOME_LEDGER: Final = '# ledger: {url: "sqlite:////var/lib/creatify-exporter/ledger.db"}'


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of the user; a key without a file comes from the environment, and None means not given."""

    workspace: str = "default"
    api_id_file: Path | None = None
    api_key_file: Path | None = None
    plan: Mapping[str, object] = {}
    ledger_url: str | None = None

    def check(self) -> None:
        """Raise ConfigError if a configuration with these answers would be refused; key files may be missing still."""
        if self.ledger_url is not None:
            ledger_at(self.ledger_url)
        reader = Reader(Document({}, "the command line"), {})
        for name, key_file in (("api-id", self.api_id_file), ("api-key", self.api_key_file)):
            # A key would be written into the file in clear.
            if key_file and is_like_content(str(key_file), key_file):
                variable = f"CREATIFY_{name.upper().replace('-', '_')}"
                reader.problems.append(
                    f"--{name}-file: there is no such file; write the key into one first, "
                    f"or if this is the key itself, leave the flag out and set {variable}"
                )
        reader.build(_Checked, {"workspace": Given("--workspace", self.workspace), "plan": dict(self.plan)})


class _Checked(Settings, frozen=True, kw_only=True):
    workspace: Label
    plan: Plan


def write(path: Path, answers: Answers) -> None:
    """Write the file; ConfigError if it exists, if it cannot be written, or if an answer is wrong."""
    answers.check()
    text = _TEMPLATE.format(
        name=_quoted(answers.workspace),
        api_id=_key("api_id", answers.api_id_file),
        api_key=_key("api_key", answers.api_key_file),
        plan="\n      ".join(["plan:", *(f"{name}: {_yaml(value)}" for name, value in answers.plan.items())])
        if answers.plan
        else _SOME_PLAN,
        ledger=f"ledger:\n  url: {_quoted(answers.ledger_url)}" if answers.ledger_url is not None else _SOME_LEDGER,
    )
    try:
        with path.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise ConfigError([f"{path} already exists; specify another file with --config.file"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}; specify another with --config.file"]) from None


def _quoted(value: object) -> str:
    """Return a text in quotes, with `${` escaped."""
    return _yaml(str(value)).replace("${", "$${")


def _yaml(value: object) -> str:
    """Return a value on one line, a text in quotes. Not JSON: YAML reads its 1e-05 as text, and misreads its emoji."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    style = '"' if isinstance(value, str) else None
    text: str = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)
    return text.partition("\n")[0]


def _key(name: str, file: Path | None) -> str:
    # A relative path on the command line and one in the file are resolved against different folders.
    return f"{name}_file: {_quoted(file.absolute())}" if file else f"{name}: ${{CREATIFY_{name.upper()}}}"
