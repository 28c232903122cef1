"""trio's socket objects on the ring.

`UringSocket` takes the place of trio's own socket class, so that every socket is one:
made by ``trio.socket.socket``, accepted, one of a pair, a duplicate, from the standard
library. In a run on epoll, and wherever the ring is not right for a call, its methods are
trio's own; each such call of a run on the ring is counted with its reason.

What goes trio's own way: families other than IPv4, IPv6 and UNIX; socket types other than
stream, datagram and seqpacket; out-of-band and error-queue data, zero-copy and fast-open
flags; size 0; and every argument that the standard library has its own words against.

Two flags are taken off: MSG_DONTWAIT (the ring would answer EAGAIN where trio waits) and
MSG_WAITALL (trio's sockets do not block, so it never had an effect on them).
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from uring_trio import _addresses
from uring_trio._beside import (
    MIGHT_BLOCK,
    checked,
    close_socket,
    connect,
    getsockopt,
    option_setters,
    own,
    scratch,
    shutdown,
    try_recv_from,
    try_recvmsg,
    try_send_to,
    try_sendmsg,
)
from uring_trio._fast_ways import FAST
from uring_trio._io_manager import (
    UringIOManager,
    let_go_everywhere,
    let_go_unless_on_ring,
    look_for_low_water,
)
from uring_trio._kernel import EAGAIN, EINTR, INT_MAX, TRANSFER_MAX
from uring_trio._memory import Message, pin_memory, unpin
from uring_trio._operations import ReceiveInto
from uring_trio._socket_arguments import (
    MSG_NOSIGNAL,
    into_arguments,
    is_iterable,
    message_of,
    own_flags,
    try_control,
    try_pin,
    usable_flags,
    usable_size,
)
from uring_trio._socket_operations import (
    Accept,
    Connect,
    ConnectLocal,
    ReceiveBytes,
    ReceiveDatagram,
    ReceiveMessage,
    SendMessage,
    accept_now,
    receive_now,
    received_from,
)
from uring_trio._trio_private import (
    manager_of,
    note_shutdown,
    park,
    run_context,
    stock_socket_type,
)

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable
    from types import TracebackType

    from uring_trio._endpoints import Endpoint
    from uring_trio._operations import Operation

# As ints: to look for an enum's member is dearer.
FAMILIES = tuple(map(int, _addresses.FAMILIES))
STREAM = int(socket.SOCK_STREAM)
TYPES = (STREAM, int(socket.SOCK_DGRAM), int(socket.SOCK_SEQPACKET))

# Of a socket of the standard library: the ints that it makes an enum's member of at each look.
_base: Any = socket.SocketType
_family_of: Callable[[socket.socket], int] = _base.family.__get__
_type_of: Callable[[socket.socket], int] = _base.type.__get__
_KINDS = {int(kind): kind for kind in socket.SocketKind}

# Compared by identity: 0.0, False and None are no flags that the ring may judge.
NO_FLAGS = 0

# Of a call at once: it is the ring's to wait, and to try again after a signal.
REFUSED = (EAGAIN, EINTR)

LOW_WATER = socket.SO_RCVLOWAT

# What a connect can answer after it was under way; on stock these, and only these, come
# from SO_ERROR, with an error text that has the address in it.
LATE_CONNECT_ERRORS = frozenset(
    {errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENETDOWN}
)


async def _end_plain_call(endpoint: Endpoint, opcode: str, answer: int) -> None:
    """A call at once has had its answer: the schedule point that all calls have, and its error."""
    endpoint.manager.plain_calls[opcode] += 1
    await trio.lowlevel.cancel_shielded_checkpoint()
    if answer < 0:
        checked(answer)


async def _do_at_once(
    endpoint: Endpoint, opcode: str, call: Callable[[], int], release: Callable[[], object]
) -> int:
    """A call that cannot wait, with memory that is let go unless the ring is to go on with it.

    Returns:
      Its answer: one of `REFUSED`, or no error.
    """
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        release()
        raise
    answer = int(call())
    if answer not in REFUSED:
        release()
        await _end_plain_call(endpoint, opcode, answer)
    return answer


async def _perform(operation: Operation) -> Any:
    """Sleep until it is over; its value, or its error."""
    return operation.unwrap(await park(operation.trap))


def _received_from_into(count: int, message: Message) -> tuple[int, Any]:
    return count, _addresses.unpack(message.result()[0])


def _received_message(count: int, message: Message) -> tuple[bytes, Any, int, Any]:
    return (message.data(count), *_received_message_into(count, message)[1:])


def _received_message_into(count: int, message: Message) -> tuple[int, Any, int, Any]:
    name, control, flags = message.result()
    return count, _addresses.unpack_control(control), flags, _addresses.unpack(name)


def _listens(sock: socket.socket) -> bool:
    answer: int = getsockopt(sock.fileno(), socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return answer > 0  # an error: closed, and accept says so


class UringSocket(stock_socket_type):  # type: ignore[misc]
    """A trio socket whose operations are completions while its run is on the ring.

    Made by trio, never directly. The methods and their errors are those of
    `trio.socket.SocketType`. Cancellation leaves no byte, connection or descriptor behind:
    what the kernel had done when the cancel came is delivered.
    """

    endpoint: Endpoint | None = None  # in the run that used it last
    is_ring_stream = False
    takes_datagrams = False
    accepted_kind: tuple[int, int, int] | None = None  # of a listener's connections

    def ring_endpoint(self, task: Any = None) -> Endpoint | None:
        """This socket in the current run; None where the call must go trio's own way."""
        try:
            manager = manager_of(task or run_context.task)
        except AttributeError:
            return None
        endpoint = self.endpoint
        if endpoint is not None and endpoint.manager is manager and endpoint.owner is self._sock:
            return endpoint
        return self._open_endpoint(manager)

    def _open_endpoint(self, manager: Any) -> Endpoint | None:
        if not isinstance(manager, UringIOManager):
            return None
        stdlib = self._sock
        if type(self) is not UringSocket or type(stdlib) is not socket.socket:
            manager.count_stock_call("subclass")
        elif stdlib.fileno() < 0:
            manager.count_stock_call("closed")
        elif _family_of(stdlib) not in FAMILIES:
            manager.count_stock_call("family")
        elif (kind := _type_of(stdlib)) not in TYPES:
            manager.count_stock_call("type")
        else:
            self.is_ring_stream = kind == STREAM
            self.takes_datagrams = FAST and kind != STREAM
            endpoint = manager.open_endpoint(stdlib, stdlib.fileno, is_socket=True)
            self.endpoint = endpoint  # another thread's run may put its own there at once
            return endpoint
        return None

    def _count_stock(self, endpoint: Endpoint | None) -> None:
        if endpoint is not None:
            endpoint.manager.count_stock_call("arguments")

    @property
    def type(self) -> socket.SocketKind:
        """Like `socket.socket.type`."""
        stdlib = self._sock  # a `SocketStream` asks when it is made
        kind = _KINDS.get(_type_of(stdlib)) if type(stdlib) is socket.socket else None
        return stdlib.type if kind is None else kind

    def setsockopt(self, /, *args: Any, **kwargs: Any) -> None:
        """Like `socket.socket.setsockopt`."""
        if len(args) == 3 and not kwargs:
            level, option, value = args  # a `SocketStream` sets two when it is made
            setter = option_setters.get(type(value))
            if setter is not None and isinstance(level, int) and isinstance(option, int):
                try:
                    result = setter(self._sock.fileno(), level, option, value)
                except OverflowError:
                    self._sock.setsockopt(*args)  # its words
                else:
                    if result < 0:
                        checked(result)
                if option == LOW_WATER:
                    look_for_low_water()
                return
        super().setsockopt(*args, **kwargs)
        if args[1:2] == (LOW_WATER,) or kwargs:
            look_for_low_water()

    # ---- receive ----------------------------------------------------------------------

    @enable_ki_protection
    async def recv(self, /, *args: Any, **kwargs: Any) -> bytes:
        """Like `socket.socket.recv`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and not kwargs and 1 <= len(args) <= 2 and usable_size(args[0]):
            receiver = endpoint.receiver
            flags = args[1] if len(args) == 2 else NO_FLAGS
            if self.is_ring_stream and flags is NO_FLAGS:
                stream_operation = receiver.receive(args[0])
                value = await park(stream_operation.trap)
                return value if type(value) is bytes else stream_operation.unwrap(value)
            if flags is NO_FLAGS or usable_flags(flags):
                size, flags = int(args[0]), own_flags(flags) if flags else NO_FLAGS
                if self.takes_datagrams and receiver.current is None:
                    received: bytes = await self._receive(endpoint, "recv", size, flags)
                    return received
                operation = ReceiveBytes(receiver, size, flags)
                return await _perform(receiver.submit(operation))
        self._count_stock(endpoint)
        return await super().recv(*args, **kwargs)

    @enable_ki_protection
    async def recv_into(self, /, *args: Any, **kwargs: Any) -> int:
        """Like `socket.socket.recv_into`, but async."""
        endpoint = self.ring_endpoint()
        if FAST and self.is_ring_stream and endpoint is not None and len(args) == 1 and not kwargs:
            # What is below, flat, for a buffer and no more, where nobody is in the kernel.
            receiver = endpoint.receiver
            try:
                pinned = pin_memory(args[0]) if receiver.current is None else b""
            except (TypeError, BufferError, ValueError):
                pinned = b""
            if 0 < len(pinned) <= TRANSFER_MAX:
                operation = ReceiveInto(receiver, pinned, len(pinned), NO_FLAGS)
                operation.start()
                receiver.current = operation
                value = await park(operation.trap)
                return value if type(value) is int and value >= 0 else operation.unwrap(value)
            unpin(pinned)
        found = self._parse_into(endpoint, args, kwargs)
        if endpoint is None or found is None:
            return await super().recv_into(*args, **kwargs)
        pinned, size, flags = found
        receiver = endpoint.receiver
        if self.takes_datagrams and receiver.current is None:
            call = partial(try_recv_from, self._sock.fileno(), pinned, size, flags, scratch.name.c)
            count = await _do_at_once(endpoint, "recv", call, partial(unpin, pinned))
            if count not in REFUSED:
                return count
            receiver.expect_wait()
        operation = ReceiveInto(receiver, pinned, size, flags)
        return await _perform(receiver.submit(operation))

    def _parse_into(self, endpoint: Endpoint | None, args: Any, kwargs: Any) -> Any:
        if endpoint is None:
            return None
        try:
            found = into_arguments(*args, **kwargs)
        except TypeError:
            found = None
        if found is None:
            self._count_stock(endpoint)
        return found

    @enable_ki_protection
    async def recvfrom(self, /, *args: Any, **kwargs: Any) -> tuple[bytes, Any]:
        """Like `socket.socket.recvfrom`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and not kwargs and 1 <= len(args) <= 2 and usable_size(args[0]):
            flags = args[1] if len(args) == 2 else NO_FLAGS
            if flags is NO_FLAGS or usable_flags(flags):
                size, flags = int(args[0]), own_flags(flags) if flags else NO_FLAGS
                if self.takes_datagrams and endpoint.receiver.current is None:
                    return await self._receive(endpoint, "recvmsg", size, flags)
                message = Message(data_size=size)
                return await self._receive_message(endpoint, message, flags, received_from)
        self._count_stock(endpoint)
        return await super().recvfrom(*args, **kwargs)

    @enable_ki_protection
    async def recvfrom_into(self, /, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        """Like `socket.socket.recvfrom_into`, but async."""
        endpoint = self.ring_endpoint()
        found = self._parse_into(endpoint, args, kwargs)
        if endpoint is None or found is None:
            return await super().recvfrom_into(*args, **kwargs)
        pinned, size, flags = found
        message = Message(vectors=1)
        message.add_vector(0, pinned, size)
        return await self._receive_message(
            endpoint, message, flags, _received_from_into, on_user_memory=True
        )

    @enable_ki_protection
    async def recvmsg(self, /, *args: Any, **kwargs: Any) -> tuple[bytes, Any, int, Any]:
        """Like `socket.socket.recvmsg`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and not kwargs and 1 <= len(args) <= 3 and usable_size(args[0]):
            control_size, flags = (*args[1:], 0, 0)[:2] if len(args) < 3 else args[1:]
            if (control_size == 0 or usable_size(control_size)) and usable_flags(flags):
                message = Message(control_size=control_size, data_size=args[0])
                return await self._receive_message(endpoint, message, flags, _received_message)
        self._count_stock(endpoint)
        return await super().recvmsg(*args, **kwargs)

    @enable_ki_protection
    async def recvmsg_into(self, /, *args: Any, **kwargs: Any) -> tuple[int, Any, int, Any]:
        """Like `socket.socket.recvmsg_into`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and not kwargs and 1 <= len(args) <= 3 and is_iterable(args[0]):
            args = (list(args[0]), *args[1:])
            control_size, flags = (*args[1:], 0, 0)[:2]
            if (control_size == 0 or usable_size(control_size)) and usable_flags(flags):
                message = message_of(args[0], control_size, writable=True)
                if message is not None:
                    return await self._receive_message(
                        endpoint, message, flags, _received_message_into, on_user_memory=True
                    )
        self._count_stock(endpoint)
        return await super().recvmsg_into(*args, **kwargs)

    async def _receive_message(
        self,
        endpoint: Endpoint,
        message: Message,
        flags: int,
        convert: Any,
        *,
        on_user_memory: bool = False,
    ) -> Any:
        receiver = endpoint.receiver
        flags = own_flags(flags)
        if self.takes_datagrams and receiver.current is None:
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                count = try_recvmsg(self._sock.fileno(), message, flags)
                found = convert(count, message) if count >= 0 else None
            except BaseException:
                message.free()
                raise
            if count not in REFUSED:
                message.free()
                await _end_plain_call(endpoint, "recvmsg", count)
                return found
            receiver.expect_wait()
        operation = ReceiveMessage(receiver, message, flags, convert, on_user_memory=on_user_memory)
        return await _perform(receiver.submit(operation))

    async def _receive(self, endpoint: Endpoint, opcode: str, size: int, flags: int) -> Any:
        """A datagram, and of "recvmsg" who it is from: at once, or when there is one."""
        await trio.lowlevel.checkpoint_if_cancelled()
        tells_peer = opcode == "recvmsg"
        error, found = receive_now(self._sock.fileno(), size, flags, tells_peer=tells_peer)
        if error in REFUSED:
            receiver = endpoint.receiver
            operation = ReceiveDatagram(receiver, size, flags, tells_peer=tells_peer)
            found = await _perform(receiver.submit(operation))
            endpoint.manager.plain_calls[opcode] += operation.was_at_once
            return found
        await _end_plain_call(endpoint, opcode, error)
        return found

    # ---- send -------------------------------------------------------------------------

    @enable_ki_protection
    async def send(self, /, *args: Any, **kwargs: Any) -> int:
        """Like `socket.socket.send`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and not kwargs and 1 <= len(args) <= 2:
            flags: Any = args[1] if len(args) == 2 else NO_FLAGS
            if flags is NO_FLAGS:
                flags = MSG_NOSIGNAL
            elif usable_flags(flags):
                flags = own_flags(flags) | MSG_NOSIGNAL
            else:
                flags = None
            pinned = None
            if flags is not None:
                pinned = args[0] if type(args[0]) is bytes else try_pin(args[0])
            if pinned is not None:
                sender = endpoint.sender
                if self.takes_datagrams and sender.current is None:
                    to = self._sock.fileno(), pinned, len(pinned), flags, b"", 0
                    call = partial(try_send_to, *to)
                    sent = await _do_at_once(endpoint, "send", call, partial(unpin, pinned))
                    if sent not in REFUSED:
                        return sent
                operation = sender.send(pinned, flags)
                value = await park(operation.trap)
                return operation.unwrap(value)
        self._count_stock(endpoint)
        return await super().send(*args, **kwargs)

    @enable_ki_protection
    async def sendto(self, /, *args: Any) -> int:
        """Like `socket.socket.sendto`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is not None and 2 <= len(args) <= 3:
            flags = args[1] if len(args) == 3 else NO_FLAGS
            stdlib = self._sock
            name = _addresses.pack_plain(_family_of(stdlib), args[-1])
            if name is None:
                address = await self._resolve_address_nocp(args[-1], local=False)
                args = (*args[:-1], address)
                name = _addresses.pack(_family_of(stdlib), address)
            data = args[0]
            if name is not None and (flags is NO_FLAGS or usable_flags(flags)):
                flags = own_flags(flags) if flags else NO_FLAGS
                if self.takes_datagrams and endpoint.sender.current is None:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    pinned = data if type(data) is bytes else try_pin(data)
                    if pinned is not None:
                        size, length = len(pinned), len(name)
                        sent: int = try_send_to(stdlib.fileno(), pinned, size, flags, name, length)
                        if type(pinned) is not bytes:
                            unpin(pinned)
                        if sent not in REFUSED:
                            await _end_plain_call(endpoint, "sendmsg", sent)
                            return sent
                message = message_of([data], 0)
                if message is not None:
                    message.set_name(name)
                    return await self._send_by_ring(endpoint, message, flags | MSG_NOSIGNAL, data)
        self._count_stock(endpoint)
        return await super().sendto(*args)

    @enable_ki_protection
    async def sendmsg(
        self, buffers: Any, ancillary: Any = (), flags: Any = 0, address: Any = None, /
    ) -> int:
        """Like `socket.socket.sendmsg`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is None or not (is_iterable(buffers) and is_iterable(ancillary)):
            self._count_stock(endpoint)
            return await super().sendmsg(buffers, ancillary, flags, address)
        buffers, ancillary = list(buffers), list(ancillary)  # they may be generators
        name: bytes | None = b""
        if address is not None:
            name = _addresses.pack_plain(_family_of(self._sock), address)
            if name is None:
                address = await self._resolve_address_nocp(address, local=False)
                name = _addresses.pack(_family_of(self._sock), address)
        control = try_control(ancillary)
        if name is not None and control is not None and usable_flags(flags):
            message = message_of(buffers, len(control))
            if message is not None:
                message.set_control(control)
                message.set_name(name)
                return await self._send_message(endpoint, message, flags, *buffers)
        self._count_stock(endpoint)
        return await super().sendmsg(buffers, ancillary, flags, address)

    async def _send_message(
        self, endpoint: Endpoint, message: Message, flags: int, *buffers: Any
    ) -> int:
        sender = endpoint.sender
        flags = own_flags(flags) | MSG_NOSIGNAL
        if self.takes_datagrams and sender.current is None:
            call = partial(try_sendmsg, self._sock.fileno(), message, flags)
            sent = await _do_at_once(endpoint, "sendmsg", call, message.free)
            if sent not in REFUSED:
                return sent
        return await self._send_by_ring(endpoint, message, flags, *buffers)

    async def _send_by_ring(
        self, endpoint: Endpoint, message: Message, flags: int, *buffers: Any
    ) -> int:
        sender = endpoint.sender
        operation = SendMessage(
            sender,
            message,
            flags,
            on_user_memory=any(type(buffer) is not bytes for buffer in buffers),
        )
        return await _perform(sender.submit(operation))

    # ---- accept, connect --------------------------------------------------------------

    @enable_ki_protection
    async def accept(self) -> tuple[trio.socket.SocketType, Any]:
        """Like `socket.socket.accept`, but async."""
        endpoint = self.ring_endpoint()
        if endpoint is None:
            return await super().accept()
        kind = self.accepted_kind
        if kind is None:  # the standard library makes an enum of each at every look
            sock = self._sock
            if not _listens(sock):
                # A poll of it would wait for data. Its error is there at once.
                return await super().accept()
            kind = self.accepted_kind = (int(sock.family), int(sock.type), sock.proto)
        receiver = endpoint.receiver
        if FAST and endpoint.can_be_tried and receiver.current is None:
            # In a burst the next one waits already: no request, no cqe. As on stock.
            await trio.lowlevel.checkpoint_if_cancelled()
            fd, address = accept_now(self._sock.fileno())
            if fd >= 0:
                accepted = own(fd, kind)
                endpoint.manager.plain_calls["accept"] += 1
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._socket_of(accepted, endpoint), address
            if fd == MIGHT_BLOCK:
                endpoint.try_no_more()
            elif fd != EAGAIN:
                await trio.lowlevel.cancel_shielded_checkpoint()
                checked(fd)
        operation = Accept(receiver, kind, on_ring=not endpoint.can_be_tried)
        accepted, address = await _perform(receiver.submit(operation))
        if operation.might_block:
            endpoint.try_no_more()
        endpoint.manager.plain_calls["accept"] += not operation.on_ring
        return self._socket_of(accepted, endpoint), address

    def _socket_of(self, accepted: socket.socket, endpoint: Endpoint) -> trio.socket.SocketType:
        """The trio socket of a connection that this listener's *endpoint* has accepted."""
        sock = trio.socket.from_stdlib_socket(accepted)
        if FAST and type(sock) is UringSocket:
            # It will be used at once, and is what we are: nothing of that has to be asked.
            sock._use(endpoint.open_accepted(accepted), self)
        return sock

    def _use(self, endpoint: Endpoint, listener: UringSocket) -> None:
        self.is_ring_stream = listener.is_ring_stream
        self.takes_datagrams = listener.takes_datagrams
        self.endpoint = endpoint

    @enable_ki_protection
    async def connect(self, address: Any) -> None:
        """Like `socket.socket.connect`, but async. Cancelled, it closes the socket."""
        endpoint = self.ring_endpoint()
        if endpoint is None:
            await super().connect(address)
            return
        try:
            address = await self._resolve_address_nocp(address, local=False)
            name = _addresses.pack(self._sock.family, address)
            if name is None:
                self._count_stock(endpoint)
                await super().connect(address)
                return
            if self._sock.family == socket.AF_UNIX:
                await self._connect_local(endpoint, name)
                return
            message = Message()
            message.set_name(name)
            try:
                await _perform(endpoint.sender.submit(Connect(endpoint.sender, message, 0)))
            except BlockingIOError:  # EALREADY: somebody has begun to connect before us
                await super().connect(address)  # waits for how that ends
        except trio.Cancelled:
            # The kernel goes on connecting: the socket is in no state that one could name.
            # What others have queued on its number must not reach the number's next owner.
            endpoint.manager.end_operations(endpoint)
            close_socket(self._sock)
            raise
        except OSError as exc:
            # A UNIX socket is refused at once, or not at all.
            is_late = self.is_ring_stream and self._sock.family != socket.AF_UNIX
            if is_late and exc.errno in LATE_CONNECT_ERRORS:
                reason = os.strerror(exc.errno)
                raise OSError(exc.errno, f"Error connecting to {address!r}: {reason}") from None
            raise

    async def _connect_local(self, endpoint: Endpoint, name: bytes) -> None:
        """Connect a UNIX socket: at once, or as soon as the listener has room."""
        sender = endpoint.sender
        await trio.lowlevel.checkpoint_if_cancelled()
        if sender.current is None:
            answer = connect(self._sock.fileno(), name, len(name))
            if answer != EAGAIN:
                checked(answer)
                endpoint.manager.plain_calls["connect"] += 1
                await trio.lowlevel.cancel_shielded_checkpoint()
                return
        await _perform(sender.submit(ConnectLocal(sender, name)))
        endpoint.manager.plain_calls["connect"] += 1

    # ---- letting go -------------------------------------------------------------------

    def shutdown(self, flag: int) -> None:
        """Like `socket.socket.shutdown`."""
        if type(flag) is int and -INT_MAX <= flag <= INT_MAX:
            checked(shutdown(self._sock.fileno(), flag))
            note_shutdown(self, flag)
        else:
            super().shutdown(flag)

    @enable_ki_protection
    def __exit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the socket. What still sleeps on it gets `trio.ClosedResourceError`."""
        # On stock this closes without a word to the IO manager. Here a receive in flight
        # would hold the file open, and the peer would not see its end.
        fd = self._sock.fileno()
        if fd != -1:
            let_go_everywhere(fd)
        close_socket(self._sock)

    @enable_ki_protection
    def close(self) -> None:
        """Close the socket. What still sleeps on it gets `trio.ClosedResourceError`."""
        stdlib = self._sock
        fd = stdlib.fileno()
        if fd == -1:
            return
        manager = getattr(getattr(run_context, "runner", None), "io_manager", None)
        if isinstance(manager, UringIOManager):
            manager.notify_closing(fd)  # which tells those of other runs
        else:
            let_go_unless_on_ring(fd)
            trio.lowlevel.notify_closing(stdlib)
        close_socket(stdlib)

    def detach(self) -> int:
        """Like `socket.socket.detach`. A receive in flight does not read on for us."""
        fd = self._sock.fileno()
        if fd != -1:
            let_go_everywhere(fd, detach=True)
        return super().detach()


_NAMED = ("sendto", "sendmsg", "accept", "connect", "shutdown", "close", "detach", "__exit__")
for _name in _NAMED:
    # Python says it to whoever passes the wrong arguments.
    getattr(UringSocket, _name).__qualname__ = getattr(stock_socket_type, _name).__qualname__
