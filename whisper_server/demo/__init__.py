"""The bundled demo model and its sample recordings."""
