"""The settings that count, for people: each key with its value and where that came from, without any secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, SecretStr

from agent.config.file import OVERRIDE, Configuration
from agent.log import mask_url
from agent.yamlfile import KeyPath, spell

MASK = "***"
_SECRET_QUERY = re.compile(r"([?&](?:passw(?:or)?d|pwd|token|secret|key|auth)=)[^&\s#]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Value:
    """One key of the effective settings."""

    key: str
    value: Any
    """JSON-ready, secrets masked."""
    origin: str
    """`holdfast.yaml:4:3`, a variable's name, or `default`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def effective(configuration: Configuration) -> list[Value]:
    """Return every key with its value and origin, in the order of the file's sections."""
    return [
        Value(spell(path), _mask(value, configuration.secrets), _origin(path, configuration.origins))
        for path, value in _leaves(configuration.settings, ())
    ]


def mask(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """Replace what must not be printed: passwords in URLs, secret query parameters, and the given texts."""
    text = _SECRET_QUERY.sub(rf"\g<1>{MASK}", mask_url(text))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _leaves(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    else:
        yield path, value


def _mask(value: object, secrets: frozenset[str]) -> Any:  # noqa: ANN401  JSON-ready
    match value:
        case None | bool() | int() | float():
            return value
        case SecretStr():
            return MASK
        case tuple() | list():
            return [_mask(item, secrets) for item in value]
        case dict():
            return {str(key): _mask(item, secrets) for key, item in value.items()}
        case _:
            return mask(str(value), secrets)


def _origin(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Return where the key was given, itself or as part of a mapping that a variable brought whole."""
    if origin := origins.get(path):
        return origin
    above = (origins.get(path[:length], "") for length in range(len(path) - 1, 0, -1))
    return next((origin for origin in above if origin.upper().startswith(OVERRIDE)), "default")
