"""One colour for one name in every panel: set here for statuses, reasons and causes, else derived from the name."""

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
"""Failure classes. Classes that a site configures itself get Grafana's colour for their name."""
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
"""The line that sums everything outside the top ten."""
NAMED: Final = {name: {name: color} for name, color in (STATUSES | FLOW | {OTHERS: "#8e8e8e"}).items()}
LEGENDS: Final = NAMED | {"{{status}}": STATUSES, "{{reason}}": REASONS, "{{cause}}": CAUSES}
"""A query's legend → the colours of its lines by name."""
