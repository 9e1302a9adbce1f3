"""Creatify's lists of tasks as data: the name and path of each list, and the fields and words that its tasks have.

A new list needs an entry here, a row in docs/lists.md, its name among the values of `api` in docs/metrics.md, and a
product of the simulated API (`simulator/products.py`). Tests report which of them are missing; another test compares
the metrics with a file, which `UPDATE_GOLDEN=1` rewrites. docs/lists.md also says how well each fact is known.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

_TEXT: Final[Mapping[str, str]] = {"pending": "pending", "running": "running", "done": "done", "failed": "failed"}
# The words of all other lists; several are documented only for some of these.
_COMMON: Final[Mapping[str, str]] = {
    **_TEXT,
    "in_queue": "pending",
    "initializing": "pending",
    "generating": "running",
    "rejected": "failed",
}
_PRODUCT: Final[Mapping[str, str]] = {
    **_COMMON,
    "image_generating": "running",
    "image_generated": "done",
    "video_generating": "running",
    "video_generated": "done",
}

REJECTED: Final = "rejected"
"""The word for a task that was rejected before it ran; also its failure text, and its reason, if it gives none."""


class TaskList(NamedTuple):
    """One list.

    `api` is its name in the configuration and the value of the label. `model_field` is the field with the model of an
    entry; if it is missing or empty, the model is `default_model`. `statuses` maps the list's words to the four
    statuses; all other words are unknown. `min_interval` is the shortest time between two fetches in seconds; None
    means that each scrape fetches the list. Creatify has no page about a list without `is_documented`: it is unproven.
    """

    api: str
    path: str
    model_field: str | None = None
    default_model: str | None = None
    statuses: Mapping[str, str] = _COMMON
    tells_credits: bool = True
    tells_creation: bool = True
    has_previews: bool = False
    min_interval: float | None = 60.0
    is_documented: bool = True


def _list(api: str, model_field: str | None = None) -> TaskList:
    return TaskList(api, f"/api/{api}/", model_field, default_model=api)


TEXT_GENERATOR: Final = TaskList(
    "text_generator", "/sse/text_generator/", "model_name", statuses=_TEXT, min_interval=None
)

_DOCUMENTED: Final = (
    TEXT_GENERATOR,
    _list("aurora", "model_version"),
    _list("lipsyncs", "model_version")._replace(has_previews=True),
    _list("lipsyncs_v2")._replace(has_previews=True),
    _list("text_to_speech"),
    _list("ai_shorts")._replace(has_previews=True),
    _list("ai_scripts"),
    _list("ads_clone"),
    _list("iab_images"),
    _list("product_to_videos", "type")._replace(statuses=_PRODUCT, tells_credits=False),
)
_UNPROVEN: Final = (
    _list("link_to_videos", "model_version")._replace(tells_creation=False, has_previews=True),
    _list("custom_template_jobs", "model_version")._replace(has_previews=True),
    _list("asset_generator", "model_name"),
    _list("ai_editing")._replace(has_previews=True),
    _list("inspiration_jobs", "gen_type")._replace(tells_credits=False),
    _list("boreal", "model"),
)

LISTS: Final[Mapping[str, TaskList]] = {
    **{each.api: each for each in _DOCUMENTED},
    **{each.api: each._replace(is_documented=False) for each in _UNPROVEN},
}


def tells_credits(api: str) -> bool:
    """Return whether a list reports credits; a list that is not in the table is assumed to."""
    return api not in LISTS or LISTS[api].tells_credits


def rejects(api: str) -> bool:
    """Return whether tasks of a list may be rejected; a list that is not in the table is assumed to reject them."""
    return api not in LISTS or REJECTED in LISTS[api].statuses


def other_list(api: str, path: str) -> TaskList:
    """Return a list that is not in the table; the model, if there is one, is expected in `model_name`."""
    return TaskList(api, path, "model_name", default_model=api, has_previews=True, is_documented=False)
