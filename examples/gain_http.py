"""An HTTP/1.1 server of plain text: python examples/gain_http.py [PORT [WORKERS]]

It parses every request, and knows pipelining, keep-alive and `Connection: close`, requests
that come in pieces, bodies (which it skips) and limits. `GET /` is answered with a text.
"""

from __future__ import annotations

import re
import sys
from email.utils import formatdate
from typing import NamedTuple

from uring_trio import gain

HEAD_LIMIT = 8192  # bytes of request line and headers; what other servers allow as well
BODY_LIMIT = 1 << 20  # bytes; no body is of use here, this is what we are ready to skip
IDLE_LIMIT_S = 60.0

TEXT = b"Hello, World!\n"

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
COMMA = re.compile(rb"[ \t]*,[ \t]*")


class Refused(Exception):
    """This request gets an error for an answer, after which the connection is closed."""


class Request(NamedTuple):
    """What the answer depends on."""

    method: bytes
    target: bytes
    keep_alive: bool
    body_position: int
    body_size: int


def next_request(data: bytes, position: int) -> Request | None:
    """The request that begins there, or None while its head is not complete.

    Raises:
      Refused: with the status to answer with.
    """
    end = data.find(b"\r\n\r\n", position)
    if (len(data) if end < 0 else end) - position > HEAD_LIMIT:
        raise Refused("431 Request Header Fields Too Large")
    if end < 0:
        return None
    first, *lines = data[position:end].split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or not TOKEN.fullmatch(words[0]):
        raise Refused("400 Bad Request")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused("505 HTTP Version Not Supported")
    headers = parse_headers(lines)
    if version == b"HTTP/1.1" and b"host" not in headers:
        raise Refused("400 Bad Request")
    options = COMMA.split(headers.get(b"connection", b"").lower())
    keep_alive = version == b"HTTP/1.1" and b"close" not in options
    return Request(method, target, keep_alive, end + 4, body_size_of(headers))


def parse_headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Header lines by name, in lower case."""
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            raise Refused("400 Bad Request")
        name = name.lower()
        # With two lengths or hosts, requests are smuggled past a proxy in front of us.
        if name in headers and name in (b"content-length", b"host"):
            raise Refused("400 Bad Request")
        headers[name] = value.strip(b" \t")
    return headers


def body_size_of(headers: dict[bytes, bytes]) -> int:
    """How many bytes after the head belong to this request."""
    if b"transfer-encoding" in headers:
        raise Refused("501 Not Implemented")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise Refused("400 Bad Request")
    # The digits are counted first, because int() takes its time over a million of them.
    if len(length) > 10 or int(length) > BODY_LIMIT:
        raise Refused("413 Content Too Large")
    return int(length)


class Handler(gain.EventHandler):
    """A connection's context is how many bytes of a body are still to be skipped."""

    def __init__(self) -> None:
        self.renew_date()

    def renew_date(self) -> None:
        self.date = b"Date: " + formatdate(usegmt=True).encode() + b"\r\n"

    def on_start(self, server: gain.Server) -> None:
        for address in server.addresses():
            print(f"listening on http://{address}", flush=True)

    def on_tick(self, server: gain.Server) -> None:
        self.renew_date()

    def on_accept(self, conn: gain.Conn) -> None:
        conn.context = 0
        conn.set_idle_timeout(IDLE_LIMIT_S)

    def on_read(self, conn: gain.Conn, n: int) -> None:
        data = conn.peek()
        position = min(conn.context, len(data))
        conn.context -= position
        # All requests that are here are answered with one write.
        answers: list[bytes] = []
        keep_alive = True
        try:
            while keep_alive and (request := next_request(data, position)):
                answers.append(self.answer(request))
                keep_alive = request.keep_alive
                position = min(request.body_position + request.body_size, len(data))
                conn.context = request.body_position + request.body_size - position
        except Refused as exc:
            answers.append(self.refusal(str(exc)))
            keep_alive = False
        conn.discard(position)
        if answers:
            conn.write(b"".join(answers))
        if not keep_alive:
            conn.close()

    def answer(self, request: Request) -> bytes:
        if request.method not in (b"GET", b"HEAD"):
            status, text = b"405 Method Not Allowed\r\nAllow: GET, HEAD", b""
        elif request.target.partition(b"?")[0] != b"/":
            status, text = b"404 Not Found", b""
        else:
            status, text = b"200 OK\r\nContent-Type: text/plain; charset=utf-8", TEXT
        return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n%s\r\n%s" % (
            status,
            self.date,
            len(text),
            b"" if request.keep_alive else b"Connection: close\r\n",
            b"" if request.method == b"HEAD" else text,
        )

    def refusal(self, status: str) -> bytes:
        return b"HTTP/1.1 %s\r\n%sContent-Length: 0\r\nConnection: close\r\n\r\n" % (
            status.encode(),
            self.date,
        )


def main(port: int = 8080, workers: int | None = None) -> None:
    gain.listen_and_serve(f"tcp://127.0.0.1:{port}", Handler(), workers=workers, tick=1.0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
