"""The sections that operate a model: `serve`, `rollout`, `monitor`, `retrain` and `schedule`."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from evergreen.tasks.config.base import Days, Name, Section

TrafficShare = Annotated[float, Field(gt=0, lt=1)]
"""Between 0 and 1, exclusive."""


class Serve(Section):
    """HTTP service of all deployed problems."""

    default_problem: Name | None = None
    """Problem of paths without a problem name, such as POST /invocations. null: the only problem, if there is one."""
    ledger: bool = True
    """Log each prediction to the ledger, asynchronously."""
    durable: bool = False
    """Respond only after the prediction is on disk. A crash loses no prediction, but responses take longer."""
    batch_rows: Annotated[int, Field(ge=1)] = 64
    """Largest micro-batch: rows of concurrent requests that the model predicts together."""
    batch_wait_ms: Annotated[float, Field(ge=0)] = 1.0
    """Longest wait for a micro-batch to fill, in milliseconds. A single row does not wait."""
    max_rows: Annotated[int, Field(ge=1)] = 1000
    """Largest number of rows, users, labels or events per request."""
    max_k: Annotated[int, Field(ge=1)] = 1000
    """Largest length of a recommendation list that a request may ask for."""
    max_items: Annotated[int, Field(ge=1)] = 50_000
    """Largest number of items in all lists of a request together: users times k."""
    max_body_kb: Annotated[int, Field(ge=1)] = 4096
    """Largest request body, in KiB, before and after decompression."""
    max_head_kb: Annotated[int, Field(ge=1)] = 16
    """Largest head of a request (address and headers), in KiB; the response is then 431."""
    head_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Longest time from a connection, or from the first byte of its next request, until the head is complete, in seconds."""
    max_connections_per_client: Annotated[int, Field(ge=1)] = 512
    """Open connections of one client address, per worker. The one idle longest gives way to a new one."""
    max_open_requests: Annotated[int, Field(ge=1)] = 256
    """Open requests of one API key, or of one client address without keys, per worker; the response is then 429."""
    unknown_columns: Literal["ignore", "refuse"] = "ignore"
    """Columns of POST /invocations that the model does not read. ignore: they are named under ignored_columns in the response.
    refuse: the response is 422, as it always is on the other paths."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Timeout of a request; the response is then 503."""
    rate_limit_per_second: Annotated[float, Field(ge=0)] = 0.0
    """Rate limit in requests per second for each API key, or for each client address without keys; the response is then 429.
    Each worker counts separately. 0: no limit."""
    parity_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of ONNX predictions that are compared with the scikit-learn pipeline's, asynchronously."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of server processes."""
    standby_worker: bool = True
    """Keep one more process that has loaded its libraries and replaces a worker that dies. It takes about 300 MB of memory."""
    preload_previous: bool = True
    """Keep the previous champion in memory, so that a rollback need not load it."""
    require_api_key: Literal["non_loopback", "always"] = "non_loopback"
    """When requests need an API key. non_loopback: always, unless the server is bound to a loopback address.
    always: on a loopback address too; use it behind a reverse proxy on the same machine."""


class Answers(Section):
    """What the HTTP service answers from."""

    features: Literal["batch", "fresh"] = "batch"
    """Features of a request that gives only the entity's key. batch: those that the last features step or scoring wrote. fresh:
    computed from the tables and from the rows that POST /v1/events/NAME received since, at today's cutoff."""


class Rollout(Section):
    """How a promoted version becomes the champion."""

    strategy: Literal["direct", "blue_green", "canary", "shadow"] = "direct"
    """direct: replace the champion at once. blue_green: load and check the candidate beside the champion, then move all traffic
    and keep the champion loaded for a rollback on errors or latency. canary: move the traffic in steps. shadow: the candidate
    predicts too, but its predictions are only logged."""
    steps: tuple[TrafficShare, ...] = (0.05, 0.25, 0.5)
    """canary: traffic shares of the candidate, in order; then all traffic."""
    step_minutes: Annotated[float, Field(ge=0)] = 30.0
    """Shortest duration of a step (shadow, blue_green: of the rollout), in minutes."""
    min_requests: Annotated[int, Field(ge=1)] = 200
    """Lowest number of the candidate's responses per step."""
    max_error_increase: Annotated[float, Field(ge=0)] = 0.01
    """Roll back once the candidate's error rate exceeds the champion's by significantly more than this."""
    max_latency_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Roll back once the candidate significantly takes longer than the champion times this, on most rows that both versions
    predict one after the other."""
    compare_quality: bool = True
    """Compare the loss as labels arrive, too, and roll back once the candidate is significantly worse. A rollout does not wait
    for labels."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Joint confidence of the sequential tests, however often they are evaluated."""
    timeout_hours: Annotated[float, Field(gt=0)] = 168.0
    """Longest duration of the whole rollout, pauses included; then `on_timeout` applies."""
    on_timeout: Literal["promote", "abort"] = "abort"
    """At the timeout: promote the candidate, or roll it back. A candidate that seems worse, or whose rollout is paused, is
    always rolled back."""

    @model_validator(mode="after")
    def increasing_steps(self) -> "Rollout":
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must increase")
        return self


