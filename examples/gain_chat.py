"""A chat server: python examples/gain_chat.py [PORT [WORKERS]]

Lines of UTF-8: the first that a client sends is its name, the others go to everybody else.
Try it with `nc 127.0.0.1 8080` in several terminals.

A connection belongs to its worker, which is a thread. So what one connection says to another
goes through the other's `call_soon_threadsafe`, whose calls are done in the order in which
they were made: everybody sees one speaker's lines in the speaker's order.
"""

from __future__ import annotations

import contextlib
import sys
import threading

from uring_trio import gain

LINE_LIMIT = 1024  # bytes
# Bytes that wait for a client which does not read; `write` itself has no limit.
BACKLOG_LIMIT = 1 << 20


def deliver(conn: gain.Conn, line: bytes) -> None:
    """Write on the connection's own worker, or give up one that does not keep up."""
    conn.write(line)  # which does nothing if it has closed in the meantime
    if conn.outbound_buffered() > BACKLOG_LIMIT:
        conn.abort()


class Handler(gain.EventHandler):
    """A connection's context is its name, None before it has one."""

    def __init__(self) -> None:
        self.members: set[gain.Conn] = set()
        self.lock = threading.Lock()  # for `members`: all workers share this handler

    def on_start(self, server: gain.Server) -> None:
        for address in server.addresses():
            print(f"listening on {address}", flush=True)

    def on_accept(self, conn: gain.Conn) -> None:
        conn.write(b"your name?\n")

    def on_read(self, conn: gain.Conn, n: int) -> None:
        *lines, rest = conn.peek().split(b"\n")
        if any(len(line) > LINE_LIMIT for line in (*lines, rest)):
            conn.write(b"too long a line\n")
            conn.close()
            return
        conn.discard(sum(len(line) + 1 for line in lines))
        for line in lines:
            self.on_line(conn, line.rstrip(b"\r"))

    def on_line(self, conn: gain.Conn, line: bytes) -> None:
        if conn.context is None:
            conn.context = line
            with self.lock:
                self.members.add(conn)
            self.tell_others(conn, b"%s joined\n" % line)
        else:
            self.tell_others(conn, b"%s: %s\n" % (conn.context, line))

    def on_close(self, conn: gain.Conn, err: BaseException | None) -> None:
        with self.lock:
            self.members.discard(conn)
        if conn.context is not None:
            self.tell_others(conn, b"%s left\n" % conn.context)

    def tell_others(self, speaker: gain.Conn, line: bytes) -> None:
        with self.lock:
            others = self.members - {speaker}
        for conn in others:
            with contextlib.suppress(gain.ConnectionClosed):  # its worker has ended
                conn.call_soon_threadsafe(deliver, conn, line)


def main(port: int = 8080, workers: int | None = None) -> None:
    gain.listen_and_serve(f"tcp://127.0.0.1:{port}", Handler(), workers=workers)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
