"""What goes wrong and how to get out of it: every message names the file or shape and a way on."""


class SelftaughtError(Exception):
    """Base of all errors a user can cause; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class DataError(SelftaughtError):
    """Pictures or folders that cannot be used."""

    exit_code = 2


class TooFewPicturesError(DataError):
    """A class or set holds fewer pictures than the task asks for."""

    exit_code = 3


class RunError(SelftaughtError):
    """A run folder, checkpoint or model file that is missing, half written or of another version."""

    exit_code = 4


class ConfigError(SelftaughtError):
    """Options that contradict each other or a shape that does not fit."""

    exit_code = 5


class SaveError(SelftaughtError):
    """An output could not be written; what stood there before is untouched."""

    exit_code = 6
