"""The wheel: it installs one package and one command, complete with its data files."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

FOLDERS = ("tasks", "monitoring", "serving", "flows")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "EVERGREEN"))}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy, since a build writes into its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    uv = Path(sys.executable).with_name("uv")
    options = ("--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder)
    done = run(uv, "build", *options, source, cwd=folder)
    if done.returncode:
        reason = f"the wheel cannot be built offline: {done.stderr.strip()[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A fresh environment with the wheel, beside the packages of this one but not its editable installation."""
    folder = wheel.parent / "environment"
    assert run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent).returncode == 0
    packages(folder).joinpath("locked.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not read
    before = {path.name for path in (folder / "bin").iterdir()}
    uv = Path(sys.executable).with_name("uv")
    done = run(uv, "pip", "install", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel, cwd=wheel.parent)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (folder / "bin").iterdir()} - before == {"evergreen"}
    return folder


def packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def test_it_installs_one_package_and_one_command(environment: Path) -> None:
    installed = {path.name for path in packages(environment).iterdir()} - {"locked.pth", "__pycache__"}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"evergreen"}
    assert len(installed) == 2


def test_it_holds_every_module_and_data_file(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"evergreen/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in files if name.startswith("evergreen/") and name.count("/") > 1} == expected


def test_its_command_and_its_steps_run_from_the_installed_package(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "bin" / "python", "-P", "-c", "import evergreen; print(evergreen.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(packages(environment)), where.stderr
    listed = run(environment / "bin" / "evergreen", "--help", cwd=tmp_path)
    assert "serve" in listed.stdout, listed.stderr
    schema = run(environment / "bin" / "evergreen", "params", "--schema", cwd=tmp_path)
    assert schema.stdout.startswith("{"), schema.stderr
    step = run(environment / "bin" / "python", "-P", "-m", "evergreen", "validate", cwd=tmp_path)
    assert "no params.yaml here" in step.stderr
