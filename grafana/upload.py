"""Send the dashboards to a Grafana by its HTTP API: `GRAFANA_URL=… GRAFANA_TOKEN=… python3 grafana/upload.py`.

The token belongs to a service account that may write dashboards and folders (role Editor). The folder is
`GRAFANA_FOLDER` (Creatify); existing dashboards are replaced. Only Python's standard library is needed.
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
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

DASHBOARDS: Final = Path(__file__).parent / "dashboards"
TIMEOUT: Final = 30  # seconds for one request

Json = dict[str, Any]


class Refused(Exception):
    """Why Grafana, the network or the environment refuses, in one line."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which could send the token to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


class Grafana:
    """A Grafana at a URL, with or without a path. Raises `Refused` for every failure."""

    def __init__(self, url: str, token: str) -> None:
        if not re.match(r"https?://[^/]", url):
            raise Refused(
                f"GRAFANA_URL is {url!r}: give the address that the browser shows, such as https://grafana.example"
            )
        self._url, self._token = url.rstrip("/"), token
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ensure_folder(self, title: str) -> str:
        """Return the uid of a folder, creating it if it does not exist."""
        found = [each for each in self._ask("GET", "/api/folders?limit=1000") if each["title"] == title]
        [folder, *_] = found or [self._ask("POST", "/api/folders", {"title": title})]
        return str(folder["uid"])

    def put_dashboard(self, dashboard: Json, folder: str) -> str:
        """Create or replace a dashboard; return its address."""
        body = {"dashboard": dashboard, "folderUid": folder, "overwrite": True}
        return urllib.parse.urljoin(f"{self._url}/", str(self._ask("POST", "/api/dashboards/db", body)["url"]))

    def _ask(self, method: str, path: str, body: Json | None = None) -> Any:  # noqa: ANN401 - any JSON
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self._url}{path}", data, headers, method=method)  # noqa: S310 - http or https
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(f"{self._url}{path}: {error.code} {error.reason}; {_remedy(error)}") from None
        except (OSError, ValueError) as error:
            raise Refused(f"{self._url}{path}: {error}; is it a Grafana?") from None


def _setting(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise Refused(f"{name} is not set: give it in the environment")
    # urllib refuses a header with any other character, with a message that quotes it.
    if not re.fullmatch("[!-~]+", value):
        raise Refused(f"{name} has characters that belong into no address and no token: give it alone")
    return value


def _remedy(error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return "GRAFANA_TOKEN has to belong to a service account with the role Editor"
    if 300 <= error.code < 400:  # noqa: PLR2004 - the class of redirects
        return "set GRAFANA_URL to the address that it redirects to"
    # For example, a dashboard that was provisioned from a file cannot be replaced.
    with suppress(OSError, ValueError, LookupError, TypeError):
        if error.code != HTTPStatus.NOT_FOUND:
            return f"Grafana says: {json.load(error)['message']}"
    return "is GRAFANA_URL the address that the browser shows?"


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Send every dashboard; if one is refused, print the reason and return 1."""
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
