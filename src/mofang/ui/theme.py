"""Colours and type of the workbench as Streamlit options: warm paper and ink, one accent of bamboo green, light and dark.

No web font: the first Chinese font that the system has. Every pair of text and background here has a contrast of at
least 4.5 to 1 (WCAG 2.2 AA); tests/ui computes it.
"""

from typing import Any, Final

SANS: Final = (
    "'PingFang SC', 'HarmonyOS Sans SC', 'MiSans', 'Microsoft YaHei UI', 'Microsoft YaHei', "
    "'Noto Sans CJK SC', 'Noto Sans SC', 'Source Han Sans SC', 'WenQuanYi Micro Hei', system-ui, sans-serif"
)
MONO: Final = (
    "ui-monospace, 'SF Mono', 'Cascadia Mono', Consolas, 'Liberation Mono', 'DejaVu Sans Mono', "
    "'Noto Sans Mono CJK SC', monospace"
)

LIGHT: Final[dict[str, Any]] = {
    "primaryColor": "#1d6f5f",
    "backgroundColor": "#fcfbf8",
    "secondaryBackgroundColor": "#f3f1ea",
    "textColor": "#23262b",
    "linkColor": "#1d6f5f",
    "borderColor": "#e3dfd4",
    "codeBackgroundColor": "#f5f3ed",
    "codeTextColor": "#23262b",
    "redColor": "#b3392f",
    "orangeColor": "#9a5a10",
    "greenColor": "#1d6f5f",
    "grayColor": "#68655d",
    "chartCategoricalColors": ["#1d6f5f", "#b9741a"],
}
LIGHT_SIDEBAR: Final[dict[str, Any]] = {
    "backgroundColor": "#f5f3ec",
    "secondaryBackgroundColor": "#eae7dd",
    "borderColor": "#e3dfd4",
}
DARK: Final[dict[str, Any]] = {
    "primaryColor": "#5cbfa8",
    "backgroundColor": "#17191b",
    "secondaryBackgroundColor": "#212427",
    "textColor": "#e7e4dc",
    "linkColor": "#6fd0b9",
    "borderColor": "#34383c",
    "codeBackgroundColor": "#1e2123",
    "codeTextColor": "#e7e4dc",
    "redColor": "#f0877c",
    "orangeColor": "#e5a863",
    "greenColor": "#6fd0b9",
    "grayColor": "#a5a299",
    "chartCategoricalColors": ["#5cbfa8", "#e5a863"],
}
DARK_SIDEBAR: Final[dict[str, Any]] = {
    "backgroundColor": "#1d2022",
    "secondaryBackgroundColor": "#282c2f",
    "borderColor": "#34383c",
}


def options() -> dict[str, Any]:
    """Streamlit options by their dotted names. With both variants set, the page follows the system's preference."""
    shared = {
        "font": SANS,
        "headingFont": SANS,
        "codeFont": MONO,
        "baseFontSize": 16,
        "baseRadius": "0.6rem",
        "buttonRadius": "0.6rem",
        "headingFontWeights": [650, 650, 600],
        "showWidgetBorder": True,
        "showSidebarBorder": True,
        "codeFontSize": "0.875rem",
    }
    sections = {
        "theme": shared,
        "theme.light": LIGHT,
        "theme.light.sidebar": LIGHT_SIDEBAR,
        "theme.dark": DARK,
        "theme.dark.sidebar": DARK_SIDEBAR,
    }
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
