"""The images build and answer: the whole one, the small one for serving, and a bundle's. `make check-images` runs this file.

buildah builds them without a daemon, by chroot, over a base image made by debootstrap. They run as their user in a root that is
mounted read-only.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import ROOT
from tests.projects import Deployed
from tests.serving.server import evergreen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CHECK_IMAGES"), reason="takes ten minutes: run make check-images"),
    pytest.mark.skipif(not (shutil.which("buildah") and shutil.which("debootstrap")), reason="needs buildah and debootstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap, mount and chroot need root"),
]
DEBIAN = os.environ.get("CHECK_IMAGES_DEBIAN", "bookworm")
"""The release of the base image: its python3 must be one that Evergreen supports."""
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
USER = 10001
SERVING_MEGABYTES = 500
HOUSE = {"size": 100.0, "colour": "red", "built": "1990-05-01"}


@dataclass(frozen=True)
class Buildah:
    """buildah with a store of its own."""

    store: Path

    def __call__(self, *words: str, timeout: float = 1800) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def command(self, *words: str) -> list[str]:
        places = ["--root", str(self.store / "root"), "--runroot", str(self.store / "run"), "--storage-driver", "vfs"]
        return ["buildah", *places, *words]

    def build(self, context: Path, file: Path, base: str, name: str) -> str:
        options = ["--isolation", "chroot", "--network", "host", "--build-arg", f"BASE={base}", "-f", str(file), "-t", name]
        self("build", *options, str(context))
        return name


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    store = tmp_path_factory.mktemp("images")
    yield Buildah(store)
    subprocess.run(Buildah(store).command("rm", "--all"), capture_output=True, check=False)
    shutil.rmtree(store, ignore_errors=True)


@pytest.fixture(scope="module")
def base(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minimal Debian with Python, as python:3.11-slim has it."""
    folder = tmp_path_factory.mktemp("base")
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(folder)],
        check=True, capture_output=True, timeout=900,
    )  # fmt: skip
    for part in ("share/doc", "share/man", "share/locale", "share/info"):
        shutil.rmtree(folder / "usr" / part, ignore_errors=True)
    for part in ("cache/apt", "lib/apt/lists"):
        shutil.rmtree(folder / "var" / part, ignore_errors=True)
        (folder / "var" / part / "partial").mkdir(parents=True)
    shutil.copy(CERTIFICATES, folder / CERTIFICATES.relative_to("/"))  # those that this machine trusts
    made = buildah("from", "scratch")
    buildah("copy", "-q", made, str(folder), "/")
    buildah("config", "--env", f"SSL_CERT_FILE={CERTIFICATES}", made)
    buildah("commit", "-q", made, "localhost/base")
    buildah("rm", made)
    shutil.rmtree(folder)
    return "localhost/base"


@dataclass(frozen=True)
class Image:
    """An image, started as its entry point says."""

    buildah: Buildah
    name: str

    @property
    def config(self) -> Mapping[str, Any]:
        return json.loads(self.buildah("inspect", "--type", "image", self.name))["OCIv1"]["config"]

    def megabytes(self) -> float:
        """Of all its files, as they lie on the disk."""
        made = self.buildah("from", self.name)
        try:
            place = Path(self.buildah("mount", made))
            return sum(path.lstat().st_size for path in place.rglob("*") if not path.is_dir()) / 1e6
        finally:
            self.buildah("rm", made)

    @contextmanager
    def container(self, volume: Path, place: str) -> Iterator["Container"]:
        """`volume`: a folder of this machine that the container finds at `place`, which is a folder of the image."""
        made = self.buildah("from", self.name)
        try:
            yield Container(self.buildah("mount", made), self.config, str(volume), place)
        finally:
            self.buildah("rm", made)


START = """
root=$1 volume=$2 place=$3 user=$4 folder=$5; shift 5
mount --bind "$root" "$root" && mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev" && mount -t proc proc "$root/proc" && mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$volume" "$root$place"
exec chroot --userspec="$user:$user" "$root" env -i -C "$folder" "$@"
"""
"""Starts a program as the image's user, in its root mounted read-only, with the volume and an empty /tmp."""


