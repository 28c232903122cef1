"""The Model Context Protocol over stdio: client and server, each on a ring of its own.

The client talks to the server's pipes by ring operations. The server reads its own standard
input through ``anyio.wrap_file``, which is a thread's work on any trio; only what the threads
tell the run comes by the ring.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ecosystem_tools import assert_by_ring, marks, need, on_ring

need("mcp")

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import TextContent

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = marks()

CALLS = 100
LARGE = 300_000

SERVER = """
import json
import anyio, trio
from mcp.server import MCPServer

server = MCPServer("on the ring")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

@server.tool()
def large(size: int) -> str:
    return "x" * size

@server.tool()
async def statistics() -> str:
    return json.dumps(vars(trio.lowlevel.current_statistics().io_statistics))

anyio.run(server.run_stdio_async, backend="trio")
"""


async def call(session: ClientSession, tool: str, **arguments: int) -> str:
    result = await session.call_tool(tool, arguments)
    (content,) = result.content
    assert isinstance(content, TextContent)
    text: str = content.text
    return text


def test_mcp_stdio_client_and_server(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    arguments = ["-m", "uring_trio", "run", "--backend", "io_uring", str(script)]
    parameters = StdioServerParameters(command=sys.executable, args=arguments)

    async def main() -> None:
        with (tmp_path / "stderr").open("w+") as errors:
            async with (
                stdio_client(parameters, errors) as (read, write),
                ClientSession(read, write) as session,
            ):
                await session.initialize()
                tools = {tool.name for tool in (await session.list_tools()).tools}
                assert tools == {"add", "large", "statistics"}
                for number in range(CALLS):
                    assert await call(session, "add", a=number, b=1) == str(number + 1)
                assert await call(session, "large", size=LARGE) == "x" * LARGE
                assert_by_ring(json.loads(await call(session, "statistics")), poll_add=1)

    on_ring(main, read=CALLS, write=CALLS)
