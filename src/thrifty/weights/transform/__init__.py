"""Equivalent rewrites of a space before its consumers are compressed; one method, one file."""
