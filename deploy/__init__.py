"""What runs the exporter elsewhere, and what releases it."""
