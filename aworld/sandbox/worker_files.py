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
FULL = "disk_mb"
"""What is told in place of an error's name when there is no room."""
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Outside(OSError):
    """A path leads out of the work folder."""


def inside(root: str, path: str) -> str:
    """The path with links resolved. Raises Outside when it leads out."""
    full = os.path.realpath(os.path.join(root, path))
    if full != root and not full.startswith(root + "/"):
        raise Outside(errno.EPERM, "leads out of the work folder", path)
    return full


def file_operation(root: str, boxed: bool, operation: bytes, path: bytes, *options: bytes) -> None:
    """Work on files, from standard input or to standard output; exit with FILE_ERROR and the reason if it fails."""
    try:
        OPERATIONS[operation](inside(root, os.fsdecode(path)), boxed, *map(os.fsdecode, options))
    except OSError as error:
        kind = FULL if error.errno in _NO_ROOM else type(error).__name__
        os.write(2, f"{kind}\0{error.strerror or error}".encode(errors="replace"))
        os._exit(FILE_ERROR)


def read_file(path: str, boxed: bool) -> None:
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


def write_file(path: str, boxed: bool, part: str, size: str) -> None:
    """Copy standard input into a file: into `part` beside it, which takes its place when all `size` bytes are there."""
    mode = None
    if os.path.exists(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        if not os.path.isfile(path):
            raise OSError(errno.EINVAL, "is not a file")
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "is read-only")
        mode = os.stat(path).st_mode & 0o777
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = beside(path, part)
    with open(part, "xb") as file, open(0, "rb", closefd=False) as data:
        while True:
            piece = data.read(1 << 20)
            if not piece:
                break
            file.write(piece)
        file.flush()
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        if os.fstat(file.fileno()).st_size != int(size):
            raise OSError(errno.EIO, "the data ended early")  # who gave them was cancelled
    os.rename(part, path)


def beside(path: str, part: str) -> str:
    """Where something is made that takes the place of this file, or of what is in this folder."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), part)


def discard(path: str, boxed: bool, part: str) -> None:
    """Delete what was made beside a file or a folder, as much as there is of it."""
    import shutil

    part = beside(path, part)
    if os.path.isfile(part):
        os.unlink(part)
    for folder, names, _ in os.walk(part):  # what was locked in there may go too
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(part, ignore_errors=True)


def list_folder(path: str, boxed: bool) -> None:
    """The entries of a folder: `d` or `f`, size, `/` and name, each ended by NUL."""
    with os.scandir(path) as entries, open(1, "wb", closefd=False) as out:
        for entry in sorted(entries, key=lambda entry: entry.name):
            folder = entry.is_dir(follow_symlinks=False)
            size = 0 if folder else entry.stat(follow_symlinks=False).st_size
            out.write(b"%s%d/%s\0" % (b"d" if folder else b"f", size, os.fsencode(entry.name)))


def scan(path: str, boxed: bool, left_out: str) -> None:
    """All below a folder that is no folder, or one that is closed: size, time of its content, of its inode, inode and
    mode, `/` and its path, each ended by NUL. Folders with a name of `left_out` (lines) are not looked into."""
    names = left_out.split("\n")
    with open(1, "wb", closefd=False) as out:

        def tell(place: str) -> None:
            stat = os.lstat(place)
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_mode)
            out.write(b"%d %d %d %d %d/" % facts + os.fsencode(os.path.relpath(place, path)) + b"\0")

        def closed(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                tell(error.filename)

        for folder, folders, files in os.walk(path, onerror=closed):
            folders[:] = [name for name in folders if name not in names]
            for name in files + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
                try:
                    tell(os.path.join(folder, name))
                except FileNotFoundError:  # it was deleted meanwhile
                    continue
                except PermissionError:
                    tell(folder)
                    break


def pack(path: str, boxed: bool) -> None:
    """The folder as a tar archive."""
    import tarfile

    with open(1, "wb", closefd=False) as out, tarfile.open(fileobj=out, mode="w|") as tar:
        for name in sorted(os.listdir(path)):
            tar.add(os.path.join(path, name), name)


def unpack(path: str, boxed: bool) -> None:
    """Fill a folder from a tar archive."""
    import tarfile

    class Member(tarfile.TarInfo):
        """Takes note of the last header, because tarfile takes one that is broken or cut off for the end."""

        last = b""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarInfo:
            Member.last = bytes(buf)
            return super().frombuf(buf, encoding, errors)

    os.makedirs(path, exist_ok=True)
    try:
        with open(0, "rb", closefd=False) as data, tarfile.open(fileobj=data, mode="r|", tarinfo=Member) as tar:
            # In a box any link may be restored, it leads nowhere else; without one, none that leads out.
            tar.extraction_filter = as_it_is if boxed else getattr(tarfile, "data_filter", as_it_is)
            tar.extractall(path)
    except tarfile.TarError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    if any(Member.last):
        raise OSError(errno.EINVAL, "the archive is broken or cut off")


def restore(path: str, boxed: bool, part: str) -> None:
    """Put what a tar archive holds in the place of what is in a folder, or leave it as it is."""
    old, new = (os.path.join(path, part, name) for name in ("old", "new"))
    os.makedirs(old)
    unpack(new, boxed)
    moved: list[tuple[str, str]] = []
    try:
        os.chmod(new, 0o700)
        for source, target in ((path, old), (new, path)):
            for name in sorted(os.listdir(source)):
                if name != part:
                    move(os.path.join(source, name), os.path.join(target, name))
                    moved.append((os.path.join(source, name), os.path.join(target, name)))
    except OSError:
        for source, target in reversed(moved):
            move(target, source)
        raise
    discard(path, boxed, part)


def move(source: str, target: str) -> None:
    """Rename. To leave its folder, a folder has to be writable."""
    locked = None
    if os.path.isdir(source) and not os.path.islink(source) and not os.access(source, os.W_OK):
        locked = os.stat(source).st_mode & 0o7777
        os.chmod(source, locked | 0o200)
    os.rename(source, target)
    if locked is not None:
        os.chmod(target, locked)


def as_it_is(member: TarInfo, folder: str) -> TarInfo:
    """Change nothing of what is restored."""
    return member


OPERATIONS = {
    b"read": read_file,
    b"write": write_file,
    b"list": list_folder,
    b"scan": scan,
    b"pack": pack,
    b"unpack": unpack,
    b"restore": restore,
    b"discard": discard,
}
