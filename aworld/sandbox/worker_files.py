"""Work on the files of a local sandbox, in the process inside (`worker.py`): a link leads nowhere but about the box.

Each operation reads standard input or writes to standard output, in a process of its own under the limits of the box.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tarfile import TarInfo

FILE_ERROR = 3
"""The exit code of an operation that failed; why is on its standard error."""


class Outside(OSError):
    """A path leads out of the work folder."""


def inside(root: str, path: str) -> str:
    """The path with links resolved. Raises Outside when it leads out."""
    full = os.path.realpath(os.path.join(root, path))
    if full != root and not full.startswith(root + "/"):
        raise Outside(errno.EPERM, "leads out of the work folder", path)
    return full


def file_operation(root: str, boxed: bool, operation: bytes, path: bytes, option: bytes = b"") -> None:
    """Work on files, from standard input or to standard output; exit with FILE_ERROR and the reason if it fails."""
    try:
        OPERATIONS[operation](inside(root, os.fsdecode(path)), boxed, option)
    except OSError as error:
        os.write(2, f"{type(error).__name__}\0{error.strerror or error}".encode(errors="replace"))
        os._exit(FILE_ERROR)


def read_file(path: str, boxed: bool, option: bytes) -> None:
    """Copy a file to standard output. Pipes and devices are refused: they never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is not a file")
    while True:
        data = os.read(descriptor, 1 << 20)
        if not data:
            return
        with open(1, "wb", closefd=False) as out:
            out.write(data)


def write_file(path: str, boxed: bool, option: bytes) -> None:
    """Copy standard input into a file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise (
            IsADirectoryError(errno.EISDIR, "is a folder")
            if os.path.isdir(path)
            else OSError(errno.EINVAL, "is not a file")
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file, open(0, "rb", closefd=False) as data:
        while True:
            piece = data.read(1 << 20)
            if not piece:
                return
            file.write(piece)


def list_folder(path: str, boxed: bool, option: bytes) -> None:
    """The entries of a folder: `d` or `f`, size, `/` and name, each ended by NUL."""
    with os.scandir(path) as entries, open(1, "wb", closefd=False) as out:
        for entry in sorted(entries, key=lambda entry: entry.name):
            folder = entry.is_dir(follow_symlinks=False)
            size = 0 if folder else entry.stat(follow_symlinks=False).st_size
            out.write(b"%s%d/%s\0" % (b"d" if folder else b"f", size, os.fsencode(entry.name)))


def pack(path: str, boxed: bool, option: bytes) -> None:
    """The folder as a tar archive."""
    import tarfile

    with open(1, "wb", closefd=False) as out, tarfile.open(fileobj=out, mode="w|") as tar:
        for name in sorted(os.listdir(path)):
            tar.add(os.path.join(path, name), name)


def unpack(path: str, boxed: bool, option: bytes) -> None:
    """Fill a folder from a tar archive, emptied before if the option says so."""
    import shutil
    import tarfile

    if option == b"replace":
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    os.makedirs(path, exist_ok=True)
    try:
        with open(0, "rb", closefd=False) as data, tarfile.open(fileobj=data, mode="r|") as tar:
            # In a box any link may be restored, it leads nowhere else; without one, none that leads out.
            tar.extraction_filter = as_it_is if boxed else getattr(tarfile, "data_filter", as_it_is)
            tar.extractall(path)
    except tarfile.TarError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def as_it_is(member: TarInfo, folder: str) -> TarInfo:
    """Change nothing of what is restored."""
    return member


OPERATIONS = {b"read": read_file, b"write": write_file, b"list": list_folder, b"pack": pack, b"unpack": unpack}
