"""Authentication: the broker users who may publish commands, and the tokens of operators."""
