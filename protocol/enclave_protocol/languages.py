"""What guests write."""

from __future__ import annotations

from typing import Literal, get_args

Language = Literal["python", "javascript", "shell"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
DEFAULT_LANGUAGE: Language = "python"
"""What code is if nobody says."""
MAX_SCRIPT_BYTES = 128 * 1024 - 1
"""Largest script for the shell, in UTF-8 bytes: it is one argument of a program, and the kernel takes no larger one."""
