"""What ONNX Runtime offers on this device. Native code: only the probe imports this, never core."""

from __future__ import annotations

import onnxruntime

from agent.device.facts import EpDevice


def runtime_version() -> str:
    """Return ONNX Runtime's version, such as `1.31.1`."""
    return str(onnxruntime.__version__)


def ep_devices() -> tuple[EpDevice, ...]:
    """Return each device that a registered execution provider can drive, sorted: the order must not move a fingerprint.

    The CPU provider reports the runtime's own version as its metadata; it is left out, since a plan is keyed by
    the runtime's version anyway and the hardware did not change.
    """
    return tuple(sorted((_ep_device(device) for device in onnxruntime.get_ep_devices()), key=_order))


def _ep_device(device: onnxruntime.OrtEpDevice) -> EpDevice:
    metadata = {**device.device.metadata, **device.ep_metadata}
    version = metadata.pop("version", "")
    return EpDevice(
        provider=str(device.ep_name),
        device_type=str(device.device.type.name).lower(),
        vendor=str(device.device.vendor),
        name=str(metadata.pop("Description", "")),
        driver_version="" if version == runtime_version() else str(version),
        metadata=tuple(sorted((str(key), str(value)) for key, value in metadata.items())),
    )


def _order(device: EpDevice) -> tuple[str, str, str, str]:
    return device.provider, device.device_type, device.vendor, device.name
