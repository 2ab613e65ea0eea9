"""Operations that run once: the command line calls them."""
