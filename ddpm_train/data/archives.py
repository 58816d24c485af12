"""Images inside zip archives, as cells of `datasets` name them: `zip://folder/a.png::/data/images.zip`."""

import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from ddpm_train.config.text import printable
from ddpm_train.data.decode import BrokenImage
from ddpm_train.system.failures import first_line

_LARGEST_BYTES = 2**30  # of an encoded image; a few bytes of an archive can stand for more than any memory holds


def file_named(cell: str) -> str:
    """The path of the file that holds what a cell names: the archive, if the cell names something inside one."""
    return cell.rpartition("::")[2] if "://" in cell else cell


def member_named(cell: str) -> str | None:
    """The path inside an archive that a cell names; None: it names a file.

    Raises:
        BrokenImage: it names something else, such as an address.
    """
    kind, separator, rest = cell.partition("://")
    if not separator:
        return None
    member, inside, archive = rest.rpartition("::")
    if kind != "zip" or not inside or "://" in archive:
        raise BrokenImage(f"{printable(cell)}: what {printable(kind)}:// names is not read; have rows hold the images")
    return member


def read_member(archive: Path, member: str) -> bytes:
    """One file of a zip archive.

    Raises:
        BrokenImage: it is not there, cannot be read, or is of more than 1 GB.
    """
    try:
        opened = _opened(archive, os.stat(archive).st_ctime_ns)
        info = opened.getinfo(member)
        if info.file_size > _LARGEST_BYTES:
            raise BrokenImage(f"{printable(member)} in {archive.name} has {info.file_size:,} bytes")
        return opened.read(info)
    except KeyError:
        raise BrokenImage(f"{printable(member)} is not in {archive.name}") from None
    # An archive may be damaged, encrypted (RuntimeError) or compressed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise BrokenImage(f"{archive.name}: {first_line(error)}") from None


@lru_cache(maxsize=16)
def _opened(archive: Path, changed_ns: int) -> zipfile.ZipFile:
    """Its list of files is read once, unless the archive has changed since."""
    return zipfile.ZipFile(archive)
