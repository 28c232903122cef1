"""TLS without I/O, against the standard library's, all in memory; for sockets see test_gain_tls_sockets."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from gain_tools import NAME, TLS_1_2, TLS_1_3, client_context, server_context, versions

from uring_trio.gain._tls import PIECE_SIZE_MAX, RECORD_SIZE_MAX, TLSLayer

BIG = bytes(range(256)) * (5 << 12)  # 5 MiB


class Client:
    """The peer: an SSLObject driven by hand, so that nothing of the layer tests itself."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = (context or client_context()).wrap_bio(
            self.incoming, self.outgoing, server_hostname=NAME
        )

    def handshake(self) -> bool:
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes:
        received = []
        try:
            while record := self.ssl.read(1 << 16):
                received.append(record)
        except ssl.SSLWantReadError:
            pass
        return b"".join(received)

    def sealed(self, plaintext: bytes) -> bytes:
        self.ssl.write(plaintext)
        return self.outgoing.read()


def shake_hands(layer: TLSLayer, client: Client) -> None:
    for _ in range(4):
        client.handshake()
        assert layer.feed(client.outgoing.read()) == b""
        client.incoming.write(layer.take())
    assert layer.handshake_done
    assert client.handshake()


def connected(version: ssl.TLSVersion) -> tuple[TLSLayer, Client]:
    layer, client = TLSLayer(server_context(version)), Client()
    shake_hands(layer, client)
    assert client.ssl.version() == layer._ssl.version() == version.name.replace("_", ".")
    return layer, client


@versions
def test_small_and_big_data_both_ways(version: ssl.TLSVersion) -> None:
    layer, client = connected(version)
    for message in (b"x", b"hello", BIG):
        assert layer.feed(client.sealed(message)) == message
        layer.write(message)
        assert layer.unsent == len(message)
        client.incoming.write(layer.take())
        assert layer.unsent == 0
        assert client.read() == message
    assert layer.plaintext_taken == len(BIG) + 6
    assert layer.take() == b""
    assert layer.feed(b"") == b""


@versions
def test_pending_tells_whether_there_is_something_to_take(version: ssl.TLSVersion) -> None:
    layer, client = TLSLayer(server_context(version)), Client()
    layer.write(b"waits")
    assert not layer.pending
    client.handshake()
    layer.feed(client.outgoing.read())
    assert layer.pending  # messages of the handshake
    client.incoming.write(layer.take())
    assert not layer.pending
    client.handshake()
    layer.feed(client.outgoing.read())
    assert layer.pending
    while layer.pending:
        assert layer.take(1)
    layer.close_notify()
    assert layer.pending
    assert layer.take()
    assert not layer.pending
    with pytest.raises(ssl.SSLError):
        layer.feed(b"\x17\x03\x03\x00\x01x")
    layer.take()
    assert not layer.pending


@versions
def test_a_byte_at_a_time(version: ssl.TLSVersion) -> None:
    layer, client = TLSLayer(server_context(version)), Client()
    received = b""
    for _ in range(4):
        client.handshake()
        for byte in client.outgoing.read():
            received += layer.feed(bytes([byte]))
        client.incoming.write(layer.take())
    assert layer.handshake_done
    for byte in client.sealed(b"one record") + client.sealed(b", and another"):
        received += layer.feed(bytes([byte]))
    assert received == b"one record, and another"


@versions
def test_data_right_behind_the_handshake_is_not_lost(version: ssl.TLSVersion) -> None:
    layer, client = TLSLayer(server_context(version)), Client()
    received = b""
    while not client.handshake():
        received += layer.feed(client.outgoing.read())
        client.incoming.write(layer.take())
    # In TLS 1.3 this holds the client's last message of the handshake as well.
    received += layer.feed(client.sealed(b"early bird"))
    assert received == b"early bird"


