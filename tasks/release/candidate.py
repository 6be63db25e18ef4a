"""A trained model with its evidence, as the steps left it: what the registry records with a version."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import MODEL, Layout, read_json, sha256, write_json

if TYPE_CHECKING:
    import pandas as pd

    from evergreen.tasks.release.promotion_gate import Verdict

OPERATIONS = ("gate", "rollout", "schedule", "retrain", "monitor")
"""Keys of a problem's section that change no model; the tag `params` has them."""
LONGEST_KEY = 250
"""Characters of a metric's or a param's name in MLflow."""


@dataclass(frozen=True)
class Candidate:
    """The trained model of `problem`, the gate's verdict on it and its lineage (see release.lineage.lineage)."""

    params: Params
    problem: str
    layout: Layout
    verdict: "Verdict"
    lineage: Mapping[str, str]

    def require_steps(self) -> None:
        """Raises StepError, naming the missing file, where a step did not run."""
        model, report = self.layout.model(self.problem), self.layout.report(self.problem)
        files = (self._trials, self.file, model / "model.json", report / "metrics.json", report / "evaluation/evaluation.json")
        if missing := next((path for path in files if not path.exists()), None):
            raise StepError(f"{missing}: is missing. Tune, train and evaluate come before: evergreen train {self.problem}")

    @property
    def file(self) -> Path:
        """The model."""
        return self.layout.model(self.problem) / MODEL

    @property
    def _trials(self) -> Path:
        return self.layout.tuning(self.problem) / "trials.parquet"

    @cached_property
    def card(self) -> dict[str, Any]:
        """model.json."""
        return read_json(self.layout.model(self.problem) / "model.json")

    @cached_property
    def digest(self) -> str:
        """Identifies the candidate by its content: the model's file and the features it learned from."""
        features = self.lineage.get(f"dvc.data/features/{self.problem}")
        return hashlib.sha256(f"{sha256(self.file)} {features}".encode()).hexdigest()

    def name(self) -> str:
        """Of its run."""
        return f"{self.card['config']['model']} {self.card['cutoff']}"

    def tags(self) -> dict[str, str]:
        evaluation = read_json(self.layout.report(self.problem) / "evaluation" / "evaluation.json")
        own = {"model": self.card["config"]["model"], "kind": self.card["kind"], "metric": evaluation["primary"]}
        judged = {f"verdict.{key}": to_text(value) for key, value in self.verdict.model_dump(exclude_none=True).items()}
        commit = {"mlflow.source.git.commit": self.lineage["git.commit"]} if self.lineage.get("git.commit") else {}
        found = {**self.lineage, **commit, **own, **judged, "candidate": self.digest}
        return {key: str(value) for key, value in found.items() if value != ""}

    @cached_property
    def metric(self) -> str:
        """The primary metric, in the characters that MLflow accepts."""
        return _key(read_json(self.layout.report(self.problem) / "evaluation" / "evaluation.json")["primary"])

    def metrics(self) -> dict[str, float]:
        """metrics.json flat: metric -> score, metric_low -> low and so on; the validated score of each model of the ladder:
        ladder.MODEL, with _low and _high; and the costs of each step: cpu_seconds.STEP and peak_mb.STEP. Without what is not a
        finite number."""
        flat = {
            _key(name if part == "score" else f"{name}_{part}"): value
            for name, parts in read_json(self.layout.report(self.problem) / "metrics.json").items()
            for part, value in parts.items()
        }
        best = self.layout.tuning(self.problem) / "best.json"
        for rung in (read_json(best).get("ladder") or []) if best.exists() else []:
            model = _key(f"ladder.{rung['model']}")
            flat |= {model: rung["score"], f"{model}_low": rung["low"], f"{model}_high": rung["high"]}
        for path in self._costs():
            cost = read_json(path)
            flat |= {f"{name}.{path.stem.partition('@')[0]}": cost[name] for name in ("cpu_seconds", "peak_mb")}
        return {name: float(value) for name, value in flat.items() if value is not None and math.isfinite(value)}

    def config(self) -> dict[str, str]:
        """The chosen configuration under its own names, and under dotted ones the keys of the problem's section that
        params.yaml sets and that a model can depend on."""
        section = self.params.section(self.problem).model_dump(mode="json", exclude_unset=True, exclude=set(OPERATIONS))
        found = {**dict(_flat("", section)), **self.card["config"], "seed": self.params.project.seed}
        return {_key(name): to_text(value) for name, value in found.items()}

    def began(self) -> datetime | None:
        """When the first of the problem's own steps that led to the model began; None where that was not recorded."""
        started = [read_json(path).get("started") for path in self._costs() if path.stem.partition("@")[2]]
        return min((datetime.fromisoformat(each) for each in started if each), default=None)

    def datasets(self) -> list[tuple[str, str, str]]:
        """Name, digest and path of the tables and of the features that the model learned from, as DVC recorded them."""
        tables = {f"dvc.data/tables/{name}.parquet": name for name in self.params.section(self.problem).features.tables}
        wanted = {**tables, f"dvc.data/features/{self.problem}": f"{self.problem} features"}
        found = [(name, self.lineage.get(key, ""), key.removeprefix("dvc.")) for key, name in wanted.items()]
        whole = self.lineage.get("dvc.data/tables", "")
        return [(name, digest or whole, path) for name, digest, path in found if digest or whole]

    def note(self) -> str:
        """The model card as markdown; the question and the verdict where there is no card."""
        card = self.layout.report(self.problem) / "explanation" / "card.md"
        if card.exists():
            return card.read_text()
        return f"{self.params.section(self.problem).question}\n\n{self.verdict.reason}\n"

    def _costs(self) -> list[Path]:
        costs = sorted((self.layout.var / "costs").glob("*.json"))
        return [path for path in costs if path.stem.partition("@")[2] in ("", self.problem)]

    def write_files(self, folder: Path) -> None:
        """Copy evaluation, metrics, plots, diagnosis, explanation and costs into `folder`; write lineage and verdict there."""
        report = self.layout.report(self.problem)
        kept = [report / "evaluation" / "evaluation.json", report / "metrics.json"]
        kept += [path for part in ("plots", "diagnosis", "explanation") for path in sorted((report / part).glob("*"))]
        places = [(path, path.relative_to(report)) for path in kept]
        places += [(path, Path("costs", path.name)) for path in self._costs()]
        for path, place in places:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(path.read_bytes())
        write_json(folder / "lineage.json", dict(self.lineage))
        (folder / "verdict.json").write_text(self.verdict.model_dump_json(indent=2) + "\n")

    def trials(self) -> Iterator[dict[str, Any]]:
        """The trials of the search, a row each."""
        return pl.read_parquet(self._trials).iter_rows(named=True)

    def example(self) -> "pd.DataFrame":
        """The example of model.json as the model takes it. The type of an empty column is that of its feature."""
        import pandas as pd  # here: serving, which imports this module, works without it

        frame = pd.DataFrame(self.card["example"], columns=self.card["features"])
        rows = self.layout.features(self.problem) / "rows.parquet"
        known = pl.read_parquet_schema(rows) if rows.exists() else {}
        for name in self.card["features"]:
            if frame[name].isna().to_numpy().all():
                frame[name] = frame[name].astype("str" if known.get(name) == pl.String else "float64")
        return frame


def to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield prefix, value


def _key(name: str) -> str:
    """`name` in the characters that MLflow accepts, and no longer than it accepts: ndcg@10 becomes ndcg_10."""
    key = re.sub(r"[^\w./: -]", "_", name)
    if len(key) <= LONGEST_KEY:
        return key
    return f"{key[: LONGEST_KEY - 13]} {hashlib.sha256(name.encode()).hexdigest()[:12]}"
