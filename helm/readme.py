"""Write the table of values into the chart's README: `python helm/readme.py`, or verify it: `--check`.

The comment above a value that begins with `# --` describes that value and everything below it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

CHART: Final = Path(__file__).parent / "creatify-exporter"
BEGIN: Final = "<!-- values: made by helm/readme.py -->\n"
END: Final = "<!-- end of values -->\n"


def described(node: yaml.MappingNode, lines: list[str], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the name, the default and the description of each value; raise ValueError for one without a description."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        comment = _comment_above(lines, key.start_mark.line)
        if comment:
            yield name, json.dumps(yaml.safe_load(yaml.serialize(value)), ensure_ascii=False), comment
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from described(value, lines, f"{name}.")
        else:
            raise ValueError(f"values.yaml: {name} has no comment that begins with # --")


def _comment_above(lines: list[str], number: int) -> str:
    block: list[str] = []
    while number and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        block.insert(0, lines[number].strip().removeprefix("#").strip())
    return " ".join(block).removeprefix("-- ") if block and block[0].startswith("-- ") else ""


def table(values: str) -> str:
    """Return the table of the values in a values.yaml."""
    root = yaml.compose(values)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - the chart's own file
    rows = [
        f"| `{name}` | `{default}` | {text.replace('|', chr(92) + '|')} |\n"
        for name, default, text in described(root, values.splitlines())
    ]
    return "".join(["| value | default | |\n", "|---|---|---|\n", *rows])


def main() -> int:
    """Write or check the README; return 1 if a check finds it outdated."""
    path = CHART / "README.md"
    old = path.read_text("utf-8")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n{table((CHART / 'values.yaml').read_text('utf-8'))}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if new != old:
            print("the table of values is outdated: run python helm/readme.py", file=sys.stderr)
        return int(new != old)
    path.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
