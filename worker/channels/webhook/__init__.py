"""The webhook channel: each message is a signed POST to a gateway, for example of SMS or push."""
