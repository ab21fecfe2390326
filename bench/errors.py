"""What a benchmark cannot do, as one message."""

from __future__ import annotations

from glb.errors import GlbError


class BenchError(GlbError):
    """A benchmark cannot run here, or what it would measure is not the same work on both sides."""
