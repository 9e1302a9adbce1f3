"""Directories of keys: a folder per workspace, with its name, holds `api-id`, `api-key` and optionally `plan.yml`."""

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
    """A folder of the directory: its name, which is that of the workspace, its keys, and its plan if it has one."""

    name: str
    api_id: Credential
    api_key: Credential
    plan: Plan | None


class KeysDirectory(NamedTuple):
    """A directory, its folders sorted by name, and its state before they were read."""

    path: Path
    folders: tuple[WorkspaceFolder, ...]
    state: object


def state(directory: Path) -> object:
    """Return a value that changes when a reload would find a difference: in folders, in plans, in which keys exist."""
    try:
        return [
            (path.name, _exists(path / _ID_FILE), _exists(path / _KEY_FILE), file.state(path / _PLAN_FILE))
            for path in _paths(directory)
        ]
    except ValueError:
        return None


def _read(directory: Path, keys: Sequence[str] = (_ID_FILE, _KEY_FILE)) -> KeysDirectory:
    """Read the folders, each of which must have the files `keys`.

    ConfigError lists everything wrong in the folders, ValueError says what is wrong with the directory itself.
    """
    before, paths = state(directory), _paths(directory)
    # A volume that is not mounted must not remove all workspaces.
    if not paths:
        raise ValueError("has no folders; create one per workspace, with its name and the files api-id and api-key")
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
    """Return the folders, except for names that start with a dot, which are links of Kubernetes."""
    try:
        return sorted(each for each in directory.iterdir() if not each.name.startswith(".") and each.is_dir())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; specify a readable directory") from None
    except ValueError:
        # A NUL or a lone surrogate in the name.
        raise ValueError("is not a valid directory name; specify a readable directory") from None


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
