"""A directory of keys: a folder for each workspace, named like it, with `api-id`, `api-key` and perhaps `plan.yml`."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from creatify_exporter.config import file, plan
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.reader import read_path_by
from creatify_exporter.config.values import parse_label
from creatify_exporter.errors import ConfigError

_ID_FILE: Final = "api-id"
_KEY_FILE: Final = "api-key"
_PLAN_FILE: Final = "plan.yml"


class WorkspaceFolder(NamedTuple):
    """One folder of the directory: its name, which is the workspace's, the keys in it, and its plan if it has one."""

    name: str
    api_id: Credential
    api_key: Credential
    plan: Plan | None


class KeysDirectory(NamedTuple):
    """A directory, its folders by name, and its state before they were read."""

    path: Path
    folders: tuple[WorkspaceFolder, ...]
    state: object


def state(directory: Path) -> object:
    """Return what differs once a reload would find something else: a folder, a plan, a key that was missing."""
    try:
        return [
            (path.name, _exists(path / _ID_FILE), _exists(path / _KEY_FILE), file.state(path / _PLAN_FILE))
            for path in _paths(directory)
        ]
    except ValueError:
        return None


def _read(directory: Path, keys: Sequence[str] = (_ID_FILE, _KEY_FILE)) -> KeysDirectory:
    """Return the folders by name, which must have the files `keys`.

    ConfigError has all mistakes in them, ValueError one of the directory itself.
    """
    before, paths = state(directory), _paths(directory)
    # A volume that is not mounted must not end all workspaces.
    if not paths:
        raise ValueError("has no folder; make one for each workspace, named like it, with the files api-id and api-key")
    problems = [f"folder {path.name!r}: {mistake}" for path in paths for mistake in _mistakes(path, keys)]
    if problems:
        raise ConfigError(problems)
    return KeysDirectory(directory, tuple(_folder(path) for path in paths), before)


def _folder(path: Path) -> WorkspaceFolder:
    keys = Credential(file=path / _ID_FILE), Credential(file=path / _KEY_FILE)
    return WorkspaceFolder(path.name, *keys, _plan(path))


def _plan(folder: Path) -> Plan | None:
    path = folder / _PLAN_FILE
    return plan.read(path) if _exists(path) else None


def _exists(path: Path) -> bool:
    return file.state(path) is not None


def _paths(directory: Path) -> list[Path]:
    """Return the folders but those that begin with a dot, which are Kubernetes' own links."""
    try:
        return sorted(each for each in directory.iterdir() if not each.name.startswith(".") and each.is_dir())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; name a readable directory") from None
    except ValueError:
        # A NUL or a lone surrogate in the name.
        raise ValueError("cannot be the name of a directory; name a readable directory") from None


def _mistakes(folder: Path, keys: Sequence[str]) -> Iterator[str]:
    try:
        parse_label(folder.name)
    except ValueError as error:
        yield f"its name {error}"
    for name in keys:
        try:
            Credential(file=folder / name).checked()
        except ValueError as error:
            yield f"{name} {error}"
    try:
        _plan(folder)
    except ConfigError as error:
        yield from error.problems


Directory = Annotated[KeysDirectory, read_path_by(_read, parse_without_keys=partial(_read, keys=()))]