@versions
def test_what_is_written_before_the_handshake_is_done_waits_in_order(
    version: ssl.TLSVersion,
) -> None:
    layer, client = TLSLayer(server_context(version)), Client()
    layer.write(b"first, ")
    layer.write(bytearray(b"second, "))
    assert layer.take() == b""
    assert layer.unsent == 15
    received = b""
    for _ in range(4):
        if client.handshake():
            received += client.read()
        layer.feed(client.outgoing.read())
        client.incoming.write(layer.take())
    layer.write(memoryview(b"third"))
    client.incoming.write(layer.take())
    assert received + client.read() == b"first, second, third"


def test_a_mutable_buffer_is_copied() -> None:
    layer, client = connected(TLS_1_3)
    buffer = bytearray(b"before")
    layer.write(buffer)
    buffer[:] = b"after!"
    client.incoming.write(layer.take())
    assert client.read() == b"before"


def test_small_writes_share_records_and_large_ones_come_in_pieces() -> None:
    layer, client = connected(TLS_1_3)
    for _ in range(1000):
        layer.write(b"16 bytes of text")
    sealed = layer.take()
    assert len(sealed) < 16_000 + 64  # one record's overhead, not a thousand
    client.incoming.write(sealed)
    assert client.read() == b"16 bytes of text" * 1000

    layer.write(BIG)
    taken, before = b"", layer.plaintext_taken
    while layer.unsent:
        sealed = layer.take(RECORD_SIZE_MAX)
        carried = layer.plaintext_taken - before - len(taken)
        assert 0 < carried <= RECORD_SIZE_MAX + PIECE_SIZE_MAX
        client.incoming.write(sealed)
        taken += client.read()
        assert len(taken) == layer.plaintext_taken - before
    assert taken == BIG


@versions
def test_close_notify_from_the_peer_then_ours(version: ssl.TLSVersion) -> None:
    layer, client = connected(version)
    last = client.sealed(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.ssl.unwrap()
    # Data, close_notify and what must be ignored behind it, all at once.
    assert layer.feed(last + client.outgoing.read() + b"junk") == b"last words"
    assert layer.peer_closed
    assert layer.feed(b"more junk") == b""
    assert layer.feed_eof() is True
    assert not layer.close_sent
    layer.close_notify()
    client.incoming.write(layer.take())
    assert layer.close_sent
    client.ssl.unwrap()


@versions
def test_the_peer_s_close_notify_leaves_our_direction_open(version: ssl.TLSVersion) -> None:
    layer, client = connected(version)
    with pytest.raises(ssl.SSLWantReadError):
        client.ssl.unwrap()
    assert layer.feed(client.outgoing.read()) == b""
    assert layer.peer_closed
    layer.write(b"answer")
    assert len(layer.take()) > 6
    assert layer.unsent == 0


@versions
def test_our_close_notify_follows_what_was_written_and_input_still_comes(
    version: ssl.TLSVersion,
) -> None:
    layer, client = connected(version)
    pending = client.sealed(b"sent before it knew")
    layer.write(BIG)
    layer.close_notify()
    with pytest.raises(RuntimeError, match="close_notify"):
        layer.write(b"too late")
    sealed = layer.take(1)
    assert not layer.close_sent
    assert layer.feed(pending[:9]) == b""  # half a record is inside while we shut down
    while more := layer.take(1):
        sealed += more
    assert layer.close_sent
    client.incoming.write(sealed)
    assert client.read() == BIG
    # The client has seen close_notify: read() ended without SSLWantReadError.
    assert client.ssl.read(1) == b""
    assert layer.feed(pending[9:]) == b"sent before it knew"
    client.ssl.unwrap()
    assert layer.feed(client.outgoing.read()) == b""
    assert layer.peer_closed
    assert layer.feed_eof() is True


@versions
def test_an_end_without_close_notify_is_an_error(version: ssl.TLSVersion) -> None:
    layer, client = connected(version)
    assert layer.feed(client.sealed(b"cut sho")) == b"cut sho"
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError, match="without close_notify"):
            layer.feed_eof()
    assert not layer.peer_closed


