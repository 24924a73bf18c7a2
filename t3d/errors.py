"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A problem with what the user gave: one line that names the file and the remedy.

    The command line prints it as `t3d: error: …` and exits with code 2; `--debug` shows the
    traceback.
    """
