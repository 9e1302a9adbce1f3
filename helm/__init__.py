"""The chart, and the scripts beside it."""
