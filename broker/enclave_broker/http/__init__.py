"""The HTTP door, on Litestar."""

from .app import create_app
from .refusals import MAX_BODY_BYTES

__all__ = ["MAX_BODY_BYTES", "create_app"]
