"""Every alert fires when it should, and is silent when it should and where its data is missing (promtool)."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from parts_prometheus import RULES, alerts, needs_promtool, promtool, rules, written

RUNBOOK = Path(__file__).parents[1] / "docs" / "monitoring" / "runbook.md"
ON = 'job="lifelist", instance="here:8000"'
MINUTES = 480  # that each series lasts, in steps of one

Series = dict[str, str]  # metric{labels but those of ON} → values, as promtool writes them


@dataclass(frozen=True)
class Case:
    """Series under which an alert fires at `at`, or else is silent."""

    fires: Series
    silent: Series
    labels: dict[str, str] = field(default_factory=dict)  # of the alert, beside name, severity, job and instance
    at: str = "7h"


LIVE = 'lifelist_live_version_info{version="7"}'
COUNTS = 'lifelist_requests_total{code="200", replica="a"}'
ERRORS = 'lifelist_requests_total{code="503", replica="a"}'
OTHERS = 'lifelist_requests_total{code="503", replica="b"}'


def accuracy(end: str, source: str, value: float, group: str = "all") -> Series:
    name = f'lifelist_accuracy_{end}_ratio{{group="{group}", source="{source}", version="7"}}'
    return {name: f"{value}x{MINUTES}"}


def flat(value: float) -> str:
    return f"{value}x{MINUTES}"


def rising(each: float) -> str:
    return f"0+{each}x{MINUTES}"


def quick(share: float) -> Series:
    """Queries of which a share takes a second at most, and the rest ten."""
    name = 'lifelist_request_duration_seconds_bucket{{le="{}", replica="a"}}'.format
    return {name("1"): rising(100 * share), name("10"): rising(100), name("+Inf"): rising(100)}


def silence(since_minute: int) -> str:
    """A time that stands at the start of the test, or follows it for so many minutes."""
    return f"0+60x{since_minute} {60 * since_minute}x{MINUTES}" if since_minute else flat(0)


CASES = {
    "LifelistMetricsAbsent": Case({}, {"lifelist_replicas_reporting": flat(0)}),
    "LifelistNoReplica": Case({"lifelist_replicas_reporting": flat(0)}, {"lifelist_replicas_reporting": flat(1)}),
    "LifelistErrorBudgetBurnFast": Case(
        {COUNTS: rising(900), ERRORS: rising(10), OTHERS: rising(10)},
        {COUNTS: rising(900), ERRORS: rising(10), OTHERS: rising(0)},
    ),
    "LifelistErrorBudgetBurnSlow": Case(
        {COUNTS: rising(900), ERRORS: rising(7)}, {COUNTS: rising(900), ERRORS: rising(4)}
    ),
    "LifelistLatencyHigh": Case(quick(0.98), quick(0.995)),
    "LifelistDatabaseNotWritable": Case(
        {"lifelist_database_up": flat(1), "lifelist_database_writable": flat(0)},
        {"lifelist_database_up": flat(1), "lifelist_database_writable": flat(1)},
    ),
    "LifelistMonitoringLost": Case(
        {
            'lifelist_monitoring_lost_total{what="answers"}': f"0x415 10x{MINUTES}",
            'lifelist_monitoring_lost_total{what="images"}': flat(0),
        },
        {'lifelist_monitoring_lost_total{what="answers"}': flat(10)},
        {"what": "answers"},
    ),
    "LifelistAccuracyFell": Case(
        {'lifelist_alarm{alarm="accuracy.old"}': flat(1)},
        {'lifelist_alarm{alarm="accuracy.old"}': flat(0), 'lifelist_alarm{alarm="drift.margin.short"}': flat(1)},
        {"alarm": "accuracy.old"},
    ),
    "LifelistOldClassForgetting": Case(
        {"lifelist_forgetting_ratio": flat(0.11), "lifelist_forgetting_lower_ratio": flat(0.01)},
        {"lifelist_forgetting_ratio": flat(0.09), "lifelist_forgetting_lower_ratio": flat(0.01)},
    ),
    "LifelistNewClassUnderperforming": Case(
        accuracy("upper", "probe", 0.45, "new") | {LIVE: flat(1)},
        accuracy("upper", "probe", 0.45, "new") | {'lifelist_live_version_info{version="6"}': flat(1)},  # not live
        {"group": "new", "source": "probe", "version": "7"},
    ),
    "LifelistBiasTowardNewClasses": Case(
        {'lifelist_bias_ratio{group="new"}': flat(1.6), 'lifelist_bias_lower_ratio{group="new"}': flat(1.1)},
        {
            'lifelist_bias_ratio{group="new"}': flat(1.6),
            'lifelist_bias_lower_ratio{group="new"}': flat(0.9),  # it may be chance
            'lifelist_bias_ratio{group="old"}': flat(1.6),
            'lifelist_bias_lower_ratio{group="old"}': flat(1.1),
        },
        {"group": "new"},
    ),
    "LifelistEstimatedAccuracyLow": Case(
        accuracy("lower", "probe", 0.92) | accuracy("upper", "estimated", 0.84) | {LIVE: flat(1)},
        accuracy("lower", "probe", 0.92) | accuracy("upper", "estimated", 0.93) | {LIVE: flat(1)},
        {"group": "all", "version": "7"},
    ),
    "LifelistEstimateRealisedDiverge": Case(
        accuracy("lower", "estimated", 0.92) | accuracy("upper", "audit", 0.84) | {LIVE: flat(1)},
        accuracy("lower", "estimated", 0.82) | accuracy("upper", "audit", 0.84) | {LIVE: flat(1)},
        {"group": "all", "version": "7"},
    ),
    "LifelistDrift": Case(
        {'lifelist_alarm{alarm="drift.embedding.long"}': flat(1)},
        {'lifelist_alarm{alarm="drift.embedding.long"}': flat(0), 'lifelist_alarm{alarm="probe.failed"}': flat(1)},
        {"alarm": "drift.embedding.long"},
    ),
    "LifelistProbeStale": Case(
        {"lifelist_last_probe_timestamp_seconds": silence(300)}, {"lifelist_last_probe_timestamp_seconds": silence(400)}
    ),
    "LifelistProbeFailed": Case(
        {'lifelist_alarm{alarm="probe.failed"}': flat(1)},
        {'lifelist_alarm{alarm="probe.failed"}': flat(0)},
        {"alarm": "probe.failed"},
    ),
    "LifelistFeedbackStalled": Case(
        {'lifelist_audited_total{replica="a"}': rising(1), "lifelist_audit_labelled_total": flat(0)},
        {'lifelist_audited_total{replica="a"}': rising(1), "lifelist_audit_labelled_total": rising(0.1)},
    ),
    "LifelistSwapFailed": Case(
        {'lifelist_swap_failures_total{phase="prepare", replica="a"}': f"0x415 1x{MINUTES}"},
        {'lifelist_swap_failures_total{phase="prepare", replica="a"}': flat(1)},
        {"phase": "prepare"},
    ),
    "LifelistRequestsFailedDuringSwap": Case(
        {ERRORS: f"0x418 3x{MINUTES}", "lifelist_last_promotion_timestamp_seconds": f"0x418 25000x{MINUTES}"},
        {ERRORS: f"0x418 3x{MINUTES}", "lifelist_last_promotion_timestamp_seconds": flat(0)},
    ),
    "LifelistVersionsDiffer": Case(
        {
            'lifelist_live_version_info{version="6", classes="3", replica="a"}': flat(1),
            'lifelist_live_version_info{version="7", classes="4", replica="b"}': flat(1),
        },
        {
            'lifelist_live_version_info{version="7", classes="4", replica="a"}': flat(1),
            'lifelist_live_version_info{version="7", classes="4", replica="b"}': flat(1),
        },
    ),
    "LifelistIncrementStuck": Case(
        {"lifelist_increment_updated_timestamp_seconds": silence(300), 'lifelist_increments{state="train"}': flat(1)},
        {
            "lifelist_increment_updated_timestamp_seconds": silence(300),
            'lifelist_increments{state="train"}': flat(0),
            'lifelist_increments{state="done"}': flat(1),
        },
    ),
    "LifelistIncrementFailed": Case(
        {'lifelist_increments{state="rejected"}': f"1x415 2x{MINUTES}"},
        {'lifelist_increments{state="rejected"}': flat(2), 'lifelist_increments{state="done"}': f"1x415 2x{MINUTES}"},
        {"state": "rejected"},
    ),
    "LifelistGateInconclusive": Case(
        {'lifelist_gate_check{check="new_class_accuracy"}': f"NaN NaN NaN{MINUTES * ' NaN'}"},
        {'lifelist_gate_check{check="new_class_accuracy"}': flat(0)},
        {"check": "new_class_accuracy"},
    ),
    "LifelistRolledBack": Case(
        {'lifelist_notices_total{kind="rollback"}': f"0x415 1x{MINUTES}"},
        {'lifelist_notices_total{kind="rollback"}': flat(1), 'lifelist_notices_total{kind="swap"}': rising(1)},
        {"kind": "rollback"},
    ),
}


def test_every_alert_has_a_case_and_every_case_an_alert() -> None:
    assert list(CASES) == list(alerts())


def group(name: str, series: Series, fired: dict[str, str] | None, at: str) -> dict[str, Any]:
    """One of promtool's tests: the alert fires with these labels, or not at all."""
    samples = []
    if fired is not None:
        labels = ", ".join(f'{k}="{v}"' for k, v in sorted(fired.items()))
        samples = [{"labels": f"ALERTS{{{labels}}}", "value": 1}]
    return {
        "interval": "1m",
        "input_series": [{"series": located(selector), "values": values} for selector, values in series.items()],
        "promql_expr_test": [
            {"expr": f'ALERTS{{alertname="{name}", alertstate="firing"}}', "eval_time": at, "exp_samples": samples}
        ],
    }


