"""Settings and the routes file: text from outside, parsed once into frozen values."""
