"""A minimal HTTP/1.1 responder without any I/O: bytes in, bytes out.

It parses each request, the line and every header, and answers all paths with the same
plain text. Requests may be pipelined, and may come in pieces. What it does not know,
bodies above all, it refuses, and the connection is to be closed then.
"""

from __future__ import annotations

END_OF_HEAD = b"\r\n\r\n"
HEAD_BYTES_MAX = 8192  # as much as nginx and Apache take by default

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, World!"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BadRequest(ValueError):
    """Nothing that this responder answers."""


def parse_head(head: bytes) -> tuple[bytes, bytes, dict[bytes, bytes]]:
    """Method, target and headers of a request, their names in lower case.

    Raises:
      BadRequest: it is malformed, no HTTP/1.1, or announces a body.
    """
    request_line, *lines = head.split(b"\r\n")
    words = request_line.split(b" ")
    if len(words) != 3 or words[2] != b"HTTP/1.1":
        raise BadRequest(request_line)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadRequest(line)
        headers[name.lower()] = value.strip()
    if b"host" not in headers or b"content-length" in headers or b"transfer-encoding" in headers:
        raise BadRequest(headers)
    return words[0], words[1], headers


class Responder:
    """One connection's side of the protocol.

    Attributes:
      broken: something was refused; send what ``feed`` returned, and close.
    """

    __slots__ = ("_rest", "broken")

    def __init__(self) -> None:
        self._rest = b""
        self.broken = False

    def feed(self, data: bytes) -> bytes:
        """Take what has come, and return the answers to all requests that are whole."""
        if self._rest:
            data = self._rest + data
        answers: list[bytes] = []
        start = 0
        while (end := data.find(END_OF_HEAD, start)) >= 0:
            try:
                method, _, _ = parse_head(data[start:end])
                if method != b"GET":
                    raise BadRequest(method)
            except BadRequest:
                return self._refuse(answers)
            answers.append(OK)
            start = end + len(END_OF_HEAD)
        self._rest = data[start:]
        if len(self._rest) > HEAD_BYTES_MAX:
            return self._refuse(answers)
        return b"".join(answers)

    def _refuse(self, answers: list[bytes]) -> bytes:
        self.broken = True
        self._rest = b""
        return b"".join([*answers, BAD_REQUEST])
