"""Users with bcrypt hashes: passwords are checked outside of the event loop, and the outcome is remembered.

An unknown name costs the same work as a wrong password, so that time does not tell which names exist.
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

_CHEAPEST: Final = 4  # as bcrypt itself has it
# 262,144 rounds: many seconds of a processor for each new login, for which a stop waits.
_COSTLIEST: Final = 18
_LONGEST_PASSWORD: Final = 72  # bytes that bcrypt looks at; what makes hashes elsewhere cuts there in silence
# Logins that are remembered. Failures have a bound of their own: guessing must not push out those that succeeded.
_REMEMBERED: Final = {True: 100, False: 1000}
_LONGEST_QUEUE: Final = 64  # logins that wait for the one that is being checked
_HASH: Final = re.compile(
    # Version, cost, 22 characters of salt and 31 of digest; the last of each holds fewer bits than a character could.
    r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]",
    re.ASCII,
)


class PasswordHash(bytes):
    """A bcrypt hash, which no repr shows; `cost` is the binary logarithm of its rounds."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "PasswordHash":
        """Read `text`; ValueError says what is wrong and never quotes it: it may be the password itself."""
        # A block text in YAML ends with a newline.
        match = _HASH.fullmatch(text.rstrip())
        if not match:
            raise ValueError("is no bcrypt hash ($2a$, $2b$ or $2y$); make one, as with: htpasswd -nBC 10 ''")
        if not _CHEAPEST <= int(match[1]) <= _COSTLIEST:
            raise ValueError(f"must have a cost from {_CHEAPEST} to {_COSTLIEST}; make it as with: htpasswd -nBC 10 ''")
        return cls(match[0].encode())

    @property
    def cost(self) -> int:
        """How much work a check is: twice as much for each step."""
        return int(self[4:6])

    def __repr__(self) -> str:
        return "PasswordHash(<hidden>)"


class Users:
    """Decides about `Authorization` headers; without users, everybody is admitted.

    `check` says whether a password belongs to a hash, and takes its time: at most one is checked at once, so that a
    flood of wrong passwords keeps one processor busy and no more. Remembered logins do not wait for it.
    """

    def __init__(
        self, hashes: Mapping[str, PasswordHash], check: Callable[[bytes, bytes], bool] = bcrypt.checkpw
    ) -> None:
        self._hashes = {name.encode(): hashed for name, hashed in hashes.items()}
        self._check = check
        self._key = secrets.token_bytes(32)
        # Digests, the oldest first, of logins that succeeded and of those that failed.
        self._known: dict[bool, dict[bytes, None]] = {True: {}, False: {}}
        self._slot = asyncio.Semaphore(1)
        # Logins that are checked or wait for it, by digest.
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
            if len(self._checks) >= _LONGEST_QUEUE:
                return "busy"
            check = self._checks[digest] = asyncio.create_task(self._log_in(digest, *credentials))
            check.add_done_callback(lambda _: self._checks.pop(digest))
        # A client that leaves ends no check: its thread goes on, and so must its turn.
        return await asyncio.shield(check)

    def _recall(self, digest: bytes) -> Login | None:
        if digest in self._known[True]:
            return "admitted"
        return "refused" if digest in self._known[False] else None

    async def _log_in(self, digest: bytes, name: bytes, password: bytes) -> Login:
        hashed = self._hashes.get(name)
        async with self._slot:
            right = await asyncio.to_thread(self._check, password[:_LONGEST_PASSWORD], hashed or self._stand_in(name))
        is_admitted = hashed is not None and right
        known = self._known[is_admitted]
        known[digest] = None
        if len(known) > _REMEMBERED[is_admitted]:
            del known[next(iter(known))]
        return "admitted" if is_admitted else "refused"

    def _stand_in(self, name: bytes) -> PasswordHash:
        """Return the hash that an unknown name is checked against: always the same one of another user.

        If costs differ, unknown names take as long as some user or other.
        """
        hashes = list(self._hashes.values())
        return hashes[int.from_bytes(self._digest(name, b"")) % len(hashes)]

    def _digest(self, name: bytes, password: bytes) -> bytes:
        """Return what is remembered of a login: nothing that a dump of the memory could be searched for."""
        return hmac.digest(self._key, len(name).to_bytes(4) + name + password, "sha256")


def _credentials(authorization: bytes) -> tuple[bytes, bytes] | None:
    """Return name and password of an RFC 7617 header value, None if it is no such value."""
    scheme, _, encoded = authorization.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (name, password) if colon else None
