"""Clients of the server, for gRPC and for other frameworks. They import nothing else of it."""
