"""Clients of the server for other frameworks. They speak its protocols and import nothing else of it."""
