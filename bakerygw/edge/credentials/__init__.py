"""What a request presents to say who asks."""
