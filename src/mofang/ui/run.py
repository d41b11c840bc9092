"""Start the workbench: `python -m mofang.ui.run`, a child of launch/local.

It is told by the environment: WORKBENCH_GATEWAY (URL), WORKBENCH_KEY (optional), WORKBENCH_HOST (127.0.0.1),
WORKBENCH_PORT (8643), WORKBENCH_LANG ("zh" or "en"). These are not MOFANG_* names, because those are this machine's
settings and unknown ones are refused.
"""

import ipaddress
import os
from pathlib import Path
from typing import Any, Final

from mofang import platform, settings
from mofang.ui import shell, theme

SCRIPT: Final = Path(__file__).parent / "script" / "workbench.py"


def streamlit_options(host: str, port: int, upload_mb: int) -> dict[str, Any]:
    """Every option that differs from Streamlit's defaults, or that safety rests on."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": upload_mb,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        # A name that points at 127.0.0.1 (DNS rebinding) is not one of ours.
        "server.allowedHosts": ["localhost", "127.0.0.1", "::1"] if is_loopback(host) else ["*"],
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "client.showSidebarNavigation": False,
        "runner.magicEnabled": False,
        # A full collection after each run of a script or fragment: five a second for every answer that is watched, and most
        # of this process's time with twenty of them. Python collects by itself (tests/ui/test_ui_soak.py looks at memory).
        "runner.postScriptGC": False,
        "global.disableWidgetStateDuplicationWarning": True,  # a form that a step before has filled in has defaults too
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
        **theme.options(),
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """Serve until the parent ends or a signal comes."""
    platform.end_with_parent()
    host = os.environ.get("WORKBENCH_HOST", "127.0.0.1")
    port = int(os.environ.get("WORKBENCH_PORT", "8643"))
    if not is_loopback(host):
        # Whoever reaches this page would act with our key: there, everyone brings their own.
        os.environ.pop("WORKBENCH_KEY", None)
    from streamlit.starlette import App

    app = App(SCRIPT, routes=shell.routes(), middleware=shell.middleware())
    app.run(config=streamlit_options(host, port, settings.load().upload_limit_mb))


if __name__ == "__main__":
    main()
