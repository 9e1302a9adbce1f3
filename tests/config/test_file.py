"""Files that people name, and what is none."""

import os
import threading
from pathlib import Path

import pytest

from creatify_exporter.config import file


def test_a_pipe_is_read_once_and_waited_for_no_longer_than_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yml"
    os.mkfifo(path)
    before = file.state(path)
    writer = threading.Thread(target=path.write_text, args=("workspaces: []\n",))
    writer.start()
    content = file.read(path, 1000, pipe=True)
    writer.join()
    assert content == b"workspaces: []\n"
    assert file.state(path) == before, "what was written is no change to be read"
    monkeypatch.setattr(file, "_PIPE_TIMEOUT", 0.05)
    with pytest.raises(ValueError, match="nothing was written for"):
        file.read(path, 1000, pipe=True)
