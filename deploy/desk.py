"""What the routes of the operator work with, and how they get it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Request

from lifelist.deploy.quality import Quality
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import Overloaded
from lifelist.serving import prediction
from lifelist.serving.rate import Buckets


class Desk:
    """What the routes work with. `turn` is held by whoever adds examples."""

    def __init__(self, workshop: Workshop, quality: Quality) -> None:
        self.workshop, self.quality = workshop, quality
        self.key = prediction.key_in(workshop.settings.secret_file)
        self.turn = asyncio.Lock()
        self.uploads = 0  # under way
        daily = workshop.settings.examples.max_bytes_per_day
        self.quotas = Buckets(daily / 86_400, holds=daily)

    @contextmanager
    def upload(self) -> Iterator[None]:
        """For the time of an upload, its place among those that may go on at once. Overloaded if there is none."""
        limit = self.workshop.settings.examples.max_uploads
        if self.uploads >= limit:
            raise Overloaded(f"{limit} uploads of examples are under way, the limit; send it again when one is done")
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1


def the_desk(request: Request) -> Desk:
    """What the routes work with here."""
    found: Desk = request.app.state.desk
    return found


def the_workshop(request: Request) -> Workshop:
    """What the update path works with here."""
    return the_desk(request).workshop


AtDesk = Annotated[Desk, Depends(the_desk)]
With = Annotated[Workshop, Depends(the_workshop)]
