"""Send the dashboards to a Grafana by its HTTP API: `GRAFANA_URL=… GRAFANA_TOKEN=… python3 grafana/upload.py`.

The token is that of a service account that may write dashboards and folders (role Editor). The folder is
`GRAFANA_FOLDER` (Creatify); dashboards that are there already are replaced. Python's standard library is enough.
https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
"""

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

DASHBOARDS: Final = Path(__file__).parent / "dashboards"
TIMEOUT: Final = 30  # seconds for one request

Json = dict[str, Any]


class Refused(Exception):
    """What Grafana, the network or the environment says against it, in one line."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could take the token to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


class Grafana:
    """A Grafana at a URL, with or without a path. Raises `Refused` for whatever goes wrong."""

    def __init__(self, url: str, token: str) -> None:
        if not re.match(r"https?://[^/]", url):
            raise Refused(
                f"GRAFANA_URL is {url!r}: give the address that the browser shows, such as https://grafana.example"
            )
        self._url, self._token = url.rstrip("/"), token
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ensure_folder(self, title: str) -> str:
        """Return the uid of a folder, which is made if there is none."""
        uid = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self._post("/api/folders", {"uid": uid, "title": title}, there_already=(409, 412))
        return uid

    def put_dashboard(self, dashboard: Json, folder: str) -> str:
        """Make or replace a dashboard; return its address."""
        done = self._post("/api/dashboards/db", {"dashboard": dashboard, "folderUid": folder, "overwrite": True})
        return urllib.parse.urljoin(f"{self._url}/", str(done.get("url", "")))

    def _post(self, path: str, body: Json, there_already: tuple[int, ...] = ()) -> Json:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{path}", json.dumps(body).encode(), headers, method="POST")  # noqa: S310 - http or https
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                found: Json = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code in there_already:
                return {}
            raise Refused(f"{self._url}{path}: {error.code} {error.reason}; {_remedy(error.code)}") from None
        except (OSError, ValueError) as error:
            raise Refused(f"{self._url}{path}: {error}; is it a Grafana?") from None


def _setting(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise Refused(f"{name} is not set: give it in the environment")
    return environ[name]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "GRAFANA_TOKEN has to belong to a service account with the role Editor"
    if 300 <= status < 400:  # noqa: PLR2004 - the class of redirects
        return "set GRAFANA_URL to the address that it redirects to"
    return "is GRAFANA_URL the address that the browser shows?"


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Send every dashboard; return 1 and say why if one is refused."""
    try:
        grafana = Grafana(_setting(environ, "GRAFANA_URL"), _setting(environ, "GRAFANA_TOKEN"))
        folder = grafana.ensure_folder(environ.get("GRAFANA_FOLDER") or "Creatify")
        for path in sorted(DASHBOARDS.glob("*.json")):
            print(grafana.put_dashboard(json.loads(path.read_text("utf-8")), folder))
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
