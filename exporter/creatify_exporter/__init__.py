"""Prometheus exporter for Creatify tasks and credits."""

import os

__version__ = "0.1.0"

# The image that is built from a commit tells which one.
__revision__ = os.environ.get("CREATIFY_EXPORTER_REVISION", "unknown")
