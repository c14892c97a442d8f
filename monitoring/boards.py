"""The four Grafana boards: what is on them, in PromQL. `lifelist monitoring boards FOLDER` writes their JSON.

An expression names our metrics only; grafana.py adds the chosen jobs and instances to each.
"""

from collections.abc import Sequence

from lifelist.monitoring.grafana import Json, Panel, Query, board

RED_FROM_1 = ((None, "green"), (1.0, "red"))
OF_LIVE = "and on (job, instance, version) lifelist_live_version_info"


def boards() -> dict[str, Json]:
    """The JSON of each board, by its name."""
    made = {
        "service": ("Lifelist: service", "How queries are answered: rate, errors, duration, saturation.", SERVICE),
        "quality": ("Lifelist: quality", "How right the answers are, and whether what is asked has changed.", QUALITY),
        "rollout": ("Lifelist: rollout", "Where increments stand, what the gate found, how swaps went.", ROLLOUT),
        "trainer": ("Lifelist: trainer", "How training goes, and what it takes.", TRAINER),
    }
    return {name: board(f"lifelist-{name}", *found) for name, found in made.items()}


def _quantile(share: float, name: str) -> str:
    return f"histogram_quantile({share:g}, sum without (replica) (rate({name}_bucket[$__rate_interval])))"


Rows = Sequence[tuple[str, Sequence[Panel]]]

SERVICE: Rows = (
    (
        "Now",
        (
            Panel(
                "Replicas that answer",
                "Replicas whose counts are on /metrics. 0: nobody is answered.",
                "none",
                (Query("lifelist_replicas_reporting", "{{instance}}"),),
                "stat",
                width=4,
                colours=((None, "red"), (1.0, "green")),
            ),
            Panel(
                "Live version",
                "How many replicas answer by each version. Two at once, but for a moment of a swap, is wrong.",
                "none",
                (
                    Query(
                        "sum without (replica, provider, precision, answer) (lifelist_live_version_info)",
                        "version {{version}}, {{classes}} classes",
                    ),
                ),
                "stat",
                width=6,
            ),
            Panel(
                "Alarms",
                "Alarms that are raised now. GET /v1/alarms says what each is.",
                "none",
                (Query("sum without (alarm) (lifelist_alarm)", "{{instance}}"),),
                "stat",
                width=4,
                colours=RED_FROM_1,
            ),
            Panel(
                "Queries under way",
                "Queries that are being answered, over all replicas.",
                "none",
                (Query("sum without (replica) (lifelist_inflight_requests)", "{{instance}}"),),
                "stat",
                width=5,
            ),
            Panel(
                "Errors",
                "Share of queries that the server failed to answer (5xx).",
                "percentunit",
                (
                    Query(
                        'sum without (replica, code) (rate(lifelist_requests_total{code=~"5.."}[$__rate_interval])) '
                        "/ sum without (replica, code) (rate(lifelist_requests_total[$__rate_interval]))",
                        "{{instance}}",
                    ),
                ),
                "stat",
                width=5,
                colours=((None, "green"), (0.001, "orange"), (0.0144, "red")),
            ),
        ),
    ),
    (
        "Rate, errors, duration",
        (
            Panel(
                "Queries a second",
                "By the status that they got; 499: the client did not wait.",
                "reqps",
                (Query("sum without (replica) (rate(lifelist_requests_total[$__rate_interval]))", "{{code}}"),),
            ),
            Panel(
                "Duration",
                "From a query's first byte to its answer's last.",
                "s",
                tuple(
                    Query(_quantile(share, "lifelist_request_duration_seconds"), name)
                    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
                ),
            ),
            Panel(
                "Queries a second by replica",
                "A replica that gets none has no place behind the front.",
                "reqps",
                (Query("sum without (code) (rate(lifelist_requests_total[$__rate_interval]))", "{{replica}}"),),
            ),
        ),
    ),
    (
        "Saturation",
        (
            Panel(
                "Images that wait for the model",
                "At serving.max_queue images a replica answers 503.",
                "none",
                (Query("sum without (replica) (lifelist_queued_images)", "{{instance}}"),),
            ),
            Panel(
                "Images in one model run",
                "The mean batch, and the largest tenth. It grows with the load.",
                "none",
                (
                    Query(
                        "sum without (replica) (rate(lifelist_batch_size_sum[$__rate_interval])) "
                        "/ sum without (replica) (rate(lifelist_batch_size_count[$__rate_interval]))",
                        "mean",
                    ),
                    Query(_quantile(0.9, "lifelist_batch_size"), "p90"),
                ),
            ),
            Panel(
                "Bytes of queries held",
                "Bodies in memory, over all replicas; each takes at most serving.max_buffered_bytes.",
                "bytes",
                (Query("sum without (replica) (lifelist_buffered_bytes)", "{{instance}}"),),
            ),
            Panel(
                "Queries given up",
                "Queries that left the model or its queue: their client did, or their time was over.",
                "reqps",
                (Query("sum without (replica) (rate(lifelist_cancelled_total[$__rate_interval]))", "{{instance}}"),),
            ),
            Panel(
                "Versions in memory",
                "Live, the one before, and those that clients loaded.",
                "none",
                (Query("lifelist_held_versions", "{{replica}}"),),
            ),
            Panel(
                "Images a second by class",
                "By the class that they were taken for: those asked about most, and all others.",
                "cps",
                (
                    Query(
                        "topk(10, sum without (replica, answer) (rate(lifelist_answers_total[$__rate_interval])))",
                        "class {{class_id}}",
                    ),
                ),
            ),
        ),
    ),
)

