"""What the data path adds to Twisted: sockets polled together, and coroutines that run without Deferreds."""
