"""Prometheus exporter for Creatify text generation tasks and credits."""

__version__ = "0.1.0"