QUALITY: Rows = (
    (
        "Accuracy of the live version, over the last day",
        tuple(
            Panel(
                f"Accuracy, {what}",
                f"Share of right answers of {what}, by source, with its 95 % interval. feedback: all labels; "
                "audit: those of answers drawn at random; probe: gate images; estimated: without labels.",
                "percentunit",
                (
                    Query(f'lifelist_accuracy_ratio{{group="{group}"}} {OF_LIVE}', "{{source}}"),
                    Query(f'lifelist_accuracy_lower_ratio{{group="{group}"}} {OF_LIVE}', "{{source}} low", band=True),
                    Query(f'lifelist_accuracy_upper_ratio{{group="{group}"}} {OF_LIVE}', "{{source}} high", band=True),
                ),
                most=1,
            )
            for group, what in (
                ("all", "all classes"),
                ("old", "old classes"),
                ("new", "classes of the latest increment"),
            )
        ),
    ),
    (
        "What each figure rests on",
        (
            Panel(
                "Images behind the figures",
                "How many images each figure rests on; unseen: labels of classes that the version could not name.",
                "none",
                (Query(f"lifelist_accuracy_images {OF_LIVE}", "{{source}}, {{group}}"),),
            ),
            Panel(
                "Labels",
                "True classes that users sent, in five minutes, by what became of them.",
                "none",
                (Query("sum without (replica) (increase(lifelist_feedback_total[$__rate_interval]))", "{{outcome}}"),),
            ),
            Panel(
                "Audit",
                "Answers marked for the audit, and those of which the true class came: it is they that tell.",
                "none",
                (
                    Query("sum without (replica) (increase(lifelist_audited_total[$__rate_interval]))", "marked"),
                    Query("increase(lifelist_audit_labelled_total[$__rate_interval])", "labelled"),
                ),
            ),
            Panel(
                "Age of labels",
                "How long after its answer a label came.",
                "s",
                (
                    Query(_quantile(0.5, "lifelist_feedback_lag_seconds"), "p50"),
                    Query(_quantile(0.9, "lifelist_feedback_lag_seconds"), "p90"),
                ),
            ),
            Panel(
                "Age of the last probe",
                "Gate images are sent every monitoring.probe_every_s, and after each swap.",
                "s",
                (Query("time() - lifelist_last_probe_timestamp_seconds", "{{instance}}"),),
            ),
            Panel(
                "Calibration error",
                "How far off the live version's probabilities are on held-out images: estimates can be no better.",
                "percentunit",
                (Query("lifelist_calibration_error_ratio", "{{instance}}"),),
            ),
        ),
    ),
    (
        "Old against new",
        (
            Panel(
                "Forgetting",
                "Mean over old classes of the best recall of any version in probes less that of the live one, with its "
                "interval.",
                "percentunit",
                (
                    Query("lifelist_forgetting_ratio", "{{instance}}"),
                    Query("lifelist_forgetting_lower_ratio", "{{instance}} low", band=True),
                    Query("lifelist_forgetting_upper_ratio", "{{instance}} high", band=True),
                ),
            ),
            Panel(
                "Bias towards new classes",
                "Answers of old and of new classes in probes for each gate image of one, with its interval: 1 is fair.",
                "none",
                (
                    Query("lifelist_bias_ratio", "{{group}}"),
                    Query("lifelist_bias_lower_ratio", "{{group}} low", band=True),
                    Query("lifelist_bias_upper_ratio", "{{group}} high", band=True),
                ),
            ),
            Panel(
                "Bias correction",
                "By what the logits of each increment's classes are multiplied (alpha), and what is added (beta).",
                "none",
                (
                    Query("lifelist_bic_alpha", "alpha of increment {{increment}}"),
                    Query("lifelist_bic_beta", "beta of increment {{increment}}"),
                ),
            ),
        ),
    ),
    (
        "Classes asked about most",
        (
            Panel(
                "Recall by class",
                "Share of a class's images that the live version answers right in probes: the lowest 25.",
                "percentunit",
                (
                    Query(
                        'bottomk(25, lifelist_class_recall_ratio{source="probe"}) '
                        "* on (job, instance, class_id) group_left (name) lifelist_class_info",
                        "{{name}}",
                    ),
                ),
                "bargauge",
                width=12,
                most=1,
                colours=((None, "red"), (0.5, "orange"), (0.8, "green")),
            ),
            Panel(
                "Recall by class over time",
                "The ten classes that are recognised worst in probes.",
                "percentunit",
                (Query('bottomk(10, lifelist_class_recall_ratio{source="probe"})', "class {{class_id}}"),),
                "state-timeline",
                width=12,
                most=1,
                colours=((None, "red"), (0.5, "orange"), (0.8, "green")),
            ),
            Panel(
                "Images behind recall",
                "On how many images the recall of a class rests.",
                "none",
                (Query("lifelist_class_recall_images", "{{class_id}} {{source}}"),),
                "table",
                width=12,
            ),
            Panel(
                "Exemplars",
                "Images of each class that are kept for replay.",
                "none",
                (
                    Query(
                        "lifelist_exemplars * on (job, instance, class_id) group_left (name) lifelist_class_info",
                        "{{name}}",
                    ),
                ),
                "bargauge",
                width=12,
            ),
        ),
    ),
    (
        "Drift",
        (
            Panel(
                "How different, by test",
                "Score of the latest window of each test: 0 is not different at all.",
                "none",
                (Query("lifelist_drift_score", "{{test}}, {{window}}"),),
            ),
            Panel(
                "p-value, by test",
                "How probable so large a score is if nothing has changed. Many tests are corrected for together.",
                "none",
                (Query("lifelist_drift_p_value", "{{test}}, {{window}}"),),
                most=1,
            ),
            Panel(
                "Rejected, by test",
                "1 where a window differs, after the correction. Some in a row raise an alarm.",
                "none",
                (Query("lifelist_drift_rejected", "{{test}}, {{window}}"),),
                "state-timeline",
                most=1,
                colours=RED_FROM_1,
            ),
            Panel(
                "Alarms",
                "1 while an alarm is raised.",
                "none",
                (Query("lifelist_alarm", "{{alarm}}"),),
                "state-timeline",
                most=1,
                colours=RED_FROM_1,
            ),
            Panel(
                "Images called unknown",
                "Of those that are asked about with unknown_at.",
                "cps",
                (Query("sum without (replica) (rate(lifelist_unknown_total[$__rate_interval]))", "{{instance}}"),),
            ),
            Panel(
                "Notices",
                "What was told: swaps, alarms and their ends, rollbacks. GET /v1/notices has them.",
                "none",
                (Query("increase(lifelist_notices_total[$__rate_interval])", "{{kind}}"),),
            ),
        ),
    ),
)

