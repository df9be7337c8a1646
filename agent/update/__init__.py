"""Signed release → active bundle: trust, transports, staging, slots, switch, probation."""
