"""Where the user's own settings and measurements are kept. Knows no setting."""

from pathlib import Path

import platformdirs

from arbitrage_cli.errors import UsageError


def user_folder() -> Path:
    """The folder of the user's own settings and pairs, for all projects. UsageError if the user has no home folder."""
    try:
        return Path(platformdirs.user_config_dir("arbitrage", appauthor=False))
    except RuntimeError as error:
        raise UsageError("the home folder of this user is not known", "set HOME, or XDG_CONFIG_HOME") from error
