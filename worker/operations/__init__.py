"""What is done once at somebody's word: each is called by the command line and ends."""
