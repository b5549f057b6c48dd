"""API keys: named, revocable, and only their hashes are kept.

A key is 32 random bytes, so that a plain SHA-256 cannot be searched back to it. The file is read
again when it changes: a key that is revoked stops to work at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_config_path

from fader.files import is_file, read_text, write_whole
from fader.schema import Invalid


@dataclass(frozen=True)
class Key:
    """Who a key belongs to, and what it may do."""

    name: str
    hash: str
    admin: bool = False
    """Whether it may write profiles."""


def key_file() -> Path:
    """Where keys are kept unless another file is named."""
    return user_config_path("fader") / "keys.json"


def hashed(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


class Keys:
    """The keys of a file. Without a file none is needed; once there was one, they are needed for
    good: neither revoking the last key nor losing the file opens the server. Raises ValueError for
    a file that holds none, and for what is no file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._known: list[Key] = []
        self._needed = False
        self.known()

    @property
    def needed(self) -> bool:
        """Whether a request needs a key."""
        self.known()
        return self._needed

    def known(self) -> list[Key]:
        """The keys, as the file is now. Raises ValueError for a file that holds none."""
        with self._lock:
            stamp = None
            if is_file(self.file):
                self._needed, found = True, self.file.stat()
                stamp = found.st_mtime_ns, found.st_size
            elif self.file.exists():
                raise ValueError(
                    f"{self.file}: is no file of keys, but something else; name a file"
                )
            if stamp != self._stamp:
                self._known = _read(self.file) if stamp else []
                self._stamp = stamp
            return self._known

    def find(self, key: str) -> Key | None:
        """Whose key it is. Every key is compared, each in constant time."""
        given, found = hashed(key), None
        for one in self.known():
            if hmac.compare_digest(one.hash, given):
                found = one
        return found

    def add(self, name: str, admin: bool = False) -> str:
        """A new key, which is told only now. Raises ValueError for a name that is taken."""
        if not re.fullmatch(r"[\w.-]{1,64}", name):
            raise Invalid(f"{name!r} must be letters, digits, points and hyphens", "name")
        if any(one.name == name for one in self.known()):
            raise Invalid(f"there is a key of the name {name!r} already; revoke it first", "name")
        key = f"fader-{secrets.token_urlsafe(32)}"
        self._write([*self.known(), Key(name, hashed(key), admin)])
        return key

    def revoke(self, name: str) -> None:
        """Let a key work no more. Raises ValueError for a name that nothing has."""
        left = [one for one in self.known() if one.name != name]
        if len(left) == len(self.known()):
            named = ", ".join(one.name for one in left) or "none"
            raise Invalid(f"there is no key of the name {name!r}; there are: {named}", "name")
        self._write(left)

    def _write(self, keys: list[Key]) -> None:
        write_whole(self.file, json.dumps([asdict(one) for one in keys], indent=1) + "\n")
        self.file.chmod(0o600)


def _read(file: Path) -> list[Key]:
    text = read_text(file.read_bytes(), str(file))
    try:
        return [Key(**row) for row in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file}: is no file of keys ({error}); make one with `fader keys add`"
        ) from None
