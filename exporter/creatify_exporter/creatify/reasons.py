"""Classes of failures: the API gives the reason as free text, which becomes one of a few label values."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from creatify_exporter.config.schema import ReasonRule
from creatify_exporter.creatify.task import OTHER

UNSPECIFIED: Final = "unspecified"
LONGEST: Final = 4096
"""Characters of a text that are looked at. Errors say what they are at their beginning; long ones quote the prompt."""


def _status(codes: str) -> str:
    """Match a status at the start (`429 Too Many …`) or after a word for it (`"code": 429`), not any number."""
    name = r"\b(?:code|status|http|https|error|response|returned)(?:[ _]code)?[\s\"'\\:=(<\[]{1,6}"
    return rf"(?:\A\W{{0,4}}|{name})(?:{codes})\b"


def _rule(reason: str, *patterns: str) -> ReasonRule:
    return ReasonRule(reason=reason, match=re.compile("|".join(patterns), re.IGNORECASE))


# The order decides: a filtered prompt comes as 400 INVALID_ARGUMENT, a timeout of a proxy as one of many 5xx pages.
# Every repetition is bounded. Wordings: Google's generative language and Vertex APIs with their client libraries
# (google.rpc.Code names, finish and block reasons), nginx, Envoy and Cloudflare, Django REST framework, Starlette,
# requests, httpx and Celery, and services of videos and voices.
DEFAULT_RULES: Final[tuple[ReasonRule, ...]] = (
    _rule(
        "content_filtered",
        r"\bblock_?\s?reason\W{1,20}(?:\w{1,20}\.)?(?:safety|other|blocklist)\b",
        r"\bfinish_?\s?reason\W{1,20}(?:\w{1,20}\.)?(?:safety|blocklist|recitation|spii|language)\b",
        r"\b(?:prohibited_content|image_safety|content_filter)|\brecitation\b|\bharm_category_\w{1,40}\W{1,40}probability",
        r"\b(?:prompt|response|candidate|content) (?:was|is|has been|is being) (?:blocked|filtered|flagged)",
        r"\bblocked\b.{0,30}\b(?:safety|content|policy|recitation|prohibited|filter|moderation)",
        r"\b(?:prompt|request|response|output|input|content|message)\b.{0,60}\bflagged\b",
        r"\bviolat\w{1,5}\b.{0,60}\b(?:polic(?:y|ies)|guidelines|terms|practices)\b",
        r"\bresponsible ai\b|\bsensitive words\b|\binappropriate content\b|\bcontent moderation\b",
        r"\b(?:content|safety|usage) (?:policy|policies|filters?|guidelines)\b",
        r"\bnsfw\b|\bflagged by\b.{0,30}\bmoderation\b",
    ),
    _rule(
        "insufficient_credits",
        r"\b(?:insufficient|no|out of|too few|low on|not enough|have enough)\s(?:\w{1,20}\s)?credits?\b",
        r"\bcredits?\b.{0,30}\b(?:insufficient|exhausted|depleted|too low|used up|exceeded|run out)\b",
        r"\binsufficient[_ ](?:credits?|balance|funds)\b|\bpayment required\b",
        _status("402"),
    ),
    _rule(
        "rate_limited",
        r"resource.{0,10}exhausted|\bquota|rate.?limit|throttl",
        r"too many (?:concurrent )?(?:requests|renders|jobs|tasks|generations)",
        r"\b(?:requests|tokens) per (?:second|minute|hour|day)\b|\bconcurrency limit\b",
        _status("429"),
    ),
    _rule(
        "timeout",
        r"\bdeadline.{0,30}(?:exceeded|expired)|tim(?:ed|e|ing)[ -]?out|time.?limit.?exceeded|took too long",
        _status("408|504|522|524"),
    ),
    _rule(
        "model_unavailable",
        r"\boverloaded|\bhigh demand\b|\bno healthy upstream\b|\bstatus\W{1,6}unavailable\b",
        r"\bservice (?:is )?(?:currently |temporarily )?unavailable\b",
        r"\bmodels?\b.{0,160}\bnot (?:found|available|supported|exist)",
        r"\bmodels?\b.{0,160}\b(?:unavailable|no longer|deprecated|retired|decommissioned|disabled)\b",
        r"\b(?:unknown|unsupported|no such) model\b|\bno (?:gpus?|workers?|capacity)\b.{0,20}\bavailable\b",
        _status("503|529"),
    ),
    _rule(
        # The service's own credentials with its supplier: the request is not at fault.
        "internal_error",
        r"\bapi.?key\b.{0,40}\b(?:invalid|not valid|expired|leaked|not found)",
        r"\binvalid (?:\w{1,20} )?api.?key\b|\bpermission.?denied\b|\bunauthenticated\b",
        _status("401|403"),
    ),
    _rule(
        "invalid_request",
        r"\binvalid.?(?:argument|request|json|value|input|parameter|payload|schema)",
        r"\b(?:bad|malformed) request\b|\bunprocessable\b|\bun(?:supported|able to process)\b|\bnot supported\b",
        r"\bexceed(?:s|ed|ing)?\b.{0,40}\b(?:tokens?|length|size|limit|maximum)\b",
        r"\btoken count\b|\bcontext (?:length|window)\b|\btoo (?:large|long|big|many (?:tokens|images|files))\b",
        r"\bvalidation ?error|\bthis field\b|\bensure this\b|\bfield required\b|\bis required\b",
        r"\bnot a valid\b|\bmust (?:be|not|have|contain)\b|\bfailed.?precondition\b|\bout.of.range\b",
        # Services of videos, voices and images, about what they were given.
        r"\bcould ?not (?:be )?(?:pars|read|open|load|decod|download|find|found|fetch|process)",
        r"\b(?:avatar|voice|template|image|video|audio|file|media|asset|url)s?\b.{0,60}\b(?:not found|unreachable)\b",
        r"\btoo short\b|\b(?:longer|shorter) than \d|\bmax_tokens\b",
        _status("400|404|405|413|414|415|422"),
    ),
    _rule(
        "internal_error",
        r"\binternal\b|\bserver error\b|\bbad gateway\b|\bupstream\b|\btraceback\b",
        r"\bunexpected (?:error|exception|condition)|\bunknown error\b|\bsomething went wrong\b",
        r"\bconnection\b.{0,30}\b(?:reset|aborted|refused|closed|error|termination|lost)",
        r"\bserver disconnected\b|\bclosed connection\b|\bbroken pipe\b",
        r"\b(?:key|type|value|attribute|index|runtime|assertion|os|memory|connect|read|protocol|decode)error\b",
        r"\bobject has no attribute\b|\bsocket hang ?up\b|\bempty response\b",
        r"\bffmpeg\b|\bexited with (?:code|status)\b",
        _status(r"5\d\d"),
    ),
)


class Classifier:
    """Gives each failure one of a few reasons: the first rule that is found in its text.

    A regular expression of a user may take exponential time, as `(a+)+$` does, and holds up the process then:
    that only the first 4,096 characters are searched bounds what a text costs under a sane one, no more.
    """

    def __init__(self, rules: Sequence[ReasonRule] | None = None) -> None:
        self._rules = DEFAULT_RULES if rules is None else tuple(rules)
        self.reasons: tuple[str, ...] = tuple(
            dict.fromkeys([*(rule.reason for rule in self._rules), OTHER, UNSPECIFIED])
        )
        """Every value that `classify` can return, each once."""
        # Most failures are worded like one before.
        self._found = lru_cache(maxsize=256)(self._find)

    def classify(self, text: str | None) -> str:
        """Return the reason that `text` tells; `unspecified` without one, `other` if no rule matches."""
        if text is None or not text.strip():
            return UNSPECIFIED
        return self._found(text[:LONGEST])

    def _find(self, head: str) -> str:
        return next((rule.reason for rule in self._rules if rule.match.search(head)), OTHER)
