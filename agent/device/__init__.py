"""The device: probes → facts, profiles, and the plan (pure): facts × profile × bundle × measurements."""
