"""Detections or scores → Event: tracking, zones, rules. Pure: time comes with the sample."""
