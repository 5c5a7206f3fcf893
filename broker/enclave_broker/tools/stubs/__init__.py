"""Typed declarations of the tools, for an agent's prompt or a type checker. Pure.

What goes into them (names, descriptions, schemas) may come from a document that somebody else writes, so every text
is put where it can only be text.
"""

from .python import python_stubs
from .typescript import typescript_stubs

__all__ = ["python_stubs", "typescript_stubs"]
