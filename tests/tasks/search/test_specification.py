"""When an interrupted search resumes, and when it starts anew."""

from pathlib import Path

from evergreen.tasks.search.specification import fingerprint, resolve_settings
from tests import plain_kind
from tests.plain_kind import Plain
from tests.tasks.problems.tabular.test_tabular_kind import section


def test_changed_data_or_settings_start_anew_and_more_trials_do_not(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    first = fingerprint(params, "pay", layout)
    more = plain_kind.params(tune={"n_trials": 99, "timeout_seconds": 5.0})
    assert fingerprint(more, "pay", layout) == first
    assert fingerprint(plain_kind.params(train={"history_days": 9}), "pay", layout) != first
    plain_kind.project(tmp_path, plain_kind.rows(slope=2.0))
    assert fingerprint(params, "pay", layout) != first


def test_a_model_of_a_plain_table_takes_fifty_megabytes_at_most_where_params_do_not_say() -> None:
    assert resolve_settings(section("dear")).max_model_mb == 50
    assert resolve_settings(section("dear", tune={"max_model_mb": 80})).max_model_mb == 80
    assert resolve_settings(plain_kind.params().section("pay")).max_model_mb is None
