"""A csv file with columns as people have them, and a project that learned from it."""

from datetime import date, timedelta
from importlib import import_module
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from evergreen.flows import settings
from evergreen.flows.operations import init_project
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.release.mlflow_store import Version
from tests.projects import verdict

ROWS = 120
HEAD = "age;visits;paid;member;town;joined;price;zip;left"


def write_csv(path: Path) -> None:
    """Whole numbers, some of them missing; numbers and dates in a German format; flags, categories, and codes with a zero."""
    draw = np.random.default_rng(3)
    lines = [HEAD]
    for row in range(ROWS):
        age, town = int(draw.integers(18, 80)), ("Bonn", "Kiel", "Ulm")[int(draw.integers(3))]
        visits = "" if row % 9 == 0 else str(int(draw.poisson(4)))
        paid = "" if row % 7 == 0 else f"{draw.normal(50, 10):.2f}".replace(".", ",")
        member = ("true", "false")[int(draw.integers(2))]
        joined = date(2023, 1, 1) + timedelta(days=int(draw.integers(0, 600)))
        price = f"{draw.integers(1, 9)}.{draw.integers(100, 999)},50"
        code = f"0{draw.integers(1, 4)}"
        left = "yes" if age + 20 * (town == "Ulm") + draw.normal(0, 5) > 55 else "no"
        lines.append(f"{age};{visits};{paid};{member};{town};{joined:%d.%m.%Y};{price};{code};{left}")
    path.write_text("\n".join(lines) + "\n")


def lay_trained(root: Path, model: str = "logistic") -> tuple[Layout, Version]:
    """A project in `root` that learned from the file `people.csv` there, with a champion."""
    root.mkdir(parents=True, exist_ok=True)
    write_csv(root / "people.csv")
    init_project.run("left", "people.csv", None, InitOptions(target="left"), root, root, date(2026, 1, 1))
    yaml, layout = YAML(), Layout(root)
    params = yaml.load(layout.params.read_text())
    params["left"]["tune"] = {"models": [model], "n_trials": 1, "repeats": 1, "folds": 3, "workers": 1}
    params["left"]["evaluate"] = {"resamples": 50, "diagnose_seconds": 0, "explain_rows": 50}
    yaml.dump(params, layout.params)
    known = loading.load(layout.params)
    for step, own in STEPS.items():
        if step not in ("diagnose", "explain"):
            import_module(f"evergreen.tasks.{step}").run(known, "left" if own else None, layout)
    registry = settings.registry(layout)
    version = registry.register(known, "left", layout, verdict(), {"git.commit": "c0ffee"})
    settings.deployments(layout).deploy(registry, "left", version.version, verdict(), "ann")
    return layout, version
