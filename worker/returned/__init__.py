"""Returned mail: what a mail that came back says, and where such mail comes from."""
