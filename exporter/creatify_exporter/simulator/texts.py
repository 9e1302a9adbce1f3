"""Texts of people and models: reasons of failures in many wordings, and contents that strain a JSON decoder."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

REASONS: dict[str, tuple[str, ...]] = {
    "rate_limited": (
        "429 RESOURCE_EXHAUSTED. Quota exceeded for metric: generate_content_requests, limit: 300",
        "Rate limit reached, please retry in 21.4s",
        "Too Many Requests",
    ),
    "timeout": (
        "504 DEADLINE_EXCEEDED: Deadline expired before operation could complete.",
        "Request timed out after 600 seconds",
        "HTTPSConnectionPool: Read timed out. (read timeout=120)",
    ),
    "content_filtered": (
        "Response blocked: finish_reason=SAFETY",
        "The prompt was blocked by the content filter (PROHIBITED_CONTENT)",
        "Candidate was blocked due to safety\nharm_category: DANGEROUS_CONTENT",
    ),
    "invalid_request": (
        "400 INVALID_ARGUMENT. Unable to submit request because the input token count is 1250001",
        "Invalid JSON schema: $.properties.scenes[0] is not of type 'object'",
        "Bad request: function_response without function_call",
    ),
    "model_unavailable": (
        "503 UNAVAILABLE: The model is overloaded. Please try again later.",
        "404 NOT_FOUND: model is not found for API version v1beta",
    ),
    "insufficient_credits": ("Insufficient credits to complete this task", "You don't have enough credits."),
    "internal_error": (
        "500 INTERNAL: An internal error has occurred",
        "Internal server error",
        "Unexpected error: 'NoneType' object has no attribute 'text'",
    ),
    "other": ('{"code": 13, "message": "}],[{\\"id\\":"}', "❌ 生成失败", "E" * 900),
    "unspecified": ("", "  "),
}
"""Kind of reason → its wordings. The kinds are the truth of this simulation only; no classifier has to agree."""

MEDIA_REASONS: dict[str, tuple[str, ...]] = {
    "rate_limited": ("Too many concurrent renders for this workspace", "429 Too Many Requests"),
    "timeout": ("Render timed out after 1800 seconds", "socket hang up"),
    "content_filtered": ("NSFW content detected", "The script was flagged by moderation"),
    "invalid_request": (
        "Could not parse the uploaded video",
        "Render failed: avatar not found",
        "The image URL could not be downloaded (403 Forbidden)",
        "Audio is longer than 60 seconds",
    ),
    "model_unavailable": ("No GPU available, please try again later", "Model is temporarily unavailable"),
    "insufficient_credits": ("Insufficient credits", "Not enough credits to render this video"),
    "internal_error": ("Internal server error", "Something went wrong", "ffmpeg exited with code 1"),
    "other": ('{"step": "lipsync", "status": "failed", "id": "}]"}', "❌ 生成失败", "E" * 900),
    "unspecified": ("", "  "),
}
"""The same kinds, in the words of services for videos, voices and images."""

REJECTIONS = ("", "", "Rejected by moderation")
"""Reasons of a rejection; most rejected tasks have none."""

_LOOK_ALIKE: dict[str, Any] = {
    "id": "00000000-0000-4000-8000-000000000000",
    "model_name": "not-a-model",
    "status": "failed",
    "credits_used": 99.5,
    "failed_reason": "not a reason",
    "created_at": "2019-01-01T00:00:00Z",
}
"""An object inside a task that looks like a task."""

MEDIA_LOOK_ALIKE: dict[str, Any] = _LOOK_ALIKE | {
    **dict.fromkeys(("model_version", "type", "gen_type", "model"), "not-a-model"),
    "preview": "https://cdn.example/not-a-preview.mp4",
    "previews": [{"id": "00000000-0000-4000-8000-000000000001", "status": "pending"}],
}
"""The same inside a video, voice or image."""

_PASSAGES = (
    'Write a 30-second script for an espresso machine. Keep it "warm", never pushy.\n\nScene 1:\t(close-up) steam.\n',
    "Our customers are busy parents; name the three objections that they raise and answer each in one sentence. ",
    "C:\\Videos\\final\\cut.mp4 costs 12.50 € - see https:\\/\\/shop.example\\/?a=1&b=2\r\n",
    'Example of a reply: [{"id":"1","model_name":"x","status":"failed","credits_used":9},{"id":"2"}] and then "},{" ',
    "日本語の説明文。العربية ۱۲۳ עברית हिन्दी Ελληνικά e\u0301 👩\u200d🚀🔥 \U0001f1eb\U0001f1f7 ",
    "\u0000\u001b[31mred\u001b[0m\u007f\u0085\u2028\u2029\ufeff\ufffd</script><!-- -->&amp;%00 ",
    '```python\nprint(\'{}\'.format("\\""))  # \\u007b is not a brace\n```\n',
    "Voice-over: calm, close to the microphone, no music for the first four seconds; then let the beat come in. ",
)


def chance(rng: random.Random, ratio: float) -> bool:
    """Draw True with this probability."""
    return rng.random() < ratio


def reason(
    rng: random.Random, wordings: Mapping[str, Sequence[str]] = REASONS, kind: str | None = None
) -> tuple[str, str]:
    """Draw the kind and the text of a reason; common kinds are more likely."""
    kind = kind or rng.choices(tuple(REASONS), (25, 15, 15, 10, 12, 5, 10, 5, 3))[0]
    return kind, rng.choice(wordings[kind])


def passage(rng: random.Random, size: int) -> str:
    """Draw a text of about `size` bytes of UTF-8."""
    return "".join(rng.choices(_PASSAGES, k=max(1, size // 105)))


def contents(rng: random.Random, size: int, *, done: bool) -> dict[str, Any]:
    """Draw the long fields of a task, some `size` bytes in total; if `done`, including its answers."""
    content: dict[str, Any] = {"messages": _messages(rng, size // 2), "config": _config(rng)}
    if chance(rng, 0.5):
        content["system_instruction"] = passage(rng, size // 10)
    if done:
        content["response_text"] = passage(rng, size // 3)
    content["response_function_calls"] = [_call(rng)] if done and chance(rng, 0.3) else []
    return content


def _messages(rng: random.Random, size: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": passage(rng, size)}]
    if chance(rng, 0.4):
        call = _call(rng)
        messages.append({"role": "model", "content": "", "function_call": call})
        response = {"name": call["name"], "response": {"ok": True, "echo": call["args"]["tasks"]}}
        messages.append({"role": "user", "content": None, "function_response": response})
    return messages


def media(rng: random.Random, size: int, nested: Sequence[str], *, done: bool) -> dict[str, Any]:
    """Draw the other fields of a video, voice or image; the `nested` ones contain objects that look like tasks."""
    content: dict[str, Any] = {"name": rng.choice(("", "Untitled", '"summer" }],[{', None)), "webhook_url": None}
    content["progress"] = "1" if done else rng.choice(("0", "0.57"))
    content["video_length"] = rng.choice((15, "30", 60.0, None))
    content["script"] = passage(rng, size // 2)
    for number, name in enumerate(nested):
        content[name] = [MEDIA_LOOK_ALIKE, MEDIA_LOOK_ALIKE] if number == 0 else MEDIA_LOOK_ALIKE
    content["video_output"] = "https://cdn.example/" + passage(rng, size // 4) if done else rng.choice(("", None))
    return content


def _call(rng: random.Random) -> dict[str, Any]:
    """Draw a function call whose arguments contain objects that look like tasks."""
    looks = _LOOK_ALIKE | {"id": f"{rng.getrandbits(32):08x}-0000-4000-8000-000000000000"}
    return {"name": "find_tasks", "args": {"tasks": [looks, looks], "deep": [[[{"a": [None, -0.0, 1e-7]}]]], "": {}}}


def _config(rng: random.Random) -> dict[str, Any]:
    config: dict[str, Any] = {"temperature": rng.choice((0, 0.7, 1.0)), "max_output_tokens": 8192, "top_p": 0.95}
    if chance(rng, 0.3):
        schema = {"type": "object", "properties": {"status": {"enum": ["pending", "failed"]}}, "required": ["status"]}
        config |= {"response_mime_type": "application/json", "response_json_schema": schema, "stop_sequences": ["}]"]}
    return config
