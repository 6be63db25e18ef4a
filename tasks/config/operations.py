"""The sections of params.yaml about life in production: serve, rollout, monitor, retrain, schedule."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from evergreen.tasks.config.base import Days, Name, Section

Share = Annotated[float, Field(gt=0, lt=1)]
"""Part of a whole, between 0 and 1."""


class Serve(Section):
    """The HTTP service of all deployed problems."""

    default_problem: Name | None = None
    """Problem that addresses without a problem's name mean, such as POST /invocations. null: the only one, if there is one."""
    ledger: bool = True
    """Every prediction is written to the ledger, off the way of its answer."""
    durable: bool = False
    """An answer leaves only when its prediction is safe on disk: nothing is lost by a crash, and answers take longer."""
    batch_rows: Annotated[int, Field(ge=1)] = 64
    """Most rows of requests at the same time that go through a model together."""
    batch_wait_ms: Annotated[float, Field(ge=0)] = 1.0
    """Longest that a row waits for company, in milliseconds; a row alone does not wait."""
    max_rows: Annotated[int, Field(ge=1)] = 1000
    """Most rows of one request."""
    max_body_kb: Annotated[int, Field(ge=1)] = 4096
    """Largest body of a request, in units of 1,024 bytes."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A request that is not answered by then is given up with status 503."""
    rate_limit_per_second: Annotated[float, Field(ge=0)] = 0.0
    """Requests per second of one key, or of one address where no key is needed; beyond that status 429. 0: no limit. Each
    worker counts for itself."""
    parity_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the answers of compiled models that the pipeline itself gives again, off the way of the answer, to compare."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that answer."""
    preload_previous: bool = True
    """Whether each keeps the champion before in memory too, so that a rollback need not wait until it is loaded."""
    require_api_key: Literal["non_loopback", "always"] = "non_loopback"
    """When requests need an API key. non_loopback: always, unless the server is bound to a loopback address.
    always: on a loopback address too; use it behind a reverse proxy on the same machine."""


class Rollout(Section):
    """How a version that the gate promotes becomes champion."""

    strategy: Literal["direct", "blue_green", "canary", "shadow"] = "direct"
    """direct: at once. blue_green: loaded and checked beside the champion, then all traffic at once, the old one kept loaded
    and taken back where errors or latency say so. canary: a growing share of the traffic. shadow: answers are recorded and
    never returned."""
    steps: tuple[Share, ...] = (0.05, 0.25, 0.5)
    """canary: shares of the traffic, one after the other; then all of it."""
    step_minutes: Annotated[float, Field(ge=0)] = 30.0
    """Least time at each step (shadow, blue_green: in all), in minutes."""
    min_requests: Annotated[int, Field(ge=1)] = 200
    """Least number of answers of the new version at each step."""
    max_error_increase: Annotated[float, Field(ge=0)] = 0.01
    """The new version is taken back once its share of errors is surely above the old one's by more than this."""
    max_latency_ratio: Annotated[float, Field(gt=1)] = 2.0
    """It is taken back once its median latency is surely above the old one's times this."""
    compare_quality: bool = True
    """Compare quality too, as truths arrive: taken back once it is surely worse. Truths that have not come hold nothing up."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the sequential tests together, however often they look."""
    timeout_hours: Annotated[float, Field(gt=0)] = 168.0
    """A rollout that cannot go on for so long (too few requests) ends as `on_timeout` says."""
    on_timeout: Literal["hold", "promote", "abort"] = "hold"
    """What becomes of a rollout without enough traffic: it goes on waiting, the new version takes over, or it is taken back."""

    @model_validator(mode="after")
    def growing(self) -> "Rollout":
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must grow from one to the next")
        return self


class Monitor(Section):
    """What is watched, and when it is worth an alarm."""

    window_days: Days = 7
    """Predictions of so many days up to the day of the look are one window; each look has its own."""
    min_rows: Annotated[int, Field(ge=1)] = 30
    """With fewer predictions in a window nothing is said about drift."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of windows without any drift that may raise an alarm (false-discovery rate over the columns)."""
    resamples: Annotated[int, Field(ge=100)] = 400
    """Draws from the reference that tell what its statistics are without drift; done once for each reference and size."""
    min_effect: Annotated[float, Field(ge=0)] = 0.05
    """A change smaller than this is reported, not alarmed on: standard deviations of a number, share of rows of a category."""
    min_importance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """A feature with a smaller share of the model's importance is reported, not alarmed on."""
    reference_rows: Annotated[int, Field(ge=100)] = 20_000
    """Most rows of the training data that are kept as reference with a version."""
    label_delay_days: Annotated[int, Field(ge=0)] | None = None
    """Days until the truth of a prediction is known. null: the horizon; for a plain table whenever it comes."""
    retention_days: Days = 400
    """So long single predictions are kept; of older ones counts and scores per week and version remain."""
    evidently_report: bool = True
    """Whether each look also writes an Evidently report (4 MB of HTML) for people."""


class Retrain(Section):
    """When a problem is trained again. Conditions that are not set ask for nothing; with none of them it never is."""

    mode: Literal["suggest", "automatic"] = "suggest"
    """suggest: the decision is written down and told. automatic: the retraining also starts."""
    every_days: Days | None = None
    """So many days after the last training, of the champion or of a challenger that was refused. null: not by age."""
    on_drift: bool = False
    """On an alarm of drift."""
    on_performance_drop: Annotated[float, Field(ge=0)] | None = None
    """Once the score (realised where truths are there, else estimated) is surely worse than the champion's was when it was
    judged by more than this, in the metric's unit. null: not by score."""
    on_labels: Annotated[int, Field(ge=1)] | None = None
    """After so many new truths since the last training, of the champion or of a challenger that was refused. null: not by
    their number."""
    alarms: Annotated[int, Field(ge=1)] = 1
    """on_drift and on_performance_drop: in so many of the last `of_last` windows, and in the latest."""
    of_last: Annotated[int, Field(ge=1)] = 1
    """See `alarms`."""
    hysteresis_windows: Annotated[int, Field(ge=0)] = 0
    """Hysteresis: after a retraining on drift or loss, so many windows without alarm must pass before the next one on the same
    trigger counts; every_days and on_labels do not wait."""
    cool_down_days: Annotated[int, Field(ge=0)] = 7
    """No retraining so soon after the one before."""
    max_cpu_minutes: Annotated[float, Field(gt=0)] | None = None
    """Most CPU minutes of retrainings within 30 days; one is expected to cost what the last one did. null: no limit."""
    min_labels: Annotated[int, Field(ge=0)] = 100
    """No retraining with fewer rows with truth that the champion did not learn from."""
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
"""Five fields: minute, hour, day of the month, month, day of the week."""


class Schedule(Section):
    """When `evergreen schedule` runs what. null: never."""

    timezone: str = "UTC"
    """Time zone of the times, for example America/New_York; daylight saving is minded."""
    train: Cron | None = None
    """Training, for example "0 3 * * 1": Mondays at three."""
    score: Cron | None = None
    """Batch scoring of the newest features, into the ledger and data/scores/NAME.parquet."""
    monitor: Cron | None = None
    """Monitoring."""

    @field_validator("timezone")
    @classmethod
    def known_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone; write one as America/New_York") from None
        return timezone
