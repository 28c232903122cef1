"""What callback servers (``uring_trio.gain``) withstand; see README.md beside this folder."""
