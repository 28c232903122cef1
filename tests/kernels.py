"""A command of this tree on another Linux kernel, in emulation: ``make kernels KERNEL=6.16``.

    python tests/kernels.py --list
    python tests/kernels.py [--limit-s S] [--cpus N] [--without RULE] KERNEL [COMMAND ...]

KERNEL is the beginning of a version that Debian offers; the newest that begins so is fetched
from one of its suites, checked by apt's signatures, and kept. COMMAND is run as root in this
tree by this Python (``-m pytest tests/test_x.py``, ``tests/fuzz.py --seconds 60``), or by itself
if it is a program (``csrc/tests/build/plain/test_sim_choices``, which is to be built before:
what the simulated kernel believes of that release is held against it); without one the kernel
says what it is, and what the doctor says of it. The exit status is the command's.

What the guest has is this machine's: the Python, the libraries that it loads, and this tree
with its environment, at the same paths, copied into a disk image anew with each call. So
nothing is installed twice, and nothing that the guest writes comes back but what it prints.
With --without it is this tree without a cure (see `cures.py`), for what only one kernel shows;
more than one may be named. With --product it is that of another tree, which is built, such as
a checkout of an old release.
The machine's own apt is not touched: lists and archives lie in a folder of ours.

It needs qemu-system-x86, busybox, kmod, cpio, e2fsprogs and Debian's keyring. There is no KVM
in it: a plan of ring-gain that takes 0.3 s on the machine takes 1.6 s there, and 6 s beside
other work. So limits are stretched (`machine_speed`), and what asserts fractions of a second may
fail for that alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import lzma
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cures import CURES

if TYPE_CHECKING:
    from cures import Cure

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".kernels"

MIRROR = "http://deb.debian.org"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Which suite has which releases changes; all are asked.
SUITES = (
    *("bullseye-security", "bookworm", "bookworm-security", "bookworm-backports"),
    *("trixie", "trixie-security", "trixie-backports", "sid"),
)
PACKAGE = re.compile(r"linux-image-(\d[^ ]*-cloud-amd64)(?= )")
# What is a module on the way to the disk.
MODULES = ("crc32c_generic", "crc32c-intel", "virtio_pci", "virtio_blk", "ext4")
# What of this machine is no use there: large, and not run.
LEFT_OUT = (
    *(".git", ".kernels", ".seeds", ".matrix", ".anyio_suite", ".*_cache", "__pycache__"),
    *("mypy", "mypyc", "*__mypyc.*", "ruff", "pip", "*.a"),
)
# ... of Python's own folder, where there is an environment beside it.
OF_PYTHON = ("site-packages", "test", "idlelib", "tkinter", "ensurepip", "lib2to3", "config-*")
TOOLS = ("sh", "mount", "ip", "hostname", "dmesg", "grep", "cat", "ls", "sleep", "env", "sync")

LIMIT_S = 1800.0
# As `machine_speed` has it at most: what the guest would measure differs from boot to boot.
SLOWNESS = "10.0"
END = re.compile(r"^GUEST-END (\d+)\r?$", re.MULTILINE)


def run(*command: str | Path, **options: object) -> str:
    """The output of a program, which must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return str(done.stdout)


# ---- kernels -----------------------------------------------------------------------------


class Suite:
    """One of Debian's, with lists and archives of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / "apt" / name
        self.name = name

    def apt(self, tool: str, *arguments: str) -> str:
        """apt-get or apt-cache, which see this suite and nothing of the machine's."""
        lists, archives = self.folder / "lists", self.folder / "archives"
        is_new = not self.folder.exists()
        for each in (lists / "partial", archives / "partial"):
            each.mkdir(parents=True, exist_ok=True)
        archive = "debian-security" if self.name.endswith("-security") else "debian"
        sources, status = self.folder / "sources.list", self.folder / "status"
        sources.write_text(f"deb [signed-by={KEYS}] {MIRROR}/{archive} {self.name} main\n")
        status.touch()
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": lists,
            "Dir::State::status": status,
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": archives,
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        words = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        if is_new:
            run("apt-get", *words, "-qq", "update")
        return run(f"apt-{tool}", *words, *arguments, cwd=archives)

    def versions(self) -> list[str]:
        """The kernels that it offers."""
        return PACKAGE.findall(self.apt("cache", "search", "--names-only", "^linux-image-[0-9]"))

    def unpack(self, version: str, folder: Path) -> None:
        """A kernel and its modules."""
        archives = self.folder / "archives"
        # Since 6.19 the image and the modules have packages of their own.
        known = self.apt("cache", "search", "--names-only", f"{version.replace('+', '.')}$")
        for kind in ("image", "binary", "modules"):
            if f"linux-{kind}-{version} " in known:
                self.apt("get", "-qq", "download", f"linux-{kind}-{version}")
        for package in archives.glob(f"linux-*-{version}_*.deb"):
            run("dpkg", "-x", package, folder)


