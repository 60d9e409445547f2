"""Bearer tokens: keys, signatures, and the cache of verified claims."""
