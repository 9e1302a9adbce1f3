"""`python -m creatify_exporter` is `creatify-exporter`."""

import sys

from creatify_exporter.cli import main

sys.exit(main())
