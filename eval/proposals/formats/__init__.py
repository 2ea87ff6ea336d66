"""Files of proposals, a module for each format; `entries` and `regions` are what they share."""
