"""The sections that train and judge a model: `pipeline`, `tune`, `train`, `evaluate` and `gate`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evergreen.tasks.config.base import Options, Section


class Pipeline(Section):
    """Preprocessing inside each fold. A list instead of one value makes a setting part of the search."""

    impute: Options[Literal["median", "mean", "zero", "none"]] = ("median",)
    """Imputation of missing numbers, for models that need it; boosted trees read missing values. Missing categories are a
    category of their own."""
    scale: Options[Literal["standard", "robust", "quantile", "none"]] = ("standard",)
    """Scaling of numbers, for models that need it; boosted trees do not."""
    log: Options[bool] = (False,)
    """Signed logarithm of numbers before scaling, for counts and amounts."""
    encode: Options[Literal["onehot", "ordinal", "target", "native"]] = ("onehot",)
    """Encoding of categories of low cardinality. native: LightGBM splits the categories by itself, where nothing is selected or
    reduced; other models use target."""
    encode_high: Options[Literal["target", "frequency", "ordinal", "native", "onehot"]] = ("target",)
    """Encoding of categories of high cardinality. target: cross-fitted; clustering uses frequency instead. native: as above.
    onehot: the 200 most frequent, and one column for all others and for those of a single row."""
    high_cardinality: int = 20
    """A column with more distinct categories has high cardinality."""
    min_category_count: Options[Annotated[int, Field(ge=0)]] = (0,)
    """Low cardinality: categories in fewer training rows are merged into one. 0: none are merged."""
    missing_indicator: Options[bool] = (False,)
    """Add a missing-value indicator for each number with missing values, for models that need imputation."""
    spline_knots: Options[Annotated[int, Field(ge=0)]] = (0,)
    """Number of knots, at quantiles, of a piecewise-linear (spline) expansion for linear models; values are clipped to the
    1st and 99th percentile. 0: no expansion. Large and wide tables get fewer knots; boosted trees need none."""
    column_pairs: Options[Annotated[int, Field(ge=0)]] = (0,)
    """Feature creation: largest number of differences and ratios of two number columns to add. Small boosted trees select them
    in each fold, among pairs that they split one after the other. 0: none."""
    target_log: Options[bool | Literal["auto"]] = (False,)
    """regression: fit the signed logarithm of the target, for skewed amounts. auto: if no training target is negative and the
    logarithm shortens a long tail."""
    text_vocabulary: Annotated[int, Field(ge=1)] = 2000
    """Plain tables: largest number of TF-IDF terms (words and bigrams) per text column."""
    text_components: Annotated[int, Field(ge=1)] = 20
    """Plain tables: dimensions after the projection of the TF-IDF terms."""
    select: Options[Literal["none", "variance", "univariate", "model"]] = ("none",)
    """Feature selection. variance: drop constant features; univariate: best by a univariate test; model: best by an
    L1-regularised linear model."""
    select_share: Options[Annotated[float, Field(gt=0, le=1)]] = (0.5,)
    """Share of features that univariate and model select."""
    reduce: Options[Literal["none", "pca", "svd"]] = ("none",)
    """Dimensionality reduction."""
    components: Options[Annotated[int, Field(ge=1)]] = (10,)
    """Dimensions after the reduction."""
    offset: Options[str | None] = (None,)
    """regression: feature used as an offset; models fit the difference between the target and it. null: none."""


class Range(Section):
    """One dimension of the search space: a list of values or an interval."""

    values: tuple[Any, ...] | None = None
    """Values to try. null: an interval."""
    low: float | None = None
    """Lower bound (inclusive)."""
    high: float | None = None
    """Upper bound (inclusive)."""
    log: bool = False
    """Sample the interval on a logarithmic scale."""
    integer: bool = False
    """Integers only."""

    @model_validator(mode="after")
    def values_or_interval(self) -> "Range":
        if (self.values is None) == (self.low is None or self.high is None):
            raise ValueError("needs either values, or low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Tune(Section):
    """Hyper-parameter search."""

    method: Literal["grid", "random", "tpe", "staged"] | None = None
    """Search method: grid search, random search, Bayesian optimisation (tree-structured Parzen estimator), or staged: baseline,
    linear, trees, boosting, networks, then an ensemble of the best, where a stage without progress ends early. null: staged for
    a plain table, otherwise tpe."""
    choose: Literal["simplest", "best"] | None = None
    """How the winner is selected. simplest: the simplest model within one standard error of the best (of the paired differences
    over the folds, of lists over the users) and, on tables, within 1 % of its score, or 0.1 % of a blend's; the baseline needs
    the first alone. best: the best score. null: simplest with staged and for lists, otherwise best."""
    n_trials: Annotated[int, Field(ge=1)] = 20
    """Number of configurations to try; each model's defaults come first. Recommenders try all of these in any case."""
    timeout_seconds: float | None = None
    """No trial starts after this time. null: no limit."""
    budget_seconds: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock budget, as set by `evergreen train --seconds`: from the command to the deployed model. With several problems,
    and in dvc repro, of search, refit and evaluation together. It replaces n_trials. null: no limit."""
    metric: str | None = None
    """Metric to optimise. null: the kind's primary metric."""
    models: tuple[str, ...] | None = None
    """Models to try. null: all of the kind."""
    space: dict[str, dict[str, Range]] = {}
    """Model -> hyper-parameter -> range; replaces the kind's own range."""
    warm_starts: tuple[dict[str, Any], ...] = ()
    """Configurations to try right after the defaults. A retraining adds the best ones of the previous search. Models and
    hyper-parameters that are not in the search space are ignored."""
    folds: Annotated[int, Field(ge=1)] = 3
    """Number of validation windows in time, each after its training rows; number of cross-validation folds of a table without
    time."""
    repeats: Annotated[int, Field(ge=1)] | None = None
    """Tables without time: repetitions of the cross-validation with other folds. null: 3 below 1,000 rows, otherwise 1."""
    grid_points: Annotated[int, Field(ge=2)] = 3
    """grid: points per interval."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Number of configurations proposed at once; they can run in parallel. null: 4 for a plain table, otherwise 1."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that run trials. The result does not depend on it. null: all cores that no other problem uses."""
    prune: bool | None = None
    """Skip the remaining folds of a trial that is clearly behind the best. null: for a plain table."""
    max_rows: Annotated[int, Field(ge=100)] = 200_000
    """Plain tables: largest number of rows in the search, sampled at random. The winner is fitted on all rows."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Constraint on the winner: median latency of a single row, in milliseconds. null: no limit."""
    max_model_mb: Annotated[float, Field(gt=0)] | None = None
    """Constraint on the winner: size of the model in megabytes. null: 50 for a plain table, otherwise no limit."""
    max_train_seconds: Annotated[float, Field(gt=0)] | None = None
    """Constraint on the winner: time to fit one fold. null: no limit."""
    nested: bool = False
    """Run nested cross-validation to measure the optimism of the selection. It multiplies the time by the number of folds."""


