"""`penstock batch`"""


def batch() -> None: ...
