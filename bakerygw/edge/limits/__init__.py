"""What callers may spend, and what they are told of it."""
