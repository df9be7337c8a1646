"""What runs on the device: frames become events, signed releases become running bundles."""

__version__ = "0.1.0"
