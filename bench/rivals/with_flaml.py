"""FLAML, with a time budget and nothing else set."""

import time

import pandas as pd
from flaml import AutoML
from job import median_ms, read, tell

TASKS = {"roc_auc": "classification", "log_loss": "classification", "rmse": "regression"}

job, train, test = read()
began = time.perf_counter()
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
seconds = time.perf_counter() - began
if job["metric"] == "rmse":
    answers, answer = pd.DataFrame({"prediction": model.predict(test)}), model.predict
else:
    classes = [str(each) for each in model.classes_]
    answers, answer = pd.DataFrame(model.predict_proba(test), columns=classes), model.predict_proba
rows = [test.iloc[[place]] for place in range(len(test))]
tell(job, answers, seconds, median_ms(answer, rows), best=str(model.best_estimator))
