"""Pure rules: no input or output, no clock, no library that has any."""

from __future__ import annotations
