"""Labelled images on arrival: looked at, stored by content, and given a role once and for good."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import sqlalchemy as sa

from lifelist.deploy import tables, withdrawn
from lifelist.deploy.naming import Names, class_name, names, names_in
from lifelist.deploy.records import KnownClass, Rollout, now
from lifelist.deploy.store import QUEUED, Store, lock_classes, open_rollout_of
from lifelist.deploy.workshop import Workshop, learned_images
from lifelist.exporter.errors import BadInput, Conflict, TooLarge
from lifelist.exporter.manifest import Manifest, Preprocess
from lifelist.exporter.preprocess import Pixels, decode
from lifelist.training.names import alike, looks_like

Role = Literal["training", "holdout", "gate"]
ROLES: tuple[Role, ...] = ("training", "holdout", "gate")  # by their numbers in training/job.py
TRIES = 10  # before what another request brings in between is taken for an error
LOT = 256  # decoded images that are held at a time


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """What became of one image that was sent. `role` where it was accepted, `reason` where it was refused."""

    file: str
    sha256: str
    status: Literal["accepted", "duplicate", "refused"]
    role: Role | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An image that is kept."""

    sha256: str
    class_id: int
    role: Role


@dataclass(frozen=True, slots=True)
class Arrived:
    """An image that was sent, before it is accepted. `reason`: why it cannot be."""

    file: str
    sha256: str
    size: int
    reason: str | None


def roles(gate_share: float, holdout_share: float) -> Iterator[Role]:
    """The roles of a class's first, second, third … image: a fixed pattern, so that every class is shared out alike.

    Each image goes to the role that lags most behind its share; at a draw to the gate, then the hold-out. The first is
    for training, and of the shares 0.2 and 0.1 the pattern is  t g t t h t t g t t,  over and over.
    """
    shares: dict[Role, Fraction] = {
        "gate": Fraction(gate_share).limit_denominator(1000),
        "holdout": Fraction(holdout_share).limit_denominator(1000),
    }
    wanted: dict[Role, Fraction] = {**shares, "training": 1 - shares["gate"] - shares["holdout"]}
    given = dict.fromkeys(wanted, 0)
    yield "training"
    given["training"] += 1
    for count in itertools.count(2):
        role = max(wanted, key=lambda r: wanted[r] * count - given[r])
        given[role] += 1
        yield role


def warnings(known: KnownClass, called: Names) -> list[str]:
    """What is said of a class whose name others have but for case, accents or separators; they stay classes apart."""
    others = [called.known(class_id).name for class_id in called.ids if class_id != known.id]
    return [looks_like(group) for group in alike([*others, known.name]) if known.name in group]


def add(workshop: Workshop, name: str, files: Iterable[tuple[str, bytes]]) -> list[ExampleResult]:
    """Give the class `name` images, one (file name, bytes) at a time: what became of each, in order.

    The name may be an alias; images of a class that is merged into another are the other's. All that can be accepted
    are, in one transaction, after their bytes are safe on disk. Those of a trained class wait for an increment, too.
    BadInput without an image, or if a new class would have none; TooLarge over the limit of a request; Conflict if the
    class is being learned now, or is retired.
    """
    name = class_name(name)
    called = names(workshop, workshop.live)
    if (found := called.find(name)) is not None:
        known = called.learned_as(called.known(found))
        with workshop.store.reading() as connection:
            _check_open(known, open_rollout_of(connection, [known.id]))
    return accept(workshop, name, look_at(workshop, files))


def look_at(workshop: Workshop, files: Iterable[tuple[str, bytes]]) -> list[Arrived]:
    """Decode each image as training will, and keep the bytes of those that can be."""
    settings, live = workshop.settings, workshop.live
    seen = decoding(settings.training.image_size, settings.training.resized_to) if live is None else live.preprocess
    arrived: list[Arrived] = []
    for file, data in files:
        if len(arrived) == settings.examples.max_per_request:
            raise TooLarge(f"more than {len(arrived)} images in one request; send them in several")
        reason = None
        try:
            decode(data, seen, settings.serving.image_limits)
            workshop.images.put(data)
        except BadInput as error:
            reason = str(error)
        arrived.append(Arrived(file, hashlib.sha256(data).hexdigest(), len(data), reason))
    return arrived


def accept(workshop: Workshop, name: str, arrived: Sequence[Arrived]) -> list[ExampleResult]:
    """The second half of `add`, of images that were looked at."""
    name = class_name(name)
    if not arrived:
        raise BadInput(f"no image was sent for class {name!r}; send at least one")
    for _ in range(TRIES - 1):
        with contextlib.suppress(sa.exc.IntegrityError):  # another request brought the class, or one of the images
            return _accept(workshop, name, arrived)
    return _accept(workshop, name, arrived)


