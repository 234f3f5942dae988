"""Which layers of a model draft best for it: places to draft at, costs, a search."""
