"""The HTTP server: routes, TLS and users."""
