"""The chart and its scripts."""
