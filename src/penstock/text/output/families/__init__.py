"""One file for each family of output formats, or for families that differ in a marker or two."""
