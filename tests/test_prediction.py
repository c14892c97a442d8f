"""Prediction ids carry version, class, answer and time, and cannot be made up or altered."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lifelist.exporter.errors import BadInput
from lifelist.serving import prediction
from lifelist.serving.prediction import KINDS, Prediction

KEY = bytes(range(32))
ANY = some.builds(
    Prediction,
    version=some.integers(1, 2**32 - 1),
    class_id=some.integers(0, 2**63 - 1),
    answer=some.sampled_from(KINDS),
    at=some.integers(0, 2**45).map(lambda milliseconds: milliseconds / 1000),
)


@given(ANY)
def test_what_is_sealed_opens_to_the_same(made: Prediction) -> None:
    sealed = prediction.seal(KEY, made)
    assert len(sealed) == 56
    assert set(sealed) <= set(string.ascii_letters + string.digits + "-_")
    assert prediction.open(KEY, sealed) == made


def test_two_answers_to_the_same_question_have_different_ids() -> None:
    made = Prediction(1, 2, "linear", 3.0)
    assert len({prediction.seal(KEY, made) for _ in range(1000)}) == 1000


def test_no_character_of_an_id_can_be_changed() -> None:
    sealed = prediction.seal(KEY, Prediction(3, 7, "nearest_mean", 1_700_000_000.123))
    for place in range(len(sealed)):
        other = "A" if sealed[place] != "A" else "B"
        with pytest.raises(BadInput, match="not given out by this server, or was altered"):
            prediction.open(KEY, sealed[:place] + other + sealed[place + 1 :])


def test_one_prediction_has_one_spelling() -> None:
    plain = str.maketrans("-_", "+/")
    sealed = next(text for k in range(100) if "_" in (text := prediction.seal(KEY, Prediction(k, 1, "linear", 1.0))))
    with pytest.raises(BadInput):
        prediction.open(KEY, sealed.translate(plain))


@pytest.mark.parametrize("text", ["", "x", "ä" * 56, "A" * 56, "A" * 10_000, "AQ==", "not base64!"])
def test_what_was_never_an_id_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(BadInput, match="send it as it was received") as refused:
        prediction.open(KEY, text)
    assert len(str(refused.value)) < 250


def test_an_id_of_another_server_is_refused() -> None:
    sealed = prediction.seal(bytes(32), Prediction(1, 1, "linear", 1.0))
    with pytest.raises(BadInput):
        prediction.open(KEY, sealed)


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret.key"
    first = prediction.key_in(path)
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert prediction.key_in(path) == first
    assert [p.name for p in path.parent.iterdir()] == ["secret.key"]


def test_a_key_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(b"short")
    with pytest.raises(BadInput, match="32 bytes, not 5"):
        prediction.key_in(tmp_path / "secret.key")
