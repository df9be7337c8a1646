"""The release repository: keys, signed metadata, files that travel, and the server that gives them out over MQTT."""
