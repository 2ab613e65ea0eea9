"""The email channel: message building and the SMTP transport."""