def _accept(workshop: Workshop, name: str, arrived: Sequence[Arrived]) -> list[ExampleResult]:
    """Rows for the images that are new; one that was deleted is kept again, in its old role.

    IntegrityError if another transaction came between: try again.
    """
    c, shares, at, live = tables.examples.c, workshop.settings.examples, now(), workshop.live
    with workshop.store.writing() as connection:
        owners: dict[str, int] = {}
        gone: dict[str, Role] = {}  # their rows stayed when their bytes were deleted
        for some in _batches([image.sha256 for image in arrived]):
            query = sa.select(c.sha256, c.class_id, c.role, c.gone_at).where(c.sha256.in_(some))
            for row in connection.execute(query):
                owners[row.sha256] = row.class_id
                gone |= {row.sha256: row.role} if row.gone_at is not None else {}
        called = names_in(connection, live)
        if (found := called.find(name)) is None:
            if not any(image.reason is None and image.sha256 not in owners for image in arrived):
                reasons = [f"{r.file}: {r.reason}" for r in (_result(i, owners, called, None) for i in arrived[:3])]
                raise BadInput(f"no image of the new class {name!r} can be accepted. {'; '.join(reasons)}")
            insert = tables.classes.insert().values(name=name, created_at=at).returning(tables.classes.c.id)
            known = KnownClass(int(connection.execute(insert).scalar_one()), name)
        else:
            known = called.learned_as(called.known(found))
        class_id = known.id
        lock_classes(connection, [class_id])
        _check_open(known, open_rollout_of(connection, [class_id]))
        number = connection.execute(sa.select(sa.func.count()).where(c.class_id == class_id)).scalar_one()
        pattern = itertools.islice(roles(shares.gate_share, shares.holdout_share), number, None)
        results: list[ExampleResult] = []
        rows: list[dict[str, object]] = []
        for image in arrived:
            result = _result(image, owners, called, class_id)
            if result.status == "duplicate" and (role := gone.pop(image.sha256, None)) is not None:
                result = replace(result, status="accepted", role=role)
                again = tables.examples.update().where(c.sha256 == image.sha256)
                connection.execute(again.values(gone_at=None, added_at=at))
            elif result.status == "accepted":
                result = replace(result, role=next(pattern))
                rows.append(
                    {"sha256": image.sha256, "class_id": class_id, "number": number + len(rows), "role": result.role}
                    | {"size": image.size, "added_at": at}
                )
                owners[image.sha256] = class_id
            results.append(result)
        if rows:
            connection.execute(tables.examples.insert(), rows)
        if any(result.status == "accepted" for result in results):
            withdrawn.clear(connection, [class_id])
    return results


def _result(image: Arrived, owners: dict[str, int], called: Names, class_id: int | None) -> ExampleResult:
    """What becomes of an image, the role left open; owners: the classes of the images that are known already."""
    if image.reason is not None:
        return ExampleResult(image.file, image.sha256, "refused", reason=image.reason)
    owner = owners.get(image.sha256)
    if owner is None:
        return ExampleResult(image.file, image.sha256, "accepted")
    if class_id is not None and class_id in (owner, called.instead.get(owner)):
        return ExampleResult(image.file, image.sha256, "duplicate")
    reason = f"the same image is already an example of class {called.known(owner).name!r}; an image shows one class"
    return ExampleResult(image.file, image.sha256, "refused", reason=reason)


def _check_open(known: KnownClass, rollout: Rollout | None) -> None:
    """Conflict if images of this class would come too late to be learned from."""
    if rollout and rollout.state != QUEUED:
        raise Conflict(
            f"class {known.name!r} is being learned by increment {rollout.id} ({rollout.state}); "
            "its images were fixed when that began. Cancel it to add more"
        )


def counts(store: Store, class_id: int) -> dict[str, int]:
    """How many images of a class are kept, by role."""
    c = tables.examples.c
    query = sa.select(c.role, sa.func.count()).where(c.class_id == class_id, c.gone_at.is_(None)).group_by(c.role)
    with store.reading() as connection:
        found = {row.role: row[1] for row in connection.execute(query)}
    return {role: int(found.get(role, 0)) for role in ROLES}


def state_of(live: Manifest | None, class_id: int) -> Literal["pending", "enrolled", "trained"]:
    """Whether a class has a row in the live version's last layer, a mean, or nothing yet."""
    return next((entry.state for entry in live.classes if entry.id == class_id), "pending") if live else "pending"


