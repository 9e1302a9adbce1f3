"""Turns the free text in which the API gives the reason of a failure into one of a few label values."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from creatify_exporter.config.schema import ReasonRule
from creatify_exporter.creatify.task import OTHER

UNSPECIFIED: Final = "unspecified"
LONGEST: Final = 4096
"""Characters of a text that are searched: errors begin with their kind, and long ones go on to quote the prompt."""


def _status(codes: str) -> str:
    """Match a status at the start (`429 Too Many …`) or after a word for it (`"code": 429`), but no other number."""
    name = r"\b(?:code|status|http|https|error|response|returned)(?:[ _]code)?[\s\"'\\:=(<\[]{1,6}"
    return rf"(?:\A\W{{0,4}}|{name})(?:{codes})\b"


# Inputs of services for videos, voices and images.
_GIVEN: Final = (
    r"(?:avatar|voice|template|image|photo|video|audio|music|file|media|asset|script|text|url|link|(?:web)?page|website)"
    r"(?:[ _]id|s)?|product|face|speech|format|ratio|resolution|codec|language"
)


def _rule(reason: str, *patterns: str) -> ReasonRule:
    return ReasonRule(reason=reason, match=re.compile("|".join(patterns), re.IGNORECASE))


# The order matters: a filtered prompt is reported as 400 INVALID_ARGUMENT, a proxy's timeout as one of many 5xx pages.
# Every repetition is bounded. The wordings are those of Google's generative language and Vertex APIs and their client
# libraries (google.rpc.Code names, finish and block reasons), nginx, Envoy and Cloudflare, Django REST framework,
# Starlette, requests, httpx and Celery, and services for videos and voices.
DEFAULT_RULES: Final[tuple[ReasonRule, ...]] = (
    _rule(
        "content_filtered",
        r"\bblock_?\s?reason\W{1,20}(?:\w{1,20}\.)?(?:safety|other|blocklist)\b",
        r"\bfinish_?\s?reason\W{1,20}(?:\w{1,20}\.)?(?:safety|blocklist|recitation|spii|language)\b",
        r"\b(?:prohibited_content|image_safety|content_filter)|\brecitation\b",
        r"\bharm_category_\w{1,40}\W{1,40}probability",
        r"\b(?:prompt|response|candidate|content|output) (?:was|is|has been|is being) (?:blocked|filtered|flagged)",
        r"\bblocked\b.{0,30}\b(?:safety|content|policy|recitation|prohibited|filter|moderation)",
        r"\b(?:prompt|request|response|output|input|content|message|text|script|image|video|audio)\b.{0,60}\bflagged\b",
        r"\bviolat\w{1,5}\b.{0,60}\b(?:polic(?:y|ies)|guidelines|terms|practices)\b",
        r"\bresponsible ai\b|\bsensitive words\b|\binappropriate content\b|\bcontent moderation\b",
        r"\b(?:content|safety|usage) (?:policy|policies|filters?|guidelines|systems?)\b",
        r"\b(?:flagged|rejected|refused|fail\w{0,4}|not pass)\b.{0,30}\b(?:moderation|safety)\b",
        r"\bnsfw\b|\bhate speech\b|\boutput blocked\b|\bmoderated\b|\bmoderation (?:blocked|failed)\b",
        r"\b(?:content|safety|moderation) check\b|\b(?:banned|forbidden) words?\b|\bcontent (?:is )?not allowed\b",
        r"\bcontains? (?:an? )?(?:minors?|celebrit(?:y|ies)|public figures?)\b",
        r"\bnudity\b|\bprofanity\b",
        r"\b(?:violence|weapons?|minors?|celebrit(?:y|ies)|public figures?)\b.{0,20}\bdetected\b",
        r"\b(?:sensitive|explicit|adult|sexual|violent|offensive|harmful|unsafe|inappropriate|copyrighted|prohibited|disallowed)"
        r" (?:content|prompt|material|information|images?|videos?|audio|text|language)\b",
    ),
    _rule(
        "insufficient_credits",
        r"\b(?:insufficient|no|out of|too few|low on|not enough|have enough)\s(?:\w{1,20}\s)?credits?\b",
        r"\bcredits?\b.{0,30}\b(?:insufficient|exhausted|depleted|too low|used up|exceeded|run out)\b",
        r"\binsufficient[_ ](?:credits?|balance|funds)\b|\bpayment (?:required|failed)\b",
        r"\bcredits?\b.{0,60}\brequired\b",
        r"\bbalance\b.{0,20}\b(?:too low|insufficient|not enough|exhausted)\b|\bbilling\b.{0,30}\blimit\b",
        r"\b(?:subscription|trial)\b.{0,30}\b(?:expired|ended|inactive|required)\b|\bupgrade your plan\b",
        _status("402"),
    ),
    _rule(
        "rate_limited",
        r"resource.{0,10}exhausted|\bquota|rate.?(?:limit|exceeded)|throttl|\bslow down\b",
        r"\b(?:too many|maximum number of) (?:(?:concurrent|parallel|simultaneous|active|pending) )?"
        r"(?:requests|renders|jobs|tasks|generations|videos)",
        r"\b(?:requests|tokens) per (?:second|minute|hour|day)\b|\b(?:request|daily|hourly|monthly) limit\b",
        r"\b(?:concurren\w{1,5}|parallel|simultaneous)\b.{0,30}\blimit\b",
        r"\blimit\b.{0,30}\b(?:concurrent|parallel|simultaneous)\b",
        _status("429"),
    ),
    _rule(
        "timeout",
        r"\bdeadline.{0,30}(?:exceeded|expired)|tim(?:ed|e|ing)[ -]?out|time.?limit.?exceeded|took (?:too long|longer)",
        r"\bexceed(?:s|ed|ing)?\b.{0,30}\b(?:(?:execution|processing|rendering|running|waiting) time|runtime)\b",
        r"\bnot (?:finish|complete|respond|start)\w{0,3} (?:in time|within)\b",
        r"\b(?:job|task|render|request|generation)\b.{0,20}\b(?:expired|stalled|stuck)\b",
        _status("408|504|522|524"),
    ),
    _rule(
        "model_unavailable",
        r"\boverloaded|\bhigh demand\b|\bno healthy upstream\b|\b(?:status|code)\W{1,6}unavailable\b",
        r"\b(?:service|server|system|engine|provider|gpu)s? (?:is )?(?:currently |temporarily )?"
        r"(?:unavailable|busy|down|offline)\b",
        r"\b(?:at|no) capacity\b|\bqueue (?:is )?full\b|\bmaintenance\b|\bmodel\b.{0,30}\bloading\b",
        r"\bmodels?\b.{0,160}\bnot (?:found|available|supported|exist)",
        r"\bmodels?\b.{0,160}\b(?:unavailable|no longer|deprecated|retired|decommissioned|disabled)\b",
        r"\b(?:unknown|unsupported|no such) model\b|\bno (?:gpus?|workers?|capacity)\b.{0,20}\bavailable\b",
        _status("503|529"),
    ),
    _rule(
        # Before `invalid_request`, because some are worded like one although the request is not at fault: the service's
        # own credentials with its supplier, answers of a model, and defects of a program.
        "internal_error",
        r"\bapi.?key\b.{0,40}\b(?:invalid|not valid|expired|leaked|not found)",
        r"\binvalid (?:\w{1,20} )?api.?key\b|\bpermission.?denied\b|\bunauthenticated\b",
        r"\binvalid (?:\w{1,20} )?token\b",
        r"\bindex out of range\b|\bproperties of (?:undefined|null)\b|\bpars(?:e|ing)\b.{0,30}\bresponse\b",
        r"\bempty (?:response|output)\b|\b(?:response|output) (?:is|was) empty\b|\binvalid response\b",
        r"\bno such file or directory\b|\binternal (?:server )?error\b|\bconnection\b.{0,30}\b(?:reset|aborted|lost)\b",
        _status("401|403"),
    ),
    _rule(
        "invalid_request",
        r"\binvalid.?(?:argument|request|json|value|input|parameter|payload|schema|data)",
        rf"\binvalid (?:\w{{1,20}} ){{0,2}}(?:{_GIVEN})\b",
        r"\b(?:bad|malformed) request\b|\bunprocessable\b|\bun(?:supported|able to process)\b|\bnot supported\b",
        r"\bexceed(?:s|ed|ing)?\b.{0,40}\b(?:tokens?|length|size|limit|maximum)\b",
        r"\b(?:size|length|duration)\b.{0,20}\bexceed",
        r"\btoken count\b|\bcontext (?:length|window)\b|\btoo (?:large|long|big|small|many (?:tokens|images|files))\b",
        r"\bvalidation ?error|\bthis field\b|\bensure this\b|\bfield required\b|\bis required\b",
        r"\bnot a valid\b|\bmust (?:be|not|have|contain)\b|\bfailed.?precondition\b|\bout.of.range\b",
        # Services for videos, voices and images, about their inputs.
        r"\bcould ?not (?:be )?(?:pars|read|open|load|decod|download|find|found|fetch|process|scrap|crawl|extract)",
        r"\b(?:cannot|can't|couldn't|unable to|failed to) (?:be )?"
        r"(?:pars|read|open|load|decod|download|find|fetch|scrap|crawl|access|identify|detect|extract)\w{0,3}\b"
        rf".{{0,30}}\b(?:{_GIVEN})\b",
        rf"\b(?:{_GIVEN})\b.{{0,60}}\bnot (?:found|available|allowed|accessible|exist|ready)\b",
        rf"\b(?:{_GIVEN})\b.{{0,60}}\b(?:not contain|unreachable|unavailable|private|broken|deleted|missing)\b",
        rf"\b(?:{_GIVEN})\b.{{0,30}}\b(?:empty|silent|too (?:low|noisy|dark|blurry))\b|\bcorrupt(?:ed)?\b",
        rf"\bmissing (?:\w{{1,20}} )?(?:field|parameter|argument|{_GIVEN})\b|\b(?:unknown|no such) (?:{_GIVEN})\b",
        r"\b(?:no|multiple) (?:faces?|speech|voice|audio|people|person)\b|\bfaces? not\b",
        r"\btoo short\b|\b(?:longer|shorter) than \d|\bmax_tokens\b|\bmoov atom\b|\brobots\.txt\b|\bcaptcha\b",
        _status("400|404|405|413|414|415|422"),
    ),
    _rule(
        "internal_error",
        r"\binternal\b|\bserver error\b|\bbad gateway\b|\bupstream\b|\btraceback\b",
        r"\bunexpected (?:error|exception|condition|token|end)|\b(?:unknown|storage) error\b",
        r"\bsomething went wrong\b|\berror occurred\b|\bno space left\b",
        r"\b(?:upload failed|failed to (?:upload|save|store))\b",
        r"\b(?:could not|cannot|unable to|failed to) connect\b|\bcrashed\b",
        r"\bconnection\b.{0,30}\b(?:refused|closed|error|termination)",
        r"\bserver disconnected\b|\bhandshake failed\b|\b(?:host|network) (?:is )?unreachable\b|\bclosed connection\b",
        r"\bbroken pipe\b|\bsocket hang ?up\b",
        r"\bnetwork error\b|\bfetch failed\b|\bdns\b|\bname resolution\b|\bcertificate.(?:verify|has expired)",
        r"\bretr(?:ies|y limit)\b",
        r"\b(?:econn\w{1,10}|enotfound|epipe|eai_again)\b|\bexit(?:ed with)? (?:code|status)\b",
        # Exceptions of Python and JavaScript.
        r"\b\w{2,40}error\b|\b(?:database|inference|model|cudnn|nccl) error\b|\bdeadlock\b|\bmemory exhausted\b",
        r"\bobject (?:has no attribute|is not)\b|\bundefined\b|\bdivision by zero\b|\bnull pointer\b",
        r"\bexpecting value\b",
        r"\b(?:no|not (?:return|contain) an?) (?:output|image|video|audio|candidates?)\b",
        r"\bcuda\b|\bout of memory\b|\boom\w{0,6}\b|\bsig(?:kill|term|segv)\b|\bsegmentation fault\b",
        r"\bworker\b.{0,20}\b(?:died|killed|lost)\b|\bpreempted\b|\bffmpeg\b",
        r"\bunauthorized\b|\bforbidden\b|\baccess denied\b|\bauthentication failed\b",
        _status(r"5\d\d"),
    ),
)


class Classifier:
    """Gives each failure one of a few reasons: that of the first rule that matches its text.

    A user's regular expression may take exponential time, as `(a+)+$` does, and then blocks the process. Searching only
    the first 4,096 characters bounds the cost of a text under a sane expression, no more.
    """

    def __init__(self, rules: Sequence[ReasonRule] | None = None) -> None:
        self._rules = DEFAULT_RULES if rules is None else tuple(rules)
        self._built_in = rules is None
        self.reasons: tuple[str, ...] = tuple(
            dict.fromkeys([*(rule.reason for rule in self._rules), OTHER, UNSPECIFIED])
        )
        """Every value that `classify` can return, each once."""
        # Most failures repeat the text of an earlier one.
        self._found = lru_cache(maxsize=256)(self._find)

    def classify(self, text: str | None) -> str:
        """Return the reason for `text`: `unspecified` if it is empty, `other` if no rule matches."""
        if text is None or not text.strip():
            return UNSPECIFIED
        return self._found(text[:LONGEST])

    def _find(self, head: str) -> str:
        # The built-in rules expect the words of a sentence; codes such as `AVATAR_NOT_FOUND` consist of the same words.
        texts = dict.fromkeys((head, head.replace("_", " ")) if self._built_in else (head,))
        return next((rule.reason for text in texts for rule in self._rules if rule.match.search(text)), OTHER)
