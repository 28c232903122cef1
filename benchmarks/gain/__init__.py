"""How callback servers (``uring_trio.gain``) compare; see README.md beside this folder."""
