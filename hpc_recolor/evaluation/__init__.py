"""A finished run measured, and photographs colored with it."""
