"""UNIX sockets: what is stale is replaced, what is not is never touched, nothing is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from gain_tools import BOUND_S, accepted, bind, bound, connect, one, refused

from uring_trio.gain import _unix_path
from uring_trio.gain._address import parse_all
from uring_trio.gain._config import make_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.sock"


def make_stale(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


@contextlib.contextmanager
def live(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            sock.listen(0)
        yield sock


def test_a_path_is_made_and_removed(path: Path) -> None:
    with one(f"unix://{path}") as listener:
        assert listener.network == listener.address.network == "unix"
        assert listener.address == (str(path),)
        assert str(listener.address) == listener.sock.getsockname() == str(path)
        assert stat.S_ISSOCK(path.lstat().st_mode)
        with connect(listener), accepted(listener):
            pass
    assert not path.exists()


def test_a_relative_path_is_removed_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with one("unix://x.sock") as listener:
        assert str(listener.address) == "x.sock"
        monkeypatch.chdir("/")
    assert os.listdir(tmp_path) == []


def test_the_longest_path_works(tmp_path: Path) -> None:
    name = "x" * (107 - len(os.fsencode(tmp_path)) - 1)
    with one(f"unix://{tmp_path}/{name}") as listener, connect(listener), accepted(listener):
        pass


def test_a_name_of_bytes_works(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xc3\xbc \n")
    with one(f"unix://{tmp_path}/{name}") as listener, connect(listener), accepted(listener):
        assert os.listdir(tmp_path) == [name]
    assert os.listdir(tmp_path) == []


def test_an_abstract_socket_leaves_nothing_behind(tmp_path: Path) -> None:
    text = f"unix://@uring-trio-test-{os.getpid()}"
    for _ in range(2):
        with bound(text, copies=2) as [[first], [second]]:
            assert str(first.address) == text.removeprefix("unix://")
            assert first.sock.getsockname() == first.address[0]
            with connect(first), accepted(second):
                pass
            with refused(errno.EADDRINUSE) as caught:
                bind(parse_all(text), make_config())
            assert str(first.address) in str(caught.value)


# --- What is in the way ---


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_stale_socket_is_replaced(path: Path, kind: int) -> None:
    make_stale(path, kind)
    with one(f"unix://{path}") as listener, connect(listener), accepted(listener):
        pass
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_live_socket_is_not_replaced(path: Path, kind: int) -> None:
    with live(path, kind):
        before = path.lstat()
        with refused(errno.EADDRINUSE) as caught:
            bind(parse_all(f"unix://{path}"), make_config())
        assert str(path) in str(caught.value)
        assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_bound_socket_that_does_not_listen_yet_is_not_replaced(path: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        before = path.lstat()
        with refused(errno.EADDRINUSE) as caught:
            bind(parse_all(f"unix://{path}"), make_config())
        assert str(path) in str(caught.value)
        assert path.lstat().st_ino == before.st_ino
        sock.listen()
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(path))


def test_a_socket_of_datagrams_that_talks_to_another_is_not_replaced(
    path: Path, tmp_path: Path
) -> None:
    with live(path, socket.SOCK_DGRAM) as sock, live(tmp_path / "other", socket.SOCK_DGRAM):
        sock.connect(str(tmp_path / "other"))
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        assert path.exists()


def test_who_is_in_the_way_notices_nothing(path: Path) -> None:
    """No connection that he would have to accept, and no datagram."""
    with live(path) as sock:
        sock.setblocking(False)
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        with pytest.raises(BlockingIOError):
            sock.accept()
    path.unlink()
    with live(path, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        with pytest.raises(BlockingIOError):
            sock.recv(1)


BIND_ELSEWHERE = """
import ctypes, os, socket, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:  # CLONE_NEWNET
    print("refused", flush=True)
    sys.exit()
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
print("bound", flush=True)
sys.stdin.read()
"""


def test_a_socket_of_another_network_namespace_is_not_replaced(path: Path) -> None:
    command = [sys.executable, "-c", BIND_ELSEWHERE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said == b"refused\n":
            pytest.skip("no namespace of the network may be made here")
        assert said == b"bound\n"
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        assert path.exists()
        process.communicate(timeout=BOUND_S)
    with one(f"unix://{path}"):
        pass


def test_a_socket_that_we_may_not_ask_about_is_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose file may not be written to; root may ask about all of them."""
    make_stale(path)

    class Denied(socket.socket):
        def connect_ex(self, _address: Any) -> int:
            return errno.EACCES

    monkeypatch.setattr(socket, "socket", Denied)
    with refused(errno.EADDRINUSE):
        bind(parse_all(f"unix://{path}"), make_config())
    assert path.exists()


