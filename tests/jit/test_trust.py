from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from owners import STRANGER, give_away, pretend

from fa3gen.jit import trust
from fa3gen.jit.trust import UntrustedError, check, check_directory, make_directory, protect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a folder above it, both nobody else's."""
    folder = tmp_path / "above/cache"
    make_directory(folder)
    return folder


def test_our_own_is_trusted(folder: Path) -> None:
    check_directory(folder)
    (folder / "file").write_text("")
    (folder / "file").chmod(0o644)
    check(folder / "file")
    check(folder)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
@pytest.mark.parametrize("above", [False, True])
def test_what_others_can_write_is_not(folder: Path, mode: int, above: bool) -> None:
    """Also a directory with the sticky bit, unless it is an ancestor."""
    place = folder.parent if above else folder
    place.chmod(mode)
    if above and mode == 0o1777:
        check_directory(folder)
        return
    message = rf"^{place} must not be writable by group or others.*is {mode:04o}.*`chmod go-w"
    with pytest.raises(UntrustedError, match=message):
        check_directory(folder)
    place.chmod(mode & 0o755)
    check_directory(folder)


@pytest.mark.parametrize("above", [False, True])
def test_what_belongs_to_others_is_not(
    folder: Path, above: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder.parent if above else folder
    give_away(place, monkeypatch)
    with pytest.raises(UntrustedError, match=rf"^{place} must belong to .*uid {STRANGER}"):
        check_directory(folder)


def test_a_sticky_ancestor_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may replace what is in it."""
    folder.parent.chmod(0o1777)
    give_away(folder.parent, monkeypatch)
    with pytest.raises(UntrustedError, match="must belong to"):
        check_directory(folder)


def test_roots_files_are_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(folder, monkeypatch, uid=0)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    check(folder)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_files_that_others_can_write(folder: Path, mode: int) -> None:
    file = folder / "file"
    file.write_text("")
    file.chmod(mode)
    with pytest.raises(UntrustedError, match=f"{file} must not be writable"):
        check(file)
    protect(file)
    check(file)
    assert file.stat().st_mode & 0o777 == mode & 0o755


def test_files_of_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "file"
    file.write_text("")
    give_away(file, monkeypatch)
    with pytest.raises(UntrustedError, match=f"{file} must belong to"):
        check(file)


def test_links_are_not_followed(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "link").symlink_to(folder / "file")
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")  # to open it would wait for ever
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(UntrustedError, match=f"{name} must be a file or a folder"):
            check(folder / name)
    with pytest.raises(FileNotFoundError):
        check(folder / "nothing")


def test_what_is_no_directory(folder: Path) -> None:
    (folder / "file").write_text("")
    for place in (folder / "file", folder / "file/below"):
        with pytest.raises(NotADirectoryError):
            check_directory(place)
    with pytest.raises(FileNotFoundError):
        check_directory(folder / "nothing")


class TestPrivateGroups:
    """Users with umask 002 have a group each."""

    USER, GROUP = 4321, 4322

    @pytest.fixture(autouse=True)
    def shared(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The user's folder, which his group can write."""
        pretend(folder, monkeypatch, uid=self.USER, gid=self.GROUP, mode=0o775)
        monkeypatch.setattr(os, "geteuid", lambda: self.USER)
        monkeypatch.setattr(os, "listxattr", lambda path: [])
        trust._is_private.cache_clear()

    def name(
        self, monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], primary: int
    ) -> None:
        user = pwd.struct_passwd(("ann", "x", self.USER, primary, "", "/home/ann", "/bin/sh"))
        found = grp.struct_group((group, "x", self.GROUP, members))
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: {self.USER: user}[uid])
        monkeypatch.setattr(pwd, "getpwall", lambda: [user])
        monkeypatch.setattr(grp, "getgrgid", lambda gid: {self.GROUP: found}[gid])

    @pytest.mark.parametrize("members", [[], ["ann"]])
    def test_a_private_group_may_write(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, members: list[str]
    ) -> None:
        self.name(monkeypatch, "ann", members, self.GROUP)
        check(folder)

    @pytest.mark.parametrize(
        ("group", "members", "primary"),
        [("users", [], GROUP), ("ann", ["ann", "bob"], GROUP), ("ann", [], GROUP + 1)],
    )
    def test_another_group_may_not(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        group: str,
        members: list[str],
        primary: int,
    ) -> None:
        self.name(monkeypatch, group, members, primary)
        with pytest.raises(UntrustedError, match="must not be writable"):
            check(folder)

    def test_the_primary_group_of_two(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The group does not list them as members."""
        self.name(monkeypatch, "ann", [], self.GROUP)
        bob = pwd.struct_passwd(("bob", "x", self.USER + 1, self.GROUP, "", "/home/bob", "/bin/sh"))
        users = [pwd.getpwuid(self.USER), bob]
        monkeypatch.setattr(pwd, "getpwall", lambda: users)
        with pytest.raises(UntrustedError, match="must not be writable"):
            check(folder)

    def test_a_user_without_a_name(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container that was started with a number."""
        self.name(monkeypatch, "ann", [], self.GROUP)
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
        with pytest.raises(UntrustedError, match="must not be writable"):
            check(folder)

    def test_others_may_not(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name(monkeypatch, "ann", [], self.GROUP)
        pretend(folder, monkeypatch, uid=self.USER, gid=self.GROUP, mode=0o777)
        with pytest.raises(UntrustedError, match="must not be writable"):
            check(folder)

    def test_an_access_control_list(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rights of whoever it names are shown as the group's."""
        self.name(monkeypatch, "ann", [], self.GROUP)
        monkeypatch.setattr(os, "listxattr", lambda path: ["system.posix_acl_access"])
        with pytest.raises(UntrustedError, match="must not be writable"):
            check(folder)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_our_directories_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make_directory(tmp_path / "a/b/c")
    finally:
        os.umask(before)
    for place in ("a", "a/b", "a/b/c"):
        assert (tmp_path / place).stat().st_mode & 0o777 == 0o700
    make_directory(tmp_path / "a/b")  # is there


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "file/far/below"):
        with pytest.raises(OSError, match="file"):
            make_directory(tmp_path / place)
