"""Core: composes every service, and is the only module that knows them all.

One thread takes messages from one queue: from the broker link, from workers, from the preparing thread. It hands each to the state
machine that decides (outbox, supervision, conditions) and carries out what they answer. Nothing else touches SQLite. Core
imports neither ONNX Runtime nor OpenCV: what they do happens in child processes.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.bundle.reader import Bundle
from agent.clock import Clock, Random, SystemClock, SystemRandom
from agent.device.facts import Facts
from agent.device.plan import Candidate, Outcome
from agent.device.planstore import PlanStore
from agent.device.profile import Profile
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.identity import device_identity
from agent.mqtt.link import Link
from agent.mqtt.messages import Connected, ConnectFailed, Disconnected, LinkMessage, MessageArrived, PublishAcknowledged
from agent.mqtt.topics import Topics
from agent.outbox.actions import Action, ClearCondition, Publish, SetCondition
from agent.outbox.envelope import Envelope, ModelInfo
from agent.outbox.outbox import Outbox
from agent.outbox.store import EventStore
from agent.paths import StatePaths, hold_state, open_state
from agent.preparation import Preparation, Prepared
from agent.settings import Settings
from agent.status import Status

log = logging.getLogger(__name__)

STOP_BUDGET_S = 1.0
"""How long workers may take to finish; with the link's farewell all of core is gone within 2 s of SIGTERM."""
STATUS_PERIOD_S = 1.0
METRICS_PERIOD_S = 60.0
