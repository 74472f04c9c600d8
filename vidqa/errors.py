"""Every error that vidqa raises on purpose.

    VidqaError                 exit code 1: something failed
    ├── UsageError             exit code 2: the command, a flag or a value is wrong
    │   └── ConfigError        a configuration file or environment variable is wrong
    ├── NothingFound           exit code 3: the library holds nothing that fits
    ├── VideoError             one file cannot be read, decoded or understood
    ├── LibraryError           the index folder cannot be used
    │   ├── LibraryBusy        another process holds the store for longer than the retries last
    │   └── EmbedderMismatch   the library was made with another embedder
    ├── ModelError             model weights are missing, damaged or do not fit
    │   └── MissingExtra       a package that an extra would install is not installed
    ├── EngineError            the managed vLLM did not start, or died
    └── EndpointError          the answering endpoint refused a request or broke off

A message gives the value at fault, what is allowed and the next step, in one line where it can.
Errors of other libraries are translated where they enter vidqa, never further in.
"""

from __future__ import annotations


class VidqaError(Exception):
    """Base of all errors below; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(VidqaError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class NothingFound(VidqaError):
    exit_code = 3


class VideoError(VidqaError):
    pass


class LibraryError(VidqaError):
    pass


class LibraryBusy(LibraryError):
    pass


class EmbedderMismatch(LibraryError):
    pass


class ModelError(VidqaError):
    pass


class MissingExtra(ModelError):
    pass


class EngineError(VidqaError):
    pass


class EndpointError(VidqaError):
    """`refused`: the request is at fault; `unreachable`: nobody listens there; `denied`: the key is
    not right; else it failed."""

    def __init__(
        self,
        message: str,
        *,
        refused: bool = False,
        unreachable: bool = False,
        denied: bool = False,
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.unreachable = unreachable
        self.denied = denied
