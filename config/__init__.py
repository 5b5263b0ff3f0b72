"""Settings: typed groups with their defaults, units and reasons, and the sources that fill them."""
