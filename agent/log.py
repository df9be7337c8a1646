"""Logging for a terminal (text) or a service manager (JSON lines), with secrets masked on the way out."""

from __future__ import annotations

import json
import logging
import re
import sys

MOST_CHARACTERS = 1000
"""Of a text from outside that is kept, reported or shown."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys (ECMA-48; not newline and tab), what turns the direction of writing round, and what UTF-8 lacks."""
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/@:\s]*):(?P<password>[^/\s]*)@", re.IGNORECASE)


def mask_url(text: str) -> str:
    """Replace the password in every URL inside `text`: `rtsp://u:secret@h/` becomes `rtsp://u:***@h/`."""
    return _URL_PASSWORD.sub(r"\g<scheme>\g<user>:***@", text)


def printable(text: str) -> str:
    """Spell out control characters: whoever wrote a text from outside must not steer the terminal that shows it."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def brief(text: str) -> str:
    """Return the beginning of a text from outside, printable: it goes into records, retained messages and tables."""
    text = printable(text[: MOST_CHARACTERS + 1])
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


class _MaskingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(mask_url(super().format(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `text`, and the record's `fields` where it has any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": mask_url(record.getMessage()),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = mask_url(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)


def configure(*, verbose: bool = False, as_json: bool | None = None) -> None:
    """Send log records to stderr. `as_json` defaults to whether stderr is no terminal."""
    if as_json is None:
        as_json = not sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if as_json
        else _MaskingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
