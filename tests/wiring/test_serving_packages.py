"""A server of compiled models works with the packages of requirements-serving.lock alone, as in deploy/serving/Dockerfile."""

import subprocess
import sys

import pytest

from tests import ROOT
from tests.projects import Deployed

SERVE = """
import importlib.abc, re, sys
from importlib.metadata import packages_distributions
from pathlib import Path

lock = Path(sys.argv[1]).read_text()
kept = {re.sub("[-_.]+", "-", name).lower() for name in re.findall("^([A-Za-z0-9_.-]+)==", lock, re.M)} | {"evergreen"}
FULL = {"mlflow": "mlflow-skinny"}  # the whole mlflow puts its files over those of the skinny one
left_out = {
    module
    for module, packages in packages_distributions().items()
    if not kept & {re.sub("[-_.]+", "-", FULL.get(name, name)).lower() for name in packages}
}

class LeftOut(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in left_out:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

assert "sklearn" in left_out and "pandas" in left_out and "numpy" not in left_out
sys.meta_path.insert(0, LeftOut())

from evergreen.flows.operations.http_server import application
from evergreen.monitoring.ledger import spool
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

layout = Layout(Path(sys.argv[2]))
app, watcher = application(layout, load(layout.params), "127.0.0.1")
model = watcher.serving_set("dear").champion
print(model.predict([model.parse({"size": 100.0, "colour": "red", "built": "1990-05-01"})])[0]["prediction"])
watcher.stop()
"""


@pytest.mark.slow
def test_a_compiled_model_is_served_without_the_training_stack(deployed: Deployed, tmp_path):
    layout = deployed(tmp_path / "shop", ("dear",), "serve: {default_problem: dear}\n")
    command = [sys.executable, "-P", "-c", SERVE, str(ROOT / "requirements-serving.lock"), str(layout.root)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] in ("yes", "no")
