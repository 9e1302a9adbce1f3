"""One colour for one name, in every panel: statuses, reasons and causes are chosen here, all else follows its name."""

from typing import Final

GOOD: Final = "green"
FAIR: Final = "orange"
BAD: Final = "red"
PLAIN: Final = "text"

STATUSES: Final = {
    "pending": "yellow",
    "running": "blue",
    "preview": "super-light-blue",
    "done": "green",
    "failed": "red",
    "unknown": "purple",
}
REASONS: Final = {
    "rate_limited": "orange",
    "timeout": "semi-dark-yellow",
    "content_filtered": "purple",
    "invalid_request": "blue",
    "model_unavailable": "red",
    "insufficient_credits": "semi-dark-red",
    "internal_error": "dark-orange",
    "rejected": "dark-purple",
    "other": "light-blue",
    "unspecified": "super-light-blue",
}
"""Classes of failed tasks. Those that a site configures itself have the colour that Grafana gives to their name."""
CAUSES: Final = {
    "auth": "semi-dark-red",
    "rate_limited": "orange",
    "timeout": "semi-dark-yellow",
    "connection": "blue",
    "tls": "purple",
    "http_status": "red",
    "invalid_body": "dark-purple",
    "too_large": "light-purple",
    "redirect": "light-blue",
    "ledger": "dark-orange",
}
"""Causes of failed fetches."""
FLOW: Final = {"submitted": "blue", "finished": "green", "lists read": "purple", "lists": "#8e8e8e"}
OTHERS: Final = "the others"
"""The line that sums what is not among the top ten."""
NAMED: Final = {name: {name: color} for name, color in (STATUSES | FLOW | {OTHERS: "#8e8e8e"}).items()}
LEGENDS: Final = NAMED | {"{{status}}": STATUSES, "{{reason}}": REASONS, "{{cause}}": CAUSES}
"""Legend of a query → the colours of its lines by their names."""