def test_an_end_during_the_handshake_is_an_error() -> None:
    layer, client = TLSLayer(server_context()), Client()
    client.handshake()
    layer.feed(client.outgoing.read()[:100])
    with pytest.raises(ssl.SSLEOFError, match="handshake"):
        layer.feed_eof()


def test_failed_handshake_raises_and_the_alert_can_be_taken() -> None:
    old = client_context()
    old.maximum_version = TLS_1_2
    layer, client = TLSLayer(server_context(TLS_1_3)), Client(old)
    layer.write(b"secret")
    client.handshake()
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol"):
        layer.feed(client.outgoing.read())
    client.incoming.write(layer.take())
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
        client.ssl.do_handshake()
    with pytest.raises(ssl.SSLError):
        layer.feed(b"again")
    assert layer.error is not None
    assert layer.take() == b""
    assert not layer.handshake_done


def test_a_client_that_speaks_no_tls_is_refused() -> None:
    layer = TLSLayer(server_context())
    with pytest.raises(ssl.SSLError, match=r"(?i)http.request"):
        layer.feed(b"GET / HTTP/1.1\r\n\r\n")


def test_a_peer_that_does_not_trust_us_gives_its_alert_as_the_error() -> None:
    layer, client = TLSLayer(server_context(TLS_1_2)), Client(client_context(trusting=False))
    client.handshake()
    layer.feed(client.outgoing.read())
    client.incoming.write(layer.take())
    with pytest.raises(ssl.SSLCertVerificationError):
        client.ssl.do_handshake()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.unknown.ca"):
        layer.feed(client.outgoing.read())


@versions
def test_good_records_before_a_bad_one_are_delivered(version: ssl.TLSVersion) -> None:
    layer, client = connected(version)
    good, bad = client.sealed(b"good"), bytearray(client.sealed(b"bad"))
    bad[-1] ^= 1
    assert layer.feed(good + bytes(bad)) == b"good"
    assert isinstance(layer.error, ssl.SSLError)
    client.incoming.write(layer.take())
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.bad.record.mac"):
        client.read()
    with pytest.raises(ssl.SSLError, match=r"(?i)decryption.failed.or.bad.record.mac"):
        layer.feed(b"")


def test_the_client_s_end_of_the_layer() -> None:
    server = TLSLayer(server_context())
    client = TLSLayer(client_context(), server_side=False, server_hostname=NAME)
    client.start()
    client.write(b"ping")
    for _ in range(4):
        received = server.feed(client.take())
        if received:
            break
        assert client.feed(server.take()) == b""
    assert received == b"ping"
    server.write(b"pong")
    server.close_notify()
    assert client.feed(server.take()) == b"pong"
    assert client.peer_closed


class Reluctant(ssl.SSLObject):
    """Wants to read before it writes, as OpenSSL does while it renegotiates."""

    wants: int = 0
    offered: list[bytes]

    def write(self, data: Any) -> int:
        if self.wants:
            self.wants -= 1
            self.offered.append(bytes(data))
            raise ssl.SSLWantReadError
        if self.offered:
            # Or OpenSSL says "bad write retry".
            assert bytes(data) == self.offered[-1]
            self.offered.clear()
        return super().write(data)


def test_a_write_that_wants_to_read_first_is_offered_again_unchanged() -> None:
    context = server_context()
    context.sslobject_class = Reluctant
    layer, client = TLSLayer(context), Client()
    shake_hands(layer, client)
    reluctant = layer._ssl
    assert isinstance(reluctant, Reluctant)
    reluctant.wants, reluctant.offered = 2, []
    layer.write(b"stuck")
    layer.close_notify()
    for _ in range(2):
        assert layer.pending
        assert layer.take() == b""
        assert layer.unsent == 5
        # Until something comes there is no use in asking.
        assert not layer.pending
        assert layer.take() == b""
        layer.feed(client.sealed(b"x"))
    assert not layer.close_sent
    client.incoming.write(layer.take())
    assert client.read() == b"stuck"
    assert layer.unsent == 0
    assert layer.close_sent