ROLLOUT: Rows = (
    (
        "Increments",
        (
            Panel(
                "Under way",
                "Increments in each step.",
                "none",
                (Query('lifelist_increments{state!~"done|rejected|failed|cancelled"}', "{{state}}"),),
                "state-timeline",
                width=12,
                colours=((None, "transparent"), (1.0, "blue")),
            ),
            Panel(
                "Ended",
                "All increments so far, by how they ended.",
                "none",
                (Query('lifelist_increments{state=~"done|rejected|failed|cancelled"}', "{{state}}"),),
                "stat",
                width=12,
            ),
            Panel(
                "Steps of the latest increment",
                "How long each took, or has taken.",
                "s",
                (Query("lifelist_increment_step_seconds", "{{step}}"),),
                "bargauge",
                width=12,
            ),
            Panel(
                "Since the latest increment gave sign of life",
                "A long time is nothing wrong once it has ended.",
                "s",
                (Query("time() - lifelist_increment_updated_timestamp_seconds", "{{instance}}"),),
                width=12,
            ),
        ),
    ),
    (
        "Gate",
        (
            Panel(
                "Checks of the last candidate",
                "1: passed, 0: refused; none: there was too little to judge by.",
                "none",
                (Query("lifelist_gate_check", "{{check}}"),),
                "stat",
                colours=((None, "red"), (1.0, "green")),
            ),
            Panel(
                "What was found",
                "What each check measured. Accuracies are shares; old_accuracy is what was lost, and may be below 0.",
                "none",
                (Query("lifelist_gate_found", "{{check}}"),),
                "table",
            ),
            Panel(
                "What is asked",
                "The limit of each check, from the settings.",
                "none",
                (Query("lifelist_gate_limit", "{{check}}"),),
                "table",
            ),
        ),
    ),
    (
        "Swaps",
        (
            Panel(
                "Live version",
                "By which version replicas answer.",
                "none",
                (
                    Query(
                        "count without (replica, classes, answer, provider, precision) (lifelist_live_version_info)",
                        "version {{version}}",
                    ),
                ),
                "state-timeline",
            ),
            Panel(
                "Since the last promotion",
                "How long the live version has been live.",
                "s",
                (Query("time() - lifelist_last_promotion_timestamp_seconds", "{{instance}}"),),
                "stat",
            ),
            Panel(
                "Queries failed",
                "Queries that were answered 5xx. A swap makes none.",
                "none",
                (
                    Query(
                        "sum without (replica, code) "
                        '(increase(lifelist_requests_total{code=~"5.."}[$__rate_interval]))',
                        "{{instance}}",
                    ),
                ),
                colours=RED_FROM_1,
            ),
            Panel(
                "Phases of swaps",
                "How long a replica takes for each: load beside the one that answers, flip, let go. Means.",
                "s",
                (
                    Query(
                        "sum without (replica) (rate(lifelist_swap_duration_seconds_sum[$__rate_interval])) "
                        "/ (sum without (replica) (rate(lifelist_swap_duration_seconds_count[$__rate_interval])) > 0)",
                        "{{phase}}",
                    ),
                ),
            ),
            Panel(
                "Phases that failed",
                "A replica could not load, or not follow. What answers stays.",
                "none",
                (
                    Query(
                        "sum without (replica) (increase(lifelist_swap_failures_total[$__rate_interval]))", "{{phase}}"
                    ),
                ),
                colours=RED_FROM_1,
            ),
            Panel(
                "Classes",
                "Classes that the live version answers: trained, or enrolled by their mean alone.",
                "none",
                (Query("lifelist_classes", "{{state}}"),),
            ),
        ),
    ),
)

