from support.live_server import Running, Serve, parse, request, serve

__all__ = ["Running", "Serve", "parse", "request", "serve"]
