"""What runs on the device: frames become events, signed releases become running bundles."""

__version__ = "0.1.0"

RELEASED_ON = "2026-11-20"
"""UTC. No clock of a device that runs this program is right before this day."""
