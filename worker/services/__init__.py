"""The running services, one file each."""
