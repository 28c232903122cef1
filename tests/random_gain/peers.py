"""The other side of a stream connection: what it sends, how it reads, and how it ends.

A peer never waits. `turn` moves what can be moved now, and is called again and again by the
one thread that has all peers. What it sends is its own pattern (`patterns.pattern`), of which
`Account.sent` counts what the kernel has taken; what it receives are frames.

What a reset takes with it
==========================
A close with unread input, or with SO_LINGER at 0, is a reset, and takes away what the peer's
kernel has not delivered yet. What was acknowledged lies in the receive queue of the server's
socket, and stays there: TIOCOUTQ says how much was not. (Over loopback most of it is, but an
acknowledgement may be late, so this is a lower bound.) On a UNIX socket all that was sent lies
in the receiver's queue.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import ssl
import struct
import termios
import time
from typing import TYPE_CHECKING, Any

from random_gain import tls
from random_gain.faults import WrongEnd
from random_gain.patterns import FrameReader, pattern

if TYPE_CHECKING:
    from random_gain.books import Account
    from uring_trio import gain

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger
PIECE_MAX = 1 << 16
PIECES_MAX = 300  # of one send of the plan
RECORD_MAX = 16_000  # bytes of plaintext in one record of TLS, which then is one
RECEIVE_SIZE = 1 << 18
GO_AHEAD = b"G"  # in clear, of a server that begins with TLS then
GARBAGE = b"\x00\x01 this is no TLS \xff" * 40

# What a socket says when the other side has gone.
ENDED = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ECONNREFUSED)


def queued_bytes(sock: socket.socket, request: int) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0]
    return size


class StreamPeer:
    """One of them.

    Args:
      account: its connection's.
      address: where the server listens.
      step: how it is to be: ``kind``, ``reads``, ``piece``, ``rcv``, ``snd``, ``then``.
      names: local names that this plan has used, of which none comes again.

    Attributes:
      kind: "plain", "tls", "start_tls" (told to, in clear), "garbage" (in place of TLS),
        "stall" (it says nothing, where a handshake is due).
      reads: bytes it takes in a turn; 0: none, -1: all.
      pending: bytes that it is to send yet.
      saw_end: how its input has ended: "eof", or an error's name.
      urgent_sent: it has sent an urgent byte.
      resets: its end was a reset, which reaches the server.
      left_unread: input was there when it went, which a UNIX socket tells of as well.
      failed: it could not connect, since the server was ending.
    """

    def __init__(
        self, account: Account, address: gain.Address, step: dict[str, Any], names: set[Any]
    ) -> None:
        self.account = account
        self.kind: str = step.get("kind", "plain")
        self.is_tls = self.kind in ("tls", "start_tls")
        self.is_unix = address.network == "unix"
        self.reads: int = step.get("reads", -1)
        self.piece: int = step.get("piece", 0) or PIECE_MAX
        self.end_at_eof = step.get("then", "close")
        self.pending = 0
        self.saw_end = ""
        self.resets = False
        self.failed = False
        self.connected = False
        self._frames = FrameReader(account.number)
        self._wanted_end = ""
        self.urgent_sent = False
        self.left_unread = False
        self._before_news: tuple[int, str] | None = None
        # TLS: what is to be sent, sealed; of how much plaintext it is the record; for the
        # whole, where each record ends in both.
        self._sealed = bytearray()
        self._sealed_plain = 0
        self._sealed_sent = 0
        self._records: list[tuple[int, int]] = []
        self._secured = False
        self._told_to_begin = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if self.is_tls:
            self._tls = tls.CLIENT.wrap_bio(
                self._incoming, self._outgoing, server_hostname=tls.NAME
            )
        self.to: Any = address[0] if self.is_unix else tuple(address)
        family = socket.AF_UNIX
        if not self.is_unix:
            family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
        self.sock = socket.socket(family)
        self.sock.setblocking(False)
        for option, name in ((socket.SO_RCVBUF, "rcv"), (socket.SO_SNDBUF, "snd")):
            if step.get(name):
                self.sock.setsockopt(socket.SOL_SOCKET, option, step[name])
        self.name = self._bind(family, names)

    def _bind(self, family: int, names: set[Any]) -> Any:
        """Have a name that no other peer of the plan has had, to be known by."""
        places: dict[int, Any] = {socket.AF_UNIX: "", socket.AF_INET: ("127.0.0.1", 0)}
        while True:
            self.sock.bind(places.get(family, ("::1", 0)))
            name = self.sock.getsockname()
            if name not in names:
                names.add(name)
                return name
            taken, self.sock = self.sock, socket.socket(family)
            self.sock.setblocking(False)
            taken.close()

    # ---- what the plan says ------------------------------------------------------------------

    def send(self, size: int) -> None:
        """Have so many bytes more to send."""
        if not (self._wanted_end or self.account.end):
            self.pending += min(size, self.piece * PIECES_MAX)

    def send_urgent(self) -> None:
        """One urgent byte, which is no part of the stream. Once: a second one makes it so."""
        may = self.connected and not (self.is_unix or self.account.end or self.urgent_sent)
        if may and self.kind == "plain":
            with contextlib.suppress(OSError):
                self.sock.send(b"!", socket.MSG_OOB)
                self.urgent_sent = True

    def may_be_at_urgent(self) -> bool:
        """Whether the server may wait at its urgent byte for what comes next.

        At such a byte Linux's recv answers EAGAIN if a signal is pending, whatever is behind it,
        and a multishot receive then waits. What comes later is news again, and so is its end.
        """
        return self.urgent_sent and self._before_news in (None, self._news())

    def note_quiet(self) -> None:
        """Nothing moves any more."""
        if self.urgent_sent and self._before_news is None:
            self._before_news = self._news()

    def _news(self) -> tuple[int, str]:
        return self.account.sent, self.account.end

    def send_garbage(self) -> None:
        """What is no TLS, where that is spoken."""
        if self.is_tls and self.connected and not self.account.end and not self._sealed:
            self.account.spoiled = True
            with contextlib.suppress(OSError):
                self.sock.send(GARBAGE)

    def finish(self, how: str, *, flush: bool) -> None:
        """End in this way; with *flush* when all is sent."""
        if self.account.end and how == "eof":
            return
        self._wanted_end = how
        if not flush:
            self.pending = 0
            self._end()

    # ---- what can be moved -------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether it takes what comes."""
        return (self.reads != 0 or self._shakes_hands()) and not self.account.gone

    def _shakes_hands(self) -> bool:
        return self.is_tls and not self._secured

    def received(self) -> int:
        return self._frames.received + self._told_to_begin

    def has_delivered(self) -> bool:
        """Whether all that it has sent, and its end, is with the server's kernel."""
        if self.is_unix:
            return True
        try:
            return queued_bytes(self.sock, termios.TIOCOUTQ) == 0
        except (OSError, ValueError):
            return False  # it is not known, or was closed

    def handshake_stalls(self) -> bool:
        """Whether no on_accept can be: TLS is due, and it does not speak it."""
        return self.kind in ("garbage", "stall") or (self.is_tls and not self.is_reading())

    def events(self) -> int:
        """What of poll(2) it waits for."""
        if not self.connected:
            return select.POLLOUT
        wanted = select.POLLIN if self.is_reading() and not self.saw_end else 0
        if self._sealed or (self.pending and not self._shakes_hands() and not self.account.end):
            wanted |= select.POLLOUT
        return wanted

    def turn(self, at_least: int = 0) -> None:
        """Move what can be moved now; if it reads, *at_least* so many bytes."""
        if self.account.gone or self.failed:
            return
        if not self.connected and not self._connect():
            return
        try:
            if self._shakes_hands():
                self._shake_hands()
            self._send()
            if self._wanted_end and not self.pending and not self._sealed:
                self._end()
            if self.is_reading() and not self.saw_end:
                self._receive(at_least)
            self._note_delivered()
        except OSError as exc:
            self._broke(exc)

    def _note_delivered(self) -> None:
        account = self.account
        before = account.delivered_at[-1][1] if account.delivered_at else 0
        if account.sent > before and not account.gone and self.has_delivered():
            account.delivered_at.append((time.monotonic(), account.sent))

    def _connect(self) -> bool:
        error = self.sock.connect_ex(self.to)
        if error in (errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN):
            return False
        if error == 0 or error == errno.EISCONN:
            self.connected = True
            if self.kind == "garbage":
                with contextlib.suppress(OSError):
                    self.sock.send(GARBAGE)
            return True
        self.failed = True
        self.sock.close()
        self.account.gone = True
        return False

    def _shake_hands(self) -> None:
        assert self._tls is not None
        if self.kind == "start_tls" and not self._told_to_begin:
            return
        try:
            self._tls.do_handshake()
            self._secured = True
        except ssl.SSLWantReadError:
            pass
        self._sealed += self._outgoing.read()
        self._flush()

    def _send(self) -> None:
        account = self.account
        if self.kind in ("garbage", "stall"):
            self.pending = 0
            return
        if account.end in ("eof", "ragged"):
            return
        while self.pending:
            if self._tls is None:
                size = min(self.pending, self.piece)
                taken = self._try_send(pattern(account.number, account.sent, size))
                if not taken:
                    return
                account.sent += taken
                self.pending -= taken
            else:
                if not self._secured:
                    return
                if not self._flush():
                    return
                self._seal()
                if not self._flush():
                    return
            account.sent_at.append((time.monotonic(), account.sent))
            if self.piece < PIECE_MAX:
                return  # a piece a turn

    def _seal(self) -> None:
        assert self._tls is not None
        size = min(self.pending, self.piece, RECORD_MAX)
        self._tls.write(pattern(self.account.number, self.account.sent, size))
        self._sealed += self._outgoing.read()
        self._sealed_plain = size

    def _flush(self) -> bool:
        """Send what is sealed; True if all of it is."""
        while self._sealed:
            taken = self._try_send(self._sealed)
            if not taken:
                return False
            self._sealed_sent += taken
            del self._sealed[:taken]
        plain, self._sealed_plain = self._sealed_plain, 0
        if plain:
            self.pending -= plain
            self.account.sent += plain
            self._records.append((self._sealed_sent, self.account.sent))
        return True

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def _receive(self, at_least: int = 0) -> None:
        left = max(self.reads, at_least) if self.reads > 0 else -1
        while left and not self.saw_end:
            try:
                data = self.sock.recv(RECEIVE_SIZE if left < 0 else left)
            except BlockingIOError:
                return
            if self.kind == "start_tls" and data and not self._told_to_begin:
                self._told_to_begin = data[:1] == GO_AHEAD
                data = data[1:]
                if not data:
                    continue
            if self._tls is None:
                if data and self.kind == "plain":
                    self._frames.add(data)
            else:
                self._open(data)
            if not data:
                self._ended("eof")
                return
            if left > 0:
                left -= len(data)
                if self._tls is None:
                    return

    def _open(self, data: bytes) -> None:
        """Take in what TLS has sealed."""
        assert self._tls is not None
        self._incoming.write(data)
        if not self._secured:
            self._shake_hands()
            if not self._secured:
                return
        try:
            while plain := self._tls.read(RECEIVE_SIZE):
                self._frames.add(plain)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass

    def _ended(self, how: str) -> None:
        """The server's side is over."""
        self.saw_end = how
        if self.end_at_eof == "close":
            self._wanted_end = self._wanted_end or "close"
            self.pending = 0

    def _broke(self, exc: OSError) -> None:
        if isinstance(exc, ssl.SSLError):
            if not self.account.spoiled and not self.account.stolen:
                raise WrongEnd(f"{exc!r} at its peer: {self.account}") from exc
        elif exc.errno not in ENDED:
            raise exc
        self.pending = 0
        self._sealed.clear()
        # What came before may be there still.
        with contextlib.suppress(OSError):
            if self.is_reading() and not self.saw_end:
                self._receive()
        # An error is told once, and looks like an end from then on.
        self.saw_end = type(exc).__name__

    # ---- its end -----------------------------------------------------------------------------

    def _end(self) -> None:
        how, self._wanted_end = self._wanted_end, ""
        account = self.account
        if account.gone:
            return
        if not self.connected:
            account.end, account.gone = "close", True
            self.failed = True
            self.sock.close()
            return
        if how == "eof" and self._tls is not None:
            how = "eof" if self._notify() else "ragged"
        if how in ("eof", "ragged"):
            if not account.end:
                account.end = how
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_WR)
            return
        if how == "close" and self._tls is not None and not account.end:
            self._notify()
        self._note_kept()
        with contextlib.suppress(OSError):
            self.left_unread = queued_bytes(self.sock, termios.FIONREAD) > 0
            self.resets = not self.is_unix and (how == "reset" or self.left_unread)
        if how == "reset":
            # A UNIX socket knows no linger, and is closed like any other.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        account.end = "reset" if how == "reset" else account.end or how
        account.gone = True
        self.sock.close()

    def _note_kept(self) -> None:
        """How much of what it has sent is with the server's kernel, and stays there."""
        account = self.account
        try:
            out = 0 if self.is_unix else queued_bytes(self.sock, termios.TIOCOUTQ)
        except OSError:
            return
        if self._tls is None:
            account.kept = max(0, account.sent - out)
        else:
            kept = self._sealed_sent - out
            account.kept = max((plain for end, plain in self._records if end <= kept), default=0)

    def _notify(self) -> bool:
        """TLS's own end, if it can be sent at once."""
        assert self._tls is not None
        if not self._secured or self._sealed:
            return False
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        data = self._outgoing.read()
        with contextlib.suppress(OSError):
            return bool(data) and self.sock.send(data, socket.MSG_NOSIGNAL) == len(data)
        return False

    def shut(self) -> None:
        """The plan is over."""
        if not self.account.gone:
            self.sock.close()
            self.account.gone = True
