"""What the lab cannot do, as one message that names the log to read."""

from __future__ import annotations

from glb.errors import GlbError


class LabError(GlbError):
    """The lab could not be built, a program of it failed, or something did not happen in time."""
