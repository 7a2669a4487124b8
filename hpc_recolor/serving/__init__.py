"""A page to color photographs on, and the same over HTTP."""
