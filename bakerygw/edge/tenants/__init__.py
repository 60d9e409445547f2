"""What is known of a tenant beyond the token: asked of other services, inherited, changed."""
