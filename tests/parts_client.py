"""Both clients, asked in the same way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from lifelist import AsyncClient, Client

Ask = Callable[..., Any]  # (url, method, *arguments, of=its constructor's, **options)


def waiting(url: str, method: str, *arguments: Any, of: Any = None, **options: Any) -> Any:
    """Call a method of Client; a list of what it iterates over."""
    with Client(url, **(of or {})) as client:
        found = getattr(client, method)(*arguments, **options)
        return list(found) if isinstance(found, Iterator) else found


def awaiting(url: str, method: str, *arguments: Any, of: Any = None, **options: Any) -> Any:
    """Call a method of AsyncClient; a list of what it iterates over."""

    async def asked() -> Any:
        async with AsyncClient(url, **(of or {})) as client:
            found = getattr(client, method)(*arguments, **options)
            return [one async for one in found] if isinstance(found, AsyncIterator) else await found

    return asyncio.run(asked())


with_both = pytest.mark.parametrize("ask", [waiting, awaiting])
