"""The one place that names the version; setup.py, ``--version`` and the metrics read it."""

__version__ = "0.1.0"
