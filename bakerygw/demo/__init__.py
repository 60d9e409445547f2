"""Small but real services and data for a first look at the gateway."""