class Train(Section):
    """Fit of the chosen configuration."""

    history_days: int | None = None
    """Use only rows with a cutoff in this many days up to the newest. null: all rows."""
    half_life_days: Annotated[float, Field(gt=0)] | None = None
    """Subsample old rows: at this age half of them are used, at twice this age a quarter. Not for recommendation or tables
    without time. null: all rows."""
    calibrate: Literal["auto", "none", "sigmoid", "isotonic"] | None = None
    """classification: calibrate probabilities on out-of-fold predictions. auto: sigmoid or isotonic, if it clearly lowers the
    log loss. null: auto for a plain table, otherwise none."""
    refit: bool = True
    """Plain tables: after the evaluation, refit the model on all rows, the test rows included, for serving."""


class Costs(Section):
    """Cost of each outcome, in any unit; a gain is negative."""

    false_positive: float = 1.0
    """Cost of a false positive."""
    false_negative: float = 1.0
    """Cost of a false negative."""
    true_positive: float = 0.0
    """Cost of a true positive."""
    true_negative: float = 0.0
    """Cost of a true negative."""


class Evaluate(Section):
    """Evaluation on test windows that the search did not use."""

    windows: Annotated[int, Field(ge=1)] = 3
    """Number of test windows at the end of the data, one horizon each; scores are their mean. One window without time."""
    resamples: Annotated[int, Field(ge=50)] = 200
    """Most groups of entities that are left out in turn for the intervals (jackknife)."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of all intervals."""
    slices: tuple[str, ...] = ()
    """Features by which scores are sliced; numbers are cut at their quartiles."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """classification: decision threshold on the probability. null: chosen by threshold_for, otherwise the base rate of the
    training rows."""
    threshold_for: Literal["f1", "precision_at_recall", "cost"] | None = None
    """classification, two classes: objective of the decision threshold, on out-of-fold predictions. precision_at_recall: the
    best precision at a recall of at least `recall`. cost: the lowest total of `costs`."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.8
    """precision_at_recall: lowest recall."""
    costs: Costs = Costs()
    """cost: cost of each outcome."""
    diagnose_seconds: Annotated[float, Field(ge=0)] = 10.0
    """CPU seconds for the diagnosis (learning curve, validation curves, bias and variance, rival models). What does not fit is
    left out and listed. 0: no diagnosis."""
    explain_rows: Annotated[int, Field(ge=50)] = 2000
    """Number of rows of the last test window for feature importance, contributions and partial dependence."""
    ablation_users: Annotated[int, Field(ge=0)] = 600
    """recommendation: users of the ablation study, which refits the recommender without each source. 0: no ablation study."""

    @model_validator(mode="after")
    def one_threshold(self) -> "Evaluate":
        if self.threshold is not None and self.threshold_for is not None:
            raise ValueError("threshold and threshold_for are both given; remove one of them")
        return self


class Gate(Section):
    """Comparison of a challenger with the champion on the same rows."""

    metric: str | None = None
    """Metric that decides. null: the kind's primary metric."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Superiority margin, in the metric's unit: the challenger is better if the whole interval of its gain is above it."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Non-inferiority margin: the challenger is not worse if the whole interval of its gain is above minus this."""
    promote: Literal["better", "not worse"] = "better"
    """Lowest verdict that promotes."""
    resamples: Annotated[int, Field(ge=50)] = 400
    """Most groups of entities that are left out in turn for the interval of the gain (jackknife)."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the interval."""
