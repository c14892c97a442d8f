"""An image classifier that learns new classes while it serves. What a client of a server needs is here by name:

    from lifelist import AsyncClient, Client

Everything else is imported from where it is: `lifelist.exporter.registry`, `lifelist.training.increment`, …
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelist.client.asynchronous import AsyncClient
    from lifelist.client.blocking import Client
else:
    _WHERE = {"AsyncClient": "lifelist.client.asynchronous", "Client": "lifelist.client.blocking"}

    def __getattr__(name: str) -> Any:
        """One of the clients, loaded when it is asked for: `import lifelist.exporter` stays as light as it is."""
        if name not in _WHERE:
            raise AttributeError(f"module 'lifelist' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)


__all__ = ["AsyncClient", "Client"]
