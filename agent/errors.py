"""Every error Holdfast raises on purpose, grouped by what the caller should do next.

    HoldfastError                the root: a message, where it happened, and what to do next
    ├── OperatorError            a person must change something; retrying is pointless
    │   ├── ConfigurationError   the operator's file: carries *all* problems found, with line and key
    │   └── BundleError          this bundle (or model file) is refused; the active one is untouched
    │       └── ReleaseRefusedError  what was signed cannot be used; only a newer release can help
    ├── UnavailableError         the outside world is not there now; retry later with back-off
    │   ├── SourceError          a camera or sensor: reopen it
    │   ├── NotThereError        the repository has no such file; another transport may have it
    │   ├── WrongContentError    what a transport brings is not what was signed; take another
    │   └── StoppedError         somebody set `stop`: end, and go on at the next start
    ├── UntrustedError           what came is not what was signed, or is older or expired: refuse it, say so, ask again later
    ├── CandidateError           this provider or variant cannot be used here; take the next candidate
    │   └── OtherRuntimeError    this process holds another ONNX Runtime; a process of its own can use it
    └── StateError               our own state on disk cannot be used; stop, or set it aside

Command line exit codes: 1 for a promise that was broken, 2 for a usage error, otherwise `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HoldfastError(Exception):
    """Something that a caller or a person can act on.

    Args:
        message: What happened, with the expected and the found value where there are two.
        where: The place, as `file:line:column`, a path, a URL without its password, or a topic.
        hint: What to do next, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  → {self.hint}" if self.hint else text


class OperatorError(HoldfastError):
    """A person must change a file, an option or a permission before this can work."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file that a person wrote. `line` and `column` count from 1."""

    where: str
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"
        return f"{text}\n  → {self.hint}" if self.hint else text


class ConfigurationError(OperatorError):
    """The operator's file (or a profile, or a bundle.yaml) has problems; all of them are listed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class BundleError(OperatorError):
    """A bundle or a model file is refused. Nothing that was active has been touched."""

    exit_code = 4


class ReleaseRefusedError(BundleError):
    """What was signed contradicts itself, is too new or too large: fetching it again is pointless."""


class UnavailableError(HoldfastError):
    """The broker, the network or a device is not there now. Retrying later may work."""

    exit_code = 5


class SourceError(UnavailableError):
    """A camera or sensor could not be opened, or stopped delivering."""


class UntrustedError(HoldfastError):
    """Signed metadata or a signed document is refused: signatures, versions, expiry, hashes. Nothing of it was used.

    Either somebody attacks (and can only delay), or the repository is broken or was not refreshed in time.

    Args:
        message: What is wrong, with the expected and the found value.
        role: What it is about: a TUF role (`timestamp`), `channels/stable.json`, …
    """

    exit_code = 8

    def __init__(self, message: str, *, role: str, hint: str | None = None) -> None:
        self.role = role
        super().__init__(message, where=role, hint=hint)


class NotThereError(UnavailableError):
    """The repository says that it has no such file. Another transport may have it."""


class WrongContentError(UnavailableError):
    """What came is not what was signed, again and again: this transport is damaged or hostile. Try another."""


class StoppedError(UnavailableError):
    """`stop` was set."""


class CandidateError(HoldfastError):
    """A provider or variant cannot be used on this device; the next candidate may work."""

    exit_code = 6


class OtherRuntimeError(CandidateError):
    """Another ONNX Runtime is loaded in this process, which can hold one only. A process of its own can open this one."""


class StateError(HoldfastError):
    """Our own files cannot be read or written (permission, full disk, damage)."""

    exit_code = 7
