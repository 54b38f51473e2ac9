"""Builds gitmirror.pyz: shiv packs the locked wheels and our own, and this script normalises the result.

scripts/build_pyz.sh runs it with the interpreter of the environment that has shiv and hatchling. The same commit gives
the same bytes, whatever the directory, the umask, the version of Python or its zlib:

- Packages come from the wheels themselves and not from an installed copy, so that they lack what an installer adds
  (`direct_url.json`, its own RECORD, scripts with the path of an interpreter).
- The entries of the file are sorted, have one mode and the commit's time, and are stored without compression, because
  zlib and zlib-ng write different bytes; the first start is faster too.
- The commit's time is also passed to hatchling and shiv as $SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build"
RUNTIME_LOCK = ROOT / "requirements" / "runtime.txt"
# The inputs of the build: a change to any of these causes a new build.
INPUTS = ("appliance", "docs/gitmirror.1", "systemd", "scripts/pyz", "requirements", "pyproject.toml", "LICENSE")
PYTHON = (sys.executable, "-I", "-m")
COMPILED = (".so", ".pyd", ".dylib", ".dll")
SHEBANG = b"#!/usr/bin/env python3\n"
# The first time that a zip entry can have: 1980-01-01.
ZIP_EPOCH = 315532800
MAIN = b"import _launcher\n\n_launcher.main()\n"


@dataclass(frozen=True)
class Source:
    """The state of the checkout that is packed.

    `commit` is abbreviated, and empty outside of git. `epoch` is its time in Unix seconds. `digest` covers all inputs.
    """

    commit: str
    epoch: int
    digest: str


class PackError(Exception):
    """The file cannot be built from these inputs."""


def main() -> int:
    """Builds the file named on the command line, unless it exists and was made from the same inputs."""
    parser = argparse.ArgumentParser(prog="pack.py", description="Build gitmirror.pyz.")
    parser.add_argument("output", type=Path, help="the file to build")
    output = parser.parse_args().output.absolute()
    source = read_source()
    if made_from(output) == source.digest:
        print(f"{output} is up to date", file=sys.stderr)
        return 0
    os.umask(0o022)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=BUILD) as work:
            pack(source, Path(work), output)
    except PackError as error:
        print(f"build_pyz.sh: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"build_pyz.sh: {' '.join(map(str, error.cmd))} failed ({error.returncode})", file=sys.stderr)
        return 1
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


def pack(source: Source, work: Path, output: Path) -> None:
    """Builds in the empty directory `work`, and renames the result to `output`.

    Raises PackError and CalledProcessError, and leaves `output` unchanged then.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(source.epoch)}
    site_packages = work / "site-packages"
    own = work / "own"
    # hatchling reports what it built on stdout, which is reserved for the caller.
    subprocess.run(
        [*PYTHON, "hatchling", "build", "-t", "wheel", "-d", str(own)],
        cwd=ROOT, env=environment, stdout=sys.stderr, check=True,
    )  # fmt: skip
    for wheel in [*locked_wheels(), *own.glob("*.whl")]:
        unpack_wheel(wheel, site_packages)
    if source.commit:
        (site_packages / "appliance" / "COMMIT").write_text(f"{source.commit}\n", encoding="ascii")
    add_shiv_metadata(site_packages)
    raw = work / "raw.pyz"
    subprocess.run(
        [*PYTHON, "shiv", "--reproducible", "--uncompressed", "--site-packages", str(site_packages),
         "--entry-point", "appliance.__main__:main", "--output-file", str(raw)],
        env=environment, check=True,
    )  # fmt: skip
    # The temporary file is beside the output, which may be on another disk than the checkout.
    finished = output.with_name(f".{output.name}.new")
    write_finished(raw, finished, source)
    finished.chmod(0o755)
    finished.replace(output)


