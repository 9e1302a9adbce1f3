"""The configuration: its schema, and how a file becomes it."""