class Monitor(Section):
    """Monitoring of data drift and performance."""

    window_days: Days = 7
    """Monitoring window: predictions of this many days up to the day of the monitoring run."""
    min_rows: Annotated[int, Field(ge=1)] = 30
    """Lowest number of predictions in a window for a drift test."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of windows without drift that may raise an alarm (false discovery rate over the columns)."""
    resamples: Annotated[int, Field(ge=100)] = 400
    """Resamples of the reference data for the null distribution of the drift statistics, drawn once per reference and window
    size."""
    min_effect: Annotated[float, Field(ge=0)] = 0.05
    """Smallest change that raises an alarm: in standard deviations of a number, in share of rows of a category. Smaller changes
    are only reported."""
    min_fault: Annotated[float, Field(ge=0, le=1)] = 0.005
    """Smallest share of rows with a data fault that raises an alarm: missing, unknown category, one value, far outside."""
    min_importance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Lowest share of feature importance that raises an alarm. Less important features are only reported."""
    reference_rows: Annotated[int, Field(ge=100)] = 20_000
    """Largest number of training rows in a version's reference data."""
    season_days: Annotated[int, Field(ge=28)] | None = None
    """Recommenders: length of a season of the shop in days, such as 364. Shoppers and their purchases are then compared with
    the season before. null: there is none, or it is unknown."""
    label_delay_days: Annotated[int, Field(ge=0)] | None = None
    """Days until the label of a prediction is known. null: the horizon; for a plain table, when the label arrives."""
    retention_days: Days = 400
    """Retention of single predictions, in days. After that, only counts and scores per week and version remain."""
    evidently_report: bool = True
    """Write an Evidently report (4 MB of HTML) in each monitoring run."""


class Retrain(Section):
    """Retraining policy. A condition that is null or false is off; without any condition there is no retraining."""

    mode: Literal["suggest", "automatic"] = "suggest"
    """suggest: record the decision and notify. automatic: start the retraining, too."""
    every_days: Days | None = None
    """Retrain this many days after the last training of the champion or of a rejected challenger. null: off."""
    on_drift: bool = False
    """Retrain on a drift alarm."""
    on_performance_drop: Annotated[float, Field(ge=0)] | None = None
    """Retrain once the score (realised with labels, otherwise estimated) is worse than in the champion's evaluation by
    significantly more than this, in the metric's unit. null: off."""
    on_labels: Annotated[int, Field(ge=1)] | None = None
    """Retrain after this many new labels since the last training of the champion or of a rejected challenger. null: off."""
    alarms: Annotated[int, Field(ge=1)] = 1
    """on_drift and on_performance_drop: required alarms in the last `of_last` windows, the latest window included."""
    of_last: Annotated[int, Field(ge=1)] = 1
    """See `alarms`."""
    hysteresis_windows: Annotated[int, Field(ge=0)] = 0
    """Hysteresis: windows without an alarm after a retraining on drift or a performance drop, before the same trigger applies
    again. every_days and on_labels are not affected."""
    cool_down_days: Annotated[int, Field(ge=0)] = 7
    """Shortest time between retrainings, in days."""
    max_cpu_minutes: Annotated[float, Field(gt=0)] | None = None
    """CPU budget of retrainings in 30 days, in minutes; the last retraining is the estimate for the next. null: no limit."""
    min_labels: Annotated[int, Field(ge=0)] = 100
    """Lowest number of labelled rows that the champion was not trained on."""
    window: Literal["expanding", "sliding", "weighted"] = "expanding"
    """Training data of the challenger. expanding: all rows. sliding: the last `window_days`. weighted: all rows, with a
    half-life of `window_days`."""
    window_days: Days = 182
    """See `window`."""

    @model_validator(mode="after")
    def alarms_fit(self) -> "Retrain":
        if self.alarms > self.of_last:
            raise ValueError(f"alarms {self.alarms} is above of_last {self.of_last}")
        return self


Cron = Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
"""Cron expression of five fields: minute, hour, day of the month, month, day of the week."""


class ScoringInput(Section):
    """Rows of a scheduled scoring: exactly one of files, address and sql."""

    files: str | None = None
    """Pattern of files, relative to params.yaml, for example incoming/*.csv, or in S3: s3://BUCKET/incoming/*.csv. Each file is
    scored once, and again when its content changes."""
    address: str | None = None
    """HTTP(S) address of a file, or env:NAME to read it from an environment variable. The file is scored when its content
    changes."""
    sql: str | None = None
    """SQL query; needs `url`."""
    url: str | None = None
    """SQLAlchemy URL of the database, or env:NAME to read the URL from an environment variable (use this for passwords)."""
    key: str | None = None
    """sql: column that identifies a row. Rows are scored once by this key. null: all rows are scored in each run."""

    @model_validator(mode="after")
    def one_source(self) -> "ScoringInput":
        named = [name for name in ("files", "address", "sql") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of files, address, sql; has {', '.join(named) or 'none'}")
        if (self.sql is None) != (self.url is None):
            raise ValueError("sql and url go together")
        if self.key is not None and self.sql is None:
            raise ValueError("key belongs to sql")
        if self.address is not None and not self.address.startswith(("http://", "https://", "env:")):
            raise ValueError(f"address {self.address} begins with none of http://, https:// and env:")
        return self


INPUT_NEEDED = "a plain table needs schedule.input, for example input: {files: incoming/*.csv}"


class Schedule(Section):
    """Schedules of the flows, run by `evergreen schedule`. null: not scheduled."""

    timezone: str = "UTC"
    """Time zone of the schedules, for example America/New_York, with daylight saving time."""
    train: Cron | None = None
    """Training, for example "0 3 * * 1": Mondays at 3:00."""
    score: Cron | None = None
    """Batch scoring into the ledger and into files. With `input`: of its new rows, into `output`. Without: of the newest
    features, into data/scores/NAME.parquet; a plain table needs `input`."""
    input: ScoringInput | None = None
    """Rows that `score` reads. null: the newest features."""
    output: str | None = None
    """Folder of the predictions on `input`, relative to params.yaml, one file per input. null: data/scores/NAME."""
    monitor: Cron | None = None
    """Monitoring run."""

    @field_validator("timezone")
    @classmethod
    def known_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone; use a name such as America/New_York") from None
        return timezone
