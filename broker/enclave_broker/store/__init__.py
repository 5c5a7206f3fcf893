"""What a broker keeps of its sessions: their records and their events, in memory or in a file that survives it."""

from .base import Loaded, Store, StoreError, Unended
from .memory import MemoryStore

__all__ = ["Loaded", "MemoryStore", "Store", "StoreError", "Unended"]
