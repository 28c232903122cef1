"""What cffi builds: the extension ``uring_trio._engine`` out of the C in this folder.

setuptools runs this file from the project's root, and wants paths relative to it.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

CSRC = Path("csrc")

# What Python may call, and the C headers that declare the same. cffi lets the C
# compiler compare the two.
DECLARATIONS = "engine.cdef.h"
HEADERS = ("prep.h", "beside.h", "probe.h", "table.h")

ffibuilder = FFI()
ffibuilder.cdef((CSRC / DECLARATIONS).read_text(encoding="utf-8"))

ffibuilder.set_source(
    "uring_trio._engine",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=[str(path) for path in sorted(CSRC.glob("*.c"))],
    include_dirs=[str(CSRC)],
    # Listed so that an edit rebuilds, and so that the sdist carries them.
    depends=["csrc/build_ffi.py", *(str(path) for path in sorted(CSRC.glob("*.h")))],
    # gnu11, not c11: syscall(2) is an extension.
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
)
