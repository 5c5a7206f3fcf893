"""Property tests state what holds, not how fast: on a loaded machine Hypothesis's own deadlines would fail them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
