"""Resources and protocols of Twisted on the gateway's own connections."""
