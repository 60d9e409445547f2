"""The services behind the gateway: pooled connections, balancing, health."""
