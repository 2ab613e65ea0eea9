"""The Sendoff worker: confirms, fans out, sends and records deliveries."""

from __future__ import annotations
