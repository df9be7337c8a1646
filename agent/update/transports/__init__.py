"""Where a release's bytes come from: MQTT, HTTP or a folder, behind one interface."""
