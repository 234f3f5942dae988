from support.live_server import serve

__all__ = ["serve"]