def test_what_gets_an_owner_between_two_looks_is_not_replaced(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stale(path)
    with live(tmp_path / "new") as sock:
        monkeypatch.setattr(time, "sleep", lambda _s: (tmp_path / "new").rename(path))
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        sock.accept()[0].close()


def test_what_changes_between_two_looks_is_not_replaced(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has looked as we have, and is about to bind."""
    make_stale(path)
    make_stale(tmp_path / "new")
    monkeypatch.setattr(time, "sleep", lambda _s: (tmp_path / "new").rename(path))
    with refused(errno.EADDRINUSE):
        bind(parse_all(f"unix://{path}"), make_config())
    assert path.exists()


def test_a_live_socket_with_a_full_backlog_is_not_replaced(path: Path) -> None:
    with live(path), contextlib.ExitStack() as stack:
        status = 0
        while status == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            status = client.connect_ex(str(path))
        assert status == errno.EAGAIN
        with refused(errno.EADDRINUSE):
            bind(parse_all(f"unix://{path}"), make_config())
        assert path.exists()


def test_a_second_server_is_refused(path: Path) -> None:
    for options in ({}, {"reuse_port": True}):
        with bound(f"unix://{path}", copies=2, **options) as [[first], _]:
            with refused(errno.EADDRINUSE):
                bind(parse_all(f"unix://{path}"), make_config(**options))
            with connect(first), accepted(first):
                pass


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "link to a stale socket", "link"])
def test_what_is_no_socket_is_never_removed(path: Path, tmp_path: Path, what: str) -> None:
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        if what != "link":
            make_stale(tmp_path / "stale")
        path.symlink_to(tmp_path / "stale")
    before = path.lstat()
    with refused(errno.EADDRINUSE):
        bind(parse_all(f"unix://{path}"), make_config())
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize(("name", "number"), [("none/x", errno.ENOENT), ("file/x", errno.ENOTDIR)])
def test_where_no_socket_can_be_the_error_says_so(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "file").write_text("")
    with refused(number) as caught:
        bind(parse_all(f"unix://{tmp_path}/{name}"), make_config())
    assert f"{tmp_path}/{name}" in str(caught.value)


# --- Who removes it ---


def test_the_last_of_the_workers_removes_the_path(path: Path) -> None:
    with bound(f"unix://{path}", copies=3) as [[first], [second], [third]]:
        second.close()
        second.close()
        first.close()
        assert path.exists()
        with connect(third), accepted(third):
            pass
        third.close()
        assert not path.exists()


def test_workers_share_one_socket(path: Path) -> None:
    with (
        bound(f"unix://{path}", copies=2) as [[first], [second]],
        connect(first),
        accepted(second),
    ):
        assert first.sock.fileno() != second.sock.fileno()


def test_what_another_put_there_is_not_removed(path: Path) -> None:
    with one(f"unix://{path}") as listener:
        path.unlink()
        path.write_text("of another")
        listener.close()
        assert path.read_text() == "of another"


def test_a_path_that_is_gone_already_is_no_error(path: Path) -> None:
    with one(f"unix://{path}"):
        path.unlink()


# --- The lock on the directory ---


def test_threads_that_bind_one_stale_path_at_once_get_it_once(path: Path) -> None:
    make_stale(path)
    start = threading.Barrier(8)
    results: list[Any] = []

    def server() -> None:
        start.wait()
        try:
            results.append(bind(parse_all(f"unix://{path}"), make_config()))
        except OSError as exc:
            results.append(exc.errno)

    threads = [threading.Thread(target=server) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results if not isinstance(result, int)]
    assert len(winners) == 1
    assert results.count(errno.EADDRINUSE) == 7
    [[[listener]]] = winners
    with connect(listener), accepted(listener):
        pass
    listener.close()


def test_a_server_waits_for_one_between_bind_and_listen(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    results: list[Any] = []

    def server() -> None:
        try:
            bind(parse_all(f"unix://{path}"), make_config())
        except OSError as exc:
            results.append(exc.errno)

    thread = threading.Thread(target=server)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        make_stale(path)  # so it looks before its owner listens
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        path.unlink()
        with live(path):
            fcntl.flock(fd, fcntl.LOCK_UN)
            thread.join(BOUND_S)
            assert results == [errno.EADDRINUSE]
    finally:
        os.close(fd)


def test_a_lock_that_is_never_let_go_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_unix_path, "LOCK_WAIT_S", 0.02)
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        started = time.monotonic()
        with one(f"unix://{path}"):
            assert time.monotonic() - started >= 0.02
    finally:
        os.close(fd)
