"""On a real server under load: a version that harms is found by a probe, taken back, and told of by webhook."""

import json
import time
from pathlib import Path

from parts import BIRDS, tiny_version
from parts_operator import files
from parts_server import Load, eventually, started
from test_fallen import broken
from test_webhooks import SECRET, Receiver, receiver  # noqa: F401  a fixture

from lifelist import Client
from lifelist.deploy import tables
from lifelist.deploy.records import now
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.monitoring import figures, notices


def rounds(shop: Workshop, version: int) -> int:
    """Probes that a version was asked."""
    found = figures.read(shop.store, 0, 2 * time.time(), groups=("all",), sources=("probe",), versions=(version,))
    return sum(one.rounds for one in found)


def test_a_harmful_version_is_rolled_back_by_itself_and_stays_when_promoted_again(
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
) -> None:
    home = tmp_path / "home"
    shop = open_workshop(Settings(home=home))
    good = tiny_version(shop.registry, BIRDS[:3], first_id=1, live=True)
    bad = broken(shop, good)
    with shop.store.writing() as connection:
        connection.execute(tables.classes.insert(), [{"name": name, "created_at": now()} for name in BIRDS[:3]])
    hook = json.dumps([{"url": receiver.url, "secret": SECRET, "kinds": ["swap", "rollback"]}])
    flags = (
        "--serving.replicas",
        "2",
        "--monitoring.every-s",
        "0.2",
        "--monitoring.rollback",
        "on",
        "--webhooks",
        hook,
    )
    with started(home, *flags) as server, Client(server.url) as client:
        for k, name in enumerate(BIRDS[:3]):
            client.add_examples(name, files(k, 40))
        eventually(lambda: rounds(shop, good.version), 60)
        with Load(server, clients=2) as load:
            assert client.promote(bad.version)["live"] == bad.version
            eventually(lambda: client.versions()["live"] == good.version, 60)
            told = eventually(lambda: [one for one in client.notices()["notices"] if one["kind"] == "rollback"])
            back = load.first(good.version, max(at for at, version, _ in load.answered if version == bad.version))
            assert back
        assert load.failures == []
        assert load.versions() == {good.version, bad.version}
        assert len(told) == 1
        assert told[0]["version"] == bad.version
        assert told[0]["data"]["before"] == good.version
        eventually(lambda: "lifelist.rollback" in {event["type"] for event in receiver.events})
        before = rounds(shop, bad.version)
        client.promote(bad.version)
        eventually(lambda: rounds(shop, bad.version) > before)
        time.sleep(1)
        assert client.versions()["live"] == bad.version
        assert sum(one.kind == "rollback" for one in notices.told(shop.store)) == 1
    shop.store.close()
