"""Students: networks that learn masks from pseudo labels, or from true ones, and then answer alone."""
