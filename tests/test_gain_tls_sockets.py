"""The TLS layer over real sockets, against peers that know nothing of it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import NAME, TLS_1_3, client_context, server_context, versions

from uring_trio.gain._tls import TLSLayer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

BIG = bytes(range(256)) * (5 << 12)  # 5 MiB
HANG_S = 20.0  # for one step of a test; all of one takes 0.2 s
KEY_UPDATE = 24  # RFC 8446, 4: HandshakeType


def serve_echo(listener: socket.socket, layer: TLSLayer) -> bytes:
    """Echo on the first connection until its close_notify; what was received."""
    listener.settimeout(HANG_S)
    connection, _ = listener.accept()
    connection.settimeout(HANG_S)
    received = bytearray()
    with connection:
        while not layer.peer_closed and (ciphertext := connection.recv(1 << 16)):
            plaintext = layer.feed(ciphertext)
            received += plaintext
            layer.write(plaintext)
            connection.sendall(layer.take())
        assert layer.feed_eof()
        layer.close_notify()
        connection.sendall(layer.take())
    return bytes(received)


@versions
def test_over_a_real_socket_with_a_blocking_client(version: ssl.TLSVersion) -> None:
    echoed = bytearray()

    def client(address: Any) -> None:
        raw = socket.create_connection(address)
        with client_context().wrap_socket(
            raw, server_hostname=NAME, suppress_ragged_eofs=False
        ) as wrapped:
            for start in range(0, len(BIG), 1 << 18):
                wrapped.sendall(BIG[start : start + (1 << 18)])
                while len(echoed) < min(start + (1 << 18), len(BIG)):
                    echoed.extend(wrapped.recv(1 << 16))
            wrapped.unwrap().close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=client, args=[listener.getsockname()])
        thread.start()
        received = serve_echo(listener, TLSLayer(server_context(version)))
        thread.join(HANG_S)
    assert received == bytes(echoed) == BIG


class KeyUpdates:
    """The key updates that a context's connections read and wrote."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.seen: list[str] = []
        self.changed = threading.Condition()
        # Private in ssl, and the only view that Python has of these messages.
        context._msg_callback = self.note  # type: ignore[attr-defined]

    def note(self, _: Any, direction: str, *message: Any) -> None:
        if message[2] == KEY_UPDATE:
            with self.changed:
                self.seen.append(direction)
                self.changed.notify()

    def wait_for(self, seen: list[str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.seen == seen, HANG_S), self.seen


@contextlib.contextmanager
def openssl_client(address: tuple[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    command = ["openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", "-tls1_3"]
    with subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def converse(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Type *line* and wait until it is echoed."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    while (output := process.stdout.readline()) != line:
        assert output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
def test_key_updates_of_the_peer_are_answered() -> None:
    context = server_context(TLS_1_3)
    updates, received = KeyUpdates(context), []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(
            target=lambda: received.append(serve_echo(listener, TLSLayer(context)))
        )
        thread.start()
        with openssl_client(listener.getsockname()) as process:
            assert process.stdin is not None
            converse(process, b"one\n")
            process.stdin.write(b"k\n")  # new keys for the client's direction
            updates.wait_for(["read"])
            converse(process, b"two\n")
            process.stdin.write(b"K\n")  # and a request for new ones of the server's
            updates.wait_for(["read", "read"])
            converse(process, b"three\n")
            updates.wait_for(["read", "read", "write"])  # just before the next data
            process.stdin.write(b"Q\n")  # close_notify
            thread.join(HANG_S)
    assert received == [b"one\ntwo\nthree\n"]
