"""Files that users name, and pipes in their place."""

import os
import threading
from pathlib import Path

import pytest

from creatify_exporter.config import file


def test_a_pipe_is_read_once_with_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yml"
    os.mkfifo(path)
    before = file.state(path)
    writer = threading.Thread(target=path.write_text, args=("workspaces: []\n",))
    writer.start()
    content = file.read(path, 1000, pipe=True)
    writer.join()
    assert content == b"workspaces: []\n"
    assert file.state(path) == before, "new content in a pipe is not a change"
    monkeypatch.setattr(file, "_PIPE_TIMEOUT", 0.05)
    with pytest.raises(ValueError, match="nothing was written for"):
        file.read(path, 1000, pipe=True)
