"""FLAML, with a time budget and nothing else set."""

import pickle
import time

import pandas as pd
from flaml import AutoML
from job import cpu_seconds, median_ms, read, tell

TASKS = {"roc_auc": "classification", "log_loss": "classification", "rmse": "regression"}

job, train, test = read()
began, cpu = time.perf_counter(), cpu_seconds()
model = AutoML()
model.fit(
    dataframe=train,
    label=job["target"],
    task=TASKS[job["metric"]],
    metric=job["metric"],
    time_budget=job["seconds"],
    n_jobs=2,
    seed=0,
    verbose=0,
)
seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
if job["metric"] == "rmse":
    answers, answer = pd.DataFrame({"prediction": model.predict(test)}), model.predict
else:
    classes = [str(each) for each in model.classes_]
    answers, answer = pd.DataFrame(model.predict_proba(test), columns=classes), model.predict_proba
rows = [test.iloc[[place]] for place in range(len(test))]
megabytes = len(pickle.dumps(model.model)) / 1e6
tell(
    job, answers, seconds=seconds, row_ms=median_ms(answer, rows), cpu=cpu, megabytes=megabytes, best=str(model.best_estimator)
)
