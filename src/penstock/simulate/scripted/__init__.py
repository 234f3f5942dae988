"""A model whose replies are fixed: `penstock serve scripted:FILE`. For tests of clients and agents."""
