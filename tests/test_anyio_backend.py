"""``backend="uring_trio"``: the name, what it stands for, and what stays as it was."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
import sniffio
import trio
from marks import needs_ring

import uring_trio
from uring_trio import _anyio_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

anyio = pytest.importorskip("anyio")

pytestmark = needs_ring

NAME = "uring_trio"


async def backend() -> str:
    return str(harness.io_statistics().backend)


def run(async_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return anyio.run(async_fn, *args, backend=NAME, backend_options=options)


def outside_of_any_run() -> bool:
    try:
        sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return True
    return False


def test_runs_are_on_the_ring_and_give_back_what_main_gives() -> None:
    async def main(a: int, b: int) -> tuple[int, str]:
        return a + b, await backend()

    assert run(main, 1, 2) == (3, "io_uring")

    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(fails)


def test_the_library_is_called_trio_for_whoever_asks() -> None:
    async def main() -> set[str]:
        names = {
            sniffio.current_async_library(),
            sniffio.current_async_library_cvar.get() or "unset",
            anyio.get_current_task().__class__.__name__,
        }

        async def child() -> None:
            names.add(sniffio.current_async_library())

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        return names

    assert run(main) == {"trio", "TrioTaskInfo"}
    assert outside_of_any_run()


def test_name_is_forgotten_when_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="kqueue"):
        run(backend, backend="kqueue")
    assert outside_of_any_run()
    assert run(backend) == "io_uring"


def test_options_are_those_of_anyio_options() -> None:
    class Seen(trio.abc.Instrument):
        backends: list[str] = []  # noqa: RUF012

        def before_run(self) -> None:
            self.backends.append(harness.io_statistics().backend)

    assert run(backend, instruments=[Seen()], strict_exception_groups=True) == "io_uring"
    assert run(backend, instruments=[Seen()], backend="epoll") == "epoll"
    assert Seen.backends == ["io_uring", "epoll"]


def test_portal_and_its_provider() -> None:
    with anyio.from_thread.start_blocking_portal(backend=NAME) as portal:
        assert portal.call(backend) == "io_uring"
        assert portal.call(sniffio.current_async_library) == "trio"
        assert portal.start_task_soon(backend).result(10) == "io_uring"
    provider = anyio.from_thread.BlockingPortalProvider(backend=NAME)
    for _ in range(2):
        with provider as portal:
            assert portal.call(backend) == "io_uring"


def test_threads_call_back_into_their_own_run() -> None:
    def in_thread() -> str:
        assert outside_of_any_run()
        return str(anyio.from_thread.run(backend))

    async def main() -> str:
        return str(await anyio.to_thread.run_sync(in_thread))

    assert run(main) == "io_uring"


def test_data_is_moved_by_the_ring() -> None:
    async def main() -> dict[str, int]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def echo(stream: Any) -> None:
            async with stream:
                await stream.send(await stream.receive())

        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                await client.send(b"hello")
                assert await client.receive() == b"hello"
            group.cancel_scope.cancel()
        return dict(harness.io_statistics().operations)

    operations = run(main)
    assert all(operations[name] for name in ("poll_add", "connect", "send", "recv"))


@pytest.fixture
def one_finder() -> Iterator[None]:
    yield
    assert sum(type(finder).__name__ == "BackendFinder" for finder in sys.meta_path) == 1


@pytest.mark.usefixtures("one_finder")
def test_name_is_made_known_once_however_often_we_are_imported() -> None:
    _anyio_name.make_known()
    importlib.reload(_anyio_name).make_known()


def test_an_unknown_name_is_still_unknown() -> None:
    with pytest.raises(LookupError, match="No such backend: uring_tria"):
        anyio.run(backend, backend="uring_tria")


def run_new_interpreter(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_name_is_known_after_the_import_and_not_before() -> None:
    out = run_new_interpreter("""
import anyio
async def main():
    import trio
    print(trio.lowlevel.current_statistics().io_statistics.backend)
try:
    anyio.run(main, backend="uring_trio")
except LookupError as exc:
    print(exc)
import uring_trio
assert "trio" not in sys.modules and "anyio._backends._trio" not in sys.modules
anyio.run(main, backend="uring_trio")
""")
    assert out.splitlines() == ["No such backend: uring_trio", "io_uring"]


def test_import_order_does_not_matter_and_the_ring_is_made_in_the_run() -> None:
    out = run_new_interpreter("""
import uring_trio
assert not {"trio", "anyio"} & set(sys.modules)
import anyio
with anyio.from_thread.start_blocking_portal("uring_trio") as portal:
    print(portal.call(lambda: uring_trio.probe().backend))
""")
    assert out == "io_uring\n"


def test_without_anyio_nothing_of_ours_is_missing() -> None:
    out = run_new_interpreter("""
sys.modules["anyio"] = None
import trio, uring_trio
async def main():
    return uring_trio.probe().backend
print(uring_trio.run(main), trio.run(main, **uring_trio.anyio_options()))
""")
    assert out == "io_uring io_uring\n"


def test_old_anyio_is_refused_in_words() -> None:
    out = run_new_interpreter("""
import anyio
import uring_trio
from uring_trio import _anyio_options
_anyio_options.version = lambda name: "4.13.0"
try:
    anyio.run(None, backend="uring_trio")
except LookupError as exc:
    print(exc.__cause__)
""")
    assert "anyio 4.13.0 drops the options" in out


def test_misspelt_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="anyio_option"):
        _ = uring_trio.anyio_option  # type: ignore[attr-defined]
