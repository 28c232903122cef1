"""How the ring compares with stock trio, asyncio and uvloop; see README.md here."""
