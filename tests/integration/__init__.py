"""Parts working together, as a user meets them."""
