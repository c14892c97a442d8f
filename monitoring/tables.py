"""The SQL tables of what is watched. Figures are sums, so that rows of a minute become rows of an hour by adding."""

import sqlalchemy as sa

metadata = sa.MetaData()

# Times are RFC 3339, UTC, as text.
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("prediction_id", sa.String(400), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False, index=True),  # that answered, whatever is live now
    sa.Column("predicted", sa.Integer, nullable=False),  # class ids
    sa.Column("truth", sa.Integer, nullable=False),
    sa.Column("answer", sa.String(16), nullable=False),
    sa.Column("at", sa.String(32), nullable=False),  # when it was said
    sa.Column("predicted_at", sa.String(32), nullable=False, index=True, server_default=""),
    sa.Column("weight", sa.Float, nullable=False, server_default="0"),  # in the audit; 0: it was not drawn for it
)

feedback_history = sa.Table(
    "feedback_history",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("prediction_id", sa.String(400), nullable=False, index=True),
    sa.Column("truth", sa.Integer, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)

# How many images, and of them how many right, in a stretch of time. Weights are 1 but for the audit's.
figures = sa.Table(
    "figures",
    metadata,
    sa.Column("at", sa.String(32), primary_key=True),  # where the stretch begins
    sa.Column("seconds", sa.Integer, primary_key=True),  # how long it is
    sa.Column("version", sa.Integer, primary_key=True),  # that answered
    sa.Column("source", sa.String(16), primary_key=True),
    sa.Column("group", sa.String(8), primary_key=True),  # all, old, new, unseen, or class
    sa.Column("class_id", sa.Integer, primary_key=True, autoincrement=False),  # of a row of one class; else -1
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("total", sa.Float, nullable=False),  # sums of weights
    sa.Column("right", sa.Float, nullable=False),
    sa.Column("squares", sa.Float, nullable=False),  # of the squares of all weights
    sa.Column("rounds", sa.Integer, nullable=False),  # probes that it has; they ask about the same images
)

# What was taken for what, by the day; labels are counted from `feedback` as long as they are there.
confusions = sa.Table(
    "confusions",
    metadata,
    sa.Column("at", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("source", sa.String(16), primary_key=True),
    sa.Column("truth", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("predicted", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("images", sa.Integer, nullable=False),
)

# What each version said to each gate image when it was probed last.
probes = sa.Table(
    "probes",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("truth", sa.Integer, nullable=False),
    sa.Column("predicted", sa.Integer, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)

drift = sa.Table(
    "drift",
    metadata,
    sa.Column("at", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("window", sa.String(8), primary_key=True),  # short, long
    sa.Column("test", sa.String(32), primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("p_value", sa.Float, nullable=False),
    sa.Column("rejected", sa.Boolean, nullable=False),  # after the correction for many tests
)

alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # quiet, raised
    sa.Column("since", sa.String(32), nullable=False),
    sa.Column("in_a_row", sa.Integer, nullable=False),  # looks that speak for the other state
    sa.Column("message", sa.Text, nullable=False),
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(32), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),  # swap, alarm, cleared, rollback, probe-failed …
    sa.Column("version", sa.Integer),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
