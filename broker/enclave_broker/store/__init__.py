"""What a broker keeps of its sessions: their records and their events, in memory or in a file that survives it."""

from .base import Store, StoreError
from .memory import MemoryStore

__all__ = ["MemoryStore", "Store", "StoreError"]
