"""Incremental parsers of model output: reasoning sections and tool calls, for the families in `families/`.

`choose.format_for_template` gives a model's `OutputFormat`, its `parser` reads one output. Invariants: merged
events do not depend on how the text is split; text that is neither call syntax nor a reasoning marker comes
out again; the arguments of a call that ended are one JSON object; time is linear in the length of the output.
"""
