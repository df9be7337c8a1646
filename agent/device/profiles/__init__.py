"""What is worth trying on a kind of device: the format of device_profiles/*.yaml, and which of them fit."""
