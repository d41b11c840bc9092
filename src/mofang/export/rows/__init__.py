"""What a new vocabulary row is made of: one file a way, by the names in ROWS."""

from mofang.registry import Entry, Registry

ROWS = Registry(
    "row",
    {
        "parts": Entry("mofang.export.rows.parts:blends", "the mean of the old tokens that spell the new one"),
        "mean": Entry("mofang.export.rows.mean:blends", "the mean of all old rows"),
        "focus": Entry("mofang.export.rows.focus:blends", "old tokens that stand in like places of a text"),
    },
)
"""way(old, new, lines, tell) → a Blend for every new token, in order; None where it has nothing to say of one.

`lines`: the texts that the recipe names, anew at each call. `tell(done)`: hears of lines read; may raise to stop.
"""

__all__ = ["ROWS"]
