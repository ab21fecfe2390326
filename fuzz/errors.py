"""What ends a run."""


class Disagreement(Exception):
    """Two implementations made different things of one packet; the text has both and the packet in hex."""
