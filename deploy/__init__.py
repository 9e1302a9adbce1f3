"""Files that run the exporter elsewhere, and the release script."""
