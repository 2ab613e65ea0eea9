"""The wire of Sendoff: routing names and the models of every message. Needs pydantic alone."""

from __future__ import annotations
