"""GLB: a stateless L4 load balancer. (The module map is drawn in ARCHITECTURE.md.)"""

from glb.version import __version__

__all__ = ["__version__"]
