"""Verdicts of the gate as notices, which webhooks are sent: each once, in order, from the steps that rollouts took."""

import sqlalchemy as sa

from lifelist.deploy import tables
from lifelist.deploy.store import Store
from lifelist.monitoring import notices, times
from lifelist.monitoring.figures import DAY


def tell(store: Store, at: float) -> None:
    """Tell of each verdict since the last that was told, of the last day; at: now, a Unix time. For one thread."""
    last = notices.told(store, limit=1, kinds=("gate",))
    after = int(last[0].data["step"]) if last else 0
    c, r = tables.steps.c, tables.rollouts.c
    query = (
        sa.select(c.id, c.rollout_id, c.facts, r.reason)
        .join(tables.rollouts, r.id == c.rollout_id)
        .where(c.state == "gate", c.id > after, c.ended_at >= times.text(at - DAY))
        .order_by(c.id)
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        checks = row.facts.get("gate")
        if checks is None:  # it failed, or was cancelled: no verdict
            continue
        failed = [check["message"] for check in checks if not check["passed"]]
        verdict = (
            f"refused increment {row.rollout_id}: {'; '.join(failed)}"
            if failed
            else f"passed increment {row.rollout_id}"
        )
        facts = {"step": row.id, "increment": row.rollout_id, "passed": not failed, "checks": checks}
        notices.tell(store, "gate", f"the gate {verdict}", None, **facts)
