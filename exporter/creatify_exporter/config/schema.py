"""The settings: each struct is a mapping of the configuration file, each field a key with its default.

Rules for one value are with its type (`values`, `url`, `credential`, `directory`); rules between values are in
`validate`, which runs only if every value of the struct could be read.
"""

import ipaddress
import ssl
from collections.abc import Callable, Iterator
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from creatify_exporter.config.credential import Secret
from creatify_exporter.config.directory import Directory
from creatify_exporter.config.pem import AuthoritiesFile, CertificateFile, KeyFile, load_pair
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.reader import Settings
from creatify_exporter.config.url import BaseUrl, LedgerLocation, LedgerUrl, ProxyUrl
from creatify_exporter.config.values import (
    ALL,
    Label,
    ListName,
    ListPath,
    Pattern,
    Reason,
    Size,
    duration,
    near_lists,
)
from creatify_exporter.lists import LISTS, TaskList, other_list
from creatify_exporter.redaction import SHORTEST

# In seconds.
_HOUR: Final = 3600
_YEAR: Final = 365 * 24 * 3600

History = Literal["count", "skip"]


class TLS(Settings, frozen=True, kw_only=True):
    """`tls_config`: how to verify the API's certificate, and a client certificate; named as in Prometheus."""

    ca_file: AuthoritiesFile | None = None
    cert_file: CertificateFile | None = None
    key_file: KeyFile | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require a certificate and its key together."""
        if self.cert_file and self.key_file:
            try:
                load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.cert_file, self.key_file)
            except ValueError as error:
                yield "key_file", str(error)
        elif self.cert_file:
            yield "cert_file", "has no key; add key_file"
        elif self.key_file:
            yield "key_file", "has no certificate; add cert_file"


class ListSettings(Settings, frozen=True, kw_only=True):
    """`lists[]`: one list of Creatify, or all documented ones; written as a name or as a mapping.

    `path` is for a list that this exporter does not know, `min_interval`, in seconds, for a list to fetch less often.
    """

    shorthand = "name"

    name: ListName
    path: ListPath | None = None
    min_interval: Annotated[float, duration("must be longer than 0s; write it like 60s", longer_than=0)] | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require the path of a list that is not known."""
        if self.path is None and self.name != ALL and self.name not in LISTS:
            yield "name", f"is not a known list; write {' or '.join(near_lists(self.name) or LISTS)}, or add its path"
        if self.path is not None and self.name == ALL:
            yield "path", "cannot be the path of all lists; name one list"

    def task_lists(self) -> list[TaskList]:
        """Return the lists to fetch; none for a name that `validate` refuses."""
        if self.min_interval is None:
            return self._usual_lists()
        return [each._replace(min_interval=self.min_interval) for each in self._usual_lists()]

    def _usual_lists(self) -> list[TaskList]:
        if self.path is not None:
            known = LISTS.get(self.name)
            return [known._replace(path=self.path) if known else other_list(self.name, self.path)]
        if self.name == ALL:
            return [each for each in LISTS.values() if each.is_documented]
        return [LISTS[self.name]] if self.name in LISTS else []


class Access(Settings, frozen=True, kw_only=True):
    """How to reach the API for a workspace, what to fetch, and its plan; `base_url` has no trailing slash."""

    base_url: BaseUrl = "https://api.creatify.ai"
    allow_insecure: bool = False
    remaining_credits: bool = True
    lists: tuple[ListSettings, ...] = (ListSettings(name="text_generator"),)
    plan: Plan | None = None
    proxy_url: ProxyUrl | None = None
    tls_config: TLS | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Refuse to send keys, which are in every request, unencrypted; refuse lists that would count twice."""
        url = urlsplit(self.base_url)
        if url.scheme != "https" and not self.allow_insecure and not _is_loopback(url.hostname or ""):
            yield "base_url", "would send the keys unencrypted; write https:// or set allow_insecure: true"
        names, paths = set[str](), dict[str, str]()
        for index, settings in enumerate(self.lists):
            lists = settings.task_lists()
            if twice := names & {each.api for each in lists}:
                yield f"lists[{index}]", f"repeats {min(twice)}; name each list once"
            elif shared := [paths[each.path] for each in lists if each.path in paths]:
                yield f"lists[{index}]", f"has the path of {shared[0]}: tasks would count twice; keep one of them"
            names |= {each.api for each in lists}
            paths |= {each.path: each.api for each in lists}
        if not self.lists and not self.remaining_credits:
            yield "lists", "is empty and remaining_credits is false, so nothing is fetched; name a list"

    def task_lists(self) -> dict[str, TaskList]:
        """Return the lists that are fetched, by name."""
        return {each.api: each for settings in self.lists for each in settings.task_lists()}


class Workspace(Access, frozen=True, kw_only=True):
    """`workspaces[]`: one Creatify workspace with its pair of keys."""

    name: Label
    api_id: Secret
    api_key: Secret

    def short_keys(self) -> Iterator[str]:
        """Warn about keys too short to be masked; those of a simulated API on this machine are not secret."""
        if _is_loopback(urlsplit(self.base_url).hostname or ""):
            return
        for name, credential in (("api_id", self.api_id), ("api_key", self.api_key)):
            if len(credential.read()) < SHORTEST:
                words = f"has fewer than {SHORTEST} characters: it is not masked in the log"
                yield f"workspace {self.name!r}: {name} {words}"


class WorkspacesFrom(Access, frozen=True, kw_only=True):
    """`workspaces_from[]`: a directory with a folder of keys per workspace, which share all else.

    A folder may have its own plan.
    """

    directory: Directory

    def workspaces(self) -> Iterator[Workspace]:
        """Yield the workspaces, sorted by name."""
        shared = {name: getattr(self, name) for name in Access.__struct_fields__}
        for name, plan in self.directory.plans.items():
            api_id, api_key = self.directory.keys(name)
            yield Workspace(**{**shared, "plan": plan or self.plan}, name=name, api_id=api_id, api_key=api_key)


class Fetch(Settings, frozen=True, kw_only=True):
    """`fetch`: limits of one fetch, of the requests of one workspace, and of fetches that run at the same time.

    `timeout` and `min_interval` are in seconds, `max_body` and `max_task` in bytes. `max_concurrent` applies twice:
    to fetches of workspaces that answer at once, and to those of slow ones.
    """

    timeout: Annotated[
        float,
        duration("must be longer than 0s and at most 1h; write it like 30s", longer_than=0, at_most=_HOUR),
    ] = 30.0
    min_interval: Annotated[float, duration()] = 14.0
    max_body: Size = 4 * 2**30
    max_task: Size = 16 * 2**20
    max_concurrent: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    max_requests_per_minute: Annotated[int, msgspec.Meta(ge=1, le=6000)] = 30

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require that one task fits into the body."""
        if self.max_body < self.max_task:
            yield "max_body", "is smaller than max_task; raise it or lower max_task"


