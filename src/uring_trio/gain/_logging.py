"""The logger of all servers, and what a server's options change about it while it runs.

The logger belongs to the process and the options to a server, so what a server sets is
taken back when it ends. Of several that run at once the one that started last decides the
level.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uring_trio.gain._config import Config

logger = logging.getLogger("uring_trio.gain")

# What every record has; whatever else is there was given as `extra`.
PLAIN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

_lock = threading.Lock()
_levels: dict[object, int] = {}  # of the servers that run, in the order of their starts
_pretty: set[object] = set()  # the servers that run and want the handler
_level_before = logging.NOTSET  # of any server
_handler: logging.Handler | None = None


@contextlib.contextmanager
def configured(config: Config) -> Iterator[None]:
    """Have the logger as *config* says; as it was before, once all such servers have ended."""
    server = object()
    _add(server, config)
    try:
        yield
    finally:
        _remove(server)


class PrettyFormatter(logging.Formatter):
    """One readable line for each record: time, level, message, then what came as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        extra = [
            f"{name}={value}"
            for name, value in vars(record).items()
            if name not in PLAIN_ATTRIBUTES
        ]
        return " ".join([super().formatMessage(record), *extra])


def _add(server: object, config: Config) -> None:
    global _handler, _level_before
    with _lock:
        if config.logger_level is not None:
            if not _levels:
                _level_before = logger.level
            _levels[server] = config.logger_level
            logger.setLevel(config.logger_level)
        if config.pretty_logger:
            if _handler is None:
                _handler = logging.StreamHandler()  # to stderr
                _handler.setFormatter(PrettyFormatter())
                logger.addHandler(_handler)
            _pretty.add(server)


def _remove(server: object) -> None:
    global _handler
    with _lock:
        if _levels.pop(server, None) is not None:
            logger.setLevel(list(_levels.values())[-1] if _levels else _level_before)
        _pretty.discard(server)
        if not _pretty and _handler is not None:
            logger.removeHandler(_handler)
            _handler = None
