"""A certificate authority for tests, by the `openssl` command."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from conftest import tool


class Pair(NamedTuple):
    cert: Path
    key: Path


class Authority:
    """Its own certificate is `pem`; the certificates that it issues lie beside it."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._openssl = folder, tool("openssl", "openssl")
        self.pem, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._run("req", "-x509", *self._new(name, self._key), "-out", self.pem, "-days", "2")

    def issue(self, name: str, *names: str, days: int = 2, usage: str = "serverAuth,clientAuth") -> Pair:
        """Return a certificate and its key; `names` are written as openssl has them, like `DNS:localhost`.

        With negative `days`, it is one that has expired.
        """
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        sans = f"subjectAltName={','.join(names)}\n" if names else ""
        extensions.write_text(f"{sans}basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n")
        self._run("req", *self._new(name, pair.key), "-out", request)
        signer = ("-CA", self.pem, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        self._run("x509", "-req", "-in", request, "-out", pair.cert, "-days", str(days), *signer)
        return pair

    def _new(self, name: str, key: Path) -> list[str]:
        curve = "ec_paramgen_curve:prime256v1"
        return ["-newkey", "ec", "-pkeyopt", curve, "-nodes", "-keyout", str(key), "-subj", f"/CN={name}"]

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run([self._openssl, *arguments], check=True, capture_output=True)
