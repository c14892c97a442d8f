"""Classes that change while a real server is under load: no request fails, and what is retired is named no more."""

import time

from parts import BIRDS
from parts_server import Load, Server, eventually


def test_changes_under_load_fail_no_request_and_hold_from_their_commit_on(server: Server) -> None:
    before = server.get("/v1/versions")["live"]
    done = []
    with Load(server) as load, server.http(60) as http:
        eventually(lambda: load.versions() == {before})
        for body in ({"retired": True}, {"retired": False, "name": "grey heron"}, {"merged_into": 1}):
            answer = http.patch("/v1/classes/0", json=body)
            assert answer.status_code == 200, answer.text
            done.append((answer.json()["version"], time.time()))
            eventually(lambda: load.after(done[-1][1] + 0.05))
        ending = time.time()
        assert server.promote(before).status_code == 200
        back = time.time()
        eventually(lambda: load.after(back))
    assert load.failures == []  # each answer names all that the version it names can answer, and nothing else
    for version, since in done:
        answered = {found for at, found, took in load.answered if at > since + 0.05 and at + took < ending}
        assert answered
        assert min(answered) >= version
    found = server.get("/v1/classes/0")
    assert (found["name"], found["retired"], found["merged_into"], found["version"]) == (BIRDS[0], False, None, before)
