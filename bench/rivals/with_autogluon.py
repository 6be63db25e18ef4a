"""AutoGluon's tabular predictor, with a time limit and, where the job says so, a preset."""

import tempfile
import time
from pathlib import Path

from autogluon.tabular import TabularPredictor
from job import cpu_seconds, median_ms, read, tell

METRICS = {"roc_auc": "roc_auc", "log_loss": "log_loss", "rmse": "root_mean_squared_error"}

if __name__ == "__main__":  # its workers import this file again
    job, train, test = read()
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), cpu_seconds()
        kind = "regression" if job["metric"] == "rmse" else None
        model = TabularPredictor(job["target"], kind, METRICS[job["metric"]], path=folder, verbosity=1)
        model.fit(train, time_limit=job["seconds"], presets=job.get("preset"), num_cpus=2)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        answer = model.predict if job["metric"] == "rmse" else model.predict_proba
        found = answer(test)
        answers = found.to_frame("prediction") if job["metric"] == "rmse" else found.rename(columns=str)
        model.persist()  # in memory, as one who serves would have it
        rows = [test.iloc[[place]] for place in range(len(test))]
        with tempfile.TemporaryDirectory() as lean:
            model.clone_for_deployment(str(Path(lean) / "model"))
            megabytes = sum(each.stat().st_size for each in Path(lean).rglob("*") if each.is_file()) / 1e6
        more = {"seconds": seconds, "row_ms": median_ms(answer, rows), "cpu": cpu, "megabytes": megabytes}
        tell(job, answers, **more, best=str(model.model_best))
