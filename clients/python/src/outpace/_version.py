"""Version of this package, which is also the version of outpace that it was tested with."""

__version__ = "0.1.0"
