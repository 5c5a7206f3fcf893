"""Who may call: keys, tenants, quotas, session tokens. `docs/access.md` is for those who use it."""

from .caller import CAPPABLE, DEFAULT_TENANT, LOCAL, SESSION_SCOPES, Caller, Denied, Scope, capped
from .gate import BEARER, Gate
from .keys import Book, parse_book
from .quotas import Account, Ledger, QuotaExceeded, Quotas, Usage
from .tokens import Signer

__all__ = [
    "BEARER",
    "CAPPABLE",
    "DEFAULT_TENANT",
    "LOCAL",
    "SESSION_SCOPES",
    "Account",
    "Book",
    "Caller",
    "Denied",
    "Gate",
    "Ledger",
    "QuotaExceeded",
    "Quotas",
    "Scope",
    "Signer",
    "Usage",
    "capped",
    "parse_book",
]
