"""The hot path: protocol v2, the cache, warming, smart HTTP, metrics, activity, and guests that mean ill."""