@dataclass(frozen=True)
class Container:
    """Programs in an image's root, which is read-only; mounts are seen by each program alone."""

    root: str
    config: Mapping[str, Any]
    volume: str
    place: str

    @property
    def entrypoint(self) -> Sequence[str]:
        return self.config["Entrypoint"]

    def command(self, *words: str) -> list[str]:
        where = [self.root, self.volume, self.place, self.config["User"], self.config["WorkingDir"]]
        return ["unshare", "--mount", "sh", "-ec", START, "start", *where, *self.config["Env"], *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    @contextmanager
    def serving(self, port: int, *words: str) -> Iterator[httpx.Client]:
        command = self.command(*self.entrypoint, *words, "--port", str(port))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                await_ready(client, process)
                yield client
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def await_ready(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    process.kill()
    raise AssertionError(process.communicate()[0])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def give(folder: Path) -> None:
    """The folder and all that is in it to the user of the images."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


def assert_unprivileged(container: Container) -> None:
    assert container.run("id", "-u") == str(USER)
    container.run("touch", f"{container.place}/written", "/tmp/written")
    with pytest.raises(AssertionError, match="Read-only file system"):
        container.run("touch", "/var/tmp/written")


def assert_answers(container: Container) -> None:
    """The server of a project: it needs a key at a public address, predicts and takes a label."""
    assert_unprivileged(container)
    shown = container.run(*container.entrypoint, "keys", "add", "ada", "--scope", "predict", "--scope", "labels", "--json")
    with container.serving(free_port(), "serve", "--host", "0.0.0.0") as client:
        assert client.post("/v1/predict/dear", json=HOUSE).status_code == 401
        client.headers["x-api-key"] = json.loads(shown)["secret"]
        found = client.post("/v1/predict/dear", json=HOUSE)
        assert found.status_code == 200, found.text
        assert found.json()["prediction"] in ("yes", "no")
        explained = client.post("/v1/predict/dear?explain=true", json=HOUSE)
        assert explained.json()["explanation"]
        label = client.post("/v1/labels/dear", json={"id": found.json()["id"], "value": "yes"})
        assert label.json()["matched"] + label.json()["pending"] == 1


@pytest.fixture
def project(deployed: Deployed, tmp_path: Path) -> Path:
    """A project with one compiled problem, which belongs to the user of the images."""
    folder = deployed(tmp_path / "a shop", ("dear",), "serve: {default_problem: dear, parity_share: 1.0}\n").root
    give(folder)
    return folder


def test_the_serving_image_is_small_and_answers(buildah: Buildah, base: str, project: Path):
    image = Image(buildah, buildah.build(ROOT, ROOT / "deploy" / "serving" / "Dockerfile", base, "localhost/evergreen-serving"))
    assert image.config["User"] == str(USER)
    assert image.megabytes() <= SERVING_MEGABYTES
    with image.container(project, "/project") as container:
        with pytest.raises(AssertionError, match="No module named 'sklearn'"):
            container.run("python", "-c", "import sklearn")
        assert_answers(container)


def test_the_image_with_every_command_answers(buildah: Buildah, base: str, project: Path):
    image = Image(buildah, buildah.build(ROOT, ROOT / "Dockerfile", base, "localhost/evergreen"))
    assert image.config["User"] == str(USER)
    with image.container(project, "/project") as container:
        container.run("python", "-c", "import sklearn, lightgbm, prefect, mlflow")
        assert_answers(container)


def test_the_image_of_a_bundle_from_a_project_without_a_lock_answers(
    buildah: Buildah, base: str, deployed: Deployed, tmp_path: Path
):
    layout = deployed(tmp_path / "a shop", ("dear",))
    layout.lock.unlink(missing_ok=True)
    done = evergreen(layout, "export", "dear", "--out", str(tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    image = Image(buildah, buildah.build(tmp_path / "bundle", tmp_path / "bundle" / "Dockerfile", base, "localhost/bundle"))
    (state := tmp_path / "state").mkdir()
    give(state)
    with image.container(state, "/state") as container:
        assert_unprivileged(container)
        key = container.run(*container.entrypoint, "--add-key", "ada").split()[-1]
        assert (state / "bundle.db").exists()
        with container.serving(free_port()) as client:
            assert client.post("/v1/predict/dear", json=HOUSE).status_code == 401
            request = json.loads((tmp_path / "bundle" / "request.json").read_text())
            found = client.post("/v1/predict/dear", json=request, headers={"x-api-key": key})
            assert len(found.json()["predictions"]) == len(request["rows"])
