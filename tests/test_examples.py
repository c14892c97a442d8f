"""Images on arrival: each gets one role, once and for good, and what is accepted is not lost."""

import hashlib
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import BIRDS, tiny_version
from parts_rollout import NAMES, add, pictures, settings

from lifelist.deploy import examples
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter.errors import BadInput, Conflict, TooLarge


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return open_workshop(settings(tmp_path))


def statuses(found: list[examples.ExampleResult]) -> list[str]:
    return [result.status for result in found]


def test_the_pattern_of_roles_begins_with_training_and_has_the_shares_in_every_ten() -> None:
    first = "".join(role[0] for role in itertools.islice(examples.roles(0.2, 0.1), 30))
    assert first == "tgtthttgtt" * 3


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))
def test_roles_follow_their_shares_within_one_image_however_many_there_are(gate: int, held: int, count: int) -> None:
    found = Counter(itertools.islice(examples.roles(gate / 100, held / 100), count))
    assert next(examples.roles(gate / 100, held / 100)) == "training"
    assert abs(found["gate"] - count * gate / 100) <= 1
    assert abs(found["holdout"] - count * held / 100) <= 1


def test_every_image_of_a_class_continues_the_class_s_pattern_over_many_requests(workshop: Workshop) -> None:
    sizes = (1, 4, 2, 7, 6)
    given_roles = []
    for first, size in zip(itertools.accumulate((0, *sizes)), sizes, strict=False):
        found = examples.add(workshop, "red", pictures("red", size, first))
        assert statuses(found) == ["accepted"] * size
        given_roles += [result.role for result in found]
    assert given_roles == list(itertools.islice(examples.roles(0.2, 0.1), sum(sizes)))
    assert [example.role for example in examples.kept(workshop.store)] == given_roles


def test_each_image_is_answered_for_and_what_is_sent_again_changes_nothing(workshop: Workshop) -> None:
    sent = pictures("red", 3)
    first = examples.add(workshop, "red", [*sent, ("broken.png", sent[0][1][:60]), ("text.txt", b"no image"), sent[1]])
    assert statuses(first) == ["accepted"] * 3 + ["refused"] * 2 + ["duplicate"]
    assert "broken or cut off" in (first[3].reason or "")
    assert first[3].file == "broken.png"
    assert first[0].sha256 == hashlib.sha256(sent[0][1]).hexdigest()
    before = examples.kept(workshop.store)
    assert statuses(examples.add(workshop, "red", sent)) == ["duplicate"] * 3
    assert examples.kept(workshop.store) == before
    assert [workshop.images.get(e.sha256) for e in before] == [data for _, data in sent]


def test_the_same_image_under_another_class_is_refused_with_the_class_that_has_it(workshop: Workshop) -> None:
    add(workshop, ["red"], 2)
    found = examples.add(workshop, "green", [*pictures("green", 1), *pictures("red", 1)])
    assert statuses(found) == ["accepted", "refused"]
    assert found[1].reason == "the same image is already an example of class 'red'; an image shows one class"


def test_a_new_class_without_one_image_that_can_be_accepted_is_not_made(workshop: Workshop) -> None:
    add(workshop, ["red"], 1)
    for files, reason in (([("a.png", b"?")], "a.png: not an image"), (pictures("red", 1), "example of class 'red'")):
        with pytest.raises(BadInput, match=f"no image of the new class 'green' can be accepted.*{reason}"):
            examples.add(workshop, "green", files)
    with pytest.raises(BadInput, match="no image was sent for class 'green'"):
        examples.add(workshop, "green", [])
    assert [known.name for known in workshop.store.classes()] == ["red"]


@pytest.mark.parametrize(
    ("name", "kept"), [("  grey heron ", "grey heron"), ("u\N{COMBINING DIAERESIS}ber", "über"), ("鷺", "鷺")]
)
def test_a_class_name_is_kept_in_one_spelling(workshop: Workshop, name: str, kept: str) -> None:
    examples.add(workshop, name, pictures("red", 1))
    examples.add(workshop, kept, pictures("red", 2))
    assert [known.name for known in workshop.store.classes()] == [kept]


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\nb", "a\x00b", "\ud800"])
def test_a_name_that_nobody_could_read_is_refused(workshop: Workshop, name: str) -> None:
    with pytest.raises(BadInput, match="a class name has"):
        examples.add(workshop, name, pictures("red", 1))


