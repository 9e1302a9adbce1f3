"""The configuration file and the environment become a `Config`, or all that is wrong with them."""

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
"""What `init` writes, and the documents name; no command reads it unless it is told to."""
KEY_VARIABLES: Final = (_ID, f"{_ID}_FILE", _KEY, f"{_KEY}_FILE")


def load(
    path: Path | None, environ: Mapping[str, str], *, ledger_url: str | None = None, keys_needed: bool = True
) -> Config:
    """Read the file, if there is one, and the environment; ConfigError holds every mistake in them.

    `ledger_url` is the flag of that name, and wins over the file. Relative names of files start at the
    folder of the configuration file, in the environment and in a ledger's URL at the working directory.
    A command that asks the API nothing does without workspaces, and says that no keys are needed: they stay unread,
    since whoever looks into a ledger often cannot read them.
    """
    found = document.read(path, "--config.file") if path else Document({})
    reader = Reader(found, environ, keys_needed=keys_needed)
    # What is no URL is refused as such when it is read.
    with suppress(ValueError):
        if ledger_url is not None and LedgerUrl.parse(ledger_url).shows_password:
            reader.problems.append(
                "--ledger.url: shows its password to all users of this machine; "
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
    """Return the ledger that a command line names; ConfigError if it names none, or shows a password."""
    try:
        url = LedgerUrl.parse(text)
    except ValueError as error:
        raise ConfigError([f"a ledger's URL {error}"]) from None
    if url.shows_password:
        raise ConfigError(["a ledger's URL shows its password to all users of this machine; use PGPASSFILE"])
    return url


def _check_authorities(reader: Reader) -> None:
    """Look at the authorities that the environment names, which hold wherever a workspace has no `ca_file`."""
    name = reader.environ.get("SSL_CERT_FILE")
    try:
        if name:
            pem.authorities(Path(name))
    except ValueError as error:
        reader.problems.append(f"environment: SSL_CERT_FILE: {name} {error}")


def _with_url(ledger: object, reader: Reader, flag: str | None) -> object:
    """Complete the file's `ledger` by flag, environment or default; what is no mapping is left for its error."""
    if not isinstance(ledger, dict | None):
        return ledger
    others = {name: value for name, value in (ledger or {}).items() if name not in ("url", "url_file")}
    if flag is not None:
        return {**others, "url": Given("--ledger.url", flag)}
    given = {name: value for name, value in (ledger or {}).items() if name not in others and value is not None}
    return {**others, **(given or _url_of_environment(reader.environ) or _default_url(reader))}


def _url_of_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    variables = {"url": "CREATIFY_LEDGER_URL", "url_file": "CREATIFY_LEDGER_URL_FILE"}
    return {key: Given(f"environment: {name}", environ[name]) for key, name in variables.items() if environ.get(name)}


def _default_url(reader: Reader) -> dict[str, Given]:
    where = "the default of ledger.url"
    try:
        return {"url": Given(where, f"sqlite:///{_state_folder(reader.environ)}/ledger.db")}
    except ValueError:
        reader.problems.append(
            f"{where}: there is no home directory to put the ledger into; "
            "set ledger.url, --ledger.url, CREATIFY_LEDGER_URL, or HOME"
        )
        return {}


def _state_folder(environ: Mapping[str, str]) -> Path:
    """Return where this program may keep its state: systemd says, else the XDG base directories do.

    ValueError if there is no home directory.
    """
    if folders := environ.get("STATE_DIRECTORY"):
        return Path(folders.split(":")[0])
    state = Path(environ.get("XDG_STATE_HOME", ""))
    # The specification says to ignore a relative one.
    return (state if state.is_absolute() else file.expanded("~/.local/state")) / "creatify-exporter"


def _from_environment(reader: Reader, *, is_only_source: bool) -> list[dict[str, Given]]:
    """Return the workspace that the environment describes, in a list that is empty if it is incomplete."""
    environ = reader.environ
    given = {name: Given(f"environment: {name}", environ[name]) for name in KEY_VARIABLES if environ.get(name)}
    problems = list(_mistakes(given)) if given else []
    if reader.keys_needed:
        reader.problems.extend(problems)
        if not given:
            is_forgotten = is_only_source and USUAL_FILE.exists()
            reader.fault(
                "workspaces",
                "there is none; list one with name, api_id and api_key in a file (--config.file), "
                "or set CREATIFY_API_ID and CREATIFY_API_KEY, or their _FILE forms, in the environment"
                + (f"; did you mean --config.file {USUAL_FILE}?" if is_forgotten else ""),
            )
    keys = {name.removeprefix("CREATIFY_").lower(): value for name, value in given.items()}
    return [{"name": Given("environment", "default"), **keys}] if given and not problems else []


def _mistakes(given: Mapping[str, Given]) -> Iterator[str]:
    for name in (_ID, _KEY):
        forms = (name in given, f"{name}_FILE" in given)
        if all(forms):
            yield f"environment: {name}: is given together with {name}_FILE; keep one of them"
        if not any(forms):
            yield f"environment: {name}: is missing; set it or {name}_FILE"
