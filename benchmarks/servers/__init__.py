"""The servers that are compared, each a small program of its own.

``python -m benchmarks.servers.NAME`` prints its port on the first line and echoes until
its standard input ends.
"""
