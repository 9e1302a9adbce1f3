"""Reads the configuration file and the environment into a `Config`, or reports every error in them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from creatify_exporter.config import document, file, pem
from creatify_exporter.config.document import Document
from creatify_exporter.config.reader import Given, Reader
from creatify_exporter.config.schema import Config
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.errors import ConfigError

_ID: Final = "CREATIFY_API_ID"
_KEY: Final = "CREATIFY_API_KEY"
USUAL_FILE: Final = Path("creatify-exporter.yml")
"""The file that `init` writes and the documentation uses; read only if --config.file names it."""
KEY_VARIABLES: Final = (_ID, f"{_ID}_FILE", _KEY, f"{_KEY}_FILE")


def load(
    path: Path | None, environ: Mapping[str, str], *, ledger_url: str | None = None, keys_needed: bool = True
) -> Config:
    """Read the file, if there is one, and the environment; ConfigError lists every error in them.

    `ledger_url`, from the command line, takes precedence over the file. Relative file names are resolved against
    the folder of the configuration file; those in the environment and in ledger URLs, against the working directory.
    A command that sends no requests to the API passes `keys_needed=False`: it needs no workspaces, and keys stay
    unread, because a user who may read the ledger often may not read the keys.
    """
    found = document.read(path, "--config.file") if path else Document({})
    reader = Reader(found, environ, keys_needed=keys_needed)
    # The reader reports a value that is not a URL.
    with suppress(ValueError):
        if ledger_url is not None and LedgerUrl.parse(ledger_url).shows_password:
            reader.problems.append(
                "--ledger.url: exposes its password to all users of this machine; "
                "use ledger.url_file, CREATIFY_LEDGER_URL_FILE or PGPASSFILE"
            )
    raw = found.content
    if keys_needed:
        _check_authorities(reader)
    if isinstance(raw, dict):
        raw = {**raw, "ledger": _with_url(raw.get("ledger"), reader, ledger_url)}
        if raw.get("workspaces") in (None, []) and raw.get("workspaces_from") in (None, []):
            raw["workspaces"] = _from_environment(reader, is_only_source=path is None)
    config = reader.build(Config, raw)
    in_folders = tuple(workspace for group in config.workspaces_from for workspace in group.workspaces())
    return msgspec.structs.replace(config, workspaces=config.workspaces + in_folders)


def ledger_at(text: str) -> LedgerUrl:
    """Return the ledger URL on a command line; ConfigError if it is not one, or if it contains a password."""
    try:
        url = LedgerUrl.parse(text)
    except ValueError as error:
        raise ConfigError([f"the ledger URL {error}"]) from None
    if url.shows_password:
        raise ConfigError(["the ledger URL exposes its password to all users of this machine; use PGPASSFILE"])
    return url


def _check_authorities(reader: Reader) -> None:
    """Check SSL_CERT_FILE, the authorities for every workspace without a `ca_file`."""
    name = reader.environ.get("SSL_CERT_FILE")
    try:
        if name:
            pem.authorities(Path(name))
    except ValueError as error:
        reader.problems.append(f"environment: SSL_CERT_FILE: {name} {error}")


def _with_url(ledger: object, reader: Reader, flag: str | None) -> object:
    """Add the URL to the file's `ledger`, from flag, environment or default; leave a non-mapping to the reader."""
    if not isinstance(ledger, dict | None):
        return ledger
    settings = dict(ledger or {})
    if flag is not None:
        settings.pop("url_file", None)
        settings["url"] = Given("--ledger.url", flag)
    elif settings.get("url") is None and settings.get("url_file") is None:
        settings.update(_url_of_environment(reader.environ) or _default_url(reader))
    return settings


def _url_of_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    variables = {"url": "CREATIFY_LEDGER_URL", "url_file": "CREATIFY_LEDGER_URL_FILE"}
    return {key: Given(f"environment: {name}", environ[name]) for key, name in variables.items() if environ.get(name)}


def _default_url(reader: Reader) -> dict[str, Given]:
    where = "the default of ledger.url"
    try:
        return {"url": Given(where, f"sqlite:///{_state_folder(reader.environ)}/ledger.db")}
    except ValueError:
        reader.problems.append(
            f"{where}: there is no home directory for the ledger; "
            "set ledger.url, --ledger.url, CREATIFY_LEDGER_URL, or HOME"
        )
        return {}


def _state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for state: from systemd if set, otherwise from the XDG base directories.

    ValueError if there is no home directory.
    """
    if folders := environ.get("STATE_DIRECTORY"):
        return Path(folders.split(":")[0])
    state = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG specification requires that a relative path is ignored.
    return (state if state.is_absolute() else file.expanded("~/.local/state")) / "creatify-exporter"


def _from_environment(reader: Reader, *, is_only_source: bool) -> list[dict[str, Given]]:
    """Return a list with the workspace that the environment describes; an empty list if it is incomplete."""
    environ = reader.environ
    given = {name: Given(f"environment: {name}", environ[name]) for name in KEY_VARIABLES if environ.get(name)}
    if not given:
        if reader.keys_needed:
            _report_no_workspaces(reader, is_only_source=is_only_source)
        return []
    problems = list(_key_problems(given))
    if reader.keys_needed:
        reader.problems.extend(problems)
    if problems:
        return []
    keys = {name.removeprefix("CREATIFY_").lower(): value for name, value in given.items()}
    return [{"name": Given("environment", "default"), **keys}]


def _report_no_workspaces(reader: Reader, *, is_only_source: bool) -> None:
    is_forgotten = is_only_source and USUAL_FILE.exists()
    reader.report(
        "workspaces",
        "there are none; add one with name, api_id and api_key to a file (--config.file), "
        "or set CREATIFY_API_ID and CREATIFY_API_KEY, or their _FILE forms, in the environment"
        + (f"; did you mean --config.file {USUAL_FILE}?" if is_forgotten else ""),
    )


def _key_problems(given: Mapping[str, Given]) -> Iterator[str]:
    for name in (_ID, _KEY):
        forms = (name in given, f"{name}_FILE" in given)
        if all(forms):
            yield f"environment: {name}: is set together with {name}_FILE; keep one of them"
        if not any(forms):
            yield f"environment: {name}: is missing; set it or {name}_FILE"
