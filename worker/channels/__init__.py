"""The sending channels: what one is (`protocol`), which there are (`registry`), and each in its own place."""
