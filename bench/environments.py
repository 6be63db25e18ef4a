"""Environments of other systems under .venv-bench, made when they are first needed."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[1] / ".venv-bench"
log = logging.getLogger("bench")


def python(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment, which is made where it is missing or asks for something else by now."""
    folder, wanted = ENVIRONMENTS / name, "\n".join(requirements)
    found, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != wanted:
        log.info("making the environment %s; this may take some minutes", folder)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(found)]
        subprocess.run([*install, *requirements], check=True)
        ready.write_text(wanted)
    return found
