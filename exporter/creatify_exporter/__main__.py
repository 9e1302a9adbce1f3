"""Entry point, also of `python -m creatify_exporter`. Holds signals first, because the imports take a second."""

import sys

from creatify_exporter import signals


def main() -> int:
    """Run the command line; return its exit code."""
    signals.hold()
    from creatify_exporter import cli  # noqa: PLC0415  takes time, during which a signal may arrive

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
