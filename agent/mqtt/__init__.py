"""Outbox → broker; broker → hints and acknowledgements. The only package that imports paho."""
