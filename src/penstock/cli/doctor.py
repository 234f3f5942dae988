"""`penstock doctor`"""


def doctor() -> None: ...
