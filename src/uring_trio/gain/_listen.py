"""From addresses to sockets that listen: all of them, or none.

One server to an address, though its workers share it

With SO_REUSEPORT on all of them, several sockets may be bound to one address, and the
kernel spreads connections and datagrams over them. It would let a second server of the same
user in as well, and give it half of the traffic without a word, as Gain does. So the option
is not there when the first socket of an address is bound and, for TCP, listens: until then
any other socket on the address is EADDRINUSE. It is set afterwards, which the kernel
allows, and the other workers' sockets then join the first. A second server begins like
that too, without the option, and is refused. ``reuse_port`` sets it from the start; who
sets it from the start gets in beside a server of several workers, which no order prevents.

SO_REUSEADDR is for TCP alone, where it means that connections in TIME_WAIT do not keep a
server from its port. For UDP it would mean SO_REUSEPORT without the spreading.
For TCP two sockets with it may both be bound, and only `listen` tells them apart. Where the
kernel chose the port it is set after the binding, so that a port which is free at one
address of a name, and bound at another, is found out at once.

In two steps: everything of the internet is bound, then everything listens, so that hardly
any client is let in by a server that then fails to start. A UNIX socket does both in the
second step (`_unix_path`). Its workers share one socket, as SO_REUSEPORT does not exist there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uring_trio._beside import close_socket, shutdown
from uring_trio.gain._address import Address, Spec
from uring_trio.gain._came_to import ask_which, is_every_address
from uring_trio.gain._config import Architecture
from uring_trio.gain._errors import AddressError
from uring_trio.gain._unix_path import UnixPath, bind_and_listen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from uring_trio.gain._config import Config

BACKLOG_MAX = 65535  # the kernel cuts it to net.core.somaxconn, 4096 since 5.4
# The kernel chooses a port that is free at the first address of a name. With 28,000 to
# choose from, a second attempt is rare and a third is not seen, unless most are taken.
COMMON_PORT_ATTEMPTS = 16

# Python does not name it; the value of asm-generic/socket.h (x86, ARM, RISC-V).
SO_ATTACH_REUSEPORT_CBPF = 51
# linux/filter.h: classic BPF, which may ask the kernel for the CPU it runs on.
BPF_LD_W_ABS = 0x20
BPF_ALU_MOD_K = 0x94
BPF_RET_A = 0x16
SKF_AD_CPU = 0xFFFFF000 + 36  # SKF_AD_OFF + SKF_AD_CPU, as an unsigned 32 bit number
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog


@dataclass
class Listener:
    """A socket that listens, or for UDP is bound; it does not block.

    Attributes:
      sock: to be closed by `close` alone.
      address: what it is bound to, with the port that the kernel chose.
      network: ``"tcp"``, ``"udp"`` or ``"unix"``.
      unix_path: the file of a UNIX socket, which all its copies share.
    """

    sock: socket.socket
    address: Address
    network: str
    unix_path: UnixPath | None = None

    def close(self) -> None:
        """Close the socket, and remove its path if nobody else has it. More than once is fine."""
        # The path first, so that no new client finds a socket where nobody listens.
        path, self.unix_path = self.unix_path, None
        if path is not None:
            path.release()
        close_socket(self.sock)

    def refuse_clients(self) -> None:
        """Have the kernel take no more connections, although the socket stays open."""
        shutdown(self.sock.fileno(), socket.SHUT_RDWR)  # it fails where it is UDP, or closed


def bind(specs: Sequence[Spec], config: Config, workers: int) -> list[list[Listener]]:
    """For each worker its listeners, in the order of ``specs``; all or nothing.

    Where one worker accepts for all, the others have none. Names are looked up, which blocks.

    Raises:
      AddressError: a name does not resolve.
      OSError: an address cannot be bound; its text says which. Nothing is left open then.
    """
    reactor = config.architecture is Architecture.REACTOR
    copies = [1 if reactor and spec.network != "udp" else workers for spec in specs]
    bound = bind_copies(specs, config, copies)
    return bound + [[] for _ in range(workers - len(bound))]


def bind_copies(
    specs: Sequence[Spec], config: Config, copies: Sequence[int]
) -> list[list[Listener]]:
    """Bind and listen at all addresses, so many times at each.

    Returns:
      For each worker its listeners at those addresses of which there are enough copies.
      Copies of a UNIX socket are duplicates of one descriptor.

    Raises:
      AddressError, OSError: as `bind`.
    """
    workers: list[list[Listener]] = [[] for _ in range(max(copies))]
    with contextlib.ExitStack() as undo:
        bound = [_bind_spec(undo, spec, config) for spec in specs]
        for spec, firsts, count in zip(specs, bound, copies, strict=True):
            if spec.network == "unix":
                groups = [_open_unix(undo, spec, config, count)]
            else:
                groups = [_open_group(undo, spec, first, config, count) for first in firsts]
            for group in groups:
                for worker, listener in zip(workers, group, strict=False):
                    worker.append(listener)
        undo.pop_all()
    return workers


# --- The internet's sockets ---


def _bind_spec(undo: contextlib.ExitStack, spec: Spec, config: Config) -> list[socket.socket]:
    """One bound socket for each address of the internet that ``spec`` means."""
    if spec.network == "unix":
        return []
    addresses = _resolve(spec)
    attempts = COMMON_PORT_ATTEMPTS if spec.port == 0 and len(addresses) > 1 else 1
    while True:
        attempts -= 1
        with contextlib.ExitStack() as attempt:
            try:
                socks = _bind_at_one_port(attempt, spec, addresses, config)
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE and attempts:
                    continue
                raise
            undo.push(attempt.pop_all())
            return socks


def _bind_at_one_port(
    undo: contextlib.ExitStack, spec: Spec, addresses: list[tuple[int, Any]], config: Config
) -> list[socket.socket]:
    port = spec.port
    socks = []
    for family, (host, _, *rest) in addresses:
        sockaddr = (host, port, *rest)
        with _naming(spec, sockaddr):
            sock = _bound_socket(undo, spec, family, sockaddr, config, config.reuse_port)
        port = sock.getsockname()[1]
        socks.append(sock)
    return socks


def _resolve(spec: Spec) -> list[tuple[int, Any]]:
    """Families and socket addresses of ``spec``."""
    if spec.host == "":
        if spec.family == socket.AF_INET6 or (spec.family is None and _has_ipv6("::")):
            return [(socket.AF_INET6, ("::", spec.port, 0, 0))]
        return [(socket.AF_INET, ("0.0.0.0", spec.port))]
    kind = socket.SOCK_DGRAM if spec.network == "udp" else socket.SOCK_STREAM
    family = spec.family or socket.AF_UNSPEC
    try:
        found = socket.getaddrinfo(spec.host, spec.port, family, kind)
    except socket.gaierror as exc:
        raise AddressError(spec.text, f"the host does not resolve: {exc.strerror}") from exc
    # A hosts file may have the same line twice.
    addresses = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
    if len(addresses) > 1 and not _has_ipv6("::1"):
        # Containers have ::1 in their hosts file, and often no IPv6 at all.
        addresses = [item for item in addresses if item[0] != socket.AF_INET6] or addresses
    return list(addresses)


def _has_ipv6(host: str) -> bool:
    """Whether an address of IPv6 that every host has can be bound here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


