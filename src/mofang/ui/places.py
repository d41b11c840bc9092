"""The workbench's pages: one file in pages/ and one line here each. Loads none of them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Place:
    """A page: the module whose page() draws it, its address, its icon in the sidebar. Its title is page_<name>."""

    module: str
    path: str
    icon: str


PLACES: Final = {
    "chat": Place("mofang.ui.pages.chat", "", "chat_bubble"),
    "models": Place("mofang.ui.pages.models", "models", "deployed_code"),
    "train": Place("mofang.ui.pages.train", "train", "school"),
    "quantize": Place("mofang.ui.pages.quantize", "quantize", "compress"),
    "knowledge": Place("mofang.ui.pages.knowledge", "knowledge", "menu_book"),
    "lens": Place("mofang.ui.pages.lens", "lens", "biotech"),
    "concepts": Place("mofang.ui.pages.concepts", "concepts", "lightbulb"),
    "system": Place("mofang.ui.pages.system", "system", "monitor_heart"),
}
"""In the sidebar's order. The first is the one at the address itself."""
