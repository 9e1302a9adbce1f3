"""Users with bcrypt hashes: passwords are checked outside the event loop, and the outcome is remembered.

An unknown name takes as long as a wrong password, so that timing does not reveal which names exist.
"""

import asyncio
import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Final, Literal

import bcrypt

Login = Literal["admitted", "refused", "busy"]

_MIN_COST: Final = 4  # bcrypt's own minimum
# 262,144 rounds: many CPU seconds for each new login, and a shutdown waits for them.
_MAX_COST: Final = 18
_MAX_PASSWORD: Final = 72  # bytes that bcrypt uses; tools that make hashes truncate there without a warning
# Remembered logins, by success. Failures have a separate limit: guessing must not evict those that succeeded.
_REMEMBERED: Final = {True: 100, False: 1000}
_MAX_CHECKS: Final = 64  # logins that are being checked or wait for it
_HASH: Final = re.compile(
    # Version, cost, 22 characters of salt and 31 of digest; the last character of each uses only some of its bits.
    r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]",
    re.ASCII,
)


class PasswordHash(bytes):
    """A bcrypt hash, hidden in its repr; `cost` is the binary logarithm of its rounds."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "PasswordHash":
        """Parse `text`; ValueError says what is wrong but never quotes it: it may be the password itself."""
        # A YAML block scalar ends with a newline.
        match = _HASH.fullmatch(text.rstrip())
        if not match:
            raise ValueError("is not a bcrypt hash ($2a$, $2b$ or $2y$); make one with: htpasswd -nBC 10 ''")
        if not _MIN_COST <= int(match[1]) <= _MAX_COST:
            raise ValueError(f"must have a cost from {_MIN_COST} to {_MAX_COST}; make one with: htpasswd -nBC 10 ''")
        return cls(match[0].encode())

    @property
    def cost(self) -> int:
        """How much work a check is; each step doubles it."""
        return int(self[4:6])

    def __repr__(self) -> str:
        return "PasswordHash(<hidden>)"


class Users:
    """Checks `Authorization` headers; without users, everybody is admitted.

    `check` returns whether a password matches a hash. It is slow, so one runs at a time: a flood of wrong passwords
    keeps only one CPU busy. Remembered logins do not wait for it.
    """

    def __init__(
        self, hashes: Mapping[str, PasswordHash], check: Callable[[bytes, bytes], bool] = bcrypt.checkpw
    ) -> None:
        self._hashes = {name.encode(): hashed for name, hashed in hashes.items()}
        self._check = check
        self._key = secrets.token_bytes(32)
        # Digests of logins that succeeded and of those that failed, the oldest first.
        self._known: dict[bool, dict[bytes, None]] = {True: {}, False: {}}
        self._slot = asyncio.Semaphore(1)
        # Checks that run or wait, by digest.
        self._checks: dict[bytes, asyncio.Task[Login]] = {}

    async def check(self, authorization: bytes | None) -> Login:
        """Return whether an `Authorization` header admits its client; "busy" if too many logins wait already."""
        if not self._hashes:
            return "admitted"
        credentials = _credentials(authorization or b"")
        if credentials is None:
            return "refused"
        digest = self._digest(*credentials)
        if (remembered := self._recall(digest)) is not None:
            return remembered
        if (check := self._checks.get(digest)) is None:
            if len(self._checks) >= _MAX_CHECKS:
                return "busy"
            check = self._checks[digest] = asyncio.create_task(self._log_in(digest, *credentials))
            check.add_done_callback(lambda _: self._checks.pop(digest))
        # A client that disconnects does not cancel its check: the thread keeps running, so the slot stays taken.
        return await asyncio.shield(check)

    def _recall(self, digest: bytes) -> Login | None:
        if digest in self._known[True]:
            return "admitted"
        return "refused" if digest in self._known[False] else None

    async def _log_in(self, digest: bytes, name: bytes, password: bytes) -> Login:
        hashed = self._hashes.get(name)
        async with self._slot:
            right = await asyncio.to_thread(self._check, password[:_MAX_PASSWORD], hashed or self._stand_in(name))
        is_admitted = hashed is not None and right
        known = self._known[is_admitted]
        known[digest] = None
        if len(known) > _REMEMBERED[is_admitted]:
            del known[next(iter(known))]
        return "admitted" if is_admitted else "refused"

    def _stand_in(self, name: bytes) -> PasswordHash:
        """Return the hash that an unknown name is checked against: some user's, always the same one.

        If costs differ, an unknown name takes as long as one of the users.
        """
        hashes = list(self._hashes.values())
        return hashes[int.from_bytes(self._digest(name, b"")) % len(hashes)]

    def _digest(self, name: bytes, password: bytes) -> bytes:
        """Return the keyed digest by which a login is remembered, so that no password stays in memory."""
        return hmac.digest(self._key, len(name).to_bytes(4) + name + password, "sha256")


def _credentials(authorization: bytes) -> tuple[bytes, bytes] | None:
    """Return name and password of an RFC 7617 header value, None if it is not one."""
    scheme, _, encoded = authorization.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (name, password) if colon else None
