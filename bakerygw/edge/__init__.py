"""The public side: the HTTP channel, the pipeline, delivery to the client."""
