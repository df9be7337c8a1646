"""Puts the release flow together for core: trust, transports, store, state machine, and what of the device they need.

Everything here belongs to core's thread but `_check`, `_fetch` and `_try`, which the updater's own thread calls. A
release's bytes come from outside and are checked by `agent.update`; whether a bundle is any good is found out here, by
the same trials that made the plan of the running one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from agent import atomicfile
from agent.bundle.reader import open_bundle
from agent.clock import Clock, Random
from agent.health.conditions import Conditions
from agent.mqtt.fetching import MqttTransport
from agent.mqtt.link import Link
from agent.mqtt.topics import Topics
from agent.paths import StatePaths
from agent.pipeline.jobs import with_overrides
from agent.pipeline.messages import PipelineJob
from agent.pipeline.workers import Workers
from agent.preparation import Prepared, Preparer, Wanted
from agent.settings import Settings
from agent.update.notes import Checked, WorkNote
from agent.update.record import Slot
