"""Compiles step.c at first use and loads it as a shared library, which later processes find in a cache folder.

The folder is `libraries` in $ZOO_CACHE, by default in ~/.cache/zoo. A library's name has two digests: of the source,
the flags and the CPU; and of the compiler with its version. A file next to it holds its SHA-256; a damaged library is
compiled again. Where no compiler works, a library that another one has compiled is used. Only a folder that no other
user can write to is used; otherwise, and where the folder cannot be written to or its files cannot be executed, each
process compiles into a temporary folder. Nothing in a checkpoint refers to a library.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.files.cache_folder import cache_folder

SOURCE = Path(__file__).with_name("step.c")
COMPILERS = ("gcc", "clang", "cc")
# Sums may be reordered, which vectorises them, but NaN and infinity keep their meaning. Not -ffast-math: with it, gcc
# links code that lets the process flush subnormal numbers to 0 from then on.
FLAGS = (
    "-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-ffp-contract=fast", "-fwrapv", "-shared", "-fPIC",
)  # fmt: skip
SECONDS = 120  # that a compiler may take


class CompilerMissing(RuntimeError):
    """There is no C compiler, or it fails; the message is the reason."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """The library of step.c for this CPU, compiled if it is not in the cache folder.

    Raises:
        CompilerMissing: it can be neither found nor compiled.
    """
    folder = _cache_folder()
    try:
        return _load_or_compile(_compiler(), folder)
    except CompilerMissing:
        for path in sorted(folder.glob(f"step-{_digest_of_source()}-*.so")) if folder is not None else ():
            with contextlib.suppress(CompilerMissing):
                if _is_complete(path):
                    return _load(path)
        raise


def _load_or_compile(command: list[str], folder: Path | None) -> ctypes.CDLL:
    """The library of a compiler, from the cache folder or compiled."""
    if folder is not None:
        path = folder / f"step-{_digest_of_source()}-{_digest_of_compiler(command)}.so"
        # The disk can be full or allow no execution, and something else can have that name.
        with contextlib.suppress(OSError, CompilerMissing):
            return _load(path if _is_complete(path) else _compile(command, path))
    # The library stays loaded when its file is gone.
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return _load(_compile(command, Path(temporary) / "step.so"))
    except OSError as error:
        raise CompilerMissing(str(error)) from None


def _compiler() -> list[str]:
    """The command of a C compiler, $CC or the first of `COMPILERS`."""
    if os.name == "nt":
        raise CompilerMissing("compiling for Windows is not supported")
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise CompilerMissing(f"$CC is not a command: {error}") from None
    if given and not shutil.which(given[0]):
        raise CompilerMissing(f"$CC is {given[0]}, which is not installed: set it to a C compiler, or unset it")
    command = given or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command:
        raise CompilerMissing(f"no C compiler ({', '.join(COMPILERS)}) is installed")
    return command


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler, whose messages are then in English."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=environment)


def _first_error(messages: str) -> str:
    """The first line of a compiler's messages that reports an error; without one, the first line."""
    lines = messages.strip().splitlines()
    errors = (line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE))
    return next(errors, lines[0] if lines else "no message").strip()


def _compile(command: list[str], path: Path) -> Path:
    """Compile step.c to the file `path`, with OpenMP's threads if the compiler has them and the library loads.

    Raises:
        CompilerMissing: the compiler fails.
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        for flags in ((*FLAGS, "-fopenmp"), FLAGS):
            line = [*command, *flags, str(SOURCE), "-o", str(temporary), "-lm"]
            try:
                done = _run(line)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CompilerMissing(f"{command[0]} does not run: {error}") from None
            reason = f"{command[0]} fails: {_first_error(done.stderr)}"
            if done.returncode == 0:
                try:
                    ctypes.CDLL(str(temporary))
                    _sum_file(path).write_text(_sha256(temporary), encoding="ascii")
                    return path
                except OSError as error:  # for example without OpenMP's library
                    reason = str(error)
        raise CompilerMissing(reason)


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_complete(path: Path) -> bool:
    """Whether the library exists as it was compiled: loading a shortened one would end the process."""
    try:
        return _sha256(path) == _sum_file(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # for example a disk on which no file may be executed
        raise CompilerMissing(str(error)) from None
    library.decoder_size.restype = ctypes.c_int64
    address = ctypes.c_void_p
    library.decode_step.argtypes = [address, address, address, ctypes.c_int64, address]
    library.decode_step.restype = None
    return library


def _digest_of_compiler(command: list[str]) -> str:
    """The compiler and its version as 16 hexadecimal digits."""
    text = [*command]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        text.append(_run([*command, "--version"]).stdout)
    return _digest(text)


def _digest_of_source() -> str:
    """What the machine code depends on except the compiler, as 16 hexadecimal digits."""
    text = [*FLAGS, SOURCE.read_text(encoding="utf-8")]
    info = Path("/proc/cpuinfo")
    if info.exists():
        # Names and features of the cores.
        lines = info.read_text(errors="replace").splitlines()
        text += sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    else:
        text += platform.uname()
    return _digest(text)


def _digest(text: list[str]) -> str:
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def _cache_folder() -> Path | None:
    """The folder of the libraries, or None if it cannot be created or another user can write to it."""
    try:
        folder = cache_folder() / "libraries"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        is_shared = _others_write(folder, stat.S_IWGRP | stat.S_IWOTH)
        if is_shared or any(_others_write(parent, stat.S_IWOTH) for parent in folder.parents):
            return None
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, UserError):
        return None


def _others_write(folder: Path, bits: int) -> bool:
    """Whether a user other than this one and root can change what is in a folder, by its owner and these mode bits.

    In a folder with the sticky bit, such as /tmp, only its owner can change a name.
    """
    status = folder.stat()
    is_shared = bool(status.st_mode & bits) and not status.st_mode & stat.S_ISVTX
    return is_shared or status.st_uid not in (0, os.getuid())
