"""How log lines look: one JSON object a line, or text for people."""

import logging
import sys
import threading
from types import TracebackType
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

log = logging.getLogger(__name__)

LogFormat = Literal["json", "text"]
# What every record has, and uvicorn's second, coloured copy of its message.
OWN = frozenset([*RESERVED_ATTRS, "color_message", "message", "asctime"])


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, before any traceback."""
        fields = "".join(
            f" {name}={value}" for name, value in record.__dict__.items() if name not in OWN
        )
        return super().formatMessage(record) + fields


def formatter(log_format: LogFormat) -> logging.Formatter:
    """What makes a record a line."""
    if log_format == "text":
        return TextFormatter()
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
        timestamp="time",
        reserved_attrs=[*OWN],
    )


def configure(level: str, log_format: LogFormat) -> None:
    """Have all that this process logs, warns of or fails by go to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    told: Any = (kind, error, trace)
    log.critical("uncaught %s", kind.__name__, exc_info=told)
