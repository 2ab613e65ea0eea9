"""The tracker: opens, clicks, mirror pages and opt-outs over HTTP."""