class LedgerSettings(Settings, frozen=True, kw_only=True):
    """`ledger`: where counted tasks are stored, and what becomes of the first list (`history`). Times are in seconds.

    A ledger in memory is new at each start, so it skips the history unless `history` is set.
    """

    url: LedgerLocation = LedgerUrl("memory:")
    history: History | None = None
    settle_after: Annotated[
        float,
        duration("must be longer than 0s and at most 1y; write it like 24h", longer_than=0, at_most=_YEAR),
    ] = 24.0 * _HOUR
    new_series_hold: Annotated[float, duration("must be at most 1h; write it like 2m", at_most=_HOUR)] = 120.0

    @property
    def effective_history(self) -> History:
        """`history`, or its default for this kind of ledger."""
        return self.history or ("skip" if self.url == "memory:" else "count")

    @property
    def conninfo(self) -> Callable[[], str] | None:
        """A function that returns the current URL of the PostgreSQL database; None for other ledgers."""
        return self.url.read if self.url.is_postgresql else None


class Labels(Settings, frozen=True, kw_only=True):
    """`labels`: how many models get their own series, and which always do."""

    max_models: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    models: tuple[Label, ...] = ()

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require room for all `models`."""
        if len(set(self.models)) > self.max_models:
            yield "models", "has more models than max_models allows; raise max_models"


class ReasonRule(Settings, frozen=True, kw_only=True):
    """`failure_reasons[]`: a class of failures, as the label's value and the pattern that matches their text."""

    reason: Reason
    match: Pattern


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration. If `failure_reasons` is None, the built-in classes apply.

    After `load`, `workspaces` includes those from directories.
    """

    workspaces: tuple[Workspace, ...] = ()
    workspaces_from: tuple[WorkspacesFrom, ...] = ()
    fetch: Fetch = Fetch()
    ledger: LedgerSettings = LedgerSettings()
    labels: Labels = Labels()
    failure_reasons: tuple[ReasonRule, ...] | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require unique names: two workspaces with one name would share their series."""
        seen = set[str]()
        for index, workspace in enumerate(self.workspaces):
            if workspace.name in seen:
                yield f"workspaces[{index}].name", "is also the name of an earlier workspace; rename one of them"
            seen.add(workspace.name)
        for index, group in enumerate(self.workspaces_from):
            for name in group.directory.plans:
                if name in seen:
                    words = f"folder {name!r} has the name of an earlier workspace; rename one of them"
                    yield f"workspaces_from[{index}].directory", words
                seen.add(name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that are valid but probably a mistake; reads the credentials, which may raise ConfigError."""
        return (*self._workspace_warnings(), *self._ledger_warnings())

    def _workspace_warnings(self) -> Iterator[str]:
        first: dict[tuple[str, str, str], Workspace] = {}
        for each in self.workspaces:
            other = first.setdefault((each.base_url, each.api_id.read(), each.api_key.read()), each)
            if other is not each:
                shared = other.task_lists().keys() & each.task_lists().keys()
                twice = "tasks are counted" if shared else "balance is shown"
                yield f"workspaces {other.name!r} and {each.name!r} have the same keys: their {twice} twice"
            yield from each.short_keys()
            unproven = sorted(api for api in each.task_lists() if api in LISTS and not LISTS[api].is_documented)
            if unproven:
                words = f"lists that Creatify does not document: {', '.join(unproven)}; see docs/lists.md"
                yield f"workspace {each.name!r} fetches {words}"
            if each.allow_insecure and not each.base_url.startswith("https:"):
                yield f"workspace {each.name!r} sends its keys unencrypted (allow_insecure)"

    def _ledger_warnings(self) -> Iterator[str]:
        if self.ledger.url == "memory:" and self.ledger.history == "count":
            yield "ledger.url memory: with history: count, each start counts the whole list again"
        path = self.ledger.url.path
        if path and not path.is_absolute():
            words = "is relative to the working directory; write sqlite:////absolute/path.db, with four slashes"
            yield f"ledger.url {self.ledger.url} {words}"
        if self.ledger.new_series_hold <= 0:
            yield "ledger.new_series_hold 0s: increase() cannot see the first tasks of a new model"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
