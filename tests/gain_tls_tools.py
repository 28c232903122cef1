"""Clients of TLS servers: the standard library's, and one whose every byte the test sends."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from gain_tls_contexts import NAME, client_context
from gain_tools import connect

if TYPE_CHECKING:
    import socket as stdlib_socket

    from uring_trio import gain

CHUNK = 1 << 16


def secure(
    raw: stdlib_socket.socket,
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """Make a blocking client one of TLS; an end without close_notify raises."""
    return (context or client_context()).wrap_socket(
        raw, server_hostname=NAME, suppress_ragged_eofs=False, session=session
    )


def connect_tls(
    server: gain.Server,
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    raw = connect(server)
    try:
        return secure(raw, context, session)
    except BaseException:
        raw.close()
        raise


class Peer:
    """A client that leaves it to the test when which of its bytes are sent."""

    def __init__(self, raw: stdlib_socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.raw = raw
        self._received = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = (context or client_context()).wrap_bio(
            self._incoming, self._outgoing, server_hostname=NAME
        )

    def advance(self) -> bytes:
        """What the handshake wants to have sent; ``b""`` and done, or ``b""`` and waiting."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def shake_hands(self, *, at_once: int = CHUNK) -> None:
        """Shake hands, so many bytes a packet."""
        while True:
            self.send(self.advance(), at_once=at_once)
            if self.ssl.version() is not None and self.is_done():
                return
            self.feed()

    def is_done(self) -> bool:
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def send(self, data: bytes, *, at_once: int = CHUNK) -> None:
        for start in range(0, len(data), at_once):
            self.raw.sendall(data[start : start + at_once])

    def alert(self) -> bytes:
        """What is to be sent after an error."""
        return self._outgoing.read()

    def seal(self, plaintext: bytes) -> bytes:
        self.ssl.write(plaintext)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        self._read()  # or OpenSSL says that it came after close_notify
        try:
            self.ssl.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def feed(self) -> bool:
        """Take in what the server has sent; False at its FIN."""
        ciphertext = self.raw.recv(CHUNK)
        self._incoming.write(ciphertext)
        return bool(ciphertext)

    def read_exactly(self, size: int) -> bytes:
        """So many bytes, or as many as there are before the server's close_notify."""
        while self._read() and len(self._received) < size:
            if not self.feed():
                raise ssl.SSLEOFError("no close_notify")
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def read_to_end(self) -> bytes:
        """All until the server's close_notify; raises if it sends none."""
        return self.read_exactly(1 << 40)

    def _read(self) -> bool:
        """Decrypt what has come; False if the last of it was a close_notify."""
        try:
            while data := self.ssl.read(CHUNK):
                self._received += data
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLZeroReturnError:
            pass
        return False
