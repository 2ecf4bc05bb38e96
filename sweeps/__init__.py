"""Which trials, in which order, on which machines."""
