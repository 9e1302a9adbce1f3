"""Directories of keys: a folder per workspace, with its name, holds `api-id`, `api-key` and optionally `plan.yml`."""

from collections.abc import Iterator, Mapping, Sequence
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


class KeysDirectory(NamedTuple):
    """A directory, the plan of each folder (None: it has none) by its name, and the state before they were read."""

    path: Path
    plans: Mapping[str, Plan | None]
    state: object

    def keys(self, name: str) -> tuple[Credential, Credential]:
        """Return the API id and the API key in a folder."""
        return Credential(file=self.path / name / _ID_FILE), Credential(file=self.path / name / _KEY_FILE)


def state(directory: Path) -> object:
    """Return a value that changes when a reload would find a difference: in folders, in plans, in which keys exist."""
    try:
        return [
            (path.name, _exists(path / _ID_FILE), _exists(path / _KEY_FILE), file.state(path / _PLAN_FILE))
            for path in _folders(directory)
        ]
    except ValueError:
        return None


def _read(directory: Path, keys: Sequence[str] = (_ID_FILE, _KEY_FILE)) -> KeysDirectory:
    """Read the folders, each of which must have the files `keys`.

    ConfigError lists everything wrong in the folders, ValueError says what is wrong with the directory itself.
    """
    before, folders = state(directory), _folders(directory)
    # A volume that is not mounted must not remove all workspaces.
    if not folders:
        raise ValueError("has no folders; create one per workspace, with its name and the files api-id and api-key")
    plans: dict[str, Plan | None] = {}
    problems: list[str] = []
    for folder in folders:
        found = [*_check_name(folder), *_check_keys(folder, keys)]
        try:
            plans[folder.name] = _read_plan(folder)
        except ConfigError as error:
            found += error.problems
        problems += [f"folder {folder.name!r}: {problem}" for problem in found]
    if problems:
        raise ConfigError(problems)
    return KeysDirectory(directory, plans, before)


def _check_name(folder: Path) -> Iterator[str]:
    try:
        parse_label(folder.name)
    except ValueError as error:
        yield f"its name {error}"


def _check_keys(folder: Path, keys: Sequence[str]) -> Iterator[str]:
    for name in keys:
        try:
            Credential(file=folder / name).checked()
        except ValueError as error:
            yield f"{name} {error}"


def _read_plan(folder: Path) -> Plan | None:
    path = folder / _PLAN_FILE
    return plan.read(path) if _exists(path) else None


def _exists(path: Path) -> bool:
    return file.state(path) is not None


def _folders(directory: Path) -> list[Path]:
    """Return the folders, except for names that start with a dot, which are links of Kubernetes."""
    try:
        return sorted(each for each in directory.iterdir() if not each.name.startswith(".") and each.is_dir())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; specify a readable directory") from None
    except ValueError:
        # A NUL or a lone surrogate in the name.
        raise ValueError("is not a valid directory name; specify a readable directory") from None


Directory = Annotated[KeysDirectory, read_path_by(_read, parse_without_keys=partial(_read, keys=()))]
