"""MQTT 5 reason codes of a PUBACK (section 3.4.2.1) in the operator's words."""

from __future__ import annotations

_ADVICE = {
    0x80: "unspecified error (0x80); look into the broker's log.",
    0x83: "implementation specific error (0x83); look into the broker's log.",
    0x87: "not authorised (0x87); allow this device to write to its topic in the broker's ACL.",
    0x90: "topic name invalid (0x90); choose another `mqtt.topic_prefix`, or allow it in the broker.",
    0x91: "packet identifier in use (0x91); look into the broker's log.",
    0x97: "quota exceeded (0x97); raise the broker's limit for this client.",
    0x99: "payload format invalid (0x99); the broker checks payloads: let it accept CloudEvents JSON.",
}


def denial_advice(reason_code: int) -> str:
    """Return what the code means and what to do."""
    return _ADVICE.get(reason_code, f"reason code 0x{reason_code:02x}; look into the broker's log.")