def by_number(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:4]]


def offered(folder: Path) -> dict[str, Suite]:
    """All kernels, with a suite that has each."""
    found = {}
    for suite in (Suite(folder, name) for name in SUITES):
        found.update(dict.fromkeys(suite.versions(), suite))
    return found


def fetch(folder: Path, wanted: str) -> Path:
    """A folder with ``vmlinuz`` and ``initrd``."""
    kept = [each.name for each in folder.glob(f"{wanted}*") if (each / "initrd").exists()]
    if not kept:
        begins = re.compile(rf"{re.escape(wanted)}\b")
        kernels = {v: suite for v, suite in offered(folder).items() if begins.match(v)}
        if not kernels:
            raise SystemExit(f"Debian offers no kernel {wanted}: see --list")
        version = max(kernels, key=by_number)
        print(f"fetching Linux {version} from {kernels[version].name}", flush=True)
        home = folder / version
        shutil.rmtree(home, ignore_errors=True)
        kernels[version].unpack(version, home)
        shutil.copyfile(next(home.glob("boot/vmlinuz*")), home / "vmlinuz")
        make_initrd(home, version)
        kept = [version]
    return folder / max(kept, key=by_number)


INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vda ] || /bin/busybox sleep 0.3; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /new || /bin/busybox poweroff -f
exec /bin/busybox switch_root /new /guest-init
"""


def make_initrd(home: Path, version: str) -> None:
    """What finds the disk."""
    if not (home / "lib").exists():
        (home / "lib").symlink_to("usr/lib")
    run("depmod", "-b", home, version)
    inside = home / "initrd.d"
    for name in ("bin", "dev", "modules", "new"):
        (inside / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", inside / "bin" / "busybox")
    paths: dict[str, None] = {}
    for module in MODULES:
        with contextlib.suppress(subprocess.CalledProcessError):  # it may be built in
            told = run(
                *("modprobe", "-d", home, "-S", version, "--show-depends", module),
                stderr=subprocess.DEVNULL,
            )
            paths.update(dict.fromkeys(re.findall(r"^insmod (\S+)", told, re.MULTILINE)))
    for number, path in enumerate(paths):
        module_file = Path(path)
        data = module_file.read_bytes()
        if module_file.suffix == ".xz":
            data = lzma.decompress(data)
        elif module_file.suffix == ".zst":
            data = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
        (inside / "modules" / f"{number:02}.ko").write_bytes(data)
    (inside / "init").write_text(INIT)
    (inside / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(inside)) for path in inside.rglob("*"))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        input=names.encode(),
        cwd=inside,
        stdout=subprocess.PIPE,
        check=True,
    )
    (home / "initrd").write_bytes(gzip.compress(archive.stdout, 1))


# ---- the disk ----------------------------------------------------------------------------

GUEST_INIT = """#!/bin/sh
export PATH=/bin:/usr/bin HOME=/root LANG=C.UTF-8 TERM=dumb PYTHONUNBUFFERED=1
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} URING_TRIO_SLOWNESS={slowness}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -o remount,rw /; ip link set lo up; hostname guest
ulimit -n 65536; cd {root}
echo "GUEST Linux $(cat /proc/sys/kernel/osrelease)"
{command}
status=$?
dmesg | grep -E 'WARNING|BUG|Call Trace|lockup|Oops' && [ $status = 0 ] && status=99
echo "GUEST-END $status"
sync; echo o > /proc/sysrq-trigger; sleep 30
"""


def libraries(files: list[Path]) -> set[Path]:
    """What they load, and its loader."""
    done = subprocess.run(["ldd", *files], stdout=subprocess.PIPE, text=True, check=False)
    return {Path(path) for path in re.findall(r"(/\S+)(?= \(0x)", done.stdout)}


def copy_in(image: Path, path: Path, *left_out: str) -> None:
    """A file or a folder, to the same path."""
    to = image / path.relative_to("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        ignore = shutil.ignore_patterns(*LEFT_OUT, *left_out)
        shutil.copytree(path, to, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    elif not to.exists():
        shutil.copy(path, to)


def make_disk(folder: Path, command: str, product: Path, without: list[Cure]) -> Path:
    """An image with this machine's Python, this tree, perhaps without cures, and a job."""
    image, disk = folder / "root", folder / "root.ext4"
    shutil.rmtree(image, ignore_errors=True)
    for name in ("dev", "proc", "sys", "tmp", "root", "etc", "bin", "usr/bin", "usr/lib", "run"):
        (image / name).mkdir(parents=True)
    (image / "tmp").chmod(0o1777)
    for name in ("lib", "lib64"):
        (image / name).symlink_to(f"usr/{name}")
        (image / "usr" / name).mkdir(exist_ok=True)
    base, environment = Path(sys.base_prefix), Path(sys.prefix)
    copy_in(image, base, *(OF_PYTHON if environment != base else ()))
    for tree in {ROOT, product}:
        copy_in(image, tree)
    for cure in without:
        cure.take_out(image / ROOT.relative_to("/"))
    if not any(environment.is_relative_to(each) for each in (base, ROOT)):
        copy_in(image, environment)
    loaded = [Path(sys.executable).resolve(), *base.glob("lib/**/lib-dynload/*.so")]
    for path in libraries([*loaded, *environment.rglob("*.so")]):
        copy_in(image, path)
    for path in Path("/").glob("lib/x86_64-linux-gnu/libgcc_s.so.1"):  # threads ask for it late
        copy_in(image, path)
    copy_in(image, Path("/usr/bin/busybox"))
    for tool in TOOLS:
        (image / "bin" / tool).symlink_to("/usr/bin/busybox")
    etc = image / "etc"
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
    )
    (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (etc / "hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")
    (etc / "nsswitch.conf").write_text("hosts: files\nservices: files\nprotocols: files\n")
    for name in ("services", "protocols"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(f"/etc/{name}", etc / name)
    (image / "guest-init").write_text(
        GUEST_INIT.format(
            slowness=SLOWNESS,
            path=shlex.quote(str(product / "src")),
            root=shlex.quote(str(ROOT)),
            command=command,
        )
    )
    (image / "guest-init").chmod(0o755)
    disk.unlink(missing_ok=True)
    run("truncate", "-s", "2G", disk)
    run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-d",
        image,
        disk,
    )
    shutil.rmtree(image)
    return disk


# ---- booting -----------------------------------------------------------------------------


def boot(home: Path, disk: Path, limit_s: float, cpus: int) -> int:
    """Boot, show what is printed, and return the job's status."""
    command = [
        *("nice", "-n", "10", "qemu-system-x86_64", "-machine", "q35"),
        # cx16: with it some kernels fault twice here, before there is a user space.
        *("-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", str(cpus), "-m", "2048"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(home / "vmlinuz"), "-initrd", str(home / "initrd")),
        # no_timer_check: a busy machine's timer is late, and that is a panic otherwise.
        "-append",
        "console=ttyS0 mitigations=off nokaslr no_timer_check panic=-1 loglevel=4",
        *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on"),
    ]
    end = time.monotonic() + limit_s
    text = ""
    with (
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as qemu,
        selectors.DefaultSelector() as selector,
    ):
        assert qemu.stdout is not None
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while time.monotonic() < end and not END.search(text):
            if selector.select(1.0):
                chunk = os.read(qemu.stdout.fileno(), 1 << 16).decode(errors="replace")
                if not chunk:
                    break
                text += chunk
                print(chunk.replace("\r", ""), end="", flush=True)
        qemu.kill()
    found = END.search(text)
    if found is None:
        print(f"\nthe guest did not end within {limit_s:.0f} s, or died")
        return 1
    return int(found[1])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kernel", nargs="?", help="the beginning of its version")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for this Python, in this tree")
    parser.add_argument("--list", action="store_true", help="the kernels that there are")
    parser.add_argument(
        "--limit-s", type=float, default=LIMIT_S, help=f"for the job ({LIMIT_S:.0f})"
    )
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="RULE",
        help="take out the cure that begins so",
    )
    parser.add_argument("--product", type=Path, default=ROOT, metavar="TREE", help="another one's")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for kernels and disks")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    if options.list:
        for version, suite in sorted(offered(folder).items(), key=lambda item: by_number(item[0])):
            print(version, suite.name)
        return 0
    if options.kernel is None:
        parser.error("which kernel?")
    without = [cure for cure in CURES if cure.rule.startswith(tuple(options.without))]
    if len(without) != len(options.without) or any(cure.is_c for cure in without):
        parser.error(f"each rule must begin one cure that is not C: {[c.rule for c in without]}")
    home = fetch(folder, options.kernel)
    words = options.command or ["-m", "uring_trio", "doctor"]
    is_program = Path(words[0]).suffix == "" and os.access(words[0], os.X_OK)
    command = shlex.join(words if is_program else [sys.executable, *words])
    return boot(
        home,
        make_disk(folder, command, options.product.resolve(), without),
        options.limit_s,
        options.cpus,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