def test_more_images_than_a_request_may_have_are_refused_whole(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path, examples=ExampleOptions(max_per_request=3)))
    with pytest.raises(TooLarge, match="more than 3 images in one request"):
        examples.add(workshop, "red", pictures("red", 4))
    assert examples.kept(workshop.store) == []
    assert examples.sweep(workshop, older_than_s=3600) == 0  # young bytes may belong to a request under way
    assert examples.sweep(workshop, older_than_s=0) == 3


def test_images_are_taken_of_classes_in_every_state(workshop: Workshop) -> None:
    add(workshop, BIRDS[:0], 0)
    for name in ("heron", "gull"):
        examples.add(workshop, name, pictures(NAMES[("heron", "gull").index(name)], 1))
    tiny_version(workshop.registry, ("heron",), enrolled=("gull",), first_id=1, live=True)
    for name, shown in (("heron", "red"), ("gull", "green"), ("wren", "blue")):
        assert statuses(examples.add(workshop, name, pictures(shown, 1, first=50))) == ["accepted"]
    assert [examples.state_of(workshop.live, k) for k in (1, 2, 3)] == ["trained", "enrolled", "pending"]


def test_images_that_would_come_too_late_for_their_increment_are_refused(workshop: Workshop) -> None:
    add(workshop, ["red"], 8)
    queued = workshop.store.add_rollout("bic", [1])
    assert statuses(examples.add(workshop, "red", pictures("red", 1, first=50))) == ["accepted"]
    workshop.store.move(queued, "intake")
    with pytest.raises(Conflict, match=r"'red' is being learned by increment 1 \(intake\).*Cancel it to add more"):
        examples.add(workshop, "red", pictures("red", 1, first=60))
    workshop.store.move(workshop.store.rollout(queued.id), "failed")
    assert statuses(examples.add(workshop, "red", pictures("red", 1, first=60))) == ["accepted"]


def test_an_image_that_was_deleted_comes_back_in_its_old_role_when_it_is_sent_again(workshop: Workshop) -> None:
    add(workshop, ["red"], 4)
    before = examples.kept(workshop.store)
    first, second, *rest = before
    for _ in range(2):  # after a kill between bytes and row it is done again
        examples.forget(workshop, [first.sha256, second.sha256])
    assert examples.kept(workshop.store) == rest
    assert not workshop.images.has(first.sha256)
    found = examples.add(workshop, "red", [*pictures("red", 1, first=4), *pictures("red", 3), *pictures("red", 1)])
    assert statuses(found) == ["accepted", "accepted", "accepted", "duplicate", "duplicate"]
    assert [result.role for result in found[:3]] == ["holdout", "training", "gate"]  # the fifth of the pattern first
    assert examples.kept(workshop.store)[:4] == before
    assert [workshop.images.get(e.sha256) for e in before] == [data for _, data in pictures("red", 4)]
    assert statuses(examples.add(workshop, "red", pictures("red", 5))) == ["duplicate"] * 5


def test_a_deleted_image_does_not_come_back_as_another_class(workshop: Workshop) -> None:
    add(workshop, ["red", "green"], 2)
    examples.forget(workshop, [e.sha256 for e in examples.kept(workshop.store, [1])])
    found = examples.add(workshop, "green", pictures("red", 2))
    assert statuses(found) == ["refused"] * 2
    assert "already an example of class 'red'" in (found[0].reason or "")


def test_eight_requests_at_once_for_one_new_class_share_out_its_roles_without_a_gap(workshop: Workshop) -> None:
    begin = threading.Barrier(8)

    def send(number: int) -> list[str]:
        begin.wait()
        return statuses(examples.add(workshop, "red", pictures("red", 5, first=4 * number)))  # the neighbours overlap

    with ThreadPoolExecutor(8) as pool:
        sent = list(itertools.chain.from_iterable(pool.map(send, range(8))))
    assert Counter(sent) == {"accepted": 33, "duplicate": 7}
    kept = examples.kept(workshop.store)
    assert [example.role for example in kept] == list(itertools.islice(examples.roles(0.2, 0.1), 33))


def test_classes_wait_for_training_until_they_are_in_an_increment(workshop: Workshop) -> None:
    add(workshop, ["red", "green"], 5)
    assert [known.name for known in examples.pending(workshop, None)] == ["red", "green"]
    workshop.store.add_rollout("bic", [1])
    assert [known.name for known in examples.pending(workshop, None)] == ["green"]
