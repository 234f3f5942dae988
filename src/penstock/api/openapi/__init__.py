"""`/openapi.json`: a module for each API, each with the bodies and the paths of its routes."""
