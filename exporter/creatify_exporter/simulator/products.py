"""The API's lists, as data: which fields and words each uses for a task, what tasks cost, and when.

`grade` says how well the format of the list is known: A from its documentation, B from public replies, C from other
people's interpretation, D by inference. Facts graded below A may be wrong.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Final, Literal, NamedTuple

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.faults import LIST_PATH
from creatify_exporter.simulator.traffic import MODELS, Model

When = Literal["created", "running", "finished", "later", "never"]
"""When credits are reported or charged; `later`: in stages, up to two minutes after the end, as for texts."""

PACIFIC: Final = timezone(timedelta(hours=-7))


class Product(NamedTuple):
    """One kind of task, and its list."""

    api: str
    path: str
    grade: Literal["A", "B", "C", "D"]
    models: Sequence[Model]
    rate: float
    """Tasks per second in a ready-made account."""
    model_field: str = ""
    """The field that names the model; empty: there is none, and the only model has the name of the list."""

    waiting: Sequence[str] = ("pending", "in_queue")
    """Values of `status`, in order, before a task runs; if this and `working` are empty, it ends at its creation."""
    working: Sequence[str] = ("running",)
    ended: str = "done"
    failures: Sequence[str] = ("failed",)
    """All equally likely. `rejected` happens before the task runs."""
    second: Sequence[str] = ()
    """(working, ended): after a while, half of the ended tasks start again under the same id."""
    queue: float = 10.0
    """Average seconds before a task runs."""
    previews: Literal["", "preview", "previews"] = ""
    """The field of previews: one task in six waits with a preview for a person, most of these forever."""

    unit: float = 1.0
    """`credits_used` is a multiple of this."""
    reported: When = "later"
    """When the list reports credits; `never`: there is no field `credits_used`."""
    charges: When | None = None
    """When the balance falls; None: when the list reports the credits."""
    unbilled: str | None = "0"
    """`credits_used` before the first bill, as JSON; None: the field is absent."""
    no_reason: Sequence[str | None] = ("null",)
    """`failed_reason` of tasks that have not failed, as JSON: each is used by some tasks; None: the field is absent."""
    reasons: Mapping[str, Sequence[str]] = texts.MEDIA_REASONS
    dated: bool = True
    """Whether a task has `created_at` and `updated_at` …"""
    zones: Sequence[tzinfo] = (PACIFIC,)
    """… in one of these zones."""
    nested: Sequence[str] = ()
    """Fields with objects that look like tasks; empty: the tasks have the fields of a text generation."""
    errors: Literal["detail", "list", "field"] = "detail"
    """The format of an error: `{"detail": "…"}`, `["…"]` or `{"non_field_errors": ["…"]}`."""


def _only(api: str, seconds: float, credits_used: float, failure_ratio: float = 0.04) -> tuple[Model]:
    """Return the single model of a product without a model field."""
    return (Model(api, 1, seconds, failure_ratio, credits_used),)


def _aurora(seconds: float, credits_used: float) -> tuple[Model, Model]:
    return (
        Model("aurora_v1", 3, seconds, 0.05, credits_used),
        Model("aurora_v1_fast", 5, seconds / 3, 0.03, credits_used / 2),
    )


def _asset_models() -> tuple[Model, ...]:
    """Return ninety models, a few of which make most of the assets."""
    families = ("flux", "imagen", "seedream", "kling", "veo", "hailuo", "wan", "runway", "ideogram")
    names = [f"{family}-{version}" for version in ("2", "2-pro", "3", "3-fast", "4") for family in families]
    names += [f"{name}-preview" for name in names]
    return tuple(Model(name, 1 / (1 + n) ** 2, 15 + n, 0.05, 1 + n % 5) for n, name in enumerate(names))


TEXT_GENERATOR = Product(
    "text_generator", LIST_PATH, "A", MODELS, 1 / 4,
    model_field="model_name", waiting=("pending",), queue=1.5, unit=0.25, no_reason=("null", '""'),
    reasons=texts.REASONS, zones=(UTC, UTC, PACIFIC),
)  # fmt: skip
PRODUCTS: Final = {
    product.api: product
    for product in (
        TEXT_GENERATOR,
        Product(
            "aurora", "/api/aurora/", "A", _aurora(240, 20), 1 / 120,
            model_field="model_version", failures=("failed", "rejected"), nested=("outputs",),
        ),
        Product(
            "lipsyncs", "/api/lipsyncs/", "A",
            (Model("standard", 4, 90, 0.03, 5), *_aurora(180, 12)), 1 / 90,
            model_field="model_version", previews="preview", unit=0.5, nested=("outputs", "products"), errors="list",
        ),
        Product(
            "lipsyncs_v2", "/api/lipsyncs_v2/", "A", _only("lipsyncs_v2", 150, 6), 1 / 180,
            unbilled="null", nested=("scenes",),
        ),
        Product(
            "text_to_speech", "/api/text_to_speech/", "A", _only("text_to_speech", 8, 1), 1 / 60,
            queue=3, unit=0.5, reported="finished", unbilled=None, nested=("voice",),
        ),
        Product(
            "ai_shorts", "/api/ai_shorts/", "A", _only("ai_shorts", 300, 10), 1 / 300,
            failures=("failed", "rejected"), previews="preview", no_reason=(None,), nested=("outputs",),
        ),
        Product(
            "ai_scripts", "/api/ai_scripts/", "A", _only("ai_scripts", 0, 1, 0), 1 / 120,
            waiting=(), working=(), reported="created", nested=("scripts",), errors="field",
        ),
        Product(
            "ads_clone", "/api/ads_clone/", "A", _only("ads_clone", 600, 84), 1 / 300,
            failures=("failed", "rejected"), reported="running", nested=("outputs", "products"),
        ),
        Product(
            "iab_images", "/api/iab_images/", "A", _only("iab_images", 20, 2), 1 / 180,
            reported="finished", charges="created", nested=("outputs",), errors="list",
        ),
        Product(
            "product_to_videos", "/api/product_to_videos/", "A",
            (Model("product_avatar", 3, 40, 0.05, 4), Model("product_showcase", 2, 40, 0.03, 6)), 1 / 180,
            model_field="type", waiting=("initializing",), working=("image_generating",), ended="image_generated",
            second=("video_generating", "video_generated"), reported="never", charges="created", nested=("products",),
        ),
        Product(
            "link_to_videos", "/api/link_to_videos/", "C",
            (Model("standard", 5, 180, 0.04, 5), *_aurora(400, 20)), 1 / 60,
            model_field="model_version", failures=("failed", "rejected"), previews="previews", dated=False,
            nested=("outputs", "link"), errors="field",
        ),
        Product(
            "custom_template_jobs", "/api/custom_template_jobs/", "D",
            (Model("standard", 5, 120, 0.04, 5), *_aurora(300, 15)), 1 / 240,
            model_field="model_version", failures=("failed", "rejected"), previews="previews", nested=("outputs",),
        ),
        Product(
            "asset_generator", "/api/asset_generator/", "D", _asset_models(), 1 / 30,
            model_field="model_name", waiting=("initializing",), working=("generating",), queue=3, reported="finished",
            no_reason=('""',), nested=("outputs",),
        ),
        Product(
            "ai_editing", "/api/ai_editing/", "C", _only("ai_editing", 120, 4), 1 / 300,
            failures=("failed", "rejected"), previews="preview", no_reason=(None,), nested=("outputs",),
        ),
        Product(
            "inspiration_jobs", "/api/inspiration_jobs/", "C",
            (Model("image", 4, 15, 0.04, 2), Model("video", 1, 200, 0.08, 30)), 1 / 200,
            model_field="gen_type", waiting=("in_queue",), reported="never", charges="created", nested=("outputs",),
        ),
        Product(
            "boreal", "/api/boreal/", "D", (Model("boreal-1", 3, 30, 0.04, 2), Model("boreal-1-pro", 1, 60, 0.04, 4)),
            1 / 300, model_field="model", unit=0.5, reported="finished", nested=("outputs",),
        ),
    )
}  # fmt: skip
"""All sixteen, by the name of their list (the exporter's label `api`)."""
