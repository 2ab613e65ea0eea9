"""The email channel: message building and the SMTP transport."""

from __future__ import annotations
