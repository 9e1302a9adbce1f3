"""The command as it is started, also by `python -m creatify_exporter`: signals first, since imports take a second."""

import sys

from creatify_exporter import signals


def main() -> int:
    """Run the command line; return its exit code."""
    signals.hold()
    from creatify_exporter import cli  # noqa: PLC0415  takes time, in which a signal may come

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
