"""Write the dashboards: `python -m grafana.build`; `--check` verifies that the committed files are up to date."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.credits import build as build_credits
from grafana.exporter import build as build_exporter
from grafana.failures import build as build_failures
from grafana.overview import build as build_overview

FOLDER: Final = Path(__file__).parent / "dashboards"
BUILDERS: Final[tuple[Callable[[], Dashboard], ...]] = (
    build_overview,
    build_failures,
    build_credits,
    build_exporter,
)


def files() -> dict[Path, str]:
    """Return each dashboard's file with its content."""
    return {FOLDER / f"{page.uid}.json": encoded(page) for page in (build() for build in BUILDERS)}


def encoded(page: Dashboard) -> str:
    """Return a dashboard as JSON with readable line-by-line diffs."""
    plain = json.loads(JSONEncoder().encode(page), object_hook=_unhidden)
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _unhidden(fields: dict[str, object]) -> dict[str, object]:
    """Keep links and annotations on the page: the builders always put them into a menu."""
    return {key: value for key, value in fields.items() if (key, value) != ("placement", "inControlsMenu")}


def main(arguments: list[str]) -> int:
    """Write changed files; with `--check` only print their names, and return 1 if there are any."""
    stale = {path: text for path, text in files().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(path.name)
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
