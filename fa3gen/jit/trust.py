"""Whose files are believed: those that nobody but this user and root can change.

What lies in the cache is executed: kernels, and the compilers that the kept toolchain names. So the
cache directory, its ancestors, and each folder and file that is used in it must belong to this user
or root, and be writable neither by group nor by others. It is the rule of OpenSSH's StrictModes,
with two exceptions:

- An ancestor may have the sticky bit, as ``/tmp`` has: others can add to it, but not replace there
  what is not theirs.
- A user's private group may write, as it may everywhere on systems with umask 002: the owner's
  primary group, of the same name, without another member. Not where the path has an access control
  list, whose rights the system shows as the group's.

Links are resolved on the way to the cache directory; in it none is followed. The order is always:
the directory, then what it holds, then its content. After a check only this user and root can
change what was checked, so that what is checked is what is opened, read or executed later.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path

__all__ = ["UntrustedError", "check", "check_directory", "make_directory", "protect"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(PermissionError):
    """A place that others can change. The message names path, rule, value and remedy."""


def check_directory(path: Path) -> None:
    """Raise UntrustedError unless the directory ``path`` is this user's on all of its way.

    ``path`` is absolute and free of links. Raises another OSError where it is no directory.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    _check_owner(path, status)
    for ancestor in path.parents:
        status = os.lstat(ancestor)
        _check_owner(ancestor, status, sticky=bool(status.st_mode & stat.S_ISVTX))


def check(path: Path) -> None:
    """Raise UntrustedError unless a file or folder in a checked directory is this user's.

    Raises another OSError where there is none.
    """
    status = os.lstat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "neither"
        raise UntrustedError(f"{path} must be a file or a folder (it is {kind}); remove it")
    _check_owner(path, status)


def make_directory(path: Path) -> None:
    """Make a directory, and those above that are missing, for this user alone whatever the umask.

    Raises OSError where it cannot be made.
    """
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        if not path.is_dir():
            raise


def protect(*paths: Path) -> None:
    """Take from group and others the right to write to files and folders."""
    for path in paths:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS)


def _check_owner(path: Path, status: os.stat_result, *, sticky: bool = False) -> None:
    user = os.geteuid()
    if status.st_uid not in (0, user):
        wanted = "root" if user == 0 else f"uid {user} or root"
        raise UntrustedError(
            f"{path} must belong to {wanted}, as what is kept there is executed "
            f"(it belongs to uid {status.st_uid}); choose another place"
        )
    writers = status.st_mode & _OTHERS
    if not writers or sticky:
        return
    if writers == stat.S_IWGRP and _is_private(status.st_uid, status.st_gid) and not _has_acl(path):
        return
    raise UntrustedError(
        f"{path} must not be writable by group or others, as what is kept there is executed "
        f"(its mode is {stat.S_IMODE(status.st_mode):04o}); `chmod go-w {path}`, once you know "
        "that nobody has put anything there"
    )


@functools.lru_cache(maxsize=64)
def _is_private(user: int, group: int) -> bool:
    """Whether a group is a user's private one. Root has none: in its group are others, too.

    A group does not list those whose primary group it is.
    """
    import grp
    import pwd

    try:
        owner, members = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:
        return False
    return (
        user != 0
        and owner.pw_gid == group
        and owner.pw_name == members.gr_name
        and set(members.gr_mem) <= {owner.pw_name}
        and not any(one.pw_gid == group and one.pw_uid != user for one in pwd.getpwall())
    )


def _has_acl(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # a file system without
        return False
