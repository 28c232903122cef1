"""Gain's tutorial: an echo server, its two clients, and the end: python examples/gain_echo.py [PORT]

Prints one JSON line for each callback. Needs structlog: pip install 'uring-trio[examples]'
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time

import structlog

from uring_trio import gain

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
NUMBER_OF_CLIENTS = 2
TEST_DATA = b"echo"

PROCESSORS: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.EventRenamer("message"),
]


class EventHandler(gain.EventHandler):
    def __init__(self) -> None:
        self.overall_bytes_sent = 0
        self.lock = threading.Lock()  # workers are threads, and share this handler

    def on_start(self, server: gain.Server) -> None:
        self.server = server
        self.logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stdout),
            processors=[*PROCESSORS, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )

    def on_accept(self, conn: gain.Conn) -> None:
        self.logger.info(
            "New connection accepted",
            **{
                "active connections": self.server.active_connections(),
                "remote address": str(conn.remote_addr()),
            },
        )

    def on_read(self, conn: gain.Conn, n: int) -> None:
        self.logger.info(
            "Bytes received from remote peer",
            **{"bytes": n, "remote address": str(conn.remote_addr())},
        )

        conn.write(conn.next(n))

    def on_write(self, conn: gain.Conn, n: int) -> None:
        with self.lock:
            self.overall_bytes_sent += n

        self.logger.info(
            "Bytes sent to remote peer",
            **{"bytes": n, "remote address": str(conn.remote_addr())},
        )

        conn.close()

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        log = self.logger.bind(**{"remote address": str(conn.remote_addr())})
        if err is not None:
            log.info("Connection from remote peer closed", error=str(err))
        else:
            log.info("Connection from remote peer closed by server")

        if self.overall_bytes_sent >= len(TEST_DATA) * NUMBER_OF_CLIENTS:
            self.server.async_shutdown()


def run_client() -> None:
    time.sleep(1)

    with socket.create_connection(("127.0.0.1", PORT), timeout=1) as conn:
        conn.sendall(TEST_DATA)

        with conn.makefile("rb") as replies:
            assert replies.read(len(TEST_DATA)) == TEST_DATA


def run_clients() -> None:
    for _ in range(NUMBER_OF_CLIENTS):
        threading.Thread(target=run_client).start()


def log_warnings_as_json() -> None:
    """What the library says goes to stdout too, in the same form."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(),
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *PROCESSORS],
        )
    )
    logging.getLogger("uring_trio.gain").addHandler(handler)


def main() -> None:
    log_warnings_as_json()
    run_clients()

    gain.listen_and_serve(f"tcp://localhost:{PORT}", EventHandler(), logger_level=logging.WARNING)


if __name__ == "__main__":
    main()
