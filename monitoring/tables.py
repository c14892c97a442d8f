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
    sa.Column(
        "via", sa.String(16), nullable=False, server_default=""
    ),  # review: of an image that was chosen as a hard one
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
    sa.Column("kind", sa.String(32), nullable=False),  # of options.KINDS
    sa.Column("version", sa.Integer),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

# What could not be kept or looked at, in all: "answers" that nobody watched, "images" for review.
losses = sa.Table(
    "losses",
    metadata,
    sa.Column("what", sa.String(16), primary_key=True),
    sa.Column("lost", sa.Integer, nullable=False),
)

# When a process last tried whether the database takes a write.
heartbeats = sa.Table(
    "heartbeats",
    metadata,
    sa.Column("process", sa.String(16), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
)

# How many of the answers that were looked at seemed unknown; `at`: where ten minutes begin.
unknowns = sa.Table(
    "unknowns",
    metadata,
    sa.Column("at", sa.String(32), primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("unknown", sa.Integer, nullable=False),
)

# Images that a person may label, and those that were labelled or skipped of late.
review = sa.Table(
    "review",
    metadata,
    sa.Column("prediction_id", sa.String(400), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),  # of the PNG, in the folder `review`
    sa.Column("state", sa.String(16), nullable=False, index=True),  # open, labelled, skipped
    sa.Column("use", sa.Float, nullable=False),  # of its label, 0 … 1: those of more use are shown first, and stay
    sa.Column("why", sa.JSON, nullable=False),  # of review.WHY
    sa.Column("version", sa.Integer, nullable=False),  # that answered
    sa.Column("answer", sa.String(16), nullable=False),
    sa.Column("predicted", sa.Integer, nullable=False),
    sa.Column("margin", sa.Float),  # null: the version was not calibrated
    sa.Column("unknown", sa.Float),
    sa.Column("suggestions", sa.JSON, nullable=False),  # [[class id, how probable it is or null], …], best first
    sa.Column("at", sa.String(32), nullable=False, index=True),  # when it was answered
    sa.Column("added_at", sa.String(32), nullable=False, index=True),
    sa.Column("truth", sa.Integer),  # once labelled
    sa.Column("judged_at", sa.String(32)),
)

# How far each webhook has been told.
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("url", sa.String(1000), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),  # the last notice that it has, or has been given up
    sa.Column("attempts", sa.Integer, nullable=False),  # at the next one, all in vain
    sa.Column("first_at", sa.Float),  # Unix time of the first of those
    sa.Column("next_at", sa.Float, nullable=False),  # Unix time before which it is not tried again
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("url", sa.String(1000), nullable=False, index=True),
    sa.Column("notice", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),  # delivered, failed, given-up
    sa.Column("status", sa.Integer),  # of the answer; null: there was none
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
