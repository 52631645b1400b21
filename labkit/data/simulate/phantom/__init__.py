"""A procedural rat head: an anatomy with nothing to download, drawn from tables of coronal outlines."""

from labkit.data.simulate.phantom.assembly import phantom_anatomy, phantom_structures

__all__ = ["phantom_anatomy", "phantom_structures"]
