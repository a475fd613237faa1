"""Published sets as pairs and written responses."""