def located(selector: str) -> str:
    """The selector with the labels that Prometheus adds."""
    metric, _, labels = selector.rstrip("}").partition("{")
    return f"{metric}{{{', '.join(filter(None, (ON, labels)))}}}"


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    fired = {"alertname": name, "alertstate": "firing", "severity": alerts()[name]["labels"]["severity"]} | case.labels
    is_absent = name == "LifelistMetricsAbsent"
    fired |= {} if is_absent else {"job": "lifelist", "instance": "here:8000"}
    tests = [
        group(name, case.fires, fired, case.at),
        group(name, case.silent, None, case.at),
        group(name, {}, fired if is_absent else None, case.at),  # no data: silence is for another alert to break
    ]
    made = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    tested = promtool("test", "rules", written(tmp_path / "test.yaml", made))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_an_alert_that_fired_ends_when_its_series_end(tmp_path: Path) -> None:
    series = {"lifelist_replicas_reporting": "0x60 _x400"}
    fired = {"alertname": "LifelistNoReplica", "alertstate": "firing", "severity": "critical"}
    fired |= {"job": "lifelist", "instance": "here:8000"}
    absent = {"alertname": "LifelistMetricsAbsent", "alertstate": "firing", "severity": "critical"}
    tests = [
        group("LifelistNoReplica", series, fired, "50m"),
        group("LifelistNoReplica", series, None, "100m"),
        group("LifelistMetricsAbsent", series, None, "50m"),
        group("LifelistMetricsAbsent", series, absent, "100m"),
    ]
    made = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    tested = promtool("test", "rules", written(tmp_path / "test.yaml", made))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_recorded_figures_are_those_of_all_replicas_through_a_restart(tmp_path: Path) -> None:
    """Replica a is killed at 10 minutes; c takes its place and counts from 0. 60 a minute each: two a second."""
    series = {
        'lifelist_requests_total{code="200", replica="a"}': "0+60x10",
        'lifelist_requests_total{code="200", replica="b"}': "0+60x40",
        'lifelist_requests_total{code="200", replica="c"}': "_x10 0+60x30",
        'lifelist_requests_total{code="503", replica="b"}': "0+30x40",
    }
    labels = located("instance:lifelist_requests:rate5m")
    expected = [(labels, "9m", 2.5), (labels, "30m", 2.5)]
    expected.append((located("instance:lifelist_request_errors:ratio_rate5m"), "30m", 0.2))
    made = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": located(name), "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": of.partition("{")[0], "eval_time": at, "exp_samples": [{"labels": of, "value": value}]}
                    for of, at, value in expected
                ],
            }
        ],
    }
    tested = promtool("test", "rules", written(tmp_path / "test.yaml", made))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_promtool_finds_nothing_to_say_of_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_keep_to_the_conventions() -> None:
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"instance(_le)?:lifelist_\w+:\w+", rule["record"])
            assert not re.search(r"\bby\b", rule["expr"])  # without: labels that somebody adds are kept
            continue
        assert re.fullmatch(r"Lifelist([A-Z][a-z0-9]*)+", rule["alert"])
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert "{{" not in rule["annotations"]["summary"]


def test_the_runbook_has_a_section_for_each_alert_where_its_link_points() -> None:
    page = RUNBOOK.read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert [name for name in sections if name.startswith("Lifelist")] == list(alerts())
    for name, alert in alerts().items():
        assert alert["annotations"]["runbook_url"] == f"docs/monitoring/runbook.md#{name.lower()}"
        assert "**Look at**" in sections[name]
        assert "**Do**" in sections[name]