def _bound_socket(
    undo: contextlib.ExitStack,
    spec: Spec,
    family: int,
    sockaddr: Any,
    config: Config,
    reuse_port: bool,
) -> socket.socket:
    tcp = spec.network == "tcp"
    sock = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    undo.enter_context(sock)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        both = spec.host == "" and spec.family is None
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
    _set_options(sock, spec.network, config)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    if tcp and spec.port != 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
    if not tcp and is_every_address(sockaddr):
        ask_which(sock)
    sock.bind(sockaddr)
    if tcp and spec.port == 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
    return sock


def _set_options(sock: socket.socket, network: str, config: Config) -> None:
    """What accepted sockets inherit from the listener, so that it costs them no syscall."""
    if config.socket_recv_buffer_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.socket_recv_buffer_size)
    if config.socket_send_buffer_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.socket_send_buffer_size)
    if network == "udp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, True)
    if network != "tcp":
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    if config.tcp_keep_alive is not None:
        seconds = int(config.tcp_keep_alive)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)


def _open_group(
    undo: contextlib.ExitStack, spec: Spec, first: socket.socket, config: Config, copies: int
) -> list[Listener]:
    """Have ``first`` listen, alone at its address, then as many more beside it."""
    sockaddr = first.getsockname()
    with _naming(spec, sockaddr):
        if spec.network == "tcp":
            first.listen(_backlog(config))
        group = [first]
        if copies > 1:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        while len(group) < copies:
            sock = _bound_socket(undo, spec, first.family, sockaddr, config, reuse_port=True)
            if spec.network == "tcp":
                sock.listen(_backlog(config))
            group.append(sock)
        if config.cbpf and copies > 1:
            _choose_by_cpu(first, copies)
    address = Address.from_sockaddr(spec.network, sockaddr)
    return [Listener(sock, address, spec.network) for sock in group]


def _backlog(config: Config) -> int:
    return BACKLOG_MAX if config.backlog is None else config.backlog


def _choose_by_cpu(sock: socket.socket, copies: int) -> None:
    """In the group of ``sock``, what comes in on CPU n goes to socket n % ``copies``.

    With ``reuse_port`` and a second server the group is theirs together, and the program of
    the later one counts for both.
    """
    code = b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (BPF_LD_W_ABS, 0, 0, SKF_AD_CPU),
            (BPF_ALU_MOD_K, 0, 0, copies),
            (BPF_RET_A, 0, 0, 0),
        )
    )
    memory = ctypes.create_string_buffer(code, len(code))
    program = _PROGRAM.pack(len(code) // _INSTRUCTION.size, ctypes.addressof(memory))
    # The kernel copies the program during the call.
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


# --- UNIX sockets ---


def _open_unix(
    undo: contextlib.ExitStack, spec: Spec, config: Config, copies: int
) -> list[Listener]:
    sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.setblocking(False)
    _set_options(sock, spec.network, config)
    group = [Listener(sock, Address.from_sockaddr("unix", spec.path), "unix")]
    with _naming(spec, spec.path):
        if isinstance(spec.path, bytes):
            sock.bind(spec.path)  # abstract: nothing to replace, and nothing is left behind
            sock.listen(_backlog(config))
        else:
            group[0].unix_path = bind_and_listen(sock, spec.path, _backlog(config)).share()
            undo.callback(group[0].close)
        while len(group) < copies:
            path = group[0].unix_path
            copy = Listener(sock.dup(), group[0].address, "unix", path and path.share())
            undo.callback(copy.close)
            group.append(copy)
    return group


@contextlib.contextmanager
def _naming(spec: Spec, sockaddr: Any) -> Iterator[None]:
    """Have errors of the kernel say which address they are about."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None:
            raise
        address = Address.from_sockaddr(spec.network, sockaddr)
        text = f"{os.strerror(exc.errno)}: cannot listen on {spec.text!r} ({address})"
        raise OSError(exc.errno, text) from exc
