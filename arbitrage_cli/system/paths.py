"""Where the user's own settings and measurements are kept. Knows no setting."""

from pathlib import Path

import platformdirs


def user_folder() -> Path:
    """The folder of the user's own settings and pairs, for all projects."""
    return Path(platformdirs.user_config_dir("arbitrage", appauthor=False))
