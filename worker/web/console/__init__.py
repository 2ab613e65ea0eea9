"""The console: the web page on which operators see and confirm deliveries."""