def read_source() -> Source:
    """Reads the state of the checkout. The commit gets `-dirty` appended when an input differs from it."""
    digest = hashlib.sha256()
    commit = git("rev-parse", "--verify", "--quiet", "HEAD")[:10]
    if commit and git("status", "--porcelain", "--untracked-files=normal", "--", *INPUTS):
        commit += "-dirty"
    committed_at = git("log", "-1", "--format=%ct") if commit else ""
    epoch = max(int(os.environ.get("SOURCE_DATE_EPOCH") or committed_at or 0), ZIP_EPOCH)
    digest.update(f"{commit} {epoch}\n".encode())
    for name in INPUTS:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{file.relative_to(ROOT).as_posix()} {content}\n".encode())
    return Source(commit, epoch, digest.hexdigest())


def git(*arguments: str) -> str:
    """Returns git's output for the checkout; empty when git fails, or when this is not a checkout."""
    # In a git hook, GIT_DIR and similar variables point at another repository. It does not matter who owns the files,
    # because this very program is one of them.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    clean["GIT_OPTIONAL_LOCKS"] = "0"
    if not (ROOT / ".git").exists():
        return ""
    try:
        answer = subprocess.run(
            ["git", "-c", "safe.directory=*", *arguments],
            cwd=ROOT,
            env=clean,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def made_from(output: Path) -> str:
    """Returns the digest of the inputs that `output` was made from; empty when it is missing or damaged."""
    try:
        with zipfile.ZipFile(output) as archive:
            return str(json.loads(archive.read("build.json"))["inputs"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""


def locked_wheels() -> list[Path]:
    """Returns the wheels of the runtime lock file, downloaded once for each version of it. Raises PackError."""
    lock = RUNTIME_LOCK.read_bytes()
    if b";" in lock:
        raise PackError(f"{RUNTIME_LOCK} has a line for some platforms only; the file must work on all of them")
    folder = BUILD / f"wheels-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=BUILD) as fetched:
            subprocess.run(
                [*PYTHON, "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
                 "--only-binary", ":all:", "--require-hashes", "--requirement", str(RUNTIME_LOCK),
                 "--dest", f"{fetched}/wheels"],
                stdout=sys.stderr, check=True,
            )  # fmt: skip
            Path(fetched, "wheels").rename(folder)
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        if not wheel.name.endswith("-none-any.whl"):
            raise PackError(f"{wheel.name} is for one platform; the file must run on all of them")
    return wheels


def unpack_wheel(wheel: Path, site_packages: Path) -> None:
    """Adds the files of one wheel. Raises PackError for a wheel that needs more than unpacking."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".data/" in name:
                raise PackError(f"{wheel.name} has files that do not belong into site-packages: {name}")
            if (site_packages / name).is_file():
                raise PackError(f"{wheel.name} would overwrite {name} of another package")
        archive.extractall(site_packages)


def add_shiv_metadata(site_packages: Path) -> None:
    """Adds shiv's name and licence, because shiv's start code is in the file."""
    shiv = metadata.distribution("shiv")
    for file in shiv.files or []:
        if file.parent.suffix == ".dist-info" and file.name in ("METADATA", "LICENSE"):
            target = site_packages / file
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


def write_finished(raw: Path, finished: Path, source: Source) -> None:
    """Writes the entries of shiv's file in normalised form, with our launcher. Raises PackError."""
    with zipfile.ZipFile(raw) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    build_id = json.loads(entries["environment.json"])["build_id"]
    launcher = (HERE / "_launcher.py").read_bytes()
    if launcher.count(b"@build-id@") != 1:
        raise PackError("_launcher.py must contain @build-id@ exactly once")
    entries["__main__.py"] = MAIN
    entries["_launcher.py"] = launcher.replace(b"@build-id@", build_id.encode())
    for name in ("_places.py", "_unpack.py"):
        entries[name] = (HERE / name).read_bytes()
    entries["build.json"] = json.dumps({"commit": source.commit, "inputs": source.digest}).encode()
    for name in entries:
        if name.endswith(COMPILED) or ".so." in name:
            raise PackError(f"{name} is compiled; the file must run on any processor")
        if name.endswith(".pth"):
            raise PackError(f"{name} is for Python's site module, which the launcher does not run")
    with open(finished, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name, time.gmtime(source.epoch)[:6])
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, entries[name])


if __name__ == "__main__":
    sys.exit(main())
