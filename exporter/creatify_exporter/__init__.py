"""Prometheus exporter for Creatify tasks and credits."""

import os

__version__ = "0.1.0"

# Set in an image to the commit that it was built from.
__revision__ = os.environ.get("CREATIFY_EXPORTER_REVISION", "unknown")
