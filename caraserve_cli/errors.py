"""Everything that can go wrong and that a user can cause or meet.

CaraServeError
├── OptionError           wrong options                                       exit status 2
├── InputError            the run cannot start or go on: a missing file, …    exit status 1
│   ├── BaseModelError    the base is missing or cannot be honoured
│   ├── DeviceMemoryError a step does not fit the device's memory
│   ├── LostProcessError  a process that holds a part of the base has ended
│   ├── ProfileError      this machine's profile cannot be used, or not be made
│   └── OutputError       the output folder cannot be used
├── RowError              one row of the requests is refused or failed        a line in errors.jsonl
└── AdapterError          one adapter is refused; its requests become RowErrors

A message is one line that says what is wrong, where, and what to do next.
"""

from __future__ import annotations

from enum import StrEnum


class ExitStatus:
    """What `caraserve` returns to the shell."""

    OK = 0
    FAILED = 1
    WRONG_OPTIONS = 2
    ROWS_FAILED = 3
    REGRESSED = 4
    CANNOT_TELL = 5
    INTERRUPTED = 130


class RowErrorCode(StrEnum):
    """The `code` of a line in errors.jsonl."""

    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_REQUEST = "invalid_request"
    LINE_TOO_LONG = "line_too_long"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_ADAPTER = "unknown_adapter"
    ADAPTER_REFUSED = "adapter_refused"
    ADAPTER_TOO_LARGE = "adapter_too_large"
    PROMPT_TOO_LONG = "prompt_too_long"
    TOKEN_OUT_OF_RANGE = "token_out_of_range"
    NO_TOKENIZER = "no_tokenizer"
    CHAT_TEMPLATE = "chat_template"
    KV_CAPACITY = "kv_capacity"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    REPLICA_LOST = "replica_lost"


class CaraServeError(Exception):
    """Root of the errors a user can meet; `exit_status` is what the command then returns."""

    exit_status: int = ExitStatus.FAILED


class OptionError(CaraServeError):
    """An option has a wrong value; the message names the option."""

    exit_status = ExitStatus.WRONG_OPTIONS


class InputError(CaraServeError):
    """The run cannot start or go on."""


class BaseModelError(InputError):
    """The base model is missing, unreadable, or its config holds something that cannot be honoured."""


class DeviceMemoryError(InputError):
    """The device's memory does not hold a step; the engine tries a smaller one before a user meets this."""


class LostProcessError(InputError):
    """One of the processes that hold a base together has ended."""


class ProfileError(InputError):
    """The machine's profile is missing or unreadable, or what was measured follows no model."""


class OutputError(InputError):
    """The output folder cannot be written, or belongs to another run."""


class RowError(CaraServeError):
    """One row of the requests is refused or failed.

    Args:
        code: what kind of failure, for machines.
        message: one line for people.
        request_id: the row's id as far as it is known.
        is_batch: whether the row is an OpenAI Batch line, which is refused in that form.
    """

    exit_status = ExitStatus.ROWS_FAILED

    def __init__(
        self, code: RowErrorCode, message: str, request_id: str | None = None, is_batch: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.is_batch = is_batch


class AdapterError(CaraServeError):
    """One adapter is refused. The message names the adapter and the field or tensor at fault."""

    def __init__(self, adapter: str, reason: str) -> None:
        super().__init__(f"adapter '{adapter}': {reason}")
        self.adapter = adapter
        self.reason = reason
