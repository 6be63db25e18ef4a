"""AutoGluon's tabular predictor, with a time limit and, where the job says so, a preset."""

import tempfile
import time

from autogluon.tabular import TabularPredictor
from job import median_ms, read, tell

METRICS = {"roc_auc": "roc_auc", "log_loss": "log_loss", "rmse": "root_mean_squared_error"}

if __name__ == "__main__":  # its workers import this file again
    job, train, test = read()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model = TabularPredictor(job["target"], eval_metric=METRICS[job["metric"]], path=folder, verbosity=1)
        model.fit(train, time_limit=job["seconds"], presets=job.get("preset"), num_cpus=2)
        seconds = time.perf_counter() - began
        answer = model.predict if job["metric"] == "rmse" else model.predict_proba
        found = answer(test)
        answers = found.to_frame("prediction") if job["metric"] == "rmse" else found.rename(columns=str)
        model.persist()  # in memory, as one who serves would have it
        rows = [test.iloc[[place]] for place in range(len(test))]
        tell(job, answers, seconds, median_ms(answer, rows), best=str(model.model_best))
