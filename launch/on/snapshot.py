"""What travels to a worker: the code of this checkout and the versions of this environment."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RECORD = "snapshot.json"  # `run.json` tells commit and diff from it; see research/train/provenance


class SnapshotError(ValueError):
    """Why the code or the environment here cannot travel."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Code and environment, each named by the hash of its content.

    Attributes:
      code: a gzipped tar of the checkout's files, the same bytes for the same files.
      files: their paths in the checkout.
      requirements: pinned versions, a line each.
      python: the Python version that they were pinned for, such as 3.11.
      commit: what was checked out.
      changed: files that differ from the commit.
    """

    code: bytes
    files: tuple[str, ...]
    requirements: str
    python: str
    commit: str
    changed: tuple[str, ...]

    @property
    def code_name(self) -> str:
        """The archive's file name."""
        return f"code-{hashlib.sha256(self.code).hexdigest()}.tar.gz"

    @property
    def requirements_name(self) -> str:
        """The requirements' file name."""
        return f"requirements-{hashlib.sha256(self.requirements.encode()).hexdigest()}.txt"


def take(
    checkout: Path,
    *,
    also: Iterable[Path] = (),
    packages: Sequence[str] = (),
    jax_extra: str = "",
    fetched: bool = True,
) -> Snapshot:
    """Pack the files that git knows, as they are now, and pin what they need, as it is installed.

    Args:
      checkout: the top folder of the checkout.
      also: further files of it, such as an experiment that git does not know yet.
      packages: further packages to pin with what they need.
      jax_extra: an extra of jax that workers need and this machine may not, such as tpu.
      fetched: workers get the packages from an index; else they have them, and only look.

    Raises:
      SnapshotError: something cannot travel; the message says what, and what to do.
    """
    files = tracked(checkout, also)
    commit, changed = git(checkout, "rev-parse", "HEAD").strip(), changes(checkout, files)
    record = {"commit": commit, "changed": changed, "diff": git(checkout, "diff", "HEAD")}
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    pins = pinned([*project["dependencies"], *packages], fetched)
    return Snapshot(
        code=archive(checkout, files, {RECORD: json.dumps(record, indent=1) + "\n"}),
        files=tuple(files),
        requirements=lines_of(pins, jax_extra),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        commit=commit,
        changed=tuple(changed),
    )


def checkout_of(file: Path) -> Path:
    """Give the top folder of the checkout of maktab that holds a file.

    Raises:
      SnapshotError: git knows none there, or it is another project's.
    """
    top = Path(git(file.resolve().parent, "rev-parse", "--show-toplevel").strip())
    if not (top / "launch" / "on" / "worker.py").is_file():
        raise SnapshotError(
            f"{file} is in the checkout {top}, which is not maktab's; what is launched travels as "
            "one checkout: put the experiment into maktab's, such as experiments/"
        )
    return top


def git(folder: Path, *words: str) -> str:
    """Give what a git command prints.

    Raises:
      SnapshotError: git is missing, or refuses.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise SnapshotError("git is not installed; code travels as the files it knows") from error
    if done.returncode:
        raise SnapshotError(
            f"git {' '.join(words)} in {folder}: {done.stderr.strip()}; code travels as the files "
            "of a git checkout with at least one commit"
        )
    return done.stdout


def tracked(checkout: Path, also: Iterable[Path] = ()) -> list[str]:
    """List the files that git knows and that are there, and some others.

    Raises:
      SnapshotError: one of the others lies outside, or a submodule or a link out of the checkout.
    """
    known = git(checkout, "ls-files", "-z").split("\0")[:-1]
    names = {*known, *(_inside(checkout, file) for file in also)}
    files = sorted(name for name in names if os.path.lexists(checkout / name))
    for name in files:
        file = checkout / name
        if file.is_symlink() and not file.resolve().is_relative_to(checkout.resolve()):
            raise SnapshotError(f"{name} links to {os.readlink(file)}, outside of the checkout")
        if file.is_dir() and not file.is_symlink():
            raise SnapshotError(f"{name} is a submodule, which does not travel; copy its files in")
    return files


def _inside(checkout: Path, file: Path) -> str:
    if not file.resolve().is_relative_to(checkout.resolve()):
        raise SnapshotError(f"{file} is outside of the checkout {checkout}; put it there")
    return file.resolve().relative_to(checkout.resolve()).as_posix()


def changes(checkout: Path, files: Sequence[str]) -> list[str]:
    """List the files that differ from the commit, those that it lacks included."""
    differing = git(checkout, "diff", "HEAD", "--name-only", "-z").split("\0")[:-1]
    known = set(git(checkout, "ls-files", "-z").split("\0"))
    return sorted({*differing, *(name for name in files if name not in known)})


def archive(checkout: Path, files: Sequence[str], written: Mapping[str, str]) -> bytes:
    """Pack files, and texts by name, so that equal content gives equal bytes.

    Times, owners and the order of the folder leave no trace; of modes, only who may execute does.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in files:
            file, entry = checkout / name, tarfile.TarInfo(name)
            if file.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(file)
                tar.addfile(entry)
                continue
            content = file.read_bytes()
            entry.size, entry.mode = len(content), 0o755 if os.access(file, os.X_OK) else 0o644
            tar.addfile(entry, io.BytesIO(content))
        for name, text in written.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), compresslevel=6, mtime=0)


def pinned(required: Iterable[str], fetched: bool = True) -> dict[str, str]:
    """Give the installed version of every requirement, and of all that these require in turn.

    Raises:
      SnapshotError: one is not installed, or was installed from where no worker can get it.
    """
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(text, "", "this project") for text in required]
    while queue:
        text, extra, owner = queue.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        pins[name] = version_of(name, owner, fetched)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                queue += [(t, extra, name) for t in importlib.metadata.requires(name) or ()]
    return pins


def version_of(name: str, owner: str, fetched: bool) -> str:
    """Give the installed version of a package, one that an index has if workers fetch it there.

    Raises:
      SnapshotError: it is not installed, is a local build, or comes from a folder or an address.
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise SnapshotError(
            f"{name}, which {owner} requires, is not installed here; a worker gets the versions "
            "that are here: pip install it first"
        ) from error
    if fetched and ("+" in found.version or found.read_text("direct_url.json")):
        raise SnapshotError(
            f"{name} {found.version} was not installed from a package index, so workers cannot "
            "get it; install a release, or give --python with an environment that workers have"
        )
    return found.version


def lines_of(pins: Mapping[str, str], jax_extra: str = "") -> str:
    """Write pins as a requirements file, a line each in order of name."""
    decorated = {
        name: f"{name}[{jax_extra}]" if name == "jax" and jax_extra else name for name in pins
    }
    return "".join(f"{decorated[name]}=={pins[name]}\n" for name in sorted(pins))


def left_behind(
    paths: Iterable[str], here: Path, checkout: Path, files: Sequence[str]
) -> list[str]:
    """List the paths that exist here, in the checkout, and do not travel with it."""
    travels = {*files, *(str(up) for name in files for up in PurePosixPath(name).parents)}
    left = []
    for path in paths:
        found = Path(os.path.abspath(here / path))
        inside = found.is_relative_to(checkout) and found.exists()
        if inside and found.relative_to(checkout).as_posix() not in travels:
            left.append(path)
    return left
