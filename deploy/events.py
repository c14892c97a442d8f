"""One JSON line for each event, for people with grep and for machines. Libraries log; only programs configure it."""

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """{"at": …, "level": "info", "event": "swap.committed", "version": 8, …}, as grep and machines like it."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()} | getattr(
            record, "facts", {}
        )
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def to_stderr(level: int) -> None:
    """Send our events of at least this level to standard error. Other libraries keep their own logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("lifelist")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(level)
