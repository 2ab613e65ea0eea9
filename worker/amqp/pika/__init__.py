"""What goes over aio-pika: commands, requests, answers, events, and the dead queue's commands."""