TRAINER: Rows = (
    (
        "Now",
        (
            Panel(
                "Trained",
                "Share of the epochs of the phase under way; 1 once the latest increment has been trained.",
                "percentunit",
                (Query("lifelist_training_progress_ratio", "{{instance}}"),),
                "stat",
                width=6,
                most=1,
            ),
            Panel(
                "Left",
                "How long the phase will still take.",
                "s",
                (Query("lifelist_training_left_seconds", "{{instance}}"),),
                "stat",
                width=6,
            ),
            Panel(
                "Waiting",
                "Increments in the queue; one is carried at a time.",
                "none",
                (Query('lifelist_increments{state="queued"}', "{{instance}}"),),
                "stat",
                width=6,
            ),
            Panel(
                "Failed so far",
                "Increments that failed, or that the gate refused.",
                "none",
                (Query('sum without (state) (lifelist_increments{state=~"failed|rejected"})', "{{instance}}"),),
                "stat",
                width=6,
                colours=((None, "green"), (1.0, "orange")),
            ),
        ),
    ),
    (
        "Training",
        (
            Panel(
                "Progress",
                "Share of the epochs of the phase under way. It begins anew with each phase.",
                "percentunit",
                (Query("lifelist_training_progress_ratio", "{{instance}}"),),
                most=1,
            ),
            Panel(
                "Loss by term",
                "Of the last epoch: classify and distil, old and new classes.",
                "none",
                (Query("lifelist_training_loss", "{{term}}"),),
            ),
            Panel(
                "Images a second",
                "That were trained on, in the last epoch.",
                "cps",
                (Query("lifelist_training_images_per_second", "{{instance}}"),),
            ),
        ),
    ),
    (
        "What it takes",
        (
            Panel(
                "Trainer busy",
                "Share of the time in which an increment was trained.",
                "percentunit",
                (Query("rate(lifelist_trainer_seconds_total[$__rate_interval])", "{{instance}}"),),
                most=1,
            ),
            Panel(
                "Trainer-seconds",
                "Seconds of training in each interval.",
                "s",
                (Query("increase(lifelist_trainer_seconds_total[$__rate_interval])", "{{instance}}"),),
            ),
            Panel(
                "Queries beside it",
                "p99 of queries while it trains: serving comes first.",
                "s",
                (Query(_quantile(0.99, "lifelist_request_duration_seconds"), "p99"),),
            ),
        ),
    ),
)