def kept(store: Store, class_ids: Iterable[int] | None = None) -> list[Example]:
    """The images that are kept, of all classes or some; by class, then in order of arrival."""
    c = tables.examples.c
    query = sa.select(c.sha256, c.class_id, c.role).where(c.gone_at.is_(None)).order_by(c.class_id, c.number)
    with store.reading() as connection:
        found = [Example(*row) for row in connection.execute(query)]
    wanted = None if class_ids is None else set(class_ids)
    return found if wanted is None else [example for example in found if example.class_id in wanted]


def learned(store: Store, live: Manifest | None) -> list[Example]:
    """The kept images as they are learned: those of a merged class as their target's, those of a retired one not."""
    found = kept(store)
    instead = live.instead if live else {}
    if not instead:
        return found
    answered = ((example, instead.get(example.class_id, example.class_id)) for example in found)
    return [replace(example, class_id=class_id) for example, class_id in answered if class_id is not None]


def waiting(workshop: Workshop, live: Manifest | None, class_ids: Iterable[int] | None = None) -> list[Example]:
    """The images to learn, of all classes or some, that the model of `live` has not learned from, whatever their role.

    Of a class without a row in it, that is all; of a trained one, what came since. It follows from the version alone,
    so that it is right after a rollback, and after an increment that came to nothing.
    """
    found = learned(workshop.store, live)
    if class_ids is not None:
        wanted = set(class_ids)
        found = [example for example in found if example.class_id in wanted]
    if live is None:
        return found
    trained, known = {entry.id for entry in live.trained}, learned_images(workshop.registry, live)
    return [example for example in found if example.class_id not in trained or example.sha256 not in known]


def pending(workshop: Workshop, live: Manifest | None) -> list[KnownClass]:
    """The classes that wait for training: with training images that live has not learned from, in no open increment.

    What an operator withdrew waits for nothing, nor does what is retired.
    """
    store = workshop.store
    learning = {class_id for rollout in store.open_rollouts() for class_id in rollout.class_ids}
    out = withdrawn.ids(store, live)
    with_images = {example.class_id for example in waiting(workshop, live) if example.role == "training"}
    called = names(workshop, live)
    return [called.known(class_id) for class_id in sorted(with_images - learning - out)]


def decoding(size: int, resize_to: int) -> Preprocess:
    """Preprocessing as far as pixels go: mean and std are the graph's."""
    return Preprocess(size, resize_to, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pixels(workshop: Workshop, digests: Sequence[str], preprocess: Preprocess) -> Pixels:
    """The images with these ids as the model sees them, N×S×S×3 uint8, verified and in the same order."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda digest: decode(workshop.images.get(digest), preprocess), digests))
    return np.stack(found) if found else np.zeros((0, preprocess.size, preprocess.size, 3), np.uint8)


def lots(workshop: Workshop, digests: Sequence[str], preprocess: Preprocess) -> Iterator[Pixels]:
    """The same, a lot at a time: together they may be larger than memory."""
    return (pixels(workshop, digests[start : start + LOT], preprocess) for start in range(0, len(digests), LOT))


def forget(workshop: Workshop, digests: Sequence[str]) -> None:
    """Delete the bytes of images. Their rows stay, marked: an image that is sent again is kept in its old role."""
    for digest in digests:
        workshop.images.remove(digest)
    c = tables.examples.c
    with workshop.store.writing() as connection:
        for some in _batches(digests):
            connection.execute(tables.examples.update().where(c.sha256.in_(some)).values(gone_at=now()))


def put_aside(store: Store) -> None:
    """As if no image had come. One that is sent again has its old role if an increment may have had it; else it and its
    class are new. Bytes stay until they are swept.
    """
    with store.writing() as connection:
        if connection.scalar(sa.select(sa.func.count()).select_from(tables.rollouts)):
            connection.execute(
                tables.examples.update().where(tables.examples.c.gone_at.is_(None)).values(gone_at=now())
            )
        else:
            connection.execute(tables.examples.delete())
            connection.execute(tables.classes.delete())


def sweep(workshop: Workshop, older_than_s: float) -> int:
    """Delete bytes that no kept image refers to, left by requests that were refused or killed; how many there were.

    What is younger than `older_than_s` may belong to a request under way.
    """
    known = {example.sha256 for example in kept(workshop.store)}
    stray = [d for d in workshop.images.digests() if d not in known and workshop.images.age_s(d) >= older_than_s]
    for digest in stray:
        workshop.images.remove(digest)
    return len(stray)


def _batches(digests: Sequence[str], size: int = 500) -> Iterator[Sequence[str]]:
    """In parts: a database takes only so many parameters in one statement."""
    return (digests[start : start + size] for start in range(0, len(digests), size))
