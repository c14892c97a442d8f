"""Every option of the request path."""

from pydantic import BaseModel, ConfigDict, Field


class ServingOptions(BaseModel):
    """How queries are answered; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="port to listen on")
