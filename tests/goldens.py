"""Texts that have to be the same as in a file."""

import os
from difflib import unified_diff
from pathlib import Path

import pytest


def assert_golden(text: str, path: Path) -> None:
    """Fail with a unified diff if the file has another text; `UPDATE_GOLDEN=1` in the environment rewrites it."""
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    golden = path.read_text()
    if text != golden:
        lines = unified_diff(golden.splitlines(), text.splitlines(), str(path), "this test", lineterm="")
        pytest.fail("\n".join(["run it with UPDATE_GOLDEN=1 if the difference is intended", *lines]), pytrace=False)
