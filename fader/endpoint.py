"""What a chat endpoint's errors say to the person who named it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """For each kind of failure: the field at fault, and the way out."""

    key: tuple[str, str]
    model: tuple[str, str]
    address: tuple[str, str]
    pressed: tuple[str, str]


def in_words(error: Exception, url: str, model: str, retries: int, advice: Advice) -> Exception:
    """An error of the client as ValueError where the endpoint refuses, as ConnectionError where it
    cannot be reached or keeps failing."""
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        field, way = advice.key
        return ValueError(f"{field}: {url} refuses the key (status {error.status_code}); {way}")
    if isinstance(error, openai.NotFoundError):
        field, way = advice.model
        return ValueError(
            f"{field}: {url} finds no model {model!r} (status 404: {error.message}); {way}, or"
            " correct the address, which usually ends with /v1"
        )
    if isinstance(error, openai.APIConnectionError):
        field, way = advice.address
        tries = f"{retries + 1} tries" if retries else "one try"
        return ConnectionError(
            f"{field}: {url} cannot be reached or does not answer ({error.message.rstrip('.')},"
            f" {tries}); {way}"
        )
    if isinstance(error, openai.APIStatusError) and (
        error.status_code in (408, 409, 429) or error.status_code >= 500
    ):
        field, way = advice.pressed
        return ConnectionError(
            f"{field}: {url} keeps failing (status {error.status_code}: {error.message}); {way}"
        )
    return ValueError(f"{advice.address[0]}: {url} refuses the request ({error})")
