"""The native CPU backend: a whole step in one call, without torch.

`native/` holds the C++; this package prepares weights for it (`weights.py`) and runs Programs
(`executable.py`). The instruction set is chosen at run time, all of them are in one binary.
"""
